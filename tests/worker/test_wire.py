"""Steps as bytes: real steps are encoded and decoded, run in another process, and damaged."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import drafting
import pytest
import remote_worker
import tiny
import torch

import minillm.worker.wire as wire
from minillm import LLM, SamplingParams
from minillm.errors import WireError
from minillm.ops.sampling import SamplingBatch
from minillm.worker.step import DraftRows, Draws, StepInput, StepOutput
from minillm.worker.wire import from_bytes, to_bytes

PROMPTS = [[(i * 7919 + j * 104_729) % 300 for j in range(length)] for i, length in enumerate((1, 21, 40))]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return drafting.make_pair(tmp_path_factory.mktemp("pair"))


def options_of(name: str, draft: Path) -> dict[str, Any]:
    common: dict[str, Any] = {"backend": "native", "kv_memory": "2MiB", "prefill_chunk": 16, "block_size": 8}
    if name == "plain":
        return common
    common |= {"draft_model": str(draft), "adaptive_draft": False}
    if name == "tree":
        return common | {"draft_tree": (2, 1)}
    return common | {"num_draft_tokens": 3} | ({"draft_verification": name} if name == "rejection" else {})


NAMES = ["plain", "chain", "tree", "rejection"]


def params() -> list[SamplingParams]:
    return [
        SamplingParams(max_tokens=9, temperature=0.0, logprobs=3, ignore_eos=True),
        SamplingParams(
            max_tokens=9,
            temperature=1.1,
            seed=2**64 - 1,
            repetition_penalty=1.3,
            top_k=40,
            n=2,
            ignore_eos=True,
        ),
        SamplingParams(
            max_tokens=7, temperature=0.7, top_p=0.9, min_p=0.01, logprobs=0, n=3, ignore_eos=True
        ),
    ]


def answers(llm: LLM) -> list[Any]:
    outputs = llm.generate(PROMPTS, params())
    return [[(c.token_ids, c.logprobs, c.text) for c in output.outputs] for output in outputs]


@contextmanager
def captured(llm: LLM) -> Iterator[list[tuple[bytes, bytes]]]:
    """(input, output) of every step as bytes, encoded before and after the step."""
    frames, execute = list[tuple[bytes, bytes]](), llm.engine.worker.execute

    def capturing(step: StepInput) -> StepOutput:
        sent = to_bytes(step)
        assert same(from_bytes(sent), step)
        output = execute(step)
        assert same(from_bytes(to_bytes(output)), output)
        frames.append((sent, to_bytes(output)))
        return output

    llm.engine.worker.execute = capturing  # type: ignore[method-assign]
    yield frames
    llm.engine.worker.execute = execute  # type: ignore[method-assign]


def same(a: Any, b: Any) -> bool:
    """Whether two values have the same types and equal fields; tensors must have equal bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        names = [f.name for f in dataclasses.fields(a)]
        return type(a) is type(b) and all(same(getattr(a, n), getattr(b, n)) for n in names)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


@pytest.fixture(scope="module")
def frames(pair: tuple[Path, Path]) -> dict[str, list[tuple[bytes, bytes]]]:
    """The encoded steps of one generation of each kind."""
    found = {}
    for name in NAMES:
        llm = tiny.load(pair[0], **options_of(name, pair[1]))
        with captured(llm) as made:
            answers(llm)
        found[name] = made
    return found


def test_the_steps_hold_everything_that_a_step_can_hold(frames: dict[str, list[tuple[bytes, bytes]]]) -> None:
    steps = {name: [from_bytes(sent) for sent, _ in made] for name, made in frames.items()}
    everything: list[Any] = [step for made in steps.values() for step in made]
    for field in dataclasses.fields(StepInput):
        assert any(getattr(step, field.name) for step in everything), field.name
    rows = [row for step in steps["rejection"] for row in step.verify]  # type: ignore[union-attr]
    assert any(row.probs is not None and row.accept_keys and row.replace_key for row in rows)
    assert any(row.seen for row in rows) and any(row.top is not None for row in rows)
    outputs: list[Any] = [from_bytes(back) for made in frames.values() for _, back in made]
    assert any(output.decode and any(output.decode.logprobs) for output in outputs)
    assert any(result.logprobs for output in outputs for result in output.verify)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_go_there_and_back(frames: dict[str, list[tuple[bytes, bytes]]], name: str) -> None:
    for data in (frame for both in frames[name] for frame in both):
        assert to_bytes(from_bytes(data)) == data


