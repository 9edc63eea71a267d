"""Tricks that reach the engine's part, or the check itself, without leaving code of the file on the stack.

As in `test_forging.py`, a trick is added to a finished file; the forged task gets no points.
"""

import pytest

from minillm.labs.grader import supervise
from minillm.labs.grader.cuda_text import replaced, sections
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import solution

OWN = "minillm.memory.block_table"

# name: (lab, task, code)
TRICKS = {
    "a method-wrapper": (3, "3.2", f"import {OWN} as t\nslot_mapping = t.slot_mapping.__call__"),
    "a weak proxy": (3, "3.2", f"import weakref, {OWN} as t\nslot_mapping = weakref.proxy(t.slot_mapping)"),
    "two caches": (
        1,
        "1.2",
        "import functools, minillm.ops.sampling as t\n"
        "keep_top = functools.lru_cache(functools.lru_cache(t.keep_top))",
    ),
    "dispatches to it": (
        3,
        "3.2",
        f"import functools, {OWN} as t\nslot_mapping = functools.singledispatch(lambda *a: None)\n"
        "slot_mapping.register(list, t.slot_mapping)\nslot_mapping.register(tuple, t.slot_mapping)",
    ),
    "code of no file": (
        3,
        "3.2",
        f"""
def mine(*a): return []
space = {{}}
exec(compile("def f(*a):\\n import {OWN} as t\\n return t.slot_mapping(*a)", "x", "exec"), space)
slot_mapping = space["f"]
slot_mapping.__wrapped__ = mine
""",
    ),
    "a property finds it": (
        3,
        "3.2",
        f"""
import {OWN} as t
class Finds:
    __call__ = property(lambda self: t.slot_mapping)
slot_mapping = Finds()
""",
    ),
    "an attribute finds it": (
        3,
        "3.5",
        f"""
import types, {OWN} as t
def get(self, name):
    if name == "grow": return types.MethodType(t.BlockTable.grow, self)
    return object.__getattribute__(self, name)
BlockTable.grow = lambda self, n: None
BlockTable.__getattribute__ = get
""",
    ),
    "makes the engine's object": (
        3,
        "3.5",
        f"""
import {OWN} as t
class BlockTable:
    def __new__(cls, pool): return t.BlockTable(pool)
    def grow(self, n): pass
    def fork(self, n): pass
""",
    ),
    "changes its class": (
        3,
        "3.5",
        f"""
import {OWN} as t
def grow(self, n):
    pass
def begin(self, pool):
    self._pool, self.block_ids, self.__class__ = pool, [], t.BlockTable
BlockTable.grow, BlockTable.__init__ = grow, begin
""",
    ),
    "blinds the tripwire for one call": (
        3,
        "3.2",
        f"""
import minillm.labs.grader.tripwire as w, {OWN} as t
def slot_mapping(*a):
    saved, w.is_students = w.is_students, lambda *x: False
    try: return t.slot_mapping(*a)
    finally: w.is_students = saved
""",
    ),
    "blinds it through the list of all classes": (
        3,
        "3.2",
        f"""
import {OWN} as t
def slot_mapping(*a):
    watch = next(c for c in object.__subclasses__() if c.__name__ == "Watch")
    space = watch.arm.__globals__["student_is_below"].__globals__
    saved, space["is_students"] = space["is_students"], lambda *x: False
    try: return t.slot_mapping(*a)
    finally: space["is_students"] = saved
""",
    ),
    "starts a process below subprocess": (
        3,
        "3.2",
        """
import multiprocessing.util as u, sys, os
def slot_mapping(table, positions, size):
    u.spawnv_passfds(os.fsencode(sys.executable), [sys.executable, "-c", "pass"], [])
    return [table[p // size] * size + p % size for p in positions]
""",
    ),
    "frames through inspect": (
        3,
        "3.2",
        """
import inspect
def slot_mapping(table, positions, size):
    inspect.currentframe().f_back
    return [table[p // size] * size + p % size for p in positions]
""",
    ),
    "frames through logging": (
        3,
        "3.2",
        """
import logging
def slot_mapping(table, positions, size):
    logging.currentframe()
    return [table[p // size] * size + p % size for p in positions]
""",
    ),
    "frames through a traceback": (
        3,
        "3.2",
        """
def slot_mapping(table, positions, size):
    try: 1 / 0
    except ZeroDivisionError as error: error.__traceback__.tb_frame
    return [table[p // size] * size + p % size for p in positions]
""",
    ),
    "frames through a generator": (
        3,
        "3.2",
        """
def slot_mapping(table, positions, size):
    def steps(): yield running.gi_frame
    running = steps()
    next(running).f_back
    return [table[p // size] * size + p % size for p in positions]
""",
    ),
    "ends the process that marks": (
        3,
        "3.2",
        """
import os
def slot_mapping(table, positions, size):
    os.kill(os.getppid(), 0)
    return [table[p // size] * size + p % size for p in positions]
""",
    ),
    "the engine's class runs in the engine": (
        3,
        "3.9",
        f"""
import {OWN} as t
class BlockTable:
    def __new__(cls, pool): return t.BlockTable(pool)
    def grow(self, n): pass
    def fork(self, n): pass
""",
    ),
}
QUICK = ("a method-wrapper", "makes the engine's object", "frames through a traceback")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name.replace(" ", "-"))
        for name in TRICKS
    ],
)
def test_a_trick_gets_no_points(check, name):
    lab, task, code = TRICKS[name]
    rows, _ = check(solution(find_lab(str(lab))) + "\n\n" + code, lab=lab, seconds=30.0)
    assert rows[task].earned == 0 and rows[task].status in ("engine", "refused"), rows[task]


