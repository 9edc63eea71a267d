"""Task 9.1, down a tree of drafts: cases and known mistakes of `verify_coupled`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import torch
from torch import Tensor

from minillm.labs.grader.cost import counted_work
from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.ops.verification import verify_coupled

Tree = tuple[Sequence[int], Sequence[int], Sequence[int]]  # sampled, drafted, parents of one request


Verify = Callable[..., tuple[Tensor, Tensor]]


def inputs(trees: Sequence[Tree]) -> list[Tensor]:
    """The trees one after the other: sampled, drafted, parents, node_start."""
    starts = [0]
    for sampled, _, _ in trees:
        starts.append(starts[-1] + len(sampled))
    columns = [[x for tree in trees for x in tree[i]] for i in range(3)]
    return [torch.tensor(column, dtype=torch.int64) for column in (*columns, starts)]


def walk_case(name: str, *trees: Tree) -> Case:
    """Tokens and nodes of one or several requests."""

    def run(verify: Verify) -> list[Tensor]:
        return list(verify(*inputs(trees)))

    return Case(name, run)


def twice_case(verify: Verify) -> list[list[Tensor]]:
    """Two batches in turns: the inputs and the first results must not change."""
    one, two = inputs([PICTURE, chain([4, 6], [5])]), inputs([chain([5, 6, 9, 8], [5, 6, 7]), PICTURE])
    first = list(verify(*one))
    second = list(verify(*two))
    return [first, second, list(verify(*one)), one, two]


def cost_case(verify: Verify) -> Words:
    """The tensor operations for a chain of 60 accepted drafts."""
    columns = inputs([chain([*range(1, 61), 7], [*range(1, 61)])])
    with counted_work() as work:
        verify(*columns)
    words = "at most" if work.num_ops <= 40 * 61 else "more than"
    return Words(f"{words} 40 operations for each token")


def chain(sampled: Sequence[int], drafted: Sequence[int]) -> Tree:
    """A chain of drafts after the newest token; `sampled` is one longer than `drafted`."""
    return sampled, [0, *drafted], range(-1, len(drafted))


# The picture in `verify_coupled`, with 1 once, 2 upon, 3 there, 4 was, 9 a.
PICTURE: Tree = ([3, 2, 7, 4, 9], [0, 1, 2, 3, 4], [-1, 0, 1, 0, 3])
WALK_CASES = (
    walk_case("a chain with two accepted tokens", chain([5, 6, 9, 8], [5, 6, 7])),
    walk_case("a chain that is accepted completely", chain([5, 6, 7, 8], [5, 6, 7])),
    walk_case("the first is rejected, although the next would match", chain([4, 6, 7, 8], [5, 6, 7])),
    walk_case("nothing was drafted", chain([4], [])),
    walk_case("a token drafted several times", chain([5, 5, 5, 4], [5, 5, 5])),
    walk_case("the tree of the picture", PICTURE),
    walk_case("a tree with its first branch accepted", ([1, 2, 7, 4, 9], *PICTURE[1:])),
    walk_case("a child of another node matches", ([3, 4, 7, 2, 9], *PICTURE[1:])),
    walk_case("a later child of another node matches", ([3, 9, 2, 8, 7], [0, 1, 3, 2, 4], [-1, 0, 0, 1, 2])),
    walk_case("two children that both match", ([1, 5, 6], [0, 1, 1], [-1, 0, 0])),
    walk_case(
        "three requests, one of them without drafts", chain([5, 7, 9], [5, 6]), chain([4], []), PICTURE
    ),
    walk_case("a request without nodes", chain([5, 7], [5]), ([], [], []), chain([4, 6], [4]), ([], [], [])),
    walk_case("the first node's own token is not used", ([5, 6], [6, 5], [-1, 0]), ([0, 0], [0, 5], [-1, 0])),
    walk_case(
        "the only child of the last node differs", ([3, 2, 7, 4, 9], [0, 1, 2, 3, 5], [-1, 0, 1, 0, 3])
    ),
    Case("two batches in turns, and their inputs", twice_case, "aliasing"),
    Case("a chain of 60 accepted drafts", cost_case, "cost"),
)


@dataclass(frozen=True)
class Walk:
    """`verify_coupled`; each field replaces one part of it. Nodes count from 0 in their request."""

    is_child: Callable[[int, int, Sequence[int]], bool] = lambda n, at, parents: parents[n] == at
    fits: Callable[[int, int, Sequence[int], Sequence[int]], bool] = lambda n, at, d, s: d[n] == s[at]
    chosen: int = 0  # index among the children that match
    most: int = 99  # levels
    with_last: bool = True  # the token after the last accepted draft

    def __call__(
        self, sampled: Tensor, drafted: Tensor, parents: Tensor, node_start: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens, nodes = torch.full_like(sampled, -1), torch.full_like(sampled, -1)
        for begin, end in pairwise(node_start.tolist()):
            s, d, p = (column[begin:end].tolist() for column in (sampled, drafted, parents))
            walked, found = list[int](), [0] if begin < end else []
            while found and len(walked) <= self.most:
                walked.append(found[self.chosen])
                at = walked[-1]
                found = [
                    n
                    for n in range(at + 1, end - begin)
                    if self.is_child(n, at, p) and self.fits(n, at, d, s)
                ]
            walked = walked if self.with_last else walked[:-1]
            tokens[begin : begin + len(walked)] = torch.tensor([s[n] for n in walked], dtype=torch.int64)
            nodes[begin : begin + len(walked)] = torch.tensor(walked, dtype=torch.int64)
        return tokens, nodes


@dataclass(frozen=True)
class Changed:
    """The engine's result, changed for each request: its tokens and nodes, sampled, drafted, parents."""

    change: Callable[[list[int], list[int], list[int], list[int], list[int]], tuple[list[int], list[int]]]
    padding: int = -1

    def __call__(self, *columns: Tensor) -> tuple[Tensor, Tensor]:
        tokens, nodes = verify_coupled(*columns)
        for begin, end in pairwise(columns[3].tolist()):
            kept = [node for node in nodes[begin:end].tolist() if node >= 0]
            said = tokens[begin : begin + len(kept)].tolist()
            changed = self.change(said, kept, *(column[begin:end].tolist() for column in columns[:3]))
            for row, values in zip((tokens, nodes), changed, strict=True):
                padded = [*values, *[self.padding] * (end - begin)][: end - begin]
                row[begin:end] = torch.tensor(padded, dtype=torch.int64)
        return tokens, nodes


