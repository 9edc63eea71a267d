"""Binding a model's weights by name: a missing, unknown or wrong weight is refused, and its name reported."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import native  # noqa: F401  (skips this file where there are no kernels)
import pytest
import torch
from weights import HIDDEN, INPUTS, POSITIONS, VOCAB, caches, one_layer, packed

from minillm.config import ExpertSpec
from minillm.ops.contract import AttentionMetadata, Matrix, PackedWeight
from minillm.ops.cpu import CpuOps
from minillm.ops.fused import FusedModel, ModelWeights, NormWeights

ops = torch.ops.minillm
META = AttentionMetadata(
    positions=torch.arange(3),
    slot_mapping=torch.arange(3),
    block_table=torch.zeros(1, 1, dtype=torch.int32),
    query_start=torch.tensor([0, 3], dtype=torch.int32),
    kv_len=torch.tensor([3], dtype=torch.int32),
)
IDS = torch.tensor([1, 2, 16])
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def bind(weights: ModelWeights, dtype: torch.dtype = torch.float32) -> FusedModel:
    return CpuOps().bind(weights, caches(dtype), caches(dtype))


def norm(size: int, weight: float = 1.0, bias: float | None = None) -> NormWeights:
    return NormWeights(torch.full((size,), weight), None if bias is None else torch.full((size,), bias))


def test_a_bound_model_runs_and_an_unbound_one_is_refused() -> None:
    model = bind(one_layer())
    assert model.hidden(IDS, META).isfinite().all()
    assert model.last_logits(IDS, META).shape == (1, VOCAB)
    number = model.number
    del model
    gc.collect()
    with pytest.raises(RuntimeError, match=f"hidden: no model is bound as {number}"):
        ops.hidden(number, IDS, [*vars(META).values()])


def test_every_part_of_a_layer_has_a_name_on_both_sides() -> None:
    """A layer with every optional weight; each of them changes the result."""
    plain = one_layer()
    matrices = {
        name: Matrix(getattr(plain.layers[0], name).weight, torch.full((size,), 0.5))
        for name, size in {"qkv": 64, "o": HIDDEN, "gate_up": 48, "down": HIDDEN}.items()
    }
    norms = {"q_norm": norm(8, 2.0), "k_norm": norm(8, 3.0, -0.5)}
    norms |= {name: norm(HIDDEN, 2.0, 0.5) for name in ("input_norm", "mlp_norm")}
    norms |= {name: norm(HIDDEN, 0.5) for name in ("attention_output_norm", "mlp_output_norm")}
    changes = {**matrices, **norms, "sinks": torch.full((4,), 0.5)}
    found = [bind(one_layer(**{name: value})).last_logits(IDS, META) for name, value in changes.items()]
    names = [name for name, _ in one_layer(**changes).layers[0].named()]
    assert (
        names
        == (
            "qkv.weight qkv.bias o.weight o.bias input_norm.weight input_norm.bias q_norm.weight "
            "k_norm.weight k_norm.bias sinks attention_output_norm.weight mlp_norm.weight mlp_norm.bias "
            "gate_up.weight gate_up.bias down.weight down.bias mlp_output_norm.weight"
        ).split()
    )
    assert all(not torch.equal(logits, bind(plain).last_logits(IDS, META)) for logits in found)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("dtypes", [*product(FLOATS, FLOATS)], ids=str)
def test_matrices_of_the_activations_dtype_and_bfloat16_beside_float32(
    name: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    kept, dtype = dtypes
    shape = getattr(one_layer().layers[0], name).weight.shape
    weights = one_layer(dtype, **{name: Matrix(packed(*shape, kept, dtype))})
    if kept == dtype or dtypes == (torch.bfloat16, torch.float32):
        assert bind(weights, dtype).hidden(IDS, META).dtype == dtype
    else:
        with pytest.raises(RuntimeError, match=f"bind_weight: layer 0 {name}.weight: x has another dtype"):
            bind(weights, dtype)


def test_an_odd_number_of_inputs_is_not_kept_in_bfloat16() -> None:
    bind(one_layer(inner=23))  # the control
    narrow = Matrix(packed(HIDDEN, 23, torch.bfloat16, torch.float32))
    with pytest.raises(RuntimeError, match=r"bind_weight: layer 0 down\.weight: x has another dtype"):
        bind(one_layer(inner=23, down=narrow))


@pytest.mark.parametrize(
    ("says", "weights"),
    [
        (
            "layer 0 qkv.weight: the packed weight's size is 256",
            lambda: one_layer(qkv=Matrix(packed(16, 16))),
        ),
        ("layer 0 o.bias has 3 elements, not 16", lambda: one_layer(o=Matrix(packed(16, 32), torch.ones(3)))),
        ("layer 0 k_norm.weight has 7 elements, not 8", lambda: one_layer(k_norm=norm(7))),
        (
            "layer 0 k_norm.bias has 8 elements, not 16",
            lambda: one_layer(k_norm=NormWeights(torch.ones(16), torch.ones(8))),
        ),
        (
            "layer 0 q_norm.weight has another dtype",
            lambda: one_layer(q_norm=NormWeights(torch.ones(8).half())),
        ),
        ("layer 0 sinks has 2 elements, not 4", lambda: one_layer(sinks=torch.ones(2))),
        ("layer 0 down.weight is missing", lambda: one_layer(down=None)),
        ("layer 0 router.weight: there is no weight", lambda: one_layer(router=Matrix(packed(4, HIDDEN)))),
        ("head.weight: the packed weight's size", lambda: replace(one_layer(), head=packed(40, HIDDEN))),
        ("final_norm.weight has 17 elements", lambda: replace(one_layer(), final_norm=norm(17))),
        ("cos's width is 5", lambda: replace(one_layer(), ropes=([torch.ones(9, 5)] * 2,))),
        ("positions' width is 17", lambda: replace(one_layer(), positions=torch.ones(9, 17))),
    ],
)
def test_what_does_not_fit_is_named(says: str, weights: Callable[[], ModelWeights]) -> None:
    with pytest.raises(RuntimeError) as caught:
        bind(weights())
    assert says in str(caught.value)


def test_names_and_order_are_checked() -> None:
    number = ops.bind_model(4, HIDDEN, 24, VOCAB, "silu")
    vector, cache = torch.ones(HIDDEN), caches()[0]

    def refused(says: str, op: str, *arguments: object) -> None:
        with pytest.raises(RuntimeError, match=says):
            getattr(ops, op)(number, *arguments)

    refused("the layers come first", "bind_weight", -1, "final_norm.weight", vector)
    refused("finish_model: there are no layers", "finish_model")
    refused("4 heads over 3 kv heads", "bind_layer", *[torch.zeros(4, 16, 3, 8)] * 2, torch.float32)
    refused("another dtype than the model", "bind_layer", cache, cache, torch.bfloat16)
    ops.bind_layer(number, cache, cache, torch.float32)
    refused("a cache's shape is 5, not 4", "bind_layer", *[torch.zeros(5, 16, 2, 8)] * 2, torch.float32)
    refused("the caches differ in dtype", "bind_layer", cache.half(), cache.half(), torch.float32)
    refused("layer 1 of 1", "bind_weight", 1, "input_norm.weight", vector)
    for layer, name in [
        (0, "kqv.weight"),
        (0, "qkv"),
        (0, "qkv.scale"),
        (0, "input_norm"),
        (0, "input_norm.scale"),
        (0, "final_norm.weight"),
        (-1, "input_norm.weight"),
    ]:
        refused(f"{name}: there is no weight of that name", "bind_weight", layer, name, vector)
    for layer, name in [(0, "gated"), (-1, "window"), (0, "experts")]:
        refused(f"{name}: there is no number of that name", "bind_number", layer, name, 1.0)
    refused("window: inf is no number of a size", "bind_number", 0, "window", math.inf)
    refused("bind_rope: a table belongs to a layer", "bind_rope", -1, *[torch.ones(POSITIONS, 4)] * 2)
    refused("finish_model: the rope of layer 0 is missing", "finish_model")
    ops.bind_rope(number, 0, *[torch.ones(POSITIONS, 4)] * 2)
    refused("finish_model: layer 0 qkv.weight is missing", "finish_model")
    ops.bind_weight(number, 0, "input_norm.bias", vector)
    refused("layer 0 window: the numbers come before the weights", "bind_number", 0, "window", 1.0)
    refused("finish_model: layer 0 input_norm.weight is missing", "finish_model")
    refused("hidden: no model is bound as", "hidden", IDS, [*vars(META).values()])
    ops.unbind_model(number)
    refused("finish_model: no model is being bound as", "finish_model")


def test_a_clamped_gate_needs_a_gate() -> None:
    changes = {"activation": "swiglu_clamped", "gated": False}
    weights = one_layer(gate_up=Matrix(packed(24, HIDDEN)))
    with pytest.raises(RuntimeError, match="finish_model: swiglu_clamped needs a gate"):
        bind(replace(weights, config=replace(weights.config, **changes)))


def test_experts_that_do_not_fit_are_refused() -> None:
    spec = ExpertSpec(count=3, per_token=4, size=16, renormalize=True)
    weights = one_layer(
        gate_up=None,
        down=None,
        router=Matrix(packed(3, HIDDEN)),
        expert_gate_up=Matrix(packed(3 * 32, HIDDEN)),
        expert_down=Matrix(packed(3 * 16, 16)),
    )

    def bound(spec: ExpertSpec) -> FusedModel:
        layers = (replace(weights.config.layers[0], experts=spec),)
        return bind(replace(weights, config=replace(weights.config, layers=layers)))

    bound(replace(spec, per_token=3)).hidden(IDS, META)  # the control
    for says, wrong in [
        ("layer 0 has 3 experts of size 16, and a token uses 4", spec),
        ("layer 0 router.weight: the packed weight's size is 256, not 512", replace(spec, count=17)),
        ("layer 0 expert_gate_up.weight: the packed weight's size", replace(spec, size=17)),
    ]:
        with pytest.raises(RuntimeError, match=says):
            bound(wrong)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(RuntimeError, match="bind_model: there is no activation 'selu'"):
        ops.bind_model(4, HIDDEN, 24, VOCAB, "selu")


def test_a_pass_is_given_every_tensor_about_its_rows() -> None:
    model = bind(one_layer())
    with pytest.raises(RuntimeError, match="the number of tensors about the rows is 4, not 5"):
        ops.hidden(model.number, IDS, [*vars(META).values()][:4])
    with pytest.raises(RuntimeError, match="id 17 is outside"):
        model.hidden(IDS + 1, META)


def test_which_weights_are_packed() -> None:
    weights = one_layer()
    assert weights.is_packed
    assert isinstance(weights.head, PackedWeight)
    assert not replace(weights, head=torch.ones(VOCAB, HIDDEN)).is_packed
    assert not one_layer(down=Matrix(torch.ones(HIDDEN, 24))).is_packed
