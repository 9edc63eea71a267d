"""The counts of plain Python: lines, entries of lists, bytes; and the limits of the tasks that use them."""

import sys

import pytest

from minillm.engine.scheduler import Scheduler, WaitingLine, rank
from minillm.labs.grader import counts
from minillm.labs.grader.codec import decode, encode
from minillm.labs.grader.compare import difference
from minillm.labs.grader.counts import ReadList, counted_bytes, counted_lines, small_work, within
from minillm.labs.grader.lab import Counted
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import solution
from minillm.labs.lab5_scheduler import costs


def loop(n):
    total = 0
    for i in range(n):
        total += i
    return total


def twice(n):
    return [loop(3) for _ in range(n)]


def test_each_iteration_counts_its_lines_again():
    assert counted_lines(lambda: loop(20)) - counted_lines(lambda: loop(10)) == 10 * 2
    assert counted_lines(lambda: sum(1 for _ in range(20))) - counted_lines(
        lambda: sum(1 for _ in range(10))
    ) == pytest.approx(10, abs=1)


def test_the_lines_of_called_functions_count_too():
    inner = counted_lines(lambda: loop(3)) - 1
    assert counted_lines(lambda: twice(20)) - counted_lines(lambda: twice(10)) == 10 * (inner + 1)


def test_a_loop_in_c_code_is_not_counted():
    assert counted_lines(lambda: sum(range(10**6))) == 1


def test_an_error_passes_and_the_earlier_trace_function_is_back():
    before = sys.gettrace()
    with pytest.raises(ZeroDivisionError):
        counted_lines(lambda: 1 / 0)
    assert sys.gettrace() is before


def test_the_bytes_of_objects_that_live_at_once():
    assert 8_000 <= counted_bytes(lambda: [None] * 1_000) < 9_000
    one_by_one = counted_bytes(lambda: [len([None] * 1_000) for _ in range(5)])
    assert 8_000 <= one_by_one < 9_000


@pytest.mark.parametrize(
    ("use", "reads"),
    [
        (lambda items: items[3], 1),
        (lambda items: items[-1:], 1),
        (lambda items: items[2:5], 3),
        (lambda items: items[:], 10),
        (list, 10),
        (sorted, 10),
        (min, 10),
        (lambda items: [*items], 10),
        (lambda items: list(reversed(items)), 10),
        (lambda items: items.copy(), 10),
        (lambda items: items + [1], 10),
        (lambda items: [1] + items, 10),
        (lambda items: items.sort(key=lambda item: -item), 10),
        (len, 0),
        (lambda items: 9 in items, 0),
        (lambda items: items.remove(4), 0),
    ],
)
def test_a_list_counts_the_entries_that_are_read(use, reads):
    items = ReadList(range(10))
    use(items)
    assert items.num_reads == reads


def test_a_count_is_shown_and_not_compared():
    found, other = within(10, 25, "lines"), within(10, 31, "lines")
    assert (repr(found), repr(within(10, 10, "lines"))) == ("more than 10 lines: 25", "at most 10 lines")
    assert difference(found, other) is None
    assert difference(within(10, 3, "lines"), found).actual == "more than 10 lines: 25"
    again = decode(encode(found))
    assert type(again) is Counted and (again.text, again.count) == (found.text, "25")


def test_the_first_call_is_not_counted_and_the_endless_one_comes_only_after_a_good_count():
    calls = []

    def part(n):
        calls.append(n)
        return loop(n)

    assert small_work((50, 10_000), part, (10**4,), (10,), endless=(11,)).count == ""
    assert calls == [10**4, 10, 11]
    calls.clear()
    assert small_work((50, 10_000), part, (1,), (100,), endless=(11,)).count
    assert calls == [1, 100]


@pytest.mark.parametrize("number", ["1", "2", "3", "4", "5", "6", "11", "12"])
def test_every_task_about_a_part_has_a_cost_side(number):
    tasks = [task for task in find_lab(number).tasks if task.part]
    assert [task.number for task in tasks if all(case.side != "cost" for case in task.cases)] == []


@pytest.mark.parametrize(
    ("cost", "own"),
    [
        (costs.rank_cost, rank),
        (costs.first_cost, WaitingLine),
        (costs.chunk_cost, Scheduler),
        (costs.fit_cost, Scheduler),
        (costs.step_cost, Scheduler),
        (costs.start_cost, Scheduler),
    ],
)
def test_the_engines_own_part_needs_at_most_half_of_a_limit(cost, own, monkeypatch):
    seen = []

    def noted(limit, count, what):
        seen.append((limit, count))
        return within(limit, count, what)

    monkeypatch.setattr(costs, "within", noted)
    monkeypatch.setattr(counts, "within", noted)
    assert cost(own).count == ""
    assert seen and [pair for pair in seen if 2 * pair[1] > pair[0]] == []


SLOW = """
def rank(sequence, now):
    seconds = 0
    while sequence.arrival + seconds + 1 <= now:
        seconds += 1
    return sequence.params.priority - seconds // 10, sequence.order, sequence.index
"""
ENDS_IT = """
import sys

def rank(sequence, now):
    sys.settrace(None)
    return sequence.params.priority - int((now - sequence.arrival) // 10), sequence.order, sequence.index
"""
REPLACES_IT = """
import sys, tracemalloc

sys.settrace = tracemalloc.start = tracemalloc.reset_peak = lambda *_: None
"""


def test_lines_are_counted_in_the_students_process(check):
    rows, _ = check(solution(find_lab("5")) + SLOW, lab=5)
    assert rows["5.1"].message.startswith("the work after 3,000 s")
    assert rows["5.1"].actual.startswith("more than 2,500 lines of Python run: 6,0")
    assert rows["5.1"].diagnosis.startswith("more than 2,500 lines of Python run for an age of 300 steps")
    assert [row.task for row in rows.values() if row.status != "ok"] == ["5.1"]


def test_a_file_cannot_end_the_count(check):
    rows, _ = check(solution(find_lab("5")) + ENDS_IT, lab=5)
    assert (rows["5.1"].status, rows["5.1"].earned) == ("refused", 0)


def test_replaced_names_of_python_do_not_end_the_count(check):
    rows, _ = check(solution(find_lab("5")) + REPLACES_IT + SLOW, lab=5)
    assert (rows["5.1"].earned, rows["5.1"].actual[:9]) == (0, "more than")
