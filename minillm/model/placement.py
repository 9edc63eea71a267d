"""Where the tensors of a checkpoint's layer go: views of the parameters, by the names in the checkpoint.

    names of the family          parameter             view
    q_proj, k_proj, v_proj       qkv [q + 2 kv, in]    rows, one piece after the other
    c_attn, stored [in, out]     qkv [out, in]         transposed
    experts.{e}.w1, .w3          expert_gate_up        the rows of expert e
    experts.gate_up_proj         expert_gate_up        [num_experts, in, size, 2]: gate and up in turns

Left out: any arithmetic. A checkpoint's numbers are copied, at most to another dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from minillm.config import ModelConfig
from minillm.model.blocks import Experts, Layer
from minillm.model.families import CheckpointNames


class Placement(NamedTuple):
    """Where a stored tensor goes: the numbers of `view`, in order, are those of the file.

    `shape` is the stored shape; `view` has the same shape, or one that splits some of its dimensions.
    """

    view: Tensor
    shape: tuple[int, ...]


def layer_placements(layer: Layer, config: ModelConfig, names: CheckpointNames) -> dict[str, Placement]:
    """Checkpoint name, without the layer's prefix -> the part of the layer's parameter that it fills."""
    table: dict[str, Placement] = {}
    for name, norm in layer.norms().items():
        for kind, parameter in norm.named_parameters():
            table[f"{names.parts[name]}.{kind}"] = _place(parameter)
    if layer.attention.sinks is not None:
        table[str(names.parts["sinks"])] = _place(layer.attention.sinks)
    for name, linear in layer.linears().items():
        for kind, parameter in linear.named_parameters():
            if not name.startswith("expert_"):
                table.update(_rows(f"{name}.{kind}", parameter, config, names))
            elif isinstance(layer.mlp, Experts):
                table.update(_experts(f"{name}.{kind}", parameter, layer.mlp, names))
    return table


def _place(view: Tensor, shape: tuple[int, ...] | None = None) -> Placement:
    return Placement(view.detach(), shape or tuple(view.shape))


def _rows(
    name: str, parameter: Tensor, config: ModelConfig, names: CheckpointNames
) -> Iterator[tuple[str, Placement]]:
    """A projection: its rows are those of one stored tensor, or of several."""
    owner, kind = name.split(".")
    stems = _stems(names.parts[owner])
    sizes = (
        [config.q_size, config.kv_size, config.kv_size] if owner == "qkv" else len(parameter) // len(stems)
    )
    for stem, view in zip(stems, parameter.split(sizes if len(stems) > 1 else len(parameter)), strict=True):
        yield f"{stem}.{kind}", _place(view.T if names.transposed and view.dim() == 2 else view)


def _experts(
    name: str, parameter: Tensor, experts: Experts, names: CheckpointNames
) -> Iterator[tuple[str, Placement]]:
    """The stacked matrices of all experts, without the rows between them."""
    owner, kind = name.split(".")
    count, size = experts.spec.count, 2 * experts.spec.size
    if owner == "expert_down":
        size = experts.config.hidden_size
    each = parameter.unflatten(0, (count, -1))[:, :size]
    if names.interleaved:
        yield str(names.parts[name]), _in_turns(each, gated=owner == "expert_gate_up")
        return
    stems = _stems(names.parts[owner])
    for expert, matrix in enumerate(each):
        for stem, view in zip(stems, matrix.split(size // len(stems)), strict=True):
            yield f"{stem.format(e=expert)}.{kind}", _place(view)


def _in_turns(each: Tensor, gated: bool) -> Placement:
    """`each` [num_experts, rows, in] as stored by gpt-oss, [num_experts, in, rows]; or biases.

    Stored are gate 0, up 0, gate 1, up 1, ...; the engine has all gates before all ups.
    """
    shape = (each.shape[0], *each.shape[2:], each.shape[1])
    if not gated:
        return _place(each.transpose(1, -1), shape)
    halves = each.unflatten(1, (2, -1))  # [num_experts, 2, size, in]
    return _place(halves.permute(0, 3, 2, 1) if halves.dim() == 4 else halves.permute(0, 2, 1), shape)


def _stems(part: str | tuple[str, ...]) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else part
