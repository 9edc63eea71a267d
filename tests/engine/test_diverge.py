"""Divergence records: one unit in the last place is named, clean runs are not, and any file is one line.

A clean run under another schedule has no divergence (contract C2). A run in which one number of one op was
moved by one unit in the last place is named by step, layer and op.
"""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
from injecting import drain, injected, recording_engine

from minillm import SamplingParams
from minillm.config import EngineConfig
from minillm.engine import diverge_record
from minillm.errors import NotARecord, StorageError, UnreadableFile, UsageError
from minillm.model.loader import LoadedModel, load_model
from minillm.ops.cpu import CpuOps
from minillm.verify.diverge import ARITHMETIC, DRAW, INPUTS, compare_records, margin, spacing
from minillm.verify.record import Candidate, read_record
from minillm.verify.rerun import rerun, side_of

NEW = 6
LAYER_OPS = (
    "linear rope_and_cache paged_attention linear add_rms_norm linear act_and_mul linear add_rms_norm".split()
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tiny.make_folder(tmp_path_factory.mktemp("diverge") / "m")
    return load_model(folder, EngineConfig(device="cpu", dtype="float32"), CpuOps())


def requests(seed: int, n: int = 1) -> list[tuple[list[int], SamplingParams]]:
    rng = random.Random(seed)
    made = []
    for i in range(3):
        prompt = [rng.randrange(300) for _ in range(rng.randrange(2, 40))]
        params = SamplingParams(
            max_tokens=NEW, temperature=0.7 * (i % 2), seed=seed + i, ignore_eos=True, n=n
        )
        made.append((prompt, params))
    return made


def record(model: LoadedModel, path: Path, seed: int, ops: Any = None, n: int = 1, **options: Any) -> Any:
    engine = recording_engine(model, path, ops, **options)
    for prompt, params in requests(seed, n):
        engine.add_request(prompt, params)
    drain(engine)
    return engine


# ---- one unit in the last place ----------------------------------------------------------------------


def place_of(call: int) -> tuple[int, str]:
    """The layer and the op of a call of a pass over the tiny model: `model/decoder.py`, two layers."""
    layer, part = divmod(call - 2, len(LAYER_OPS))
    if call < 2:
        return (-1, "embedding") if call == 0 else (0, "rms_norm")
    is_last = part == len(LAYER_OPS) - 1  # the norm before the next layer, or the final one
    return (-1 if layer == 1 else layer + 1) if is_last else layer, LAYER_OPS[part]


def inject_and_name(model: LoadedModel, folder: Path, seed: int) -> None:
    """Inject at a random step, layer and op; they must be named exactly."""
    rng = random.Random(1000 + seed)
    clean = record(model, folder / f"clean{seed}", seed)
    a = read_record(folder / f"clean{seed}")
    every = [request.tokens(0, NEW) for request in a.requests]
    call, at = rng.randrange(2 + 2 * len(LAYER_OPS)), (0, 0)
    while sum(ids[at[1] : at[1] + 1] == every[at[0]][at[1] : at[1] + 1] for ids in every) > 1 or at == (0, 0):
        number = rng.randrange(len(every))
        at = number, len(a.requests[number].prompt) - 1 + rng.randrange(NEW)
    position = at[1] - len(a.requests[at[0]].prompt) + 1
    faulty, ops = injected(model, (at[1], every[at[0]][at[1]], call))
    engine = record(faulty, folder / f"faulty{seed}", seed, ops)
    b = read_record(folder / f"faulty{seed}")
    found = compare_records(a, b).first
    assert found is not None and found.kind == ARITHMETIC, f"call {call} {place_of(call)}"
    assert found.request_a.number == at[0] and found.position >= position
    again = rerun(found, side_of(clean), side_of(engine))
    origin = again.origin
    assert again.repeats_a and again.repeats_b and origin is not None
    assert (origin.position, origin.place[:2]) == (position, place_of(call))
    assert origin.differing > 0 and origin.roundings == 1


@pytest.mark.parametrize("seed", range(10))
def test_one_unit_in_the_last_place_is_named(model: LoadedModel, tmp_path: Path, seed: int) -> None:
    inject_and_name(model, tmp_path, seed)


@pytest.mark.slow
def test_one_unit_in_the_last_place_is_named_a_hundred_times(model: LoadedModel, tmp_path: Path) -> None:
    for seed in range(100):
        inject_and_name(model, tmp_path, seed)


SCHEDULES: list[dict[str, Any]] = [
    {},
    {"prefill_chunk": 3, "max_num_seqs": 2},
    {"draft_model": "ngram", "adaptive_draft": False},
    {"draft_model": "ngram", "draft_tree": (2, 1), "adaptive_draft": False},
    {"kv_memory": tiny.blocks(5), "prefill_chunk": 7},
    {"block_size": 4, "max_num_batched_tokens": 5},
]


def run_clean(model: LoadedModel, folder: Path, seed: int) -> None:
    options = SCHEDULES[seed % len(SCHEDULES)]
    record(model, folder / f"a{seed}", seed, n=2)
    record(model, folder / f"b{seed}", seed, n=2, **options)
    found = compare_records(read_record(folder / f"a{seed}"), read_record(folder / f"b{seed}"))
    assert (found.first, found.num_steps, found.only_a, found.only_b) == (None, 3 * 2 * NEW, 0, 0)


@pytest.mark.parametrize("seed", range(10))
def test_clean_runs_under_other_schedules_have_no_divergence(
    model: LoadedModel, tmp_path: Path, seed: int
) -> None:
    run_clean(model, tmp_path, seed)


@pytest.mark.slow
def test_a_hundred_clean_runs_have_no_divergence(model: LoadedModel, tmp_path: Path) -> None:
    for seed in range(100):
        run_clean(model, tmp_path, seed)


def test_it_holds_under_python_o(model: LoadedModel, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; sys.path.insert(0, 'tests/helpers'); sys.path.insert(0, 'tests/engine')\n"
        "import test_diverge as t\n"
        "from minillm.verify.rerun import rerun, side_of\n"
        "config = t.EngineConfig(device='cpu', dtype='float32')\n"
        "m = t.load_model(pathlib.Path(sys.argv[1]), config, t.CpuOps())\n"
        "p = pathlib.Path(sys.argv[2])\n"
        "a = t.record(m, p / 'a', 1); r = t.read_record(p / 'a').requests[0]\n"
        "ids = r.tokens(0, 2); f, ops = t.injected(m, (len(ids) - 1, ids[-1], 5))\n"
        "b = t.record(f, p / 'b', 1, ops)\n"
        "d = t.compare_records(t.read_record(p / 'a'), t.read_record(p / 'b')).first\n"
        "o = rerun(d, side_of(a), side_of(b)).origin\n"
        "print(sys.flags.optimize, d.kind, d.position, o.position, t.place_of(5) == o.place[:2])\n"
    )
    command = [sys.executable, "-O", "-c", code, str(model.folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.stdout.split() == ["1", ARITHMETIC, "2", "2", "True"], done.stderr[-500:]


# ---- inputs, draws, ties -----------------------------------------------------------------------------


def changed(path: Path, line: int, **values: Any) -> Path:
    """The record with some values of one line changed."""
    lines = path.read_text().splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | values)
    other = path.with_name(f"{path.name}-{line}-{len(values)}")
    other.write_text("\n".join(lines) + "\n")
    return other


def test_other_inputs_are_not_called_arithmetic(model: LoadedModel, tmp_path: Path) -> None:
    record(model, tmp_path / "a", 1)
    a = read_record(tmp_path / "a")
    for values, words in (
        ({"prompt": [7, *a.requests[0].prompt[1:]]}, "prompts part at token 0"),
        (
            {
                "sampling": a.requests[0].sampling.to_dict()
                | {"max_tokens": NEW, "top_k": 9, "temperature": 1.0}
            },
            "sampling",
        ),
    ):
        found = compare_records(a, read_record(changed(tmp_path / "a", 1, **values))).first
        assert found is not None and found.kind == INPUTS and words in found.detail


def test_another_token_from_the_same_logits_is_the_draw(model: LoadedModel, tmp_path: Path) -> None:
    record(model, tmp_path / "a", 1)
    found = compare_records(read_record(tmp_path / "a"), read_record(changed(tmp_path / "a", 2, t=299))).first
    assert found is not None and (found.kind, found.position) == (DRAW, 0)


@pytest.mark.parametrize(("gap", "near"), [(0.0, True), (1.0, True), (2.0, False)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_near_tie_is_one_rounding(dtype: str, gap: float, near: bool) -> None:
    best = 5.0
    found = margin((Candidate(1, best), Candidate(2, best - gap * spacing(best, dtype))), dtype)
    assert found is not None and found.is_near_tie == near and found.roundings == gap


# ---- the file ----------------------------------------------------------------------------------------


def test_the_file_is_private_new_and_whole_at_every_byte(model: LoadedModel, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        record(model, tmp_path / "a", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    data = (tmp_path / "a").read_bytes()
    whole = read_record(tmp_path / "a")
    header = data.index(b"\n") + 1
    for size in random.Random(0).sample(range(header, len(data)), 40):
        (tmp_path / "cut").write_bytes(data[:size])
        cut = read_record(tmp_path / "cut")
        assert cut.num_steps <= whole.num_steps and cut.is_cut == (data[size - 1 : size] != b"\n")
        assert compare_records(whole, cut).first is None
    with pytest.raises(UsageError, match="exists already"):
        recording_engine(model, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data


def test_two_engines_do_not_share_a_file(model: LoadedModel, tmp_path: Path) -> None:
    outcomes = list[str]()

    def start() -> None:
        try:
            recording_engine(model, tmp_path / "a")
            outcomes.append("started")
        except UsageError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 3 + ["started"]


@pytest.mark.parametrize("value", ["", 3, b"a", True, Path()], ids=repr)
def test_what_is_no_path_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="diverge_record must be the path"):
        EngineConfig(diverge_record=value)


@pytest.mark.parametrize("name", ["missing/a", "x" * 5000])
def test_a_file_that_cannot_be_made_is_one_line(model: LoadedModel, tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="cannot be made") as caught:
        recording_engine(model, tmp_path / name)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3


def test_a_full_disk_ends_the_record_and_no_request(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = recording_engine(model, tmp_path / "a")
    real, calls = os.write, [0]

    def full(file: int, data: Any) -> int:
        calls[0] += 1
        if calls[0] == 3:
            return real(file, bytes(data)[:10])
        if calls[0] > 3:
            raise OSError(28, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", full)
    ids = [engine.add_request(prompt, params) for prompt, params in requests(1)]
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
    assert all(len(outputs[i].token_ids) == NEW and outputs[i].error is None for i in ids)
    assert caplog.text.count("the divergence record ends here: No space left") == 1 and calls[0] == 4
    found = read_record(tmp_path / "a")
    assert 0 < found.num_steps < 3 * NEW and not found.is_cut


def test_nothing_is_kept_or_written_when_it_is_off(model: LoadedModel) -> None:
    engine = recording_engine.__globals__["Engine"](model, EngineConfig(device="cpu", kv_memory="1MiB"))
    assert engine.worker.watch is None and engine._stepper.watch is None


HEADER = {"format": diverge_record.FORMAT, "version": 1}
HOSTILE = {
    "empty": b"",
    "junk": os.urandom(0) + bytes(range(256)) * 20,
    "no line break": b"x" * 100_000,
    "another json": b'{"a": 1}\n',
    "a list": b"[1, 2]\n",
    "deep": b"[" * 100_000 + b"\n",
    "version 2": json.dumps(HEADER | {"version": 2}).encode() + b"\n",
    "version true": json.dumps(HEADER | {"version": True}).encode() + b"\n",
    "no envelope": json.dumps(HEADER).encode() + b"\n",
    "digits": b'{"format": ' + b"9" * 100_000 + b"}\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_any_file_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(HOSTILE[name])
    with pytest.raises(NotARecord) as caught:
        read_record(tmp_path / "a")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000 and caught.value.hint


@pytest.mark.parametrize(
    "values",
    [
        {"r": 9},
        {"r": -1},
        {"s": 1},
        {"p": 10**400},
        {"p": 5},
        {"t": -1},
        {"t": 1.5},
        {"d": "00"},
        {"d": 7},
        {"top": [[1]]},
        {"top": [[1, "x"]]},
        {"top": 3},
        {"top": [[1, 2]] * 3},
        {"request": 5},
    ],
    ids=repr,
)
def test_a_step_that_was_changed_names_its_line(
    model: LoadedModel, tmp_path: Path, values: dict[str, Any]
) -> None:
    record(model, tmp_path / "a", 1)
    with pytest.raises(NotARecord, match="line 3"):
        read_record(changed(tmp_path / "a", 2, **values))


def test_folders_pipes_and_nothing_are_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none"):
        with pytest.raises(UnreadableFile):
            read_record(path)
