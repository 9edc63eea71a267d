"""verify_coupled and verify_draft on every backend: exact answers, NaN in the padding, refusals."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from verifying import BACKENDS, Drafts, Tree, backend, compare, make_drafts, random_tree, walk_trees

from minillm.toolchain.sanitizer import sanitizing


@pytest.fixture(params=BACKENDS)
def ops(request: pytest.FixtureRequest) -> Iterator[Any]:
    with backend(request.param) as found:
        yield found


def ints(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


# ---- coupled --------------------------------------------------------------------------------------


def walk(ops: Any, trees: list[Tree]) -> tuple[list[int], list[int]]:
    starts = [0]
    for tree in trees:
        starts.append(starts[-1] + len(tree[0]))
    columns = [list(chain.from_iterable(tree[i] for tree in trees)) for i in range(3)]
    tokens, nodes = ops.verify_coupled(*map(ints, (*columns, starts)))
    assert tokens.dtype == nodes.dtype == torch.int64
    found = tokens.tolist(), nodes.tolist()
    assert found == walk_trees(*columns, starts)
    return found


def test_the_tree_of_the_docstring(ops):
    tree = ([3, 9, 9, 4, 5], [7, 1, 2, 3, 4], [-1, 0, 1, 0, 3])
    assert walk(ops, [tree]) == ([3, 4, 5, -1, -1], [0, 3, 4, -1, -1])


def test_of_siblings_with_one_token_the_first_is_taken(ops):
    """The first is taken even if the second leads further. Siblings need not be neighbours."""
    tree = ([1, 8, 2, 3, 1], [0, 1, 1, 2, 3], [-1, 0, 0, 2, 3])
    assert walk(ops, [tree]) == ([1, 8, -1, -1, -1], [0, 1, -1, -1, -1])
    among = [0] * 40 + [5] * 60
    assert walk(ops, [([5] * 100, among, [-1] + [0] * 99)])[1][:3] == [0, 40, -1]


@pytest.mark.parametrize("match", [1, 31, 32, 33, 64, 65, 99, None])
def test_a_child_anywhere_among_a_hundred(ops, match):
    drafted = [5 if node == match else 0 for node in range(100)]
    tokens, nodes = walk(ops, [([5] + [6] * 99, drafted, [-1] + [0] * 99)])
    assert nodes[:2] == [0, -1 if match is None else match]
    assert tokens[:2] == [5, -1 if match is None else 6]


def test_chains(ops):
    """All accepted, none accepted, and a mistake at several places; the newest token's own id is not used."""
    whole = [(i * 7) % 11 for i in range(130)]
    for wrong in (None, 1, 2, 64, 129):
        drafted = [-5, *whole[:-1]]
        if wrong is not None:
            drafted[wrong] += 1
        tokens, nodes = walk(ops, [(whole, drafted, list(range(-1, 129)))])
        emitted = 130 if wrong is None else wrong
        assert tokens == whole[:emitted] + [-1] * (130 - emitted)
        assert nodes[:emitted] == list(range(emitted))


@pytest.mark.parametrize("depth", [1, 4, 100])
def test_random_trees(ops, depth):
    """33 requests with 0 to 70 nodes of few different tokens, so that paths are long."""
    rng = random.Random(depth)
    trees = [random_tree(rng, rng.choice([0, 1, 2, 9, 33, 70]), 2, depth) for _ in range(33)]
    tokens, nodes = walk(ops, trees)
    assert max(nodes) > 8, "some path is long"
    alone = [walk(ops, [tree]) for tree in trees]
    assert [tokens, nodes] == [list(chain.from_iterable(lists)) for lists in zip(*alone, strict=True)]


def test_no_nodes_at_all(ops):
    for trees in ([], [([], [], [])] * 3):
        assert walk(ops, trees) == ([], [])
    one = ([4], [9], [-1])
    assert walk(ops, [([], [], []), one, ([], [], []), one]) == ([4, 4], [0, 0])


# ---- rejection ------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_probs", [True, False], ids=["probs", "certain"])
@pytest.mark.parametrize("vocab_size", [1, 2, 17, 257])
def test_against_float64(ops, vocab_size, with_probs):
    """Several numbers of drafts and requests. The padding is NaN, so reading it would show."""
    near = draws = 0
    for k in (0, 1, 3, 8):
        for count in (0, 1, 3, 33):
            drafts = make_drafts(count, k, vocab_size, with_probs, seed=100 * k + count)
            near += compare(ops.verify_draft(*drafts.arguments), drafts)
            draws += count
    assert near <= draws // 100


