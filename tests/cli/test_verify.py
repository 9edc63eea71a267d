"""`minillm verify same`: what differs is named first, and any file gives an answer or one line of error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from minillm import SamplingParams
from minillm.cli.generate import as_json
from minillm.cli.main import main
from minillm.cli.verify import DIFFERENT
from minillm.engine.envelope import ExecutionEnvelope
from minillm.engine.parts import Parts
from minillm.engine.prompt import ids_digest
from minillm.engine.record import make_envelope
from minillm.engine.same import COMPONENTS
from minillm.memory.envelope import KVEnvelope

Saved = dict[str, Any]
PARAMS = SamplingParams(max_tokens=6, seed=3, stop=("cat", "dog"))
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[Saved, ExecutionEnvelope]:
    llm = tiny.load(folder, backend="reference")
    answer = as_json(llm.generate("the cat sat", PARAMS)[0], "model")
    return answer, make_envelope(llm.engine.model, llm.config, Parts())


@pytest.fixture
def saved(made: tuple[Saved, ExecutionEnvelope]) -> Saved:
    return json.loads(json.dumps(made[0]))


@pytest.fixture
def same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Saved]]:
    """Compare two outputs: the exit code and the JSON object."""

    def run(a: Saved, b: Saved) -> tuple[int, Saved]:
        for name, content in (("a.json", a), ("b.json", b)):
            (tmp_path / name).write_text(json.dumps(content))
        code = main(["verify", "same", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def differing(report: Saved) -> list[str]:
    return [aspect["name"] for aspect in report["aspects"] if not aspect["same"]]


def test_an_output_is_the_same_as_itself(saved: Saved, same: Any) -> None:
    other = saved | {"metrics": {}, "prompt_tokens": 99, "error": "other", "text": "other"}
    for b in (saved, other):
        code, report = same(saved, b)
        assert (code, report["same"], report["first_difference"], differing(report)) == (0, True, None, [])


ALL = [f.name for kind in (KVEnvelope, ExecutionEnvelope) for f in fields(kind) if f.name != "kv"]


@pytest.mark.parametrize("component", ALL)
def test_each_component_is_named(
    made: tuple[Saved, ExecutionEnvelope], saved: Saved, same: Any, component: str
) -> None:
    kept = made[1]
    own = component not in KVEnvelope.__dataclass_fields__
    value = getattr(kept if own else kept.kv, component)
    change = {
        component: value + 1 if isinstance(value, int) else "another" if isinstance(value, str) else ["x"]
    }
    other = replace(kept, **change) if own else replace(kept, kv=replace(kept.kv, **change))
    code, report = same(saved, saved | {"envelope": other.to_dict()})
    if component == "engine_seed":  # what it gave is the seed of the request
        assert (code, differing(report)) == (0, [])
        return
    assert (code, differing(report)) == (DIFFERENT, [COMPONENTS[component][0]])
    assert report["first_difference"] == COMPONENTS[component][0]


def with_answer(saved: Saved, ids: list[int], **more: Any) -> Saved:
    return saved | {"token_ids": ids, "token_digest": ids_digest(ids)} | more


def sampled(saved: Saved, **changes: Any) -> Saved:
    return saved | {"sampling": saved["sampling"] | changes}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("prompt bytes", lambda s: s | {"prompt_digest": "0" * 64}),
        ("prompt token ids", lambda s: s | {"prompt_token_digest": "0" * 64}),
        ("seed", lambda s: s | {"seed": 4}),
        ("sampling", lambda s: sampled(s, temperature=0.999)),
        ("sampling", lambda s: sampled(s, top_k=1)),
        ("sampling", lambda s: sampled(s, max_tokens=7)),
        ("sampling", lambda s: sampled(s, stop=["cat"])),
        ("sampling", lambda s: sampled(s, ignore_eos=True)),
        ("sampling", lambda s: sampled(s, temperature=0)),
        ("answer token ids", lambda s: with_answer(s, [1, 2])),
        ("answer token ids", lambda s: with_answer(s, s["token_ids"][:-1], finish_reason="cancelled")),
    ],
)  # fmt: skip
def test_what_belongs_to_the_request_is_named(
    saved: Saved, same: Any, name: str, change: Callable[[Saved], Saved]
) -> None:
    for a, b in ((saved, change(saved)), (change(saved), saved)):
        code, report = same(a, b)
        assert (code, report["first_difference"], differing(report)) == (DIFFERENT, name, [name])


def test_what_has_no_effect_does_not_count(saved: Saved, same: Any) -> None:
    idle = sampled(saved, logprobs=3, deadline=9.0, priority=2, n=2, stop=["dog", "cat", "cat"], seed=None)
    assert same(saved, idle)[0] == 0
    greedy = sampled(saved, temperature=0.0)
    for change in ({"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"temperature": -0.0}):
        assert same(greedy, sampled(greedy, **change) | {"seed": 99})[0] == 0
    assert same(greedy, sampled(greedy, repetition_penalty=1.5))[0] == DIFFERENT, "control"


def test_the_last_line_says_why_an_answer_differs(saved: Saved, same: Any) -> None:
    def note(b: Saved) -> str:
        return str(same(saved, b)[1]["aspects"][-1]["note"])

    assert "reference backend" in note(with_answer(saved, [1]))
    assert "ended early (deadline)" in note(with_answer(saved, [1], finish_reason="deadline"))
    assert note(with_answer(saved, [1]) | {"seed": 4}) == "they part at token 0"


def test_replaced_parts_are_compared_by_name(folder: Path, same: Any) -> None:
    """Two functions of one name look alike. The report says so, with and without a difference."""
    samplers = [lambda logits, batch: logits.argmax(-1), lambda logits, batch: logits.argmin(-1)]
    llms = [tiny.load(folder, backend="reference", parts={"sampler": sampler}) for sampler in samplers]
    first, second = (as_json(llm.generate([[5, 6]], PARAMS)[0], "model") for llm in llms)
    for b, code in ((first, 0), (second, DIFFERENT)):
        found, report = same(first, b)
        notes = {aspect["name"]: aspect["note"] for aspect in report["aspects"]}
        assert found == code and "by their names only" in notes["other parts"]
        assert notes["parts that write blocks"] == ""
        assert ("by their names only" in notes["answer token ids"]) == (code != 0)


# ---- three pairs that are taken for each other ----------------------------------------------------


def test_the_same_text_is_not_the_same_token_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A chat template writes the BOS itself; a text gets one from the tokenizer."""
    folder = tiny.make_folder(
        tmp_path / "model",
        tokenizer=tiny.byte_level_tokenizer(bos=True),
        settings={"chat_template": TEMPLATE},
    )
    for name, more in (("a", []), ("b", ["--chat"]), ("c", [])):
        args = ["-p", "the cat", "-n", "3", "--temperature", "0", "--json", "--quiet"]
        assert main(["generate", str(folder), *args, *more]) == 0
        (tmp_path / name).write_text(capsys.readouterr().out)
    assert main(["verify", "same", str(tmp_path / "a"), str(tmp_path / "b")]) == DIFFERENT
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "same     prompt bytes" and lines[-1] == "the first difference: prompt token ids"
    assert (
        lines[1].startswith("DIFFERS  prompt token ids") and "the same text became other tokens" in lines[1]
    )
    assert main(["verify", "same", str(tmp_path / "a"), str(tmp_path / "c")]) == 0, "control, other seeds"
    out = capsys.readouterr().out
    assert "not used: both answers are greedy" in out and out.endswith("the same answer\n")


