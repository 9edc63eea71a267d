"""Checks on what replaced parts return.

    part --> result --> right type, shape and range?  --no--> PartError that names the part
                                                      --yes-> the engine

If a row were missing, the rows after it would go to the wrong sequences. An id out of range would index
outside an array. The values themselves (a different token, a different number) are not checked. The engine's
own parts are not wrapped.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from minillm.engine.sequence import Sequence as EngineSequence
from minillm.engine.step_plan import Chunk, StepPlan
from minillm.errors import PartError
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import Scope
from minillm.ops.contract import AttentionMetadata
from minillm.ops.sampling import SamplingBatch


def checked_sampler(sample: Callable[..., Tensor]) -> Callable[[Tensor, SamplingBatch], Tensor]:
    """Require one id of the vocabulary for each row. The part may return an id that the tokenizer lacks."""

    def checked(logits: Tensor, batch: SamplingBatch) -> Tensor:
        tokens = sample(logits, batch)
        count, vocab_size = logits.shape
        if not _is_ids(tokens, (count,), 0, vocab_size):
            _refuse("sampler", tokens, f"integers [{count}] from 0 to {vocab_size - 1}: an id for each row")
        return tokens.to(logits.device).long()

    return checked


def checked_slots(slots: Callable[..., Sequence[int]], num_slots: int) -> Callable[..., list[int]]:
    """Require one slot of the cache for each position."""

    def checked(block_table: Sequence[int], positions: Sequence[int], block_size: int) -> list[int]:
        made = slots(block_table, positions, block_size)
        try:
            found = [operator.index(slot) for slot in made]
        except TypeError:
            found = []
        if len(found) != len(positions) or not all(0 <= slot < num_slots for slot in found):
            _refuse("slot_mapping", made, f"{len(positions)} slots from 0 to {num_slots - 1}")
        return found

    return checked


class CheckedPool:
    """A replaced block pool. Requires that allocated blocks were free: two owners would both write them."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    @property
    def num_free(self) -> int:
        """Blocks without an owner."""
        count = self._pool.num_free
        if type(count) is not int or not 0 <= count <= self._pool.num_blocks:
            _refuse("block_pool", count, f"a number from 0 to {self._pool.num_blocks} as num_free")
        return count

    def allocate(self, count: int = 1) -> list[int]:
        """Allocate `count` different blocks, each with one owner."""
        pool = self._pool
        made = pool.allocate(count)
        if not (
            isinstance(made, list)
            and all(isinstance(i, int) and 0 <= i < pool.num_blocks and pool.ref_count(i) == 1 for i in made)
            and len(made) == len(set(made)) == count
        ):
            _refuse("block_pool", made, f"the ids of {count} free blocks from allocate")
        return made


def checked_scope(make_scope: Callable[..., Scope]) -> Callable[..., Scope]:
    """Require a `Scope` whose fields are compared by what they hold, so that no two tenants look alike."""

    def checked(envelope: str, tenant: str | None, is_long: bool, after: int | None) -> Scope:
        scope = make_scope(envelope, tenant, is_long, after)
        if type(scope) is not Scope or not all(field is None or type(field) is str for field in scope):
            _refuse("scope", scope, "a Scope of text")
        return scope

    return checked


