"""What a step asks of the CUDA runtime, call by call, with a stand-in for the runtime (helpers/standin.py).

The simulator counts the same calls in test_cuda_pass.py; only here the code runs that calls CUDA on a GPU,
graphs included. No kernel runs, so nothing is said about results.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import families
import pytest
import torch
from cases import make_meta
from torch import Tensor

from minillm import SamplingParams
from minillm.config import EngineConfig
from minillm.model.decoder import Decoder
from minillm.model.loader import load_model
from minillm.ops.contract import AttentionMetadata
from minillm.ops.cuda_model import CudaModel
from minillm.ops.sampling import SamplingBatch, noise_key
from minillm.toolchain.compiler import find_compiler
from minillm.toolchain.cuda_toolkit import find_cuda
from minillm.worker.runner import ModelRunner
from minillm.worker.step import DecodeRow, Draws, StepInput
from minillm.worker.worker import Worker

if find_cuda() is None or find_compiler() is None:
    pytest.skip("no nvcc or no C++ compiler", allow_module_level=True)

from standin import StandInOps, load, log

TABLES = [[3, 7, 1], [0, 2, 9], [4, 5, 6]]
LAYER = [
    "linear_l2",
    "rope_and_cache",
    "decode_d1",
    "linear_l2",
    "norm",
    "linear_l2",
    "activation",
    "linear_l2",
    "norm",
]

INSTEAD = {"linear_l2": ["linear_l5"], "decode_d1": ["decode_d3", "decode_d3_combine"]}
TENSOR_LAYER = [kernel for name in LAYER for kernel in INSTEAD.get(name, [name])]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = families.make_folder(tmp_path_factory.mktemp("families"), "llama")
    return load_model(folder, EngineConfig(dtype="bfloat16", device="cpu"), StandInOps()).decoder


def bind(decoder: Decoder, sizes: tuple[int, ...] = (), tensor_cores: bool = False) -> CudaModel:
    c = decoder.config
    k, v = (
        [torch.zeros(12, 16, c.num_key_value_heads, c.head_dim, dtype=torch.bfloat16) for _ in c.layers]
        for _ in range(2)
    )
    model = StandInOps(tensor_cores).bind(decoder.weights(), k, v)
    assert isinstance(model, CudaModel)
    model.fill_up_to(sizes)
    log()
    return model


def step(
    count: int = 3, rows: int = 1, penalty: float = 1.0
) -> tuple[Tensor, AttentionMetadata, SamplingBatch]:
    params = [SamplingParams(temperature=1.0, repetition_penalty=penalty)] * count
    batch = SamplingBatch(params, range(count), [[1]] * count, 300)
    return torch.arange(count * rows), make_meta(TABLES[:count], [rows] * count, [20] * count, 16), batch


def kernels(lines: list[str]) -> list[str]:
    """The launched kernels, their names without "_kernel"."""
    return [line.split("launch ")[1].removesuffix("_kernel") for line in lines if "launch " in line]


def test_a_step_is_one_copy_in_the_launches_one_copy_out_and_one_wait(decoder: Decoder) -> None:
    model = bind(decoder)
    for _ in range(2):
        model.step(*step())
        lines = log()
        assert lines[0].startswith("to device ")
        assert lines[-2].startswith("to host ")
        assert lines[-1] == "wait"
        assert all(line.startswith("launch ") for line in lines[1:-2])
        assert not any("pageable" in line for line in lines)
        launched = kernels(lines)
        layers = decoder.config.num_hidden_layers
        assert launched[: 2 + 9 * layers + 2] == ["gather", "norm", *LAYER * layers, "linear_l2", "finite"]
        assert launched[4 + 9 * layers :] == ["highest", "sort", "cut", "draw", "finish"]


def test_on_tensor_cores_a_step_asks_for_as_little(tmp_path: Path) -> None:
    folder = families.make_folder(tmp_path, "llama", **families.WIDE_HEADS)
    decoder = load_model(folder, EngineConfig(dtype="bfloat16", device="cpu"), StandInOps(True)).decoder
    model = bind(decoder, (4,), tensor_cores=True)
    model.step(*step())
    eager = log()
    assert [line.split()[0] for line in eager if not line.startswith("launch")] == ["to", "to", "on", "wait"]
    assert kernels(eager)[2 : 2 + len(TENSOR_LAYER)] == TENSOR_LAYER
    model.step(*step())
    assert any(line.startswith("captured: launch decode_d3") for line in log())
    model.step(*step())
    assert [line.split()[0] for line in log()] == ["launch", "on", "wait"]


def test_a_prompt_waits_for_nothing_but_the_last_copy_of_numbers(decoder: Decoder) -> None:
    """The host may not write the next input before the GPU has taken this one."""
    model, (ids, meta, _) = bind(decoder), step(3, 2)
    model.last_logits(ids, meta)
    first = log()
    assert first[0].startswith("to device ")
    assert all(line.startswith("launch ") for line in first[1:])
    model.last_logits(ids, meta)
    assert [line.split()[0] for line in log()[:2]] == ["wait", "to"]
    model.step(*step())
    assert log()[0] == "wait for an event"
    model.last_logits(ids, meta)
    assert log()[0].startswith("to device "), "a step has waited for all that was before"


def test_a_filled_up_step_is_captured_the_second_time_and_then_launched_as_one(decoder: Decoder) -> None:
    model = bind(decoder, (1, 4))
    model.step(*step())
    eager = [line for line in log() if not line.startswith(("wait", "on device"))]
    model.step(*step())
    captured = log()
    assert [line.removeprefix("captured: ") for line in captured[:-3]] == eager
    assert all(line.startswith("captured: ") for line in captured[:-3])
    assert [line.split()[0] for line in captured[-3:]] == ["launch", "on", "wait"]
    for count in (3, 4 - 1, 3):
        model.step(*step(count))
        again = log()
        assert again == captured[-3:]


def test_a_layer_of_experts_waits_for_nothing_and_is_captured(tmp_path: Path) -> None:
    folder = families.make_folder(tmp_path, "mixtral")
    model = bind(load_model(folder, EngineConfig(dtype="bfloat16", device="cpu"), StandInOps()).decoder, (4,))
    model.step(*step())
    eager = log()
    experts = [
        "linear_l2",
        "route",
        "group",
        "gather",
        "linear_experts",
        "activation",
        "linear_experts",
        "combine",
    ]
    launched = kernels(eager)
    start = launched.index("route") - 1
    assert launched[start : start + len(experts)] == experts
    assert [line for line in eager if "wait" in line] == ["wait"]
    model.step(*step())
    log()
    model.step(*step())
    assert [line.split()[0] for line in log()] == ["launch", "on", "wait"]


def test_each_shape_has_its_own_graph_and_more_memory_ends_all(decoder: Decoder) -> None:
    model = bind(decoder, (1, 2, 4))

    def graph(count: int, rows: int = 1) -> str:
        for _ in range(2):
            model.step(
                *step(count, rows)[:2],
                step(count * rows)[2] if count * rows <= 3 else many(count * rows),
                all_rows=True,
            )
            lines = log()
        return next(line for line in lines if "launch graph" in line)

    def many(rows: int) -> SamplingBatch:
        params = [SamplingParams(temperature=1.0)] * rows
        return SamplingBatch(params, range(rows), [()] * rows, 300)

    large = graph(3)
    one, two = graph(1), graph(2)
    assert len({large, one, two}) == 3
    assert (graph(3), graph(1), graph(2)) == (large, one, two)
    verify = graph(3, 5)  # five rows a sequence: more memory than before
    assert verify not in (large, one, two)
    assert graph(3) not in (large, one, two), "its addresses have moved, so it is captured again"
    assert graph(3, 5) == verify


def test_a_step_with_a_repetition_penalty_is_not_captured(decoder: Decoder) -> None:
    model = bind(decoder, (4,))
    for _ in range(3):
        model.step(*step(penalty=1.5))
        assert not any("graph" in line for line in log())


def test_steps_ahead_keep_tokens_on_the_gpu(decoder: Decoder) -> None:
    model, (ids, meta, batch) = bind(decoder), step()
    model.decode_ahead(ids, meta, [3, 3, 2], [[1, 2, 3]] * 3, batch)
    lines = log()
    assert Counter(line.split()[0] for line in lines if not line.startswith("launch")) == {"to": 2, "wait": 1}
    assert lines[0].startswith("to device ")
    assert lines[-1] == "wait"
    assert kernels(lines).count("gather") == 3


def test_control_single_ops_launch_one_by_one(decoder: Decoder) -> None:
    """The stand-in sees launches of single ops too; their copies are PyTorch's."""
    ops = StandInOps()
    log()
    ops.rms_norm(torch.zeros(2, 96), torch.ones(96), 1e-5)
    assert log() == ["launch norm"]
    assert Path(load()._name).name.startswith("standin")


