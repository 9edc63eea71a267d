"""What stays the same when a request runs again? Five named guarantees, and what can keep each of them.

"Deterministic" means many things. Each guarantee includes those above it in this table, except G4:

    G0  run to run      the same call, made twice, gives the same bits
    G1  any batch       ... whatever other requests run in the same steps
    G2  any schedule    ... in whatever chunks, with a prefix hit or cold, preempted, with drafts
    G3  any replica     ... in another engine, or another process, whose envelope has the same digest
    G4  tolerance only  the same numbers up to rounding; tokens may part where two candidates nearly tie

"The same" means token ids and logits, bit by bit, of requests that give a seed or are greedy. G4 is the
floor: every engine keeps it.

A sum of floating point numbers depends on its order: (a + b) + c is not a + (b + c). So bits stay the same
only if the order stays the same, and the question is always what decides the order:

    what runs                     decided by           so it keeps   because
    native, simt                  the row alone        G3            one reduction order for each output row,
                                                                     in prefill and in decode (the pair of
                                                                     rungs on CUDA), on any number of threads
    reference on a CPU            the step's shape     G0            a matrix product picks its order by the
                                                                     number of rows
    reference on a GPU            the vendor's choice  G4            its library promises no order
    coupled drafts                nothing              as before     a draft is compared with the token that
                                                                     is drawn anyway (contract C7)
    rejection sampling            the draft lengths    G0            a draw depends on whether its token was
                                                                     drafted, and room decides that
    a part whose code we do not   unknown              G4            a faster product, a sampler: the engine
      know                                                           cannot see in what order it adds

Where shapes decide (G0), the shapes themselves must repeat. A second call that finds cached blocks computes
other shapes, and drafts whose length follows measured times never repeat. Both lower G0 to G4.

Written after "Defeating Nondeterminism in LLM Inference" (Thinking Machines Lab, 2025), which names the batch
as the usual cause. Left out: guarantees across versions of minillm, compilers or instruction sets; they are
in the envelope, so G3 says nothing about them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from minillm.config import EngineConfig, GuaranteeName
from minillm.engine.parts import Parts
from minillm.errors import GuaranteeError
from minillm.model.loader import LoadedModel

MEANINGS = {
    "G0": "run to run: the same call twice",
    "G1": "any batch: whatever runs beside it",
    "G2": "any schedule: chunks, prefix hits, preemption, drafts",
    "G3": "any replica: another engine or process with the same envelope",
    "G4": "tolerance only",
}
# Backends whose every output row is summed in an order that depends on this row alone (contract C2).
ROW_INVARIANT = ("native", "simt")
# Parts that decide when and where a token is computed, never what. Of others the engine knows no bits.
_SCHEDULING_PARTS = ("scheduler", "block_pool", "drafter")
_STRENGTH = ("G4", "G0", "G1", "G2", "G3")


@dataclass(frozen=True)
class Limit:
    """Something that keeps `level` and nothing stronger: why, and what would keep more."""

    level: GuaranteeName
    reason: str
    hint: str


@dataclass(frozen=True)
class Guarantee:
    """The strongest guarantee that an engine keeps, and what stands in the way of a stronger one."""

    level: GuaranteeName
    limits: tuple[Limit, ...]

    def keeps(self, level: GuaranteeName) -> bool:
        """Whether `level` is included."""
        return strength(level) <= strength(self.level)

    def obstacle(self, level: GuaranteeName) -> Limit | None:
        """The first limit that excludes `level`; None if it is kept."""
        return next((limit for limit in self.limits if strength(limit.level) < strength(level)), None)


def strength(level: str) -> int:
    """The place of a guarantee among the others, the weakest first: G4, G0, G1, G2, G3."""
    return _STRENGTH.index(level)


def kept_guarantee(model: LoadedModel, config: EngineConfig, parts: Parts) -> Guarantee:
    """What an engine of this model, these options and these parts keeps."""
    limits = tuple(_limits(model, config, parts))
    strongest: GuaranteeName = "G3"
    lowest = min((limit.level for limit in limits), key=strength, default=strongest)
    return Guarantee(lowest, limits)


def require_guarantee(guarantee: Guarantee, wanted: GuaranteeName | None) -> None:
    """Refuse to start an engine that cannot keep what was asked for.

    Raises:
        GuaranteeError: it cannot; the message says why, the hint what to change.
    """
    limit = None if wanted is None else guarantee.obstacle(wanted)
    if limit is not None:
        raise GuaranteeError(
            f"guarantee {wanted} ({MEANINGS[str(wanted)]}) cannot be kept: {limit.reason}", limit.hint
        )


def _limits(model: LoadedModel, config: EngineConfig, parts: Parts) -> Iterator[Limit]:
    for name in _unknown_parts(config, parts):
        yield Limit(
            "G4", f"the engine does not know the arithmetic of part {name!r}", f"leave part {name!r} out"
        )
    has_drafts = config.draft_model is not None or parts.drafter is not None
    rejects = has_drafts and config.draft_verification == "rejection"
    if rejects:
        yield Limit(
            "G0",
            "under rejection sampling a draw depends on whether its token was drafted, and room decides that",
            'set draft_verification="coupled"',
        )
    backend = model.decoder.ops.name
    if backend not in ROW_INVARIANT:
        yield _backend_limit(backend, model.device.type)
    if rejects or backend not in ROW_INVARIANT:
        yield from _what_never_repeats(config, has_drafts)


def _backend_limit(backend: str, device: str) -> Limit:
    hint = 'use backend="native"'
    if backend != "reference":
        return Limit("G4", f"the engine does not know the arithmetic of backend {backend!r}", hint)
    if device != "cpu":
        return Limit("G4", f"the reference backend's library promises no order of sums on {device}", hint)
    return Limit("G0", "the order of the reference backend's sums depends on the shape of a step", hint)


def _what_never_repeats(config: EngineConfig, has_drafts: bool) -> Iterator[Limit]:
    """Where the shape of a step decides bits, or where a draft ends: what changes it from call to call."""
    if config.prefix_caching:
        yield Limit(
            "G4",
            "a second call finds cached blocks, so its steps have other shapes, which decide here",
            "set prefix_caching=False",
        )
    if has_drafts and config.adaptive_draft:
        yield Limit(
            "G4",
            "the lengths of adaptive drafts follow measured times, and they decide here",
            "set adaptive_draft=False",
        )
    if config.tenant_limits:
        yield Limit(
            "G4",
            "lanes of tenants take turns from step to step, so a second call may begin with another lane",
            "leave tenant_limits out",
        )


def _unknown_parts(config: EngineConfig, parts: Parts) -> list[str]:
    """The replaced parts that can change a bit of an answer."""
    defaults = Parts()
    replaced = [f.name for f in fields(parts) if getattr(parts, f.name) is not getattr(defaults, f.name)]
    coupled = config.draft_verification == "coupled"
    return [n for n in replaced if n not in _SCHEDULING_PARTS or (n == "drafter" and not coupled)]