@pytest.mark.parametrize("name", NAMES)
def test_a_generation_in_another_process(pair: tuple[Path, Path], name: str) -> None:
    """With the worker in another process, tokens and log-probabilities have the same bits."""
    options = options_of(name, pair[1])
    here = tiny.load(pair[0], **options)
    expected = answers(here)
    command = [sys.executable, remote_worker.__file__, str(pair[0]), json.dumps(options)]
    helpers = str(Path(remote_worker.__file__).parent)
    package = str(Path(wire.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([helpers, package])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin and process.stdout and remote_worker.receive(process.stdout) == b"ready"
        pipes, steps = (process.stdin, process.stdout), list[StepInput]()

        def execute(step: StepInput) -> Any:
            steps.append(step)
            remote_worker.send(pipes[0], to_bytes(step))
            back = remote_worker.receive(pipes[1])
            assert back is not None, "the other process has ended"
            return from_bytes(back)

        llm = tiny.load(pair[0], **options)
        for tensor in (*llm.engine.worker.runner.cache.k, *llm.engine.worker.runner.cache.v):
            tensor.fill_(float("nan"))  # this process must not compute anything
        llm.engine.worker.execute = execute  # type: ignore[method-assign]
        found = answers(llm)
        process.stdin.close()
        assert process.wait(60) == 0
    assert found == expected and len(steps) > 8
    assert tiny.all_free(llm)


def test_nothing_on_the_wire_can_run_anything() -> None:
    """No pickle, marshal or eval: the module imports only what its docstring names."""
    tree = ast.parse(Path(wire.__file__).read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
        )
    }
    assert not imported & {"pickle", "marshal", "shelve", "dill", "copyreg", "importlib", "builtins"}
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not called & {"eval", "exec", "__import__", "compile"}
    loads = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.startswith("load")}
    assert loads == {"loads"}, "only json.loads"


# ---- damaged bytes ----------------------------------------------------------------------------------


def is_step(data: bytes) -> bool:
    """Whether the bytes decode to a complete step. Otherwise they must raise WireError and nothing else."""
    try:
        step = from_bytes(data)
    except WireError:
        return False
    assert isinstance(step, StepInput | StepOutput)
    assert_whole(step)
    return True


def assert_whole(step: Any) -> None:
    """Assert that every value has its declared type, so that the step can be encoded and decoded again."""
    again = from_bytes(to_bytes(step))
    assert repr(again) == repr(step)
    if isinstance(step, StepInput):
        assert isinstance(step.num_token_ids, int)
        for draws in (step.prefill_draws, step.decode_draws):
            assert draws is None or (isinstance(draws, Draws) and isinstance(draws.batch, SamplingBatch))
        assert all(isinstance(row, DraftRows) for row in step.verify)
        tables = [*(row.block_table for row in (*step.prefill, *step.decode))]
        assert all(isinstance(block, int) for table in tables for block in table)
        assert all(len(copy) == 2 for copy in (*step.fork_copies, *step.branch_copies))