def test_the_same_name_is_not_the_same_model(tmp_path: Path, same: Any) -> None:
    one_bit = tiny.weights(tiny.config())
    one_bit["model.norm.weight"][0] += 1e-6
    folders = [
        tiny.make_folder(tmp_path / "a" / "model"),
        tiny.make_folder(tmp_path / "b" / "model", tensors=one_bit),
        tiny.make_folder(tmp_path / "c" / "model", tiny.config(rope_theta=9999.0)),
    ]
    answers = [as_json(tiny.load(f).generate([[5, 6]], PARAMS)[0], f.name) for f in folders]
    _, report = same(answers[0], answers[1])
    assert report["first_difference"] == "weights"
    assert any("although both are called 'model'" in aspect["note"] for aspect in report["aspects"])
    assert same(answers[0], answers[2])[1]["first_difference"] == "config"
    assert same(answers[0], answers[0])[0] == 0


# ---- files that are no outputs --------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], good: Path, bad: Path | str) -> tuple[int, str]:
    codes = set()
    for pair in ((good, bad), (bad, good)):
        codes.add(main(["verify", "same", *map(str, pair)]))
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    (code,) = codes
    return code, captured.err


@pytest.fixture
def good(tmp_path: Path, saved: Saved) -> Path:
    path = tmp_path / "good.json"
    path.write_text(json.dumps(saved))
    return path


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[" * 200_000, "JSON"),
        (b'{"a":' * 200_000, "JSON"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"{}", "no saved output"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'{"text": "x", "envelope": {}}', "another version"),
        (b'{"text": "x", "text": "y"}', "two values"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_content_is_refused(
    tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str], content: bytes, word: str
) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    code, err = refused(capsys, good, tmp_path / "bad.json")
    assert code == 2 and word in err and "bad.json" in err and "download" not in err


def test_other_kinds_of_files_are_refused(
    tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no space
    for name in ("pipe", "folder", "loop", "huge", "missing", "a\0b", "good.json/x"):
        assert refused(capsys, good, str(tmp_path / name))[0] == 3, name


FIELDS = "format token_ids finish_reason prompt_digest prompt_token_digest token_digest sampling seed"
FIELDS += " model envelope"
BAD: list[Any] = [None, True, 1.5, [None], [True], [-1], [1 << 70], {"a": 1}, float("nan")]
TEXTS = ["x", "F" * 64, "\ud800\n"]


@pytest.mark.parametrize("key", FIELDS.split())
def test_a_field_of_another_type_is_refused(
    tmp_path: Path, good: Path, saved: Saved, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    path = tmp_path / "bad.json"
    for value in [*BAD, *([] if key == "model" else TEXTS)]:
        path.write_text(json.dumps(saved | {key: value}))
        assert refused(capsys, good, path)[0] == 2, value
    path.write_text(json.dumps({k: v for k, v in saved.items() if k != key}))
    assert refused(capsys, good, path)[0] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 1}, {"schema": 3}, {"schema": True}, {"kv": "0" * 64}, {"execution": None},
        {"dtype": "float16"}, {"backend": "native "}, {"block_size": 16.0}, {"block_size": True},
        {"torch": [[[]]]}, {"components": {}}, {"components": None},
    ],
    ids=str,
)  # fmt: skip
def test_an_envelope_that_was_changed_is_refused(
    tmp_path: Path, good: Path, saved: Saved, capsys: pytest.CaptureFixture[str], change: Saved
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(saved | {"envelope": saved["envelope"] | change}))
    assert refused(capsys, good, path)[0] == 2


