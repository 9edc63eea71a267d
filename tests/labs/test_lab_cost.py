"""`counted_work`: bytes and operations of tensor code, computed by hand."""

import torch

from minillm.labs.grader.cost import counted_work

X = torch.ones(10, 4)  # float32: 160 bytes, 16 a row


def work_of(action):
    with counted_work() as work:
        kept = action()
    del kept
    return work


def test_an_operation_reads_its_inputs_and_writes_its_output():
    work = work_of(lambda: X + X[:1])
    assert (work.num_ops, work.bytes_read, work.bytes_written) == (1, 160 + 16, 160)
    assert (work.num_allocations, work.bytes_allocated, work.peak_bytes) == (1, 160, 160)
    assert work.ops["add"] == 1


def test_views_are_free():
    work = work_of(lambda: X[2:5].T.reshape(4, 3).unsqueeze(0).expand(7, 4, 3))
    assert (work.num_ops, work.bytes_written, work.num_allocations) == (0, 0, 0)
    assert work.ops["expand"] == 1


def test_a_copy_is_not_a_view():
    work = work_of(lambda: X.T.contiguous())
    assert (work.num_ops, work.bytes_written, work.num_allocations) == (1, 160, 1)


def test_taking_rows_reads_only_these_rows():
    ids = torch.tensor([1, 3])
    work = work_of(lambda: X[ids])
    assert (work.bytes_read, work.bytes_written) == (32 + 16, 32)  # two rows and two int64 ids


def test_placing_rows_writes_only_these_rows():
    ids, target = torch.tensor([1, 3]), torch.zeros(10, 4)
    work = work_of(lambda: target.index_put_((ids,), X[:2]))
    assert (work.bytes_written, work.num_allocations) == (32, 0)


def test_writing_in_place_allocates_nothing():
    target = torch.zeros(10, 4)
    work = work_of(lambda: (target.add_(1.0), target[3:5].copy_(X[:2])))
    assert (work.bytes_written, work.bytes_read, work.num_allocations) == (160 + 32, 160 + 32, 0)
    assert work_of(lambda: torch.add(X, X, out=target)).bytes_written == 160


def test_empty_memory_is_allocated_but_not_written():
    work = work_of(lambda: torch.empty(10, 4))
    assert (work.bytes_allocated, work.bytes_written) == (160, 0)
    assert work_of(lambda: torch.zeros(10, 4)).bytes_written == 160


def test_the_peak_is_what_lives_at_once():
    together = work_of(lambda: [X + 1, X + 2, X + 3])
    in_turns = work_of(lambda: [(X + i).sum() for i in range(3)])
    assert together.peak_bytes == 3 * 160
    assert in_turns.bytes_allocated == 3 * 164
    assert 160 < in_turns.peak_bytes <= 160 + 3 * 4


def test_a_view_keeps_its_memory_alive():
    work = work_of(lambda: [(X + 1)[:1], (X + 2)[:1]])
    assert work.peak_bytes == 320


def test_work_token_by_token_costs_more_passes_than_at_once():
    weight = torch.ones(4, 4)
    at_once = work_of(lambda: X @ weight)
    one_by_one = work_of(lambda: torch.cat([row[None] @ weight for row in X]))
    assert (at_once.ops["mm"], one_by_one.ops["mm"]) == (1, 10)
    assert one_by_one.bytes_read - at_once.bytes_read == 9 * 64 + 160  # the weight 9 times more, and the cat


def test_nested_counts_all_count():
    with counted_work() as outer:
        X.add(1)
        with counted_work() as inner:
            X.add(1)
    assert (outer.num_ops, inner.num_ops) == (2, 1)
