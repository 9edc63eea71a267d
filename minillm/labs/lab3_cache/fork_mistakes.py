"""Task 3.6: known mistakes of `fork`."""

from __future__ import annotations

from minillm.labs.grader.lab import Mistake
from minillm.memory.block_table import BlockTable, blocks_for

Forked = tuple[BlockTable, tuple[int, int] | None]


class Forks(BlockTable):
    """The engine's `fork` in steps; subclasses replace some of them."""

    def _cut(self, num_tokens: int) -> tuple[int, int]:
        """The number of full blocks, and of tokens in the next one."""
        return divmod(num_tokens, self._pool.block_size)

    def _copied(self, num_full: int) -> int:
        return self.block_ids[num_full]

    def fork(self, num_tokens: int) -> Forked:
        num_full, rest = self._cut(num_tokens)
        child = type(self)(self._pool)
        own = self._pool.allocate(1) if rest else []
        self._pool.share(self.block_ids[:num_full])
        child.block_ids = self.block_ids[:num_full] + own
        return child, (self._copied(num_full), own[0]) if own else None


class SharesPartial(Forks):
    """The partly full block is shared too."""

    def _cut(self, num_tokens: int) -> tuple[int, int]:
        return blocks_for(num_tokens, self._pool.block_size), 0


class SharesAll(Forks):
    """All blocks of the table are shared."""

    def _cut(self, num_tokens: int) -> tuple[int, int]:
        return len(self.block_ids), 0


class AllButLast(Forks):
    """Shares all blocks of the table but the last one, whatever `num_tokens` is."""

    def _cut(self, num_tokens: int) -> tuple[int, int]:
        size = self._pool.block_size
        return (len(self.block_ids) - 1, 1) if num_tokens % size else (len(self.block_ids), 0)


class CopiesLast(Forks):
    """Copies the last block of the table."""

    def _copied(self, num_full: int) -> int:
        return self.block_ids[-1]


class CopiesFirst(Forks):
    """Copies the first block of the table."""

    def _copied(self, num_full: int) -> int:
        return self.block_ids[0]


class CopiesBefore(Forks):
    """Copies the last full block."""

    def _copied(self, num_full: int) -> int:
        return self.block_ids[num_full - 1]


class Swapped(Forks):
    """(destination, source)."""

    def fork(self, num_tokens: int) -> Forked:
        child, copy = super().fork(num_tokens)
        return child, copy and (copy[1], copy[0])


