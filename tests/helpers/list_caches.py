"""Slow caches made of lists, the oracles of the cache simulator, and traces to run them on."""

from __future__ import annotations

from collections.abc import Sequence

from minillm.bench.cache_sim.trace import TraceRequest


def prompts(*hash_ids: Sequence[int]) -> list[TraceRequest]:
    """A request a second, with answers of 25 tokens: each is over when the next one comes."""
    return [TraceRequest(1000.0 * i, 512 * len(ids), 25, tuple(ids)) for i, ids in enumerate(hash_ids)]


class ListLRU:
    """The least recently used block is first."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.order = capacity, list[int]()

    def __contains__(self, block: int) -> bool:
        return block in self.order

    def access(self, block: int) -> list[int]:
        before = list(self.order)
        self.order = [*(b for b in self.order if b != block), block][-self.capacity :]
        return [b for b in before if b not in self.order]


class ListS3FIFO:
    """Algorithm 1 of the paper, line by line. Heads are at index 0, tails at index -1."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tenth = max(1, capacity // 10)
        self.s, self.m, self.g = list[int](), list[int](), list[int]()
        self.freq: dict[int, int] = {}

    def __contains__(self, block: int) -> bool:
        return block in self.s or block in self.m

    def access(self, x: int) -> list[int]:
        before = self.s + self.m
        if x in self:
            self.freq[x] = min(self.freq[x] + 1, 3)
        else:
            while len(self.s) + len(self.m) >= self.capacity:
                if len(self.s) >= self.tenth:
                    self.evict_s()
                else:
                    self.evict_m()
            (self.m if x in self.g else self.s).insert(0, x)
            self.g = [b for b in self.g if b != x]
            self.freq[x] = 0
        return [b for b in before if b not in self]

    def evict_s(self) -> None:
        evicted = False
        while not evicted and self.s:
            t = self.s.pop()
            if self.freq[t] > 1:
                self.freq[t] = 0
                self.m.insert(0, t)
                if len(self.m) > self.capacity - self.tenth:
                    self.evict_m()
            else:
                self.g = [t, *self.g][: self.capacity - self.tenth]
                evicted = True

    def evict_m(self) -> None:
        evicted = False
        while not evicted and self.m:
            t = self.m.pop()
            if self.freq[t] > 0:
                self.m.insert(0, t)
                self.freq[t] -= 1
            else:
                evicted = True
