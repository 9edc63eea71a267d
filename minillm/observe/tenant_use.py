"""What each tenant used, by its label, in a table of bounded size.

    label (16 hex digits) --> requests, prompt, cached and output tokens, refusals
    the 1,001st label     --> "other"

A label is a keyed digest of the tenant's name (`engine/keyed.py`): it names nobody, and it is another one in
every process. Whoever may name tenants can name any number of them, so only the first `MAX_LABELS` get a row.
Later ones share the row "other", as do refused requests whose tenant was no name at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MAX_LABELS = 1000
OTHER = "other"


@dataclass(slots=True)
class TenantUse:
    """Counts of one tenant. `prompt_tokens` and `cached_tokens` are those of admitted requests."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    refused: int = 0


class TenantTable:
    """The use of each tenant, by label."""

    def __init__(self) -> None:
        self._rows: dict[str, TenantUse] = {}

    def row(self, label: str) -> TenantUse:
        """The tenant's row. It is made if there is room, else it is the row of all others."""
        found = self._rows.get(label)
        if found is None:
            is_own = label and label != OTHER and self._own_rows < MAX_LABELS
            found = self._rows.setdefault(label if is_own else OTHER, TenantUse())
        return found

    @property
    def _own_rows(self) -> int:
        return len(self._rows) - (OTHER in self._rows)

    def __iter__(self) -> Iterator[tuple[str, TenantUse]]:
        return iter(self._rows.copy().items())

    def __len__(self) -> int:
        return len(self._rows)
