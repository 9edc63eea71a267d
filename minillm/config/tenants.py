"""The limits of tenants: what each is guaranteed, and the most it may take.

    tenant_limits={
        "anna": TenantLimits(guaranteed_blocks=64, guaranteed_tokens_per_step=128),
        "ben": TenantLimits(max_blocks=32),
        None: TenantLimits(max_queued_tokens=10_000),         all other tenants
    }

                 blocks of the pool                          tokens of a step
    +-----------+-------------------------------+      +----------+------------------+
    | anna's 64 | common: ben and all others,   |      | anna's   | ben, all others  |
    |           | and anna beyond her 64        |      | 128      |                  |
    +-----------+-------------------------------+      +----------+------------------+

A guarantee is a reservation. Nobody else gets a guaranteed block, not even while its tenant is idle, and a
tenant with guaranteed tokens gets exactly that many in each step, whether others are busy or not. So what the
tenant sees cannot depend on the others (contract C12). The price is memory and time that stay unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from minillm.config.checks import require_int
from minillm.errors import UsageError

_MOST = (1 << 48) - 1
_EXAMPLE = 'as {"anna": TenantLimits(guaranteed_blocks=64)}'


@dataclass(frozen=True)
class TenantLimits:
    """The share of one tenant. The default is no guarantee and no limit.

    guaranteed_blocks            KV blocks that only this tenant's sequences and cached prefixes use
    max_blocks                   the most blocks of its running requests, at their full length; None: no limit
    guaranteed_tokens_per_step   tokens of every step that only this tenant gets; it gets no others then
    max_queued_tokens            prompt tokens that may wait for their start; None: the engine's own limit

    Under the key None, `max_blocks` and `max_queued_tokens` hold for each tenant that is not named, and the
    guarantees for all of them together.
    """

    guaranteed_blocks: int = 0
    max_blocks: int | None = None
    guaranteed_tokens_per_step: int = 0
    max_queued_tokens: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, is_guarantee = getattr(self, field.name), field.name.startswith("guaranteed")
            if value is not None or is_guarantee:
                require_int(field.name, value, minimum=0 if is_guarantee else 1, maximum=_MOST)
        if self.max_blocks is not None and self.max_blocks < self.guaranteed_blocks:
            raise UsageError(
                f"max_blocks={self.max_blocks} is less than guaranteed_blocks={self.guaranteed_blocks}",
                "raise max_blocks, or leave it out",
            )

    @property
    def is_guaranteed(self) -> bool:
        """Whether the tenant is guaranteed anything."""
        return self.guaranteed_blocks > 0 or self.guaranteed_tokens_per_step > 0


UNLIMITED = TenantLimits()
Limits = Mapping[str | None, TenantLimits]


def check_tenant(tenant: object) -> None:
    """Check that a tenant is None or text that can be encoded: it is part of the prefix cache's keys.

    Raises:
        UsageError: it is not. The message does not quote it.
    """
    if tenant is None:
        return
    if not isinstance(tenant, str):
        raise UsageError(f"tenant must be text or None, not {type(tenant).__name__}")
    try:
        tenant.encode()
    except UnicodeEncodeError:
        raise UsageError(
            "tenant is not valid Unicode", "decode it from UTF-8 without surrogateescape"
        ) from None


def own_limits(limits: object, max_tokens: int) -> dict[str | None, TenantLimits] | None:
    """`tenant_limits`, read once into a dict of our own and checked; `max_tokens` is what one step computes.

    The caller's mapping may be any object: it may change later, or answer twice in two ways.

    Raises:
        UsageError: not a mapping of tenants to `TenantLimits`, or the guaranteed tokens are more than a step.
    """
    if limits is None:
        return None
    if not isinstance(limits, Mapping):
        raise UsageError(
            f"tenant_limits must map tenants to TenantLimits, not {type(limits).__name__}", _EXAMPLE
        )
    try:
        found = dict(limits.items())
    except Exception as error:
        raise UsageError(f"tenant_limits cannot be read: {type(error).__name__}", _EXAMPLE) from None
    for tenant, limit in found.items():
        check_tenant(tenant)
        if not isinstance(limit, TenantLimits):
            raise UsageError(f"tenant_limits must hold TenantLimits, not {type(limit).__name__}", _EXAMPLE)
    guaranteed = sum(limit.guaranteed_tokens_per_step for limit in found.values())
    if guaranteed > max_tokens:
        raise UsageError(
            f"the guarantees add up to {guaranteed} tokens per step, a step has {max_tokens}",
            "lower guaranteed_tokens_per_step or raise max_num_batched_tokens",
        )
    return found


def limits_of(limits: Limits | None, tenant: str | None) -> TenantLimits:
    """The limits that hold for a tenant: its own, or those of all tenants that are not named."""
    found = limits or {}
    return found.get(tenant, found.get(None, UNLIMITED))


def guaranteed_by_name(limits: Limits | None) -> dict[str, TenantLimits]:
    """The tenants that are named and guaranteed anything. They have a queue and a share of their own."""
    named = {tenant: limit for tenant, limit in (limits or {}).items() if tenant is not None}
    return {tenant: limit for tenant, limit in named.items() if limit.is_guaranteed}