@pytest.mark.parametrize("tensor_cores", [False, True], ids=["plain", "on tensor cores"])
def test_the_hosts_share_of_a_decode_step(tmp_path: Path, tensor_cores: bool) -> None:
    """At 22 layers and four sequences it is at most 250 us: the fastest of many steps, whatever else runs.

    From plain data to tokens (`Worker.execute`), with all kernels stubbed out; 44 us were measured.
    """
    folder = families.make_folder(tmp_path, "llama", num_hidden_layers=22, **families.WIDE_HEADS)
    ops = StandInOps(tensor_cores)
    decoder = load_model(folder, EngineConfig(dtype="bfloat16", device="cpu"), ops).decoder
    c = decoder.config
    shape = 64, 16, c.num_key_value_heads, c.head_dim
    k, v = ([torch.zeros(shape, dtype=torch.bfloat16) for _ in c.layers] for _ in range(2))
    worker = Worker(ModelRunner(decoder, SimpleNamespace(k=k, v=v), 16))  # type: ignore[arg-type]
    params, times = [SamplingParams(temperature=1.0)] * 4, []
    load().standin_quiet(1)
    try:
        for number in range(300):
            rows = [DecodeRow(5, 100 + number % 50, list(range(16 * s, 16 * s + 16))) for s in range(4)]
            keys = [noise_key(s, 0, number) for s in range(4)]
            draws = Draws(list(range(4)), SamplingBatch(params, keys, [()] * 4, 300), [None] * 4)
            started = time.perf_counter()
            worker.execute(StepInput(decode=rows, decode_draws=draws, num_token_ids=300))
            times.append(time.perf_counter() - started)
    finally:
        load().standin_quiet(0)
    assert min(times) < 250e-6
