"""The KV memory at the end of the newest step, in blocks and bytes.

| used by sequences | cached: free, but a prefix can still be found | free |
                    | headroom -------------------------------------------|
"""

from __future__ import annotations

from dataclasses import dataclass

from minillm.observe.events import Event


@dataclass(frozen=True)
class MemoryNow:
    """Blocks by what they hold. `slots`: token slots of running sequences; `waste`: those without a token."""

    block_bytes: int
    used: int = 0
    cached: int = 0
    free: int = 0
    slots: int = 0
    waste: int = 0

    @classmethod
    def at(cls, step: Event | None, num_blocks: int, block_bytes: int) -> MemoryNow:
        """The memory that the event `step` describes; before the first step every block is free."""
        if step is None:
            return cls(block_bytes, free=num_blocks)
        return cls(block_bytes, *(step[name] for name in ("used", "cached", "free", "slots", "waste")))

    @property
    def blocks(self) -> dict[str, int]:
        """The number of blocks in each state."""
        return {"used": self.used, "cached": self.cached, "free": self.free}

    @property
    def num_blocks(self) -> int:
        """All blocks."""
        return self.used + self.cached + self.free

    @property
    def headroom(self) -> int:
        """Blocks that a sequence could get now."""
        return self.cached + self.free

    @property
    def usage(self) -> float:
        """The share of the blocks that sequences use."""
        return self.used / self.num_blocks if self.num_blocks else 0.0

    @property
    def fragmentation(self) -> float:
        """The share of the running sequences' slots that have no token."""
        return self.waste / self.slots if self.slots else 0.0