@pytest.mark.parametrize("with_probs", [True, False], ids=["probs", "certain"])
@pytest.mark.parametrize(("count", "k", "vocab_size"), [(3, 2, 49_152), (2, 1, 151_936)])
def test_large_vocabularies(ops, count, k, vocab_size, with_probs):
    drafts = make_drafts(count, k, vocab_size, with_probs)
    drafts.uniforms[0, 0] = 1 - 1e-9  # this draft is refused
    assert compare(ops.verify_draft(*drafts.arguments), drafts) == 0


def test_controls_of_the_comparison():
    """The comparison notices a wrong token, one token more or fewer accepted, and a token in the padding."""
    drafts = make_drafts(33, 3, 17, True, seed=2)
    with backend("reference") as reference:
        tokens, accepted = reference.verify_draft(*drafts.arguments)
    assert compare((tokens, accepted), drafts) == 0
    last = accepted.unsqueeze(1)
    for shift in (1, -1):
        neighbour = tokens.scatter(1, last, (tokens.gather(1, last) + shift) % 17)
        for wrong in [(neighbour, accepted), (tokens, accepted + shift), (tokens.clamp(min=0), accepted)]:
            with pytest.raises(AssertionError):
                compare(wrong, drafts)
    assert 0 < int(accepted.sum()) < int((drafts.draft >= 0).sum()), "some are accepted, some refused"


def one(draft: list[int], q: list[list[float]] | None, p: list[list[float]], uniforms: list[float]) -> Drafts:
    """One request."""
    probs = None if q is None else torch.tensor([q], dtype=torch.float32)
    uniform = torch.tensor([uniforms], dtype=torch.float64)
    return Drafts(ints([draft]), probs, torch.tensor([p], dtype=torch.float32), uniform)


def answer(ops: Any, drafts: Drafts) -> list[int]:
    tokens, accepted = ops.verify_draft(*drafts.arguments)
    emitted = int(accepted[0]) + 1
    assert tokens[0, emitted:].tolist() == [-1] * (tokens.shape[1] - emitted)
    return tokens[0, :emitted].tolist()


def test_borders_are_exact(ops):
    """Sums of powers of two are exact: a uniform on a border draws the next token."""
    p = [0.25, 0.0, 0.25, 0.5, 0.0]
    for uniform, token in [(0.2499, 0), (0.25, 2), (0.4999, 2), (0.5, 3), (0.9999, 3)]:
        assert answer(ops, one([], None, [p], [uniform])) == [token]
    # u q = p is not less than p: the draft is refused, and a token is drawn from max(p - q, 0).
    certain = one([3], None, [p, p], [0.5, 0.5])
    assert answer(ops, certain) == [2]
    certain.uniforms[0, 0] = 0.49999
    assert answer(ops, certain) == [3, 3]
    q = [[0.0, 0.0, 0.0, 1.0, 0.0]]
    assert answer(ops, one([3], q, [p, p], [0.5, 0.5])) == [2]


@pytest.mark.parametrize("vocab_size", [4, 17, 257, 1000, 3001])
def test_tokens_of_probability_0_are_never_emitted(ops, vocab_size):
    """With the smallest and the largest uniform, zeros at both ends, and draws from p and max(p - q, 0)."""
    generator = torch.Generator().manual_seed(vocab_size)
    # Numbers of many orders of magnitude: otherwise float64 adds float32 numbers without rounding.
    p = torch.randn(vocab_size, generator=generator).mul(6).softmax(-1)
    p[[1, -2, -3]] = 0.2
    p[[0, -1]] = 0
    p[256:258] = 0  # around the border of a chunk that kernels sum at once
    first, last = 1, vocab_size - 2
    p /= p.sum()
    q = torch.zeros(vocab_size)
    q[[0, last]] = 0.5
    for uniform in (1e-300, 1 - 1e-16):
        ends = torch.tensor([[0.3, uniform]], dtype=torch.float64)
        both = torch.stack([p, p]).unsqueeze(0)
        # The drafted token has p = 0: it is refused. max(p - q, 0) is 0 where p is 0 and where q is larger.
        rest_last = int((p > q).nonzero()[-1])
        for draft, probs, found in [
            ([-1], None, last),
            ([0], None, last),
            ([0], q.view(1, 1, -1), rest_last),
            ([last], None, last - 1),
        ]:
            if draft == [last]:
                ends[0, 0] = 0.9999
            drafts = Drafts(ints([draft]), probs, both, ends)
            assert answer(ops, drafts) == [first if uniform < 0.5 else found]


