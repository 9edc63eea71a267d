"""The task of the whole file: it needs right answers in the other tasks, and has a cost side."""

from dataclasses import replace

import pytest

from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.result import TaskResult
from minillm.labs.grader.skeleton import solution
from minillm.labs.grader.whole_file import held_back

# Wrong in a case of its own task; no request of task 3.9 meets this case.
WRONG = {
    "3.3": """
def write_cache(cache, slot_mapping, rows):
    cache.flatten(0, 1).index_copy_(0, slot_mapping, rows)  # fails if the cache has another dtype
""",
    "3.5": """
growing = BlockTable.grow
def grow(self, n):
    try: growing(self, n)
    except Exception: self.block_ids += [0]; raise
BlockTable.grow = grow
""",
    "3.6": """
forking = BlockTable.fork
def fork(self, n):
    if n == 0: return self, None
    return forking(self, n)
BlockTable.fork = fork
""",
}
# Right, and the engine counts the work elsewhere.
COSTLY = """
def slot_mapping(block_table, positions, block_size):
    if min(positions, default=0) < 0: raise IndexError
    walked = [next((b for i, b in enumerate(block_table) if i == p // block_size), None) for p in positions]
    if None in walked: raise IndexError
    return [b * block_size + p % block_size for b, p in zip(walked, positions)]
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", WRONG)
def test_a_part_that_is_wrong_where_the_engine_does_not_look(check, number):
    rows, _ = check(solution(find_lab("3")) + WRONG[number], seconds=30.0)
    assert rows[number].earned == 0 and not rows[number].is_right
    assert (rows["3.9"].status, rows["3.9"].earned) == ("held", 0) and number in rows["3.9"].message
    assert {row.task for row in rows.values() if row.earned} == set(rows) - {number, "3.9"}


@pytest.mark.slow
def test_control_a_part_that_only_costs_too_much_holds_nothing_back(check):
    rows, _ = check(solution(find_lab("3")) + COSTLY, seconds=30.0)
    assert (rows["3.2"].status, rows["3.2"].is_right) == ("wrong", True), rows["3.2"]
    assert rows["3.9"].status == "ok", rows["3.9"]


def row(task, is_right, status="ok"):
    return TaskResult(
        task.number, task.title, task.points, task.points if status == "ok" else 0, status, is_right=is_right
    )


@pytest.mark.parametrize("number", [*range(1, 13), 14])
def test_only_the_last_task_of_each_lab_is_held_back(number):
    lab = find_lab(str(number))
    right = [row(task, True) for task in lab.tasks]
    assert held_back(lab, right) == right
    *wrong, last = [row(lab.tasks[0], False, "wrong"), *right[1:]]
    held = held_back(lab, [*wrong, last])
    assert held[:-1] == wrong and (held[-1].status, held[-1].earned) == ("held", 0)
    assert lab.tasks[0].number in held[-1].message
    open_ = replace(last, status="todo", earned=0)
    assert held_back(lab, [*wrong, open_])[-1] == open_


@pytest.mark.parametrize("number", ["1", "2", "3", "4", "6", "7", "8", "10", "11", "12", "14"])
def test_the_last_task_has_a_cost_side(number):
    assert [case.name for case in find_lab(number).tasks[-1].cases if case.side == "cost"]


WASTES = {
    "1.7": """
sampling = sample
def sample(logits, batch):
    for _ in range(500): logits = logits + 0
    return sampling(logits, batch)
""",
    "2.7": """
rotate = apply_rope
def apply_rope(*args):
    for _ in range(40): found = rotate(*args)
    return found
""",
    "4.6": """
allocating = BlockPool.allocate
def allocate(self, count=1):
    sum(range(self.num_blocks))
    return allocating(self, count)
BlockPool.allocate = allocate
""",
    "6.8": """
matching = PrefixCache.match
def match(self, *args):
    list(self._by_block.values())
    return matching(self, *args)
PrefixCache.match = match
""",
}


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=() if n == "6.8" else pytest.mark.slow) for n in WASTES]
)
def test_a_file_that_wastes_work_in_the_engine(graded, number):
    lab = find_lab(number[0])
    rows = graded(lab, solution(lab) + WASTES[number])
    assert (rows[number].status, rows[number].is_right) == ("wrong", True), rows[number]