def test_one_changed_place_is_refused(
    tmp_path: Path, good: Path, saved: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    envelope, path = saved["envelope"], tmp_path / "bad.json"
    components = envelope["components"]
    for name in components:
        changed = {**components, name: "0" * 64}
        path.write_text(json.dumps(saved | {"envelope": envelope | {"components": changed}}))
        assert "was changed" in refused(capsys, good, path)[1], name
    for more in ({**components, "x": "0" * 64}, dict(list(components.items())[1:])):
        path.write_text(json.dumps(saved | {"envelope": envelope | {"components": more}}))
        assert refused(capsys, good, path)[0] == 2
    path.write_text(json.dumps(saved | {"token_ids": [*saved["token_ids"], 1]}))
    assert "token_digest" in refused(capsys, good, path)[1]


@pytest.mark.parametrize("change", [{"temperature": -1}, {"top_k": True}, {"stop": 5}, {"more": 1}], ids=str)
def test_sampling_that_cannot_be_is_refused(
    tmp_path: Path, good: Path, saved: Saved, capsys: pytest.CaptureFixture[str], change: Saved
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(sampled(saved, **change)))
    assert refused(capsys, good, path)[0] == 2


def test_the_command_needs_two_files(capsys: pytest.CaptureFixture[str], good: Path) -> None:
    for words in (["same"], ["same", str(good)], ["same", "a", "b", "c"]):
        with pytest.raises(SystemExit) as ended:
            main(["verify", *words])
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["verify", "sane", "a", "b"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_torch_and_without_asserts(good: Path, tmp_path: Path) -> None:
    """Comparing two files takes no seconds, and `python -O` keeps the checks."""
    (tmp_path / "bad.json").write_text("{}")
    program = (
        "import sys; from minillm.cli.main import main;"
        "codes = [main(['verify', 'same', sys.argv[1], name]) for name in sys.argv[1:]];"
        "print(codes, 'torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-O", "-c", program, str(good), str(tmp_path / "bad.json")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.splitlines()[-1] == "[0, 2] False"