def one_more(
    said: list[int], kept: list[int], sampled: list[int], drafted: list[int], parents: list[int]
) -> tuple[list[int], list[int]]:
    """Follows the first child once more, although it was rejected."""
    child = next((n for n, parent in enumerate(parents) if kept and parent == kept[-1]), None)
    return (said, kept) if child is None else ([*said, sampled[child]], [*kept, child])


def in_place(*columns: Tensor) -> tuple[Tensor, Tensor]:
    """Writes its tokens over `sampled`."""
    tokens, nodes = verify_coupled(*columns)
    return columns[0].copy_(tokens), nodes


class Kept:
    """Writes all results to the same two tensors."""

    def __init__(self) -> None:
        self._tokens, self._nodes = torch.empty(64, dtype=torch.int64), torch.empty(64, dtype=torch.int64)

    def __call__(self, *columns: Tensor) -> tuple[Tensor, Tensor]:
        tokens, nodes = verify_coupled(*columns)
        return self._tokens[: len(tokens)].copy_(tokens), self._nodes[: len(nodes)].copy_(nodes)


def needs_nodes(*columns: Tensor) -> tuple[Tensor, Tensor]:
    """Fails for a request without nodes."""
    if bool((columns[3].diff() == 0).any()):
        raise IndexError
    return verify_coupled(*columns)


def from_the_root(
    sampled: Tensor, drafted: Tensor, parents: Tensor, node_start: Tensor
) -> tuple[Tensor, Tensor]:
    """Walks from the first node again for each further token, with tensor operations."""
    for node in range(len(sampled)):
        at = node
        while at > 0:
            at = int(parents[at]) if int(parents[at]) < at else -1
    return verify_coupled(sampled, drafted, parents, node_start)


def emits_drafts(*columns: Tensor) -> tuple[Tensor, Tensor]:
    """The token at each node instead of the token sampled after it."""
    tokens, nodes = verify_coupled(*columns)
    for begin, end in pairwise(columns[3].tolist()):
        count = int((nodes[begin:end] >= 0).sum())
        tokens[begin : begin + count] = columns[1][begin + nodes[begin : begin + count]]
    return tokens, nodes


