"""Token ids and chat prompts equal those of transformers, which `make_text_references.py` wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import side_files
import tiny
from tokenizers import Tokenizer as RustTokenizer

from minillm.errors import TokenizerError, UsageError
from minillm.text.tokenizer import Tokenizer

HERE = Path(__file__).parent
REFERENCES: dict[str, Any] = json.loads((HERE / "references.json").read_text(encoding="utf-8"))
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(HERE.glob("templates/*.jinja"))}
HELLO = [{"role": "user", "content": "the cat"}]


@pytest.mark.parametrize("name", side_files.FOLDERS)
def test_token_ids_equal_transformers(tmp_path: Path, name: str) -> None:
    side_files.write_folder(tmp_path, name)
    tokenizer = Tokenizer(tmp_path)
    expected = REFERENCES["folders"][name]
    for text, reference in zip(side_files.TEXTS, expected, strict=True):
        ids = reference["ids"]
        doubled = ids[:2] == [tiny.BOS] * 2 and side_files.FOLDERS[name][0]
        assert tokenizer.encode(text) == (ids[1:] if doubled else ids), "only a BOS that was added may go"
        assert tokenizer.decode(ids) == reference["text"]


def test_control_the_files_beside_matter(tmp_path: Path) -> None:
    """tokenizer.json alone gives other ids or another text in most cases."""
    same = [
        name
        for name, (adds_bos, files) in side_files.FOLDERS.items()
        if files and as_written(tiny.byte_level_tokenizer(adds_bos), name)
    ]
    assert len(same) <= len(side_files.FOLDERS) / 2


def as_written(rust: RustTokenizer, name: str) -> bool:
    return all(
        rust.encode(text).ids == reference["ids"] and rust.decode(reference["ids"]) == reference["text"]
        for text, reference in zip(side_files.TEXTS, REFERENCES["folders"][name], strict=True)
    )


@pytest.mark.parametrize("talk", side_files.TALKS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_prompts_equal_transformers(tmp_path: Path, name: str, talk: str) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tiny.byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    expected = REFERENCES["templates"][name][talk]
    tokenizer = Tokenizer(tmp_path)
    if expected is None:
        with pytest.raises(UsageError, match="chat template"):
            tokenizer.apply_chat_template(**side_files.TALKS[talk], tokenize=False)
    else:
        assert tokenizer.apply_chat_template(**side_files.TALKS[talk], tokenize=False) == expected


def test_control_the_references_hold_prompts_and_refusals() -> None:
    found = [prompt for prompts in REFERENCES["templates"].values() for prompt in prompts.values()]
    assert TEMPLATES.keys() == REFERENCES["templates"].keys()
    assert None in found and len(set(found)) > len(found) / 2


# ---- what is refused ------------------------------------------------------------------------------


def with_files(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    tiny.byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("token_id", [side_files.SIZE + 1, 5, 151644])
def test_a_token_that_would_get_another_id(tmp_path: Path, token_id: int) -> None:
    """transformers gives it the next free id without a word: another row of the embedding."""
    decoder = {"added_tokens_decoder": {str(token_id): side_files.token("<|im_start|>")}}
    for files in ({"tokenizer_config": decoder}, {"added_tokens": {"<|im_start|>": token_id}}):
        folder = tmp_path / next(iter(files))
        with pytest.raises(TokenizerError, match=rf"im_start.*{token_id}.*{side_files.SIZE}"):
            Tokenizer(with_files(folder, **files))


@pytest.mark.parametrize(
    "entries",
    [5, [1], {"x": {"content": "a"}}, {"-1": {"content": "a"}}, {"1": 5}, {"1": {}},
     {"9" * 400: {"content": "a"}}, {"1": {"content": 5}}, {"1": {"content": "a", "lstrip": "maybe"}},
     {"1": {"content": "\ud800"}}],
)  # fmt: skip
def test_malformed_added_tokens(tmp_path: Path, entries: Any) -> None:
    with pytest.raises(TokenizerError, match="added"):
        Tokenizer(with_files(tmp_path, tokenizer_config={"added_tokens_decoder": entries}))


def test_the_digest_is_of_added_tokens_too(tmp_path: Path) -> None:
    plain = Tokenizer(with_files(tmp_path / "plain")).digest
    named = Tokenizer(with_files(tmp_path / "named", tokenizer_config={"bos_token": "<s>"})).digest
    added = Tokenizer(with_files(tmp_path / "added", added_tokens={"<x>": side_files.SIZE})).digest
    assert plain == named != added


def test_a_named_token_beyond_the_model(tmp_path: Path) -> None:
    """A pad token that only a name file knows, and no row of the embedding: a prompt must not use it."""
    cfg = tiny.config(vocab_size=side_files.SIZE)
    llm = tiny.load(tiny.make_folder(tmp_path, cfg, settings={"pad_token": "<pad>"}))
    assert llm.engine.model.num_token_ids == side_files.SIZE
    llm.generate("the cat")
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        llm.generate("the <pad>")


# ---- named templates, and errors ------------------------------------------------------------------


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    made = Tokenizer(with_files(tmp_path, tokenizer_config={"chat_template": named}))
    assert made.apply_chat_template(HELLO, tokenize=False) == "plain"
    assert made.apply_chat_template(HELLO, tokenize=False, tools=side_files.TOOLS) == "tools"
    assert made.apply_chat_template(HELLO, tokenize=False, chat_template="tool_use") == "tools"
    given = made.apply_chat_template(HELLO, tokenize=False, chat_template="{{ messages[0].content }}!")
    assert given == "the cat!"


def test_template_files_win(tmp_path: Path) -> None:
    with_files(tmp_path, tokenizer_config={"chat_template": "settings"})
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    made = Tokenizer(tmp_path)
    with pytest.raises(UsageError, match=r"no default.*rag"):
        made.apply_chat_template(HELLO)
    assert made.apply_chat_template(HELLO, tokenize=False, chat_template="rag") == "rag"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer(tmp_path).apply_chat_template(HELLO, tokenize=False) == "file"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("\n{% for %}", "not valid in line 2"),
        ("{% break %}", "not valid in line"),
        ("{{ x | no_such_filter }}", r"not valid in line 1.*no_such_filter"),
        ("{{ raise_exception('no system role') }}", "refused the messages: no system role"),
        ("{{ messages[0].content + 1 }}", "failed"),
    ],
)
def test_errors_of_templates_say_what_they_are(tmp_path: Path, template: str, message: str) -> None:
    made = Tokenizer(with_files(tmp_path, tokenizer_config={"chat_template": template}))
    with pytest.raises(UsageError, match=f"chat template.* {message}"):
        made.apply_chat_template(HELLO)


def test_only_plain_values_reach_a_template(tmp_path: Path) -> None:
    """A method of a caller's object is no part of a conversation."""
    made = Tokenizer(with_files(tmp_path, tokenizer_config={"chat_template": "{{ x }}{{ tools }}"}))
    for given in ({"x": Path("/")}, {"x": [{"a": print}]}, {"tools": [print]}):
        with pytest.raises(UsageError, match="cannot be given"):
            made.apply_chat_template(HELLO, **given)


# ---- stop strings ---------------------------------------------------------------------------------


def test_a_special_token_as_stop_string(tmp_path: Path) -> None:
    cfg = tiny.config(eos_token_id=None)
    model = tiny.load(tiny.make_folder(tmp_path, cfg, settings={"pad_token": "<s>"})).engine.model
    tokenizer = model.require_tokenizer()
    assert tokenizer.stop_token_ids(("</s>", "the cat")) == (tiny.EOS,)
    assert tokenizer.stop_token_ids(("the cat",)) == ()
    with pytest.raises(UsageError, match="stop_token_ids"):
        tokenizer.stop_token_ids(("</s>\n",))
