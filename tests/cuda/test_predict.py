"""Predicted times beside those that an H100 measured; none is left out. Needs neither GPU nor compiler."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch

from minillm.bench.chips import A100, H100, T4, chip_named
from minillm.bench.figures import FIGURES, decode, flops, predicted_line, prefill, product
from minillm.bench.predict import LAUNCH_SECONDS, Trips, Work, busiest_sm, predict, queued
from minillm.bench.sass import Code, code_of
from minillm.bench.traffic import Shape
from minillm.bench.works import LINEAR, Attention, estimate, work_of
from minillm.errors import UsageError
from minillm.toolchain.sources import find_sources

MEASURED = Path(__file__).parents[2] / "benchmarks" / "2026-11-27-h100"
# Names of rungs in the files; "ours" of before.json is today's l1, loads one after another.
NAMES = {
    "before.json": {"ours": "l1"},
    "after.json": {"tile": "l2", "mma": "l5"},
    "tensor-cores.json": {"v1": "v1", "v2": "v2", "v3": "v3", "d1": "d1", "d2": "d3"},
}
# Predicted over measured, less 1, of every figure in these files: a change of the model is a change here.
ERRORS = {
    "l1 linear 1 x 4096 x 4096": 0.637,
    "l1 linear 32 x 4096 x 4096": 0.306,
    "l1 linear 512 x 4096 x 4096": 0.12,
    "l2 linear 1 x 4096 x 4096": 0.19,
    "l2 linear 8 x 4096 x 4096": 0.31,
    "l2 linear 64 x 4096 x 4096": -0.032,
    "l2 linear 512 x 4096 x 4096": 0.028,
    "l2 linear 4096 x 4096 x 4096": 0.014,
    "l5 linear 1 x 4096 x 4096": 0.013,
    "l5 linear 8 x 4096 x 4096": -0.015,
    "l5 linear 64 x 4096 x 4096": 0.086,
    "l5 linear 512 x 4096 x 4096": 0.135,
    "l5 linear 4096 x 4096 x 4096": 0.002,
    "v1 prefill 1024": -0.004,
    "v1 prefill 4096": 0.046,
    "v2 prefill 1024": -0.059,
    "v2 prefill 4096": -0.004,
    "v2 prefill 8192": 0.029,
    "v3 prefill 1024": -0.02,
    "v3 prefill 4096": 0.008,
    "v3 prefill 8192": 0.041,
    "d1 decode 1 x 4096": -0.004,
    "d1 decode 32 x 4096": 0.023,
    "d1 decode 128 x 1024": 0.043,
    "d3 decode 1 x 4096": -0.124,
    "d3 decode 32 x 4096": 0.036,
    "d3 decode 128 x 1024": 0.031,
}


def job_of(what: str):
    """The shape of a row of a file, or None."""
    numbers = [int(n) for n in re.findall(r"\d+", what)]
    if what.startswith("prefill"):
        return prefill(numbers[0])
    if what.startswith("decode"):
        return decode(*numbers[:2])
    return product(numbers[0]) if what.startswith("linear") else None


def errors() -> dict[str, float]:
    found = {}
    for file, names in NAMES.items():
        for row in json.loads((MEASURED / file).read_text())["rows"]:
            rung, job = names.get(row["by"]), job_of(row["what"])
            if rung and job:
                size = row["what"].split(",")[0]
                found[f"{rung} {size}"] = estimate(rung, job, H100).seconds / row["median_s"] - 1
    return found


def test_the_error_of_every_measured_figure_is_on_record():
    found = {name: round(error, 3) for name, error in errors().items()}
    print("\n".join(f"{name:28} {error:+.1%}" for name, error in found.items()))
    assert found == ERRORS
    assert max(map(abs, ERRORS.values())) == ERRORS["l1 linear 1 x 4096 x 4096"]
    assert sorted(map(abs, ERRORS.values()))[len(ERRORS) // 2] < 0.05


def test_the_estimates_made_by_hand_before_there_was_a_gpu():
    """v2 11.25 and linear 7.0 TFLOP/s, both by wavefronts; d1 0.44 ms by bytes in flight."""
    for rung, job, rate in (("v2", prefill(8192), 11.25), ("l2", product(4096), 7.0)):
        e = estimate(rung, job, H100)
        assert flops(job) / e.seconds / 1e12 == pytest.approx(rate, rel=0.25)
        assert e.bound == "shared memory"
    e = estimate("d1", decode(1, 4096), H100)
    assert e.seconds == pytest.approx(0.44e-3, rel=0.25)
    assert e.bound == "bytes in flight"


def test_what_was_asked_of_the_kernels_and_what_the_model_gives():
    """Asked: v3 250 TFLOP/s, d3 and l5 75 % of the bandwidth, l5 250 TFLOP/s. Two of the four fall short."""
    seconds = {
        job: estimate(job[0], job[1], H100).seconds for job in (("v3", prefill(8192)), ("l5", product(4096)))
    }
    rates = [round(flops(job[1]) / s / 1e12) for job, s in seconds.items()]
    assert rates == [226, 395]
    moved = 32 * 4096 * 8 * 128 * 2 * 2
    d3 = moved / estimate("d3", decode(32, 4096), H100).seconds / H100.bandwidth
    l5 = 4096 * 4096 * 2 / estimate("l5", product(1), H100).seconds / H100.bandwidth
    assert (round(d3, 3), round(l5, 3)) == (0.769, 0.71)


@pytest.mark.parametrize("rung", FIGURES)
def test_the_header_of_each_rung_says_what_the_model_gives(rung):
    name = {"v": "attention_", "d": "decode_", "l": "linear_"}[rung[0]] + rung
    (source,) = find_sources("cuda", f"{name}.cu")
    said = [line for line in source.read_text().splitlines() if line.startswith("// Predicted")]
    assert said == [f"// {predicted_line(rung, H100)}"]


# ---- the parts of the model --------------------------------------------------------------------------


def test_more_loads_in_flight_help_where_they_are_the_limit():
    """d1 with a wait for each of its 32 rows of V, as it was; with all of them in one wait."""
    (work, name), code = work_of("d1", decode(1, 4096), "90")[0], code_of("d1 bfloat16 128", "90")
    tile = code.loops["tile"]
    seconds = {}
    for waits in (32, 3, 1):
        at_1000 = tile.cycles + round(waits * 1000)
        changed = dataclasses.replace(tile, waits=waits, cycles_at_1000=at_1000)
        changed_code = dataclasses.replace(code, loops=code.loops | {"tile": changed})
        seconds[waits] = predict(work, changed_code, H100).seconds
    assert name == "d1 bfloat16 128"
    assert seconds[32] > 3 * seconds[3] > 3 * seconds[1]


def test_a_block_alone_waits_for_nobody_and_many_for_the_busiest_unit():
    assert queued(1000, [(100, 1), (50, 1)]) == 1000
    many = queued(1000, [(100, 200), (50, 200)])
    assert 200 * 100 <= many < 1.1 * 200 * 100
    some = queued(1000, [(100, 8)])
    assert 1000 < some < 1000 + 8 * 100


def test_the_busiest_multiprocessor():
    assert busiest_sm([1] * 10, 4, 2) == 3
    assert busiest_sm([1], 4, 2) == 1
    assert busiest_sm([4, 1, 1, 1, 1], 2, 1) == 4  # later blocks go where least was done
    assert busiest_sm([1, 2, 3, 4], 1, 1) == 10


def test_one_multiprocessor_takes_as_long_as_its_share():
    one = dataclasses.replace(H100, sms=1)
    few, all_of_it = estimate("v2", prefill(512), H100), estimate("v2", prefill(512), one)
    assert 40 < all_of_it.seconds / few.seconds < 132
    assert all_of_it.busiest == 1.0


JOBS = [
    *(
        (rung, Attention(Shape(1, 1, 1, 1, 64, torch.bfloat16)))
        for rung in ("v1", "v2", "v3", "d1", "d2", "d3")
    ),
    *(
        (rung, Attention(Shape(1, 513, 3, 3, 128, torch.bfloat16), 7))
        for rung in ("v1", "v2", "v3", "d1", "d2", "d3")
    ),
    *((rung, dataclasses.replace(product(1), out=1, size=8)) for rung in LINEAR),
    *((rung, dataclasses.replace(product(33), out=4097)) for rung in LINEAR),
]


@pytest.mark.parametrize(
    "chip", [H100, A100, dataclasses.replace(H100, sms=1)], ids=lambda c: f"{c.name}x{c.sms}"
)
@pytest.mark.parametrize(("rung", "job"), JOBS, ids=str)
def test_nothing_is_negative_infinite_or_faster_than_a_limit(rung, job, chip):
    e = estimate(rung, job, chip)
    launches = len(work_of(rung, job, chip.arch))
    assert launches * LAUNCH_SECONDS <= e.seconds < 1
    assert all(0 <= part < math.inf for part in e.parts.values())
    for name, part in e.parts.items():
        assert part <= e.seconds, name
    assert e.bound in e.parts and e.busiest >= 0.999


def test_no_work_takes_no_time():
    none = [decode(0, 4096), Attention(Shape(0, 0, 2, 1, 64)), Attention(Shape(1, 0, 2, 1, 64))]
    assert [estimate("d1", job, H100).seconds for job in none] == [0, 0, 0]
    assert estimate("l2", product(0), H100).bound == "nothing to do"
    assert predict(Work("empty", [], 4, ()), Code(32, 0, {}), H100).bound == "launch"


def test_a_kernel_without_shared_memory_or_loops():
    e = predict(Work("copy", [1] * 4096, 8, (), requested=1 << 30, unique=1 << 30), Code(16, 0, {}), H100)
    assert e.bound == "DRAM"
    assert e.parts["shared memory"] == 0
    assert e.resident == 8
    assert e.seconds >= (1 << 30) / H100.bandwidth


def test_what_cannot_be_predicted_is_refused_in_a_line():
    for rung, job, chip, message in (
        ("v3", prefill(64), T4, "sm_75"),
        ("l5", product(1), T4, "sm_75"),
        ("v2", Attention(Shape(8, 8, 2, 1, 96)), H100, "on record"),
        ("v9", prefill(64), H100, "no rung 'v9'"),
        ("v2", product(1), H100, "no rung 'v2' of linear"),
    ):
        with pytest.raises(UsageError, match=message):
            estimate(rung, job, chip)
    with pytest.raises(UsageError, match="no figures of a chip 'b200'"):
        chip_named("b200")
    with pytest.raises(UsageError, match="does not fit"):
        predict(Work("wide", [1], 1, (Trips("x", 1),), dynamic_shared=1 << 20), Code(32, 0, {}), H100)
