"""The interface of the native ops: error messages, schemas and fakes that torch accepts, instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from native import Case, random
from torch import Tensor
from weights import one_layer

from minillm import SamplingParams
from minillm.config import LayerSpec
from minillm.ops.contract import AttentionMetadata, LayerCache, RopeTables
from minillm.ops.cpu import CpuOps
from minillm.ops.reference import ReferenceOps
from minillm.ops.registered import available_isas, current_isa
from minillm.ops.sampling import SamplingBatch

# ---- bad input ------------------------------------------------------------------------------------


def bad_calls(ops: CpuOps) -> list[tuple[str, object]]:
    """(a part of the message, a call): wrong shapes, refused before a kernel runs."""
    case = Case([(3, 9)], heads=4, kv_heads=2, dim=8)
    q, k, v, meta, _ = case.build(torch.float32)
    new, table, one = random(3, 2, 8), torch.ones(16, 4), torch.ones(1, dtype=torch.int64)

    def rope(q=q, new=new, cos=table, sin=table, k=k, v=v, meta=meta):
        return lambda: ops.rope_and_cache(q, new, new, RopeTables(cos, sin), LayerCache(k, v), meta)

    def attention(q=q, k=k, v=v, **changes: Tensor):
        changed = AttentionMetadata(**(vars(meta) | changes))
        return lambda: ops.paged_attention(q, k, v, changed, 1.0)

    def variant(sinks: Tensor):
        spec = LayerSpec(None, 1.0, sinks=True)
        return lambda: ops.variant_attention(q, LayerCache(k, v), meta, spec, sinks)

    return [
        ("linear: x is [2, 5], weight is [4, 6]", lambda: ops.linear(torch.ones(2, 5), torch.ones(4, 6))),
        ("linear: bias is [3]", lambda: ops.linear(torch.ones(2, 5), torch.ones(4, 5), torch.ones(3))),
        ("linear: weight is [5]", lambda: ops.linear(torch.ones(2, 5), torch.ones(5))),
        ("embedding: ids is [1, 1]", lambda: ops.embedding(one.view(1, 1), torch.ones(4, 5))),
        ("rms_norm: weight is [4]", lambda: ops.rms_norm(torch.ones(2, 5), torch.ones(4), 1e-5)),
        (
            "add_rms_norm: residual is [3, 5]",
            lambda: ops.add_rms_norm(*map(torch.ones, [(2, 5), (3, 5), 5]), 1.0),
        ),
        ("act_and_mul: gate_up is [2, 5]", lambda: ops.act_and_mul(torch.ones(2, 5))),
        ("q has 3 heads, not divisible by 2 kv heads (config num_key_value_heads)", attention(q=q[:, :3])),
        ("q has head_dim 4", attention(q=q[..., :4])),
        ("v_cache [5, 16, 2, 8]", attention(v=torch.ones(5, 16, 2, 8))),
        ("q is [3, 32]", attention(q=q.flatten(1))),
        ("query_start needs 2 entries and has 3", attention(query_start=torch.zeros(3, dtype=torch.int32))),
        ("block_table has 2 rows", attention(block_table=torch.zeros(2, 1, dtype=torch.int32))),
        ("variant_attention: sinks is [3], q has 4 heads", variant(torch.ones(3))),
        ("rope_and_cache: k is [3, 1, 8]", rope(new=new[:, :1])),
        ("rope_and_cache: cos is [16, 3]", rope(cos=table[:, :3])),
        ("at most half of head_dim, which is 8", rope(cos=torch.ones(16, 5), sin=torch.ones(16, 5))),
        ("copy_blocks: source is [1]", lambda: ops.copy_blocks([k], one, torch.tensor([0, 1]))),
    ]


@pytest.mark.parametrize("number", range(18))
@pytest.mark.parametrize("backend", [CpuOps, ReferenceOps])
def test_shape_errors_name_the_argument(backend: type, number: int) -> None:
    says, call = bad_calls(backend())[number]
    with pytest.raises(ValueError) as caught:
        call()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_would_leave_a_tensor_is_refused(native_ops: CpuOps) -> None:
    """Wrong values in index tensors, dtypes and layouts are refused by the op itself, with its name."""
    case = Case([(3, 9)], heads=4, kv_heads=2, dim=8)
    q, k, v, meta, _ = case.build(torch.float32)
    new, table = random(3, 2, 8), torch.ones(16, 4)
    packed, native = native_ops.prepare_weight(random(16, 8)), torch.ops.minillm
    odd = native.pack(random(16, 7).bfloat16())

    def attention(**changes: Tensor):
        return lambda: native_ops.paged_attention(q, k, v, AttentionMetadata(**(vars(meta) | changes)), 1.0)

    def rope(**changes: Tensor):
        changed = AttentionMetadata(**(vars(meta) | changes))
        return lambda: native_ops.rope_and_cache(
            q, new, new, RopeTables(table, table), LayerCache(k, v), changed
        )

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    batch = SamplingBatch([SamplingParams()], [0], [[]], 5)
    for says, call in [
        ("embedding: id 16 is outside 0..15", lambda: native_ops.embedding(torch.tensor([16]), packed)),
        ("embedding: id -1", lambda: native_ops.embedding(torch.tensor([-1]), packed)),
        ("paged_attention: block 4 is outside 0..3", attention(block_table=ints(4, 0).view(1, 2))),
        ("paged_attention: block -1", attention(block_table=ints(-1, 0).view(1, 2))),
        ("needs 2 blocks, its table has 1", attention(kv_len=ints(17), block_table=ints(0).view(1, 1))),
        ("3 rows but kv_len 2", attention(kv_len=ints(2))),
        ("query_start's last entry", attention(query_start=ints(0, 4))),
        ("query_start's first entry", attention(query_start=ints(1, 3))),
        ("rope_and_cache: slot 64", rope(slot_mapping=torch.tensor([0, 64, 1]))),
        ("rope_and_cache: slot -1", rope(slot_mapping=torch.tensor([0, -1, 1]))),
        ("rope_and_cache: position 16", rope(positions=torch.tensor([0, 1, 16]))),
        (
            "copy_blocks: source block 4",
            lambda: native_ops.copy_blocks([k], torch.tensor([4]), torch.tensor([0])),
        ),
        (
            "copy_blocks: destination block -1",
            lambda: native_ops.copy_blocks([k], torch.tensor([0]), torch.tensor([-1])),
        ),
        ("linear: x has another dtype", lambda: native_ops.linear(torch.ones(1, 8).half(), packed)),
        ("linear: x has another dtype", lambda: native_ops.linear(torch.ones(1, 8).bfloat16(), packed)),
        ("linear: x has another dtype", lambda: native.linear(torch.ones(1, 7), odd, None, 16)),
        (
            "linear: bias has another dtype",
            lambda: native_ops.linear(torch.ones(1, 8), packed, torch.ones(16).bfloat16()),
        ),
        (
            "embedding: x has another dtype",
            lambda: native.embedding(torch.tensor([0]), packed.data, 16, 8, torch.bfloat16),
        ),
        (
            "embedding: x has another dtype",
            lambda: native.embedding(torch.tensor([0]), odd, 16, 7, torch.float32),
        ),
        (
            "float32, bfloat16 or float16 only",
            lambda: native_ops.act_and_mul(torch.ones(1, 8).double()),
        ),
        (
            "token_logprobs: token 5",
            lambda: native_ops.token_logprobs(torch.zeros(1, 5), torch.tensor([5]), [0]),
        ),
        ("sample: there are no token ids", lambda: native_ops.sample(torch.zeros(1, 0), batch)),
    ]:
        with pytest.raises(RuntimeError) as caught:
            call()
        assert says in str(caught.value)


# ---- as torch sees them ---------------------------------------------------------------------------


BINDING = {
    *("bind_model", "bind_layer", "bind_number", "bind_rope", "bind_positions", "bind_weight"),
    *("finish_model", "unbind_model"),
}
KEPT: list[object] = []  # keeps the models alive that the calls below use by number


def opcheck_calls() -> dict[str, tuple[object, ...]]:
    """The arguments of one call of each op."""
    case = Case([(3, 9), (1, 4)], heads=4, kv_heads=2, dim=8)
    q, k, v, meta, _ = case.build(torch.float32)
    k, v, q = k.nan_to_num(), v.nan_to_num(), q.contiguous()
    new, table, x = random(4, 2, 8), torch.ones(16, 4), random(4, 16)
    native = torch.ops.minillm

    def packed(out: int, size: int) -> Tensor:
        return native.pack(random(out, size))

    form = 17, 8, "int8", 8, False, False
    codes = torch.zeros(native.codes_bytes(*form, False), dtype=torch.uint8)
    native.begin_codes_(codes, *form, None, False)
    index = meta.positions, meta.slot_mapping
    sequences = meta.block_table, meta.query_start, meta.kv_len
    chosen = torch.tensor([[0, 1]] * 4), torch.ones(4, 2)
    bound = CpuOps().bind(one_layer(), [k], [v])
    KEPT.append(bound)
    ints, uniforms = torch.tensor([1, 2]), torch.full((2, 2), 0.5, dtype=torch.float64)
    whole_pass = bound.number, torch.arange(4), [*index, *sequences]
    filters = torch.ones(2, 4).double(), torch.zeros(2).long()
    return {
        "pack": (random(17, 5),),
        "pack_": (random(32, 6),),
        "begin_codes_": (codes.clone(), *form, None, False),
        "put_codes_": (codes, 3, torch.ones(2, 8).byte(), torch.ones(2, 1).half(), None),
        "embedding": (ints, packed(17, 5), 17, 5, torch.float32),
        "linear": (x, packed(17, 16), random(17), 17),
        "rms_norm": (x, torch.ones(16), 1e-5, 0.0),
        "add_rms_norm": (x, x.clone(), torch.ones(16), 1e-5),
        "layer_norm": (x, torch.ones(16), torch.zeros(16), 1e-5),
        "act_and_mul": (x, "silu"),
        "act": (x, "gelu"),
        "softcap": (x, 3.0),
        "route": (x, 3, True),
        "experts": (x, *chosen, packed(2 * 16, 16), random(32), packed(2 * 16, 5), None, 2, 5, "silu"),
        "rope_and_cache": (q, new, new.clone(), table, table.clone(), k, v, *index),
        "paged_attention": (q, k, v, *sequences, 0.5, 0),
        "variant_attention": (q, k, v, *sequences, 0.5, 0, 4.0, random(4)),
        "copy_blocks": ([k, v], ints, torch.tensor([0, 3])),
        "hidden": whole_pass,
        "sample": (
            x,
            torch.arange(4),
            torch.ones(4, 4).double(),
            torch.zeros(4).long(),
            ints,
            ints.new_zeros(4),
            16,
        ),
        "last_logits": whole_pass,
        "step": (*whole_pass, False, None, [torch.arange(2), *filters, ints, ints.new_zeros(2)], 17),
        "decode_ahead": (*whole_pass, torch.tensor([1, 1]), torch.zeros(1, 2).long(), [*filters], 17),
        "finite_rows": (x,),
        "token_logprobs": (x, torch.arange(4), 3),
        "verify_coupled": (ints, ints.clone(), torch.tensor([-1, 0]), torch.tensor([0, 2])),
        "verify_draft": (ints.view(2, 1), x[:2].abs().view(2, 1, 16), x.abs().view(2, 2, 16), uniforms),
    }


@pytest.mark.parametrize("name", list(opcheck_calls()))
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.minillm, name).default, opcheck_calls()[name])


def test_every_op_is_checked() -> None:
    names = {name for name in dir(torch.ops.minillm) if not name.startswith("_")} - {"name"}
    assert names <= {*opcheck_calls(), "use_isa", "available_isas", "codes_bytes", *BINDING}


def test_the_environment_chooses_the_instruction_set() -> None:
    code = "from minillm.ops.cpu import CpuOps; print(CpuOps().kernel_set)"

    def run(isa: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"MINILLM_CPU_PATH": isa}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    for isa in available_isas():
        assert run(isa).stdout.endswith(f"/{isa}\n")
    assert run("").stdout.endswith(f"/{available_isas()[0]}\n")
    assert "MINILLM_CPU_PATH=nonsense: this processor runs" in run("nonsense").stderr
    assert current_isa() in available_isas()
