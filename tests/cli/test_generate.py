"""`minillm generate`: the hint for models that answer messages, and unknown keys of config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from minillm import SamplingParams
from minillm.cli.generate import CHAT_HINT
from minillm.cli.main import main

MARKED = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
BRACKETS = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
PLAIN = "{{ bos_token }}{% for m in messages %}{{ m['content'] | trim }}\n\n{% endfor %}"
NEEDY = "{{ raise_exception('two messages, please') }}"


def said(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> tuple[str, str]:
    assert main(["generate", str(folder), "-n", "2", "--temperature", "0", *args]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def instruct(tmp_path: Path, template: str | None) -> Path:
    settings = {"bos_token": "<s>"} | ({"chat_template": template} if template else {})
    return tiny.make_folder(tmp_path / "instruct", settings=settings)


@pytest.mark.parametrize("template", [MARKED, BRACKETS])
def test_a_bare_question_to_an_instruct_model_gets_one_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str
) -> None:
    out, err = said(capsys, instruct(tmp_path, template), "-p", "the cat?")
    assert err.count(CHAT_HINT) == 1 and CHAT_HINT not in out


@pytest.mark.parametrize(
    ("template", "args"),
    [
        (MARKED, ["-p", "the cat?", "--chat"]),
        (MARKED, ["-p", "the cat?", "--quiet"]),
        (MARKED, ["-p", "the cat?", "--json"]),
        (MARKED, ["-p", "<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n"]),
        (BRACKETS, ["-p", "[INST] the cat? [/INST]"]),
        (PLAIN, ["-p", "the cat?"]),
        (NEEDY, ["-p", "the cat?"]),
        (None, ["-p", "the cat?"]),
    ],
)
def test_no_hint_where_it_is_of_no_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str | None, args: list[str]
) -> None:
    assert CHAT_HINT not in said(capsys, instruct(tmp_path, template), *args)[1]


@pytest.mark.parametrize("command", ["generate", "inspect"])
def test_an_unknown_key_is_let_through_by_name_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    folder = tiny.make_folder(tmp_path / "model", tiny.config(my_key=1, other_key=2))
    words = [command, str(folder), *(["-p", "the cat", "-n", "2"] if command == "generate" else [])]
    for allowed in ([], ["my_key"], ["other_key"], ["my_key,other_key"]):
        options = [word for key in allowed for word in ("--allow-config-key", key)]
        assert main([*words, *options]) == 4
        refusal = capsys.readouterr().err
        assert "--allow-config-key" in refusal and refusal.count("\n") == 1
    options = ["--allow-config-key", "my_key", "--allow-config-key", "other_key"]
    assert main([*words, *options]) == 0
    captured = capsys.readouterr()
    assert "my_key" in captured.out + captured.err and "other_key" in captured.out + captured.err


def test_an_allowed_key_is_on_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.make_folder(tmp_path / "model", tiny.config(my_key=1))
    option = ["--allow-config-key", "my_key"]
    text, stats = said(capsys, folder, "-p", "the cat", *option)
    assert "config keys not understood: my_key" in stats
    answer = json.loads(said(capsys, folder, "-p", "the cat", "--json", *option)[0])
    assert answer["envelope"]["allowed_config_keys"] == "my_key" and answer["text"] + "\n" == text
    plain = tiny.make_folder(tmp_path / "plain")
    assert said(capsys, plain, "-p", "the cat", *option)[0] == text
    assert "not understood" not in said(capsys, plain, "-p", "the cat", *option)[1], "control: not needed"


def test_quantised_weights_give_the_tokens_of_the_api(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for option, scheme in (([], None), (["--quantization", "int4"], "int4")):
        answer = json.loads(said(capsys, folder, "-p", "the cat", "-n", "16", "--json", *option)[0])
        llm = tiny.load(folder, quantization=scheme)
        expected = llm.generate("the cat", SamplingParams(max_tokens=16, temperature=0.0))[0]
        assert answer["token_ids"] == expected.token_ids
        assert answer["envelope"]["execution"] == expected.envelope["execution"]
        found.append(answer["token_ids"])
    assert found[0] != found[1], "control: the option counts"