def counts_matches(
    sampled: Tensor, drafted: Tensor, parents: Tensor, node_start: Tensor
) -> tuple[Tensor, Tensor]:
    """Accepts every token that matches, even after a rejected one."""
    tokens, nodes = torch.full_like(sampled, -1), torch.full_like(sampled, -1)
    for begin, end in pairwise(node_start.tolist()):
        walked = [0] if begin < end else []
        walked += [
            n for n in range(1, end - begin) if drafted[begin + n] == sampled[begin + int(parents[begin + n])]
        ]
        tokens[begin : begin + len(walked)] = sampled[[begin + n for n in walked]]
        nodes[begin : begin + len(walked)] = torch.tensor(walked, dtype=torch.int64)
    return tokens, nodes


def absolute_nodes(*columns: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes counted over all requests."""
    tokens, nodes = verify_coupled(*columns)
    for begin, end in pairwise(columns[3].tolist()):
        nodes[begin:end] += begin * (nodes[begin:end] >= 0)
    return tokens, nodes


def packed(*columns: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of all requests one after the other, and all padding at the end."""
    tokens, nodes = verify_coupled(*columns)
    order = (nodes < 0).sort(stable=True).indices
    return tokens[order], nodes[order]


def absolute_parents(
    sampled: Tensor, drafted: Tensor, parents: Tensor, node_start: Tensor
) -> tuple[Tensor, Tensor]:
    """Reads parents as indices over all requests."""
    shifted = parents.clone()
    for begin, end in pairwise(node_start.tolist()):
        shifted[begin:end] -= begin
    return verify_coupled(sampled, drafted, shifted, node_start)


WALK_MISTAKES = (
    Mistake(
        "the token after the last accepted draft is missing: its row was computed too, so each request "
        "emits one token more than it accepted drafts",
        Walk(with_last=False),
    ),
    Mistake("the drafted tokens are emitted: emit the tokens sampled after each node", emits_drafts),
    Mistake("the walk ends after one accepted draft: continue from the child", Walk(most=1)),
    Mistake(
        "drafts are accepted after a rejected one: the target computed their rows with the rejected token",
        counts_matches,
    ),
    Mistake(
        "a draft is compared with the token sampled after it: compare it with the token sampled after its "
        "parent",
        Walk(fits=lambda n, at, d, s: d[n] == s[n]),
    ),
    Mistake(
        "the next node is used as the child: siblings can come before it, use `parents`",
        Walk(is_child=lambda n, at, parents: n == at + 1),
    ),
    Mistake(
        "any later node is accepted: only a child of the current node continues its branch",
        Walk(is_child=lambda n, at, parents: True),
    ),
    Mistake("of two children that match, take the first", Walk(chosen=-1)),
    Mistake("parents count from their request's first node, not over all requests", absolute_parents),
    Mistake(
        "the nodes returned count from their request's first node, not over all requests", absolute_nodes
    ),
    Mistake(
        "a request's tokens begin at its node_start: the padding follows the tokens of each request", packed
    ),
    Mistake(
        "one node too many: the walk ends at the first node of which no child was accepted", Changed(one_more)
    ),
    Mistake(
        "the node of a token is the node after which it was sampled, not the accepted child",
        Changed(lambda said, kept, *_: (said, [*kept[1:], -1] if kept else [])),
    ),
    Mistake(
        "the first node is left out: its token was sampled too",
        Changed(lambda said, kept, *_: (said[1:], kept[1:])),
    ),
    Mistake("pad with -1: 0 is a token", Changed(lambda said, kept, *_: (said, kept), padding=0)),
    Mistake("a request may have no nodes", needs_nodes),
    Mistake("the result is written over `sampled`, which belongs to the caller", in_place),
    Mistake("a second call changes the result of the first: make new tensors", Kept()),
    Mistake(
        "the work grows with the square of the tokens: continue from the child, not from the beginning",
        from_the_root,
    ),
)


def random_trees(random: Random) -> Iterable[Case]:
    """Random cases: trees of few different tokens, so that many drafts match."""
    for number in range(3):
        trees: list[Tree] = []
        for _ in range(random.randint(1, 5)):
            size = random.randint(0, 9)
            sampled, drafted = ([random.randint(1, 3) for _ in range(size)] for _ in range(2))
            trees.append((sampled, drafted, [-1, *(random.randrange(i + 1) for i in range(size - 1))][:size]))
        yield walk_case(f"random trees {number + 1}", *trees)
