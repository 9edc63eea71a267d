"""Binding a model's weights by name: a missing, unknown or wrong weight is refused, and its name reported."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import native  # noqa: F401  (skips this file where there are no kernels)
import pytest
import torch
from weights import HIDDEN, INPUTS, POSITIONS, VOCAB, caches, one_layer, packed

from minillm.ops.contract import AttentionMetadata, FusedModel, Matrix, ModelWeights, PackedWeight
from minillm.ops.cpu import CpuOps

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
    changes = {**matrices, "q_norm": torch.full((8,), 2.0), "k_norm": torch.full((8,), 3.0)}
    found = [bind(one_layer(**{name: value})).last_logits(IDS, META) for name, value in changes.items()]
    names = [name for name, _ in one_layer(**changes).layers[0].named()]
    assert (
        names
        == (
            "input_norm qkv.weight qkv.bias q_norm k_norm o.weight o.bias post_attention_norm "
            "gate_up.weight gate_up.bias down.weight down.bias"
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
        ("layer 0 k_norm has 7 elements, not 8", lambda: one_layer(k_norm=torch.ones(7))),
        ("layer 0 q_norm has another dtype", lambda: one_layer(q_norm=torch.ones(8).half())),
        ("layer 0 input_norm is missing", lambda: one_layer(input_norm=None)),
        ("layer 0 down.weight is missing", lambda: one_layer(down=None)),
        ("head.weight: the packed weight's size", lambda: replace(one_layer(), head=packed(40, HIDDEN))),
        ("final_norm has 17 elements", lambda: replace(one_layer(), final_norm=torch.ones(17))),
        ("cos's width is 3", lambda: replace(one_layer(), rope=[torch.ones(9, 3)] * 2)),
    ],
)
def test_what_does_not_fit_is_named(says: str, weights: Callable[[], ModelWeights]) -> None:
    with pytest.raises(RuntimeError) as caught:
        bind(weights())
    assert says in str(caught.value)


def test_names_and_order_are_checked() -> None:
    number = ops.bind_model(4, HIDDEN, 24, VOCAB, 1e-5)
    vector, cache = torch.ones(HIDDEN), caches()[0]

    def refused(says: str, op: str, *arguments: object) -> None:
        with pytest.raises(RuntimeError, match=says):
            getattr(ops, op)(number, *arguments)

    refused("the layers come first", "bind_weight", -1, "final_norm", vector)
    refused("finish_model: there are no layers", "finish_model")
    refused("4 heads over 3 kv heads", "bind_layer", *[torch.zeros(4, 16, 3, 8)] * 2, 0, 1.0)
    ops.bind_layer(number, cache, cache, 0, 1.0)
    refused("a cache's shape is 5, not 4", "bind_layer", *[torch.zeros(5, 16, 2, 8)] * 2, 0, 1.0)
    refused("the caches differ in dtype", "bind_layer", cache.half(), cache.half(), 0, 1.0)
    refused("layer 1 of 1", "bind_weight", 1, "input_norm", vector)
    for layer, name in [
        (0, "kqv.weight"),
        (0, "qkv"),
        (0, "qkv.scale"),
        (0, "final_norm"),
        (-1, "input_norm"),
    ]:
        refused(f"{name}: there is no weight of that name", "bind_weight", layer, name, vector)
    refused("finish_model: rope is missing", "finish_model")
    ops.bind_rope(number, *[torch.ones(POSITIONS, 4)] * 2)
    refused("finish_model: final_norm is missing", "finish_model")
    refused("hidden: no model is bound as", "hidden", IDS, [*vars(META).values()])
    ops.unbind_model(number)
    refused("finish_model: no model is being bound as", "finish_model")


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
