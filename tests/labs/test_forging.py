"""Files that try to get points without the work: each gets none for the task, and honest tasks keep theirs.

A trick is added to a file whose task 3.2 (`slot_mapping`) is wrong, or not written. All other parts are the
finished ones, so they also show that a trick in one task costs no other task its points, unless it breaks
the process.
"""

import pytest

from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import skeleton, solution

LAB = find_lab("3")
OWN = "minillm.memory.block_table"

# Each defines slot_mapping after the finished file, so that 3.2 is judged on it.
TRICKS = {
    "imports the part": f"from {OWN} import slot_mapping",
    "imports everything": f"from {OWN} import *",
    "imports it under a name": f"import {OWN} as t\nslot_mapping = t.slot_mapping",
    "wraps it": f"""
from {OWN} import slot_mapping as theirs
def slot_mapping(table, positions, size):
    return theirs(table, positions, size)
""",
    "finds it in sys.modules when it runs": f"""
def slot_mapping(table, positions, size):
    import sys
    return getattr(sys.modules["{OWN}"], "slot_" + "mapping")(table, positions, size)
""",
    "makes a partial of it": f"""
import functools, {OWN} as t
slot_mapping = functools.partial(t.slot_mapping)
""",
    "hides it in a cache": f"""
import functools, {OWN} as t
slot_mapping = functools.lru_cache(t.slot_mapping)
""",
    "hides it in an object": f"""
import {OWN} as t
class Call:
    def __init__(self, f): self.f = f
    def __call__(self, *args): return self.f(*args)
slot_mapping = Call(t.slot_mapping)
""",
    "swallows the refusal": f"""
import {OWN} as t
def slot_mapping(table, positions, size):
    try:
        return t.slot_mapping(table, positions, size)
    except BaseException:
        return [table[p // size] * size + p % size for p in positions]
""",
    "lets map call it": f"""
import {OWN} as t
def slot_mapping(table, positions, size):
    return list(map(t.slot_mapping, [table], [positions], [size]))[0]
""",
    "asks the engine's runner for it": """
from minillm.worker import runner
def slot_mapping(table, positions, size):
    return runner.slot_mapping(table, positions, size)
""",
    "copies the function object": f"""
import types, {OWN} as t
slot_mapping = types.FunctionType(t.slot_mapping.__code__, vars(t))
""",
    "runs its source": f"""
import inspect, {OWN} as t
exec(inspect.getsource(t.slot_mapping))
""",
    "runs its source when it is called": f"""
import {OWN} as t
def slot_mapping(table, positions, size):
    space = {{}}
    exec(compile("from __future__ import annotations\\n" + open(t.__file__).read(), "x", "exec"), space)
    return space["slot_mapping"](table, positions, size)
""",
    "loads its compiled file": f"""
import marshal, types, {OWN} as t
def slot_mapping(table, positions, size):
    code = marshal.loads(open(t.__cached__, "rb").read()[16:])
    space = {{"__name__": "x"}}
    exec(code, space)
    return space["slot_mapping"](table, positions, size)
""",
    "reloads the module": f"""
import importlib, {OWN} as t
def slot_mapping(table, positions, size):
    return importlib.reload(t).slot_mapping(table, positions, size)
""",
    "imports the module again": f"""
def slot_mapping(table, positions, size):
    import sys, importlib
    del sys.modules["{OWN}"]
    return importlib.import_module("{OWN}").slot_mapping(table, positions, size)
""",
    "searches all objects": """
def slot_mapping(table, positions, size):
    import gc
    found = [f for f in gc.get_objects() if getattr(f, "__name__", "") == "slot_mapping"]
    return found[0](table, positions, size)
""",
    "equals everything": """
class Equal(list):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __len__(self): return 10
def slot_mapping(table, positions, size):
    return Equal([1])
""",
    "lies about its class": """
class Liar:
    __class__ = list
    def __eq__(self, other): return True
    def __iter__(self): return iter(())
def slot_mapping(table, positions, size):
    return Liar()
""",
    "returns a tensor with its own functions": """
import torch
class Agrees(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None): return True
def slot_mapping(table, positions, size):
    return torch.zeros(3).as_subclass(Agrees)
""",
    "has a metaclass that agrees": """
class Meta(type):
    def __eq__(cls, other): return True
    def __hash__(cls): return hash(list)
    def __instancecheck__(cls, other): return True
    def __subclasscheck__(cls, other): return True
class Odd(metaclass=Meta):
    def __eq__(self, other): return True
def slot_mapping(table, positions, size):
    return Odd()
""",
    "starts a thread that calls it": f"""
import threading, {OWN} as t
def slot_mapping(table, positions, size):
    out = []
    thread = threading.Thread(target=lambda: out.append(t.slot_mapping(table, positions, size)))
    thread.start()
    thread.join()
    return out[0]
""",
    "starts a process that calls it": """
import subprocess, sys
def slot_mapping(table, positions, size):
    code = f"from minillm.memory.block_table import slot_mapping as s; print(s({table}, {list(positions)}, {size}))"
    return eval(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
""",
    "sets a trace function": """
import sys
def slot_mapping(table, positions, size):
    sys.settrace(lambda *args: None)
    return [table[p // size] * size + p % size for p in positions]
""",
    "reads the engine's source": f"""
def slot_mapping(table, positions, size):
    import {OWN} as t
    len(open(t.__file__).read())
    return [table[p // size] * size + p % size for p in positions]
""",
    "unhooks the refusal": f"""
import {OWN} as t
def slot_mapping(table, positions, size):
    code = t.slot_mapping.__code__.co_consts
    return next(c for c in code if callable(c)).__closure__[1].cell_contents(table, positions, size)
""",
}


@pytest.fixture
def score(check):
    def run(text, lab=3):
        rows, report = check(text, lab=lab, seconds=20.0)
        return rows, report

    return run


@pytest.mark.parametrize("name", TRICKS)
def test_a_trick_gets_no_points_and_costs_no_other_task(check, name):
    rows, _ = check(solution(LAB) + "\n\n" + TRICKS[name], seconds=30.0)
    assert rows["3.2"].earned == 0, rows["3.2"]
    others = {number: rows[number].status for number in ("3.1", "3.3", "3.4", "3.5", "3.6")}
    if rows["3.2"].status != "unloadable" and "while it is loaded" not in rows["3.2"].message:
        assert set(others.values()) == {"ok"}