def examples(frames: dict[str, list[tuple[bytes, bytes]]]) -> list[bytes]:
    """The shortest and a middle frame of each kind; together they contain every record."""
    found = []
    for made in frames.values():
        for side in (0, 1):
            ordered = sorted((both[side] for both in made), key=len)
            found += [ordered[0], ordered[len(ordered) // 2]]
    return found


def test_bytes_that_are_cut_short(frames: dict[str, list[tuple[bytes, bytes]]]) -> None:
    for data in examples(frames):
        stride = max(1, len(data) // 400)
        for length in {*range(min(64, len(data))), *range(0, len(data), stride), len(data) - 1}:
            assert not is_step(data[:length])
        assert not is_step(data + b"\0") and is_step(data)


def test_bytes_that_are_flipped(frames: dict[str, list[tuple[bytes, bytes]]]) -> None:
    chance, survivors = random.Random(5), 0
    for data in examples(frames):
        for _ in range(250):
            damaged = bytearray(data)
            for _ in range(chance.choice((1, 1, 1, 3))):
                damaged[chance.randrange(min(len(data), 6000))] ^= 1 << chance.randrange(8)
            survivors += is_step(bytes(damaged))
    assert survivors > 20, "a changed digit can give another valid step"


def test_parts_that_change_places(frames: dict[str, list[tuple[bytes, bytes]]]) -> None:
    """Swap any two values of the JSON: the types decide whether the result is a step."""
    chance = random.Random(6)
    for data in examples(frames):
        (length,) = struct.unpack_from("<Q", data)
        header, tail = json.loads(data[8 : 8 + length]), data[8 + length :]
        for _ in range(120):
            changed = json.loads(json.dumps(header))
            places = list(lists_in(changed))
            target, source = chance.choice(places), chance.choice(places)
            value = chance.choice(
                [*source, None, True, "text", -1, 2.5, 1 << 70, [], {}, [[]], ["tensor", 1]]
            )
            target[chance.randrange(len(target))] = json.loads(json.dumps(value))
            text = json.dumps(changed).encode()
            is_step(struct.pack("<Q", len(text)) + text + tail)


def lists_in(value: Any) -> Iterator[list[Any]]:
    if isinstance(value, list) and value:
        yield value
        for item in value:
            yield from lists_in(item)


def frame(header: Any, tail: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tail


DRAFT = ["DraftRows", 1, 2, ["[]"], ["[]"], ["filters", 1.0, 0, 1.0, 0.0, 1.0], ["[]"], ["[]"], None, 0]


def step_with(probs: Any) -> bytes:
    rows = [*DRAFT, probs, ["[]"], 0]
    empty = ["[]"]
    return frame(["StepInput", empty, None, empty, empty, None, empty, ["[]", rows], 5])


def test_the_hand_made_step_is_right_but_for_its_tensor() -> None:
    assert (
        is_step(step_with(None))
        and is_step(step_with(["tensor", 0, 3]))
        and is_step(step_with(["tensor", 0]))
    )


@pytest.mark.parametrize(
    "shape",
    [
        [1 << 40],
        [1 << 62, 1 << 62],
        [-1],
        [-1, -4],
        [-(1 << 40), -(1 << 40)],
        [0, 1 << 62, 1 << 62],
        [10**30, 0],
        [1.5],
        [float("inf")],
        [float("nan")],
        ["4"],
        [None],
        [[4]],
        [True] * 3,
        [1] * 100,
        [0] * 5000,
    ],
)
def test_huge_and_impossible_shapes_allocate_nothing(shape: list[Any]) -> None:
    data = step_with(["tensor", *shape])
    tracemalloc.start()
    try:
        is_step(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 8,
        b"\xff" * 64,
        struct.pack("<Q", 1 << 63) + b"[]",
        frame(b""),
        frame(b"[]"),
        frame(b"null"),
        frame(b"{}"),
        frame(b'"StepInput"'),
        frame(b"5"),
        frame(b"[" * 100_000),
        frame(b"[" * 900 + b"]" * 900),
        frame(b"9" * 10_000),
        frame(b"\xff\xfe[\0]\0"),
        frame(b"\xff"),
        frame([[]]),
        frame([["StepInput"]]),
        frame(["StepInput"]),
        frame(["StepOutput", None, None, ["[]"], 0, 0.0, 1]),
        frame(["StepOutput", None, None, ["[]"], 0, "0"]),
        frame(["StepOutput", None, None, None, 0, 0.0]),
        frame(["StepOutput", None, None, ["[]"], True, 0.0]),
        frame(["Drawn", ["[]"], ["[]"], ["[]"]]),
        frame(["os.system", "true"]),
        frame(["StepOutput", ["SamplingParams", 5], None, ["[]"], 0, 0.0]),
        frame(["StepOutput", ["Drawn", ["[]", 1], ["[]"], ["[]"]], None, ["[]"], 0, 0.0]),
        frame(["StepOutput", ["Drawn", ["[]"], ["[]"], ["[]", ["{}", [1]]]], None, ["[]"], 0, 0.0]),
        frame(["StepOutput", ["Drawn", ["[]"], ["[]"], ["[]", ["{}", [[1], 2.0]]]], None, ["[]"], 0, 0.0]),
    ],
)
def test_what_is_no_step(data: bytes) -> None:
    assert not is_step(data)


def test_what_is_no_plain_data_is_not_written() -> None:
    step = StepInput()
    step.prefill = [object()]  # type: ignore[list-item]
    with pytest.raises(TypeError, match="plain data"):
        to_bytes(step)