class ForgetsOwners(Forks):
    """The full blocks are in the table, but the pool does not count the new owner."""

    def fork(self, num_tokens: int) -> Forked:
        child, copy = super().fork(num_tokens)
        self._pool.free(child.block_ids[: num_tokens // self._pool.block_size])
        return child, copy


class OwnsCopied(Forks):
    """The block that is copied gets a second owner too."""

    def fork(self, num_tokens: int) -> Forked:
        child, copy = super().fork(num_tokens)
        self._pool.share([copy[0]] if copy else [])
        return child, copy


class OwnsTail(Forks):
    """All blocks of the table get a second owner, but only some are in the fork."""

    def fork(self, num_tokens: int) -> Forked:
        child, copy = super().fork(num_tokens)
        self._pool.share(self.block_ids[num_tokens // self._pool.block_size :])
        return child, copy


class KeepsTail(Forks):
    """The blocks after the copied one are in the fork too."""

    def fork(self, num_tokens: int) -> Forked:
        child, copy = super().fork(num_tokens)
        tail = self.block_ids[blocks_for(num_tokens, self._pool.block_size) :]
        self._pool.share(tail)
        child.block_ids += tail
        return child, copy


class SharesFirst(Forks):
    """Shares before it has allocated the block for the copy."""

    def fork(self, num_tokens: int) -> Forked:
        full = self.block_ids[: num_tokens // self._pool.block_size]
        self._pool.share(full)
        child, copy = super().fork(num_tokens)
        self._pool.free(full)
        return child, copy


class ForgetsCopy(Forks):
    """The fork has its own last block, but returns no copy."""

    def fork(self, num_tokens: int) -> Forked:
        return super().fork(num_tokens)[0], None


class AlwaysCopies(Forks):
    """The fork gets its own last block even if that block is full."""

    def _cut(self, num_tokens: int) -> tuple[int, int]:
        num_full = max(0, num_tokens - 1) // self._pool.block_size
        return num_full, num_tokens - num_full * self._pool.block_size


class EmptyBlock(Forks):
    """A full last block is shared, and an empty block is added."""

    def fork(self, num_tokens: int) -> Forked:
        child, copy = super().fork(num_tokens)
        if copy is None:
            child.block_ids += self._pool.allocate(1)
        return child, copy


class CopiesEverything(Forks):
    """Shares nothing: new blocks for all tokens."""

    def fork(self, num_tokens: int) -> Forked:
        child = type(self)(self._pool)
        child.grow(num_tokens)
        num_full, rest = divmod(num_tokens, self._pool.block_size)
        return child, (self.block_ids[num_full], child.block_ids[-1]) if rest else None


class SameList(Forks):
    """If all blocks are full, both tables have one list."""

    def fork(self, num_tokens: int) -> Forked:
        child, copy = super().fork(num_tokens)
        if child.block_ids == self.block_ids:
            child.block_ids = self.block_ids
        return child, copy


class AlwaysSameList(Forks):
    """Both tables have one list, and the fork's block is appended to it."""

    def fork(self, num_tokens: int) -> Forked:
        child, copy = super().fork(num_tokens)
        self.block_ids[:] = child.block_ids
        child.block_ids = self.block_ids
        return child, copy


class SameListTooEarly(Forks):
    """Both tables have one list, and its block to copy is overwritten before it is returned."""

    def fork(self, num_tokens: int) -> Forked:
        child, copy = super().fork(num_tokens)
        self.block_ids[num_tokens // self._pool.block_size :] = [copy[1]] if copy else []
        child.block_ids = self.block_ids
        return child, copy and (copy[1], copy[1])


class SharedList(Forks):
    """All blocks are shared, and both tables have one list."""

    def fork(self, num_tokens: int) -> Forked:
        child = type(self)(self._pool)
        self._pool.share(self.block_ids)
        child.block_ids = self.block_ids
        return child, None


class ReturnsItself(Forks):
    """The fork is the source."""

    def fork(self, num_tokens: int) -> Forked:
        _, copy = super().fork(num_tokens)
        return self, copy


class SameForkAgain(Forks):
    """A second fork of the same length is the first one."""

    _last: tuple[int, Forked] | None = None

    def fork(self, num_tokens: int) -> Forked:
        if self._last is None or self._last[0] != num_tokens:
            self._last = num_tokens, super().fork(num_tokens)
        return self._last[1]


class GivesOwnToSource(Forks):
    """The source gets the new block, the fork keeps the old one."""

    def fork(self, num_tokens: int) -> Forked:
        child, copy = super().fork(num_tokens)
        if copy:
            child.block_ids[-1] = copy[0]
            self.block_ids[num_tokens // self._pool.block_size] = copy[1]
        return child, copy


FORK_MISTAKES = (
    Mistake("the last, partly full block is shared, and both sequences will write to it", SharesPartial),
    Mistake("all blocks of the table are shared: only those full of the first num_tokens tokens", SharesAll),
    Mistake("the fork is cut at the table's last block: cut it at num_tokens", AllButLast),
    Mistake("the table's last block is copied: copy the block that holds the last token", CopiesLast),
    Mistake("the table's first block is copied: copy the partly full one", CopiesFirst),
    Mistake("the last full block is copied: copy the partly full one, which comes after it", CopiesBefore),
    Mistake("the copy is (destination, source): return (source, destination)", Swapped),
    Mistake("shared blocks get no second owner: call the pool's `share`", ForgetsOwners),
    Mistake("the copied block gets a second owner, but the fork does not hold it: it leaks", OwnsCopied),
    Mistake("blocks that the fork does not hold get a second owner: they leak", OwnsTail),
    Mistake("blocks after num_tokens are in the fork too: it holds the first num_tokens tokens", KeepsTail),
    Mistake("blocks are shared before the copy is allocated, so a failed fork leaks owners", SharesFirst),
    Mistake("the fork's own block is empty: return (source, destination) for the copy", ForgetsCopy),
    Mistake("a full last block needs no copy: no sequence will write to it", AlwaysCopies),
    Mistake("a full last block needs no new block: `grow` adds it when a token needs it", EmptyBlock),
    Mistake("nothing is shared: full blocks are the same in both tables", CopiesEverything),
    Mistake("both tables have the same list if all blocks are full: copy the list", SameList),
    Mistake("both tables have the same list, so the source loses its own block", AlwaysSameList),
    Mistake("both tables have the same list, and the block to copy is gone from it", SameListTooEarly),
    Mistake("all blocks are shared in one list for both tables: copy the list up to num_tokens", SharedList),
    Mistake("the source itself is returned: make a new BlockTable", ReturnsItself),
    Mistake("a second fork is the first one again: every fork is a new table", SameForkAgain),
    Mistake("the source gets the new block: the source's table does not change", GivesOwnToSource),
)