HONEST = """
import functools, inspect, logging, operator, traceback, warnings

@functools.lru_cache(maxsize=None)
def place(table, size, pos):
    return table[pos // size] * size + pos % size

def slot_mapping(block_table, positions, block_size):
    logging.getLogger("lab").warning("a %s", "message")
    try:
        1 / 0
    except ZeroDivisionError:
        traceback.format_exc(), traceback.format_stack(limit=2), logging.exception("x")
    inspect.signature(slot_mapping), warnings.warn("x")
    if any(map(operator.lt, positions, [0] * len(positions))):
        raise IndexError
    return list(map(functools.partial(place, tuple(block_table), block_size), positions))
"""


def test_control_the_library_may_look_at_frames(check):
    rows, _ = check(solution(find_lab("3")) + HONEST, seconds=30.0)
    assert {row.status for row in rows.values()} == {"ok"}, rows


CUDA = {
    "copies that are not counted": (
        "7.1",
        "volatile int bytes = 64;\nfloat row[32];\nmemcpy(row, from, bytes);\n",
        "",
    ),
    "an attribute": (
        "7.2",
        'auto f = [&]() __attribute__((no_sanitize("thread"))) { return q[0][0]; };\nf();\n',
        "",
    ),
    "a pasted word": ("7.2", "", "#define GLUE(a, b) a##b\n"),
    "a fragment by memcpy": ("10.1", "volatile int bytes = 8;\nmemcpy(f.a.v, w, bytes);\n", ""),
    "an mma in assembly": ("10.2", 'asm volatile("nop");\n', ""),
    "the machine of the simulator": ("10.3", "", "#define quiet simt::counters\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CUDA, ids=lambda name: name.replace(" ", "-"))
def test_no_load_of_a_kernel_is_out_of_sight(tmp_path, name):
    number, before, helpers = CUDA[name]
    lab = find_lab(number.partition(".")[0])
    text = solution(lab)
    text = replaced(text, number, before + sections(text)[number][1])
    file = tmp_path / lab.file
    file.write_text(replaced(text, "helpers", helpers) if helpers else text)
    rows = {row.task: row for row in supervise.check(lab, file, supervise.Limits(60.0)).results}
    assert rows[number].earned == 0 and rows[number].status in ("wrong", "refused"), rows[number]
    assert rows[f"{lab.number}.4"].status == ("refused" if helpers else "ok")
