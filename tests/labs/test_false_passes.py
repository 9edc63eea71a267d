"""Wrong parts that once got full points: each loses the points of its task, and of no other part."""

import pytest

from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import solution

WRONG = {
    "checks only the last position": (
        "3.2",
        """
def slot_mapping(table, positions, size):
    if len(positions) and positions[-1] // size >= len(table): raise IndexError
    return [table[(p // size) % len(table)] * size + p % size for p in positions]
""",
    ),
    "merges rows with one token and position": (
        "3.8",
        """
def decode(runner, rows):
    keys = [(row.token_id, row.position) for row in rows]
    kept = list(dict.fromkeys(keys))
    first = [rows[keys.index(key)] for key in kept]
    out = runner.last_logits([SequenceRows([r.token_id], r.position, r.block_table) for r in first])
    return out[[kept.index(key) for key in keys]]
""",
    ),
    "one empty list for all callers": (
        "4.1",
        """
NOTHING = []
taking = BlockPool.allocate
BlockPool.allocate = lambda self, count=1: taking(self, count) if count else NOTHING
""",
    ),
    "drops a byte of a long list": (
        "6.1",
        """
whole = encode
def encode(*fields):
    short = [f[:-1] + [f[-1] % 2**24] if isinstance(f, list) and len(f) > 300 else f for f in fields]
    return whole(*short)
""",
    ),
    "a search leaves an empty list behind": (
        "6.3",
        """
def find(self, digest, scope, parent, token_ids):
    for block in self._index.setdefault(digest, []):
        if block.scope == scope and block.parent is parent and block.token_ids == token_ids:
            return block
        self.false_matches += 1
PrefixCache._find = find
""",
    ),
}


@pytest.mark.parametrize("name", WRONG, ids=lambda name: name.replace(" ", "-"))
def test_a_wrong_part_loses_its_points(graded, name):
    task, code = WRONG[name]
    lab = find_lab(task[0])
    rows = graded(lab, solution(lab) + "\n" + code)
    assert (rows[task].status, rows[task].earned) == ("wrong", 0), rows[task]
    assert [
        number
        for number, row in rows.items()
        if not row.earned and number not in (task, lab.tasks[-1].number)
    ] == []
