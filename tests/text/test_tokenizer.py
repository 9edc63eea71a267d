"""Text to ids: never two BOS, ends of text by precedence, chat templates that cannot reach out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from minillm import SamplingParams
from minillm.errors import MinillmError, TokenizerError, UnsupportedModel, UsageError
from minillm.text.tokenizer import Tokenizer

NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
HELLO = [{"role": "user", "content": "the cat"}]


def tokenizer(folder: Path, bos: bool = False, **settings: Any) -> Tokenizer:
    tiny.byte_level_tokenizer(bos).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMED | settings))
    return Tokenizer(folder)


# ---- BOS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes_bos", [False, True])
@pytest.mark.parametrize("add_bos_token", [None, False, True])
@pytest.mark.parametrize("text", ["the cat", "<s>the cat"])
def test_never_two_bos(tmp_path: Path, writes_bos: bool, add_bos_token: bool | None, text: str) -> None:
    settings = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    """tokenizer.json alone decides, as in transformers 5."""
    ids = tokenizer(tmp_path, writes_bos, **settings).encode(text)
    assert ids.count(tiny.BOS) == (1 if writes_bos or text.startswith("<s>") else 0)
    assert ids[-1] == tokenizer(tmp_path).encode("the cat")[-1]


def test_control_the_library_alone_would_write_two(tmp_path: Path) -> None:
    assert tokenizer(tmp_path, bos=True).rust.encode("<s>the cat").ids[:2] == [tiny.BOS, tiny.BOS]


@pytest.mark.parametrize("config_bos", [None, tiny.BOS])
def test_a_bos_that_the_user_wrote_is_never_dropped(tmp_path: Path, config_bos: int | None) -> None:
    """Qwen: config.json names a BOS, the tokenizer names none and adds none."""
    tiny.byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": None, "add_bos_token": False}))
    made = Tokenizer(tmp_path, config_bos)
    for count in range(3):
        assert made.encode("<s>" * count + "the cat").count(tiny.BOS) == count


def test_bos_given_as_an_object(tmp_path: Path) -> None:
    made = tokenizer(tmp_path, bos=True, bos_token={"content": "<s>", "special": True})
    assert made.bos_token_id == tiny.BOS and made.encode("a")[0] == tiny.BOS


def test_a_template_that_writes_bos(tmp_path: Path) -> None:
    made = tokenizer(
        tmp_path, bos=True, add_bos_token=True, chat_template="{{bos_token}}{{messages[0].content}}"
    )
    assert made.apply_chat_template(HELLO).count(tiny.BOS) == 1


# ---- the public face ------------------------------------------------------------------------------

CHAT = (
    "{{bos_token}}{% for m in messages %}[{{m.role}}]{{m.content}}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)


def test_the_tokenizer_of_an_llm(tmp_path: Path) -> None:
    """What generate, chat and the stop at the end of text use, under one name and its alias."""
    folder = tiny.make_folder(
        tmp_path, settings=NAMED | {"chat_template": CHAT}, generation={"eos_token_id": [7, 8]}
    )
    llm = tiny.load(folder)
    made = llm.tokenizer
    assert llm.get_tokenizer() is made
    assert made.eos_token_ids == (7, 8, tiny.EOS) == llm.engine.model.eos_token_ids
    params = SamplingParams(max_tokens=3, temperature=0)
    output = llm.generate("the cat", params)[0]
    assert output.prompt_token_ids == made.encode("the cat")
    assert made.decode(made.encode("the cat")) == "the cat"
    assert llm.chat(HELLO, params).prompt_token_ids == made.apply_chat_template(HELLO)
    text = made.apply_chat_template(HELLO, tokenize=False)
    assert text == "<s>[user]the cat>"
    assert made.encode(text, add_special_tokens=False) == made.apply_chat_template(HELLO)
    assert made.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=False) == "<s>[user]the cat"


def test_special_tokens_are_left_out_of_decoded_text_unless_asked_for(tmp_path: Path) -> None:
    made = tokenizer(tmp_path)
    ids = [tiny.BOS, *made.encode("the cat"), tiny.EOS]
    assert made.decode(ids) == "the cat"
    assert made.decode(tuple(ids), skip_special_tokens=False) == "<s>the cat</s>"
    assert made.decode([]) == ""


@pytest.mark.parametrize("bad", [-1, "last", True, 1.0, None, "1"])
def test_decode_refuses_what_is_no_token_id(tmp_path: Path, bad: Any) -> None:
    made = tokenizer(tmp_path)
    assert made.decode([made.num_token_ids - 1]) == made.rust.decode([made.num_token_ids - 1])
    with pytest.raises(UsageError, match=f"index 1 .* to {made.num_token_ids - 1}"):
        made.decode([5, made.num_token_ids if bad == "last" else bad])


@pytest.mark.parametrize("bad", ["12", 5, None, {1}])
def test_decode_takes_a_list(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(UsageError, match="list of token ids"):
        tokenizer(tmp_path).decode(bad)


@pytest.mark.parametrize("bad", [b"the cat", None, 5, ["the cat"]])
def test_encode_takes_text(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(UsageError, match="takes text"):
        tokenizer(tmp_path).encode(bad)


def test_a_folder_without_a_tokenizer_has_none_to_give(tmp_path: Path) -> None:
    folder = tiny.make_folder(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="token ids"):
        _ = tiny.load(folder).tokenizer


# ---- end of text ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 5}, 6, (5, 6, tiny.EOS)),
        ({"eos_token_id": [7, 8]}, 8, (7, 8, tiny.EOS)),
        ({"eos_token_id": []}, 6, (6, tiny.EOS)),
        ({"eos_token_id": None}, [6, tiny.EOS], (6, tiny.EOS)),
        ({}, 6, (6, tiny.EOS)),
        (None, None, (tiny.EOS,)),
        (None, [], (tiny.EOS,)),
    ],
)
def test_every_place_that_names_an_eos_counts(
    tmp_path: Path, generation: Any, config: Any, expected: tuple[int, ...]
) -> None:
    folder = tiny.make_folder(
        tmp_path, tiny.config(eos_token_id=config), settings=NAMED, generation=generation
    )
    assert tiny.load(folder).engine.model.eos_token_ids == expected


def test_a_text_ends_at_each_of_them(tmp_path: Path) -> None:
    folder = tiny.make_folder(
        tmp_path, tiny.config(eos_token_id=6), settings=NAMED, generation={"eos_token_id": 5}
    )
    for end in (5, 6, tiny.EOS):
        script = iter([30, end, 31])
        llm = tiny.load(folder, parts={"sampler": lambda logits, batch, s=script: torch.tensor([next(s)])})
        output = llm.generate([[2, 3]], SamplingParams(max_tokens=3))[0]
        assert (output.token_ids, output.finish_reason) == ([30, end], "stop")


@pytest.mark.parametrize("eos", ["</s>", [1, "x"], [None], True, 1.5])
def test_malformed_eos_is_a_typed_error(tmp_path: Path, eos: Any) -> None:
    folder = tiny.make_folder(tmp_path, generation={"eos_token_id": eos})
    with pytest.raises(UnsupportedModel, match="eos_token_id"):
        tiny.load(folder)


def test_generation_config_is_the_default(tmp_path: Path) -> None:
    generation = {"temperature": 0.5, "top_k": 7, "top_p": None, "max_new_tokens": 9, "other": [1]}
    folder = tiny.make_folder(tmp_path, generation=generation)
    assert tiny.load(folder).default_params == SamplingParams(temperature=0.5, top_k=7, max_tokens=9)
    tiny.make_folder(tmp_path, generation={"do_sample": False, "temperature": 0.5})
    assert tiny.load(folder).default_params.temperature == 0
    tiny.make_folder(tmp_path, generation={"stop_strings": "cat", "num_beams": 1, "min_length": 0})
    assert tiny.load(tmp_path).default_params.stop == ("cat",)
    for bad in ({"top_p": 7}, {"temperature": "warm"}, {"eos_token_id": "</s>"}):
        tiny.make_folder(tmp_path, generation=bad)
        with pytest.raises(MinillmError, match=rf"generation_config\.json: {next(iter(bad))}"):
            tiny.load(folder)


# ---- text that is none ----------------------------------------------------------------------------


def test_lone_surrogates_are_refused(tmp_path: Path, llm: Any) -> None:
    with pytest.raises(UsageError, match="Unicode"):
        tokenizer(tmp_path).encode("a\ud800b")
    with pytest.raises(UsageError, match="prompt 1"):
        llm.generate(["a", "\udcff"])


def test_text_without_tokens_is_an_empty_prompt(tmp_path: Path) -> None:
    """A tokenizer may drop all it does not know; a request without tokens would never start."""
    dropping = RustTokenizer(models.BPE({"a": 0}, []))
    assert dropping.encode("zzz").ids == []
    llm = tiny.load(tiny.make_folder(tmp_path, tokenizer=dropping))
    with pytest.raises(UsageError, match="empty"):
        llm.generate("zzz")
    assert tiny.all_free(llm)


def test_damaged_tokenizer_files(tmp_path: Path) -> None:
    folder = tiny.make_folder(tmp_path)
    for name in ("tokenizer_config.json", "generation_config.json"):
        for content in (b"{", b"[1]", b"\xff\xfe"):
            (folder / name).write_bytes(content)
            with pytest.raises(TokenizerError, match=name):
                tiny.load(folder)
        (folder / name).unlink()
    (folder / "chat_template.jinja").write_bytes(b"\xff\xff")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja"):
        tiny.load(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError) as caught:
        tiny.load(folder)
    assert caught.value.exit_code == 6 and caught.value.hint


# ---- chat templates -------------------------------------------------------------------------------

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ raise_exception.__globals__.json }}",
    "{{ strftime_now.__globals__['json'] }}",
    "{{ self.__init__.__globals__ }}",
    "{{ ('%s' | attr('__class__')).x }}",
    "{{ '{0.__class__.__mro__}'.format(1).x.y }}",
    "{% set _ = messages.append(1) %}",
    "{% set _ = messages[0].update(role='x') %}",
    "{% include '/etc/hostname' %}",
    "{% for i in range(10**9) %}{% endfor %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_templates_cannot_reach_out(tmp_path: Path, template: str) -> None:
    messages = [dict(HELLO[0])]
    with pytest.raises(UsageError, match="chat template"):
        tokenizer(tmp_path, chat_template=template).apply_chat_template(messages, tokenize=False)
    assert messages == HELLO


def test_control_a_plain_environment_would_let_them() -> None:
    import jinja2

    assert "type" in jinja2.Environment().from_string(ESCAPES[0]).render()


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ x.y.z }}",
        "{% for %}",
        "{{ raise_exception('roles\nmust alternate') }}",
    ],
)
def test_a_failing_template_is_one_line(tmp_path: Path, template: str) -> None:
    with pytest.raises(UsageError) as caught:
        tokenizer(tmp_path, chat_template=template).apply_chat_template(HELLO, tokenize=False)
    assert "\n" not in str(caught.value) and caught.value.hint
    if "raise_exception" in template:
        assert "roles must alternate" in caught.value.message


def test_where_a_template_comes_from(tmp_path: Path) -> None:
    assert tokenizer(tmp_path).chat_template is None
    with pytest.raises(UsageError, match="no chat template"):
        tokenizer(tmp_path).apply_chat_template(HELLO, tokenize=False)
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert tokenizer(tmp_path, chat_template=named).apply_chat_template(HELLO, tokenize=False) == "yes"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}{{ eos_token }}")
    assert (
        tokenizer(tmp_path, chat_template="loses").apply_chat_template(HELLO, tokenize=False) == "the cat</s>"
    )


def test_a_template_is_asked_for_the_assistants_turn(tmp_path: Path) -> None:
    template = "{{ messages[0].content }}{% if add_generation_prompt %} the mat{% endif %}"
    made = tokenizer(tmp_path, chat_template=template)
    assert made.apply_chat_template(HELLO, tokenize=False) == "the cat the mat"
    assert made.apply_chat_template(HELLO) == made.encode("the cat the mat", add_special_tokens=False)
    assert made.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=False) == "the cat"


# ---- ids ------------------------------------------------------------------------------------------


def test_a_vocabulary_with_gaps(tmp_path: Path) -> None:
    """The highest id counts, and not how many there are: those in the gaps have no text, but a row."""
    vocab = {"a": 0, "b": 3, "c": 7}
    RustTokenizer(models.WordLevel(vocab, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    made = Tokenizer(tmp_path)
    assert made.num_token_ids == 8
    assert made.decode([3, 5, 7]).split() == ["b", "c"]
    other = tmp_path / "other"
    other.mkdir()
    moved = RustTokenizer(models.WordLevel({"a": 0, "b": 4, "c": 7}, unk_token="a"))
    moved.save(str(other / "tokenizer.json"))
    assert (
        Tokenizer(other).vocabulary_digest != made.vocabulary_digest == Tokenizer(tmp_path).vocabulary_digest
    )


@pytest.mark.parametrize(
    "messages",
    [None, [], "hi", {}, {"role": "user", "content": "x"}, [1], ["x"], [{}], [{"role": "user"}],
     [{"role": "user", "content": None}], [{"role": 1, "content": "x"}], 5],
)  # fmt: skip
@pytest.mark.parametrize("on_overflow", ["refuse", "drop_oldest"])
def test_malformed_messages(tmp_path: Path, messages: Any, on_overflow: str) -> None:
    llm = tiny.load(tiny.make_folder(tmp_path, settings=NAMED | {"chat_template": "{{ messages }}"}))
    with pytest.raises(UsageError, match="message"):
        llm.chat(messages, on_overflow=on_overflow)


def test_chat_that_does_not_fit(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    llm = tiny.load(
        tiny.make_folder(tmp_path, settings=NAMED | {"chat_template": template}), max_model_len=20
    )
    turns = [{"role": "system", "content": "S"}] + [{"role": "user", "content": c * 8} for c in "wxyz"]
    with pytest.raises(UsageError, match="context"):
        llm.chat(turns)
    answer = llm.chat(turns, SamplingParams(max_tokens=1), on_overflow="drop_oldest")
    assert answer.dropped_messages == [1, 2]
    alternating = "{% if messages[0].role != 'user' %}{{ raise_exception('roles') }}{% endif %}" + template
    strict = tiny.load(
        tiny.make_folder(tmp_path / "strict", settings=NAMED | {"chat_template": alternating}),
        max_model_len=20,
    )
    talk = [{"role": role, "content": "w" * 6} for role in ("user", "assistant", "user", "assistant", "user")]
    left_out = strict.chat(talk, SamplingParams(max_tokens=1), on_overflow="drop_oldest").dropped_messages
    assert left_out == [0, 1, 2, 3], "an answer goes with its question; half of the room is free then"
    with pytest.raises(UsageError, match="on_overflow"):
        llm.chat(turns, on_overflow="newest")
    with pytest.raises(UsageError, match="context"):
        llm.chat([{"role": "user", "content": "w" * 50}], on_overflow="drop_oldest")