def checked_rope(rope: Callable[..., Tensor] | None) -> Callable[..., Tensor] | None:
    """Require a result with the shape and dtype of x."""
    if rope is None:
        return None

    def checked(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _like("rope", rope(x, cos, sin), x, x.shape)

    return checked


def checked_attention(attention: Callable[..., Tensor] | None) -> Callable[..., Tensor] | None:
    """Require a result with the shape and dtype of q."""
    if attention is None:
        return None

    def checked(q: Tensor, k: Tensor, v: Tensor, meta: AttentionMetadata, *rest: Any, **named: Any) -> Tensor:
        return _like("attention", attention(q, k, v, meta, *rest, **named), q, q.shape)

    return checked


def checked_read(read: Callable[..., Tensor] | None) -> Callable[..., Tensor] | None:
    """Require a row of the cache for each token."""
    if read is None:
        return None

    def checked(cache: Tensor, block_table: Tensor, num_tokens: int) -> Tensor:
        return _like(
            "read_cache", read(cache, block_table, num_tokens), cache, (num_tokens, *cache.shape[2:])
        )

    return checked


def checked_linear(linear: Callable[..., Tensor] | None) -> Callable[..., Tensor] | None:
    """Require [..., out] in the dtype of x, for x [..., in] and weight [out, in]."""
    if linear is None:
        return None

    def checked(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return _like("linear", linear(x, weight, bias), x, (*x.shape[:-1], weight.shape[0]))

    return checked


def checked_verify(
    verify: Callable[..., tuple[Tensor, Tensor]],
) -> Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Require token ids [n, k + 1] and the number of accepted draft tokens of each row [n].

    The accepted tokens must be those of the draft: their keys and values are in the cache already.
    """

    def checked(
        draft: Tensor, draft_probs: Tensor | None, target_probs: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        made = verify(draft, draft_probs, target_probs, uniforms)
        count, depth, vocab_size = len(draft), draft.shape[1], target_probs.shape[2]
        drafted = (draft >= 0).sum(dim=1)
        is_pair = isinstance(made, tuple | list) and len(made) == 2
        if (
            not is_pair
            or not _is_ids(made[1], (count,), 0, depth + 1)
            or bool((made[1] > drafted).any())
            or not _is_ids(made[0], (count, depth + 1), -1, vocab_size)
            or bool((made[0].gather(1, made[1].long().unsqueeze(1)) < 0).any())
            or not _begins_with(made[0], draft, made[1])
        ):
            shown = made[0] if is_pair else made
            _refuse(
                "verify_draft",
                shown,
                f"ids [{count}, {depth + 1}] that begin with the accepted draft tokens, and their counts "
                f"[{count}], each 0 to {depth}",
            )
        return made[0], made[1]

    return checked


def check_plan(plan: StepPlan) -> StepPlan:
    """Return the plan of a replaced scheduler, if it can be executed."""
    if not isinstance(plan, StepPlan):
        _refuse("scheduler", plan, "a StepPlan from schedule")
    if not _is_well_formed(plan):
        _refuse_plan("returns a StepPlan whose fields have the wrong types")
    known = set[EngineSequence]()
    for sequence in plan.sequences:
        if sequence in known or sequence.finish_reason:
            _refuse_plan("plans a sequence twice, or one that has ended")
        known.add(sequence)
    if any(sequence.is_prefilling for sequence in plan.decode):
        _refuse_plan("decodes a sequence whose prefill is not finished")
    for chunk in plan.prefill:
        if chunk.start != chunk.sequence.num_computed_tokens:
            _refuse_plan("plans a chunk that does not start at the first token not yet computed")
        if not chunk.start < chunk.end <= chunk.sequence.num_tokens:
            _refuse_plan("plans a chunk that is empty or goes past the sequence's last token")
    return plan


def _is_well_formed(plan: StepPlan) -> bool:
    return (
        all(isinstance(x, list) for x in (plan.prefill, plan.decode, plan.preempted))
        and all(isinstance(x, Chunk) and type(x.start) is type(x.end) is int for x in plan.prefill)
        and all(isinstance(x, EngineSequence) for x in [*plan.decode, *plan.preempted])
        and all(isinstance(x.sequence, EngineSequence) for x in plan.prefill)
        and isinstance(plan.blocks, dict)
        and all(type(x) is int for x in [plan.num_blocks, *plan.blocks.values()])
    )


def _is_ids(tensor: object, shape: tuple[int, ...], low: int, high: int) -> bool:
    """Whether `tensor` holds integers of this shape with `low` <= value < `high`."""
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
        return False
    if tensor.is_floating_point() or tensor.is_complex():
        return False
    return tensor.numel() == 0 or bool(low <= tensor.min() and tensor.max() < high)


def _begins_with(tokens: Tensor, draft: Tensor, counts: Tensor) -> bool:
    """Whether each row of `tokens` [n, k + 1] begins with the first `counts[i]` tokens of `draft` [n, k]."""
    depth = draft.shape[1]
    is_accepted = torch.arange(depth, device=draft.device) < counts.unsqueeze(1)
    return not bool(((tokens[:, :depth] != draft) & is_accepted).any())


def _like(part: str, found: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(found, Tensor) or tuple(found.shape) != tuple(shape) or found.dtype != x.dtype:
        _refuse(part, found, f"{str(x.dtype).removeprefix('torch.')} {list(shape)}")
    return found


def _refuse(part: str, found: object, wanted: str) -> NoReturn:
    raise PartError(f"part {part!r} returned {_described(found)}, which cannot be used", f"return {wanted}")


def _refuse_plan(what: str) -> NoReturn:
    raise PartError(f"part 'scheduler' {what}", "the engine's own Scheduler keeps these rules")


def _described(value: object) -> str:
    """Describe a value by type, shape and dtype only: its content may come from a request."""
    if not isinstance(value, Tensor):
        return (
            f"a {type(value).__name__} of {len(value)}" if isinstance(value, list) else type(value).__name__
        )
    kind = str(value.dtype).removeprefix("torch.")
    return f"a tensor {list(value.shape)} of {kind}"