def test_where_nothing_is_left_p_is_drawn_from(ops):
    p = [[0.0, 0.25, 0.75, 0.0], [0.0, 1.0, 0.0, 0.0]]
    for uniform, token in [(0.2, 1), (0.3, 2)]:
        # p is q, and the token has probability 0 in both: it is refused, and max(p - q, 0) is 0 everywhere.
        assert answer(ops, one([0], p[:1], p, [0.5, uniform])) == [token]
        # q is above p everywhere
        assert answer(ops, one([1], [[0.1, 0.5, 0.9, 0.1]], p, [0.9, uniform])) == [token]
    # p is q: the drafted token is accepted for every uniform
    for uniform in (1e-300, 0.5, 1 - 1e-16):
        assert answer(ops, one([2], p[:1], p, [uniform, uniform])) == [2, 1]


def test_greedy_rows(ops):
    """One-hot p and q: drafts are accepted while they equal the target's token, for every uniform."""
    drafts = make_drafts(33, 3, 17, True, seed=4)
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(2, (33, 4), generator=generator)
    draft = torch.randint(2, (33, 3), generator=generator)
    p, q = (torch.nn.functional.one_hot(t, 17).float() for t in (target, draft))
    for probs in (q, None):
        tokens, accepted = ops.verify_draft(draft, probs, p, drafts.uniforms.nan_to_num(0.5))
        equal = (draft == target[:, :3]).int().cumprod(1).sum(1)
        assert torch.equal(accepted, equal)
        for row, wanted, stand in zip(tokens.tolist(), target.tolist(), equal.tolist(), strict=True):
            assert row == wanted[: stand + 1] + [-1] * (3 - stand)


@pytest.mark.parametrize("with_probs", [True, False], ids=["probs", "certain"])
def test_company_changes_nothing(ops, with_probs):
    """A request gets the same tokens alone and in a batch, where its drafts are padded to the longest."""
    drafts = make_drafts(33, 3, 257, with_probs, seed=3)
    tokens, accepted = ops.verify_draft(*drafts.arguments)
    for i in (0, 1, 17, 32):
        length = int((drafts.draft[i] >= 0).sum())
        q = None if drafts.draft_probs is None else drafts.draft_probs[i : i + 1, :length].contiguous()
        uniforms = drafts.uniforms[i : i + 1, [*range(length), 3]]
        alone = ops.verify_draft(
            drafts.draft[i : i + 1, :length], q, drafts.target_probs[i : i + 1, : length + 1], uniforms
        )
        assert alone[0].tolist() == [tokens[i, : length + 1].tolist()]
        assert alone[1].tolist() == [int(accepted[i])]


def test_probabilities_may_be_a_part_of_wider_rows(ops):
    """Two padded vocabularies, cut to the ids of one tokenizer."""
    drafts = make_drafts(3, 2, 40, True)
    drafts.target_probs += 0.01  # some rows have all their weight after the cut
    cut = [t[..., :17] for t in (drafts.draft_probs, drafts.target_probs)]
    draft = torch.where(drafts.draft < 17, drafts.draft, 0)
    found = ops.verify_draft(draft, *cut, drafts.uniforms)
    expected = ops.verify_draft(draft, *(t.contiguous() for t in cut), drafts.uniforms)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("with_probs", [True, False], ids=["probs", "certain"])
def test_the_number_of_threads_changes_nothing(with_probs):
    drafts, rng = make_drafts(33, 3, 20_000, with_probs), random.Random(0)
    trees = [random_tree(rng, 20, 2, 3) for _ in range(300)]
    before, found = torch.get_num_threads(), []
    with backend("native-generic") as native:
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                found.append((native.verify_draft(*drafts.arguments)[0].tolist(), walk(native, trees)))
        finally:
            torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_the_draw_reads_what_its_file_says():
    """A row is read once, a 32nd of it again, and a 32nd of that again; other rows are not read."""
    from minillm.ops.simt import profile

    if sanitizing():
        pytest.skip("under AddressSanitizer the simulator counts nothing")
    drafts = make_drafts(2, 3, 32**3, True)
    drafts.draft[:] = torch.tensor([[0, -1, -1], [-1, -1, -1]])
    drafts.target_probs[0, 0, 0] = 0.0  # this draft is refused
    with backend("simt-fast") as ops, profile() as counted:
        ops.verify_draft(*drafts.arguments)
    row, warps = 4 * (32**3 + 32**2 + 32), 32
    assert counted.tensors["draft_probs"] == (row + 4 * warps, 0), "each warp reads q of the drafted id"
    assert counted.tensors["target_probs"] == (2 * row + 4 * warps, 0)


# ---- bad input ------------------------------------------------------------------------------------


def bad_shapes(ops: Any) -> list[tuple[str, Any]]:
    tree, start = ints([0, 0]), ints([0, 2])
    draft, p, u = ints([[1, -1]]), torch.ones(1, 3, 5) / 5, torch.full((1, 3), 0.5).double()
    return [
        ("verify_coupled: sampled is [1, 2]", lambda: ops.verify_coupled(tree.view(1, 2), tree, tree, start)),
        ("verify_coupled: drafted is [1]", lambda: ops.verify_coupled(tree, tree[:1], tree, start)),
        ("verify_coupled: parents is [1]", lambda: ops.verify_coupled(tree, tree, tree[:1], start)),
        ("verify_coupled: node_start is [0]", lambda: ops.verify_coupled(tree, tree, tree, start[:0])),
        ("verify_draft: draft is [2]", lambda: ops.verify_draft(draft[0], None, p, u)),
        ("verify_draft: target_probs is [3, 5]", lambda: ops.verify_draft(draft, None, p[0], u)),
        ("verify_draft: target_probs is [1, 2, 5]", lambda: ops.verify_draft(draft, None, p[:, :2], u)),
        ("verify_draft: uniforms is [1, 2]", lambda: ops.verify_draft(draft, None, p, u[:, :2])),
        ("verify_draft: draft_probs is [1, 3, 5]", lambda: ops.verify_draft(draft, p, p, u)),
    ]


@pytest.mark.parametrize("number", range(9))
def test_shape_errors_name_the_argument(ops, number):
    says, call = bad_shapes(ops)[number]
    with pytest.raises(ValueError) as caught:
        call()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_native_ops_refuse_what_would_leave_a_tensor():
    two, start = ints([0, 0]), ints([0, 2])
    draft, p, u = ints([[1, -1], [0, 5]]), torch.ones(2, 3, 5) / 5, torch.full((2, 3), 0.5).double()
    with backend("native-generic") as ops:
        for says, call in [
            ("sampled has another dtype", lambda: ops.verify_coupled(two.int(), two, two, start)),
            ("node_start has another dtype", lambda: ops.verify_coupled(two, two, two, start.int())),
            ("node_start falls at request 1", lambda: ops.verify_coupled(two, two, two, ints([0, 9, 2]))),
            ("node_start's last entry is 3, not 2", lambda: ops.verify_coupled(two, two, two, ints([0, 3]))),
            ("node_start's first entry is -1", lambda: ops.verify_coupled(two, two, two, ints([-1, 2]))),
            ("draft[1, 1] is 5, the vocabulary has 5", lambda: ops.verify_draft(draft, None, p, u)),
            ("draft has another dtype", lambda: ops.verify_draft(draft.int(), None, p, u)),
            ("target_probs has another dtype", lambda: ops.verify_draft(draft, None, p.double(), u)),
            ("draft_probs has another dtype", lambda: ops.verify_draft(draft, p[:, :2].half(), p, u)),
            ("uniforms has another dtype", lambda: ops.verify_draft(draft, None, p, u.float())),
            ("there are no token ids", lambda: ops.verify_draft(draft[:0], None, p[:0, :, :0], u[:0])),
            (
                "target_probs of request 1, row 0, has no token",
                lambda: ops.verify_draft(draft - 1, None, p * ints([1, 0]).view(2, 1, 1), u),
            ),
        ]:
            with pytest.raises(RuntimeError) as caught:
                call()
            assert says in str(caught.value)
