"""Files that try to get points without the work: each gets none for the task, and honest tasks keep theirs.

A trick is added to a file whose task 3.2 (`slot_mapping`) is wrong, or not written. All other parts are the
finished ones, so they also show that a trick in one task costs no other task its points, unless it breaks
the process.
"""

import pytest

from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import solution

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
    code = f"from minillm.memory.block_table import slot_mapping as s; print(s({table}, {positions}, {size}))"
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
    "writes its own report": """
import os, json
def slot_mapping(table, positions, size):
    for fd in range(3, 4096):
        message = {"event": "case", "task": "3.2", "answer": [1], "passes": [0, 0]}
        try: os.write(fd, json.dumps(message).encode() + bytes([10]))
        except OSError: pass
    os._exit(0)
""",
    "leaves a thread running": """
import threading, time
def slot_mapping(table, positions, size):
    threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
    return [table[p // size] * size + p % size for p in positions]
""",
    "edits installed files": """
import minillm.memory.block_table as t
def slot_mapping(table, positions, size):
    open(t.__file__, "a").write("")
    return [table[p // size] * size + p % size for p in positions]
""",
    "opens a socket": """
def slot_mapping(table, positions, size):
    import socket
    try: socket.create_connection(("127.0.0.1", 1), timeout=1)
    except Exception: pass
    return [table[p // size] * size + p % size for p in positions]
""",
    "gives its module a class that looks it up": """
import sys, types
class M(types.ModuleType):
    def __getattribute__(self, name):
        if name == "slot_mapping":
            import minillm.memory.block_table as t
            return t.slot_mapping
        return super().__getattribute__(name)
sys.modules[__name__].__class__ = M
def slot_mapping(table, positions, size): return None
""",
    "looks for it in the caller's frames": """
def slot_mapping(table, positions, size):
    try: raise KeyError
    except KeyError as e:
        f = e.__traceback__.tb_frame
        names = []
        while f: names.append(f.f_code.co_name); own = f.f_locals.get("task"); f = f.f_back
        return own.part.own(table, positions, size) if own else names
""",
}


QUICK = ("imports everything", "finds it in sys.modules when it runs", "swallows the refusal")
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name.replace(" ", "-"))
    for name in TRICKS
]
# Refused while the file is loaded: then no task of it is run.
AT_LOADING = {"copies the function object", "runs its source"}
# The import replaces other parts of the finished file too.
ALSO = {"imports everything": {"3.1", "3.5", "3.6"}}


@pytest.mark.parametrize("name", NAMES)
def test_a_trick_gets_no_points_and_costs_no_other_task(check, name):
    rows, _ = check(solution(LAB) + "\n\n" + TRICKS[name], seconds=30.0)
    assert (rows["3.2"].earned, rows["3.2"].points) == (0, 15)
    lost = {number for number, row in rows.items() if not row.earned} - {"3.9"}
    expected = (
        {task.number for task in LAB.tasks[:-1]} if name in AT_LOADING else {"3.2", *ALSO.get(name, ())}
    )
    assert lost == expected, rows


HONEST = """
import collections, dataclasses, enum, functools, tempfile, traceback, typing, warnings
import beside

@dataclasses.dataclass
class Place:
    block: int
    offset: int = 0

class Pair(typing.NamedTuple):
    a: int
    b: int

Point = collections.namedtuple("Point", "x y")
Kind = enum.Enum("Kind", "A B")

@functools.lru_cache(maxsize=None)
def _at(block, pos, size):
    return Place(block, pos % size)

def _slots(table, positions, size):
    print("hello", Pair(1, 2), Point(1, 2), Kind.A, flush=True)
    warnings.warn("a warning")
    try:
        1 / 0
    except ZeroDivisionError:
        traceback.print_exc()
    with tempfile.TemporaryDirectory() as folder:
        open(folder + "/a", "w").write("x")
    if any(pos < 0 for pos in positions):
        raise IndexError
    places = [_at(table[pos // size], pos, size) for pos in positions]
    return [place.block * size + place.offset for place in places]

@functools.wraps(_slots)
def slot_mapping(*args):
    return beside.same(_slots, *args)

@torch.no_grad()
def blocks_for(num_tokens, block_size):
    torch.nn.Linear(2, 2)(torch.ones(1, 2))
    return beside.up(num_tokens, block_size)
"""
BESIDE = "def same(f, *a):\n    return f(*a)\n\n\ndef up(n, s):\n    return -(-n // s)\n"


def test_ordinary_python_is_allowed(check, tmp_path):
    (tmp_path / "beside.py").write_text(BESIDE)
    rows, report = check(solution(LAB) + "\nimport torch\n" + HONEST, seconds=30.0)
    assert {row.status for row in rows.values()} == {"ok"}, rows
    assert "hello Pair(a=1, b=2) Point(x=1, y=2)" in report.output


REPLACES = """
def blocks_for(n, size):
    from minillm.labs.lab3_cache.loop_cases import LinearCounter
    LinearCounter.__call__ = lambda self, x, weight, bias=None: None
    return -(-n // size)

def decode(runner, rows):
    kind = next((c for c in type(runner).__mro__ if "last_logits" in vars(c)), None)
    saved = kind.last_logits
    kind.last_logits = kind.__mro__[1].last_logits if kind.__mro__[1] is not object else saved
    for _ in range(4):
        runner.last_logits([SequenceRows([r.token_id], r.position, r.block_table) for r in rows])
    kind.last_logits = saved
    return runner.last_logits([SequenceRows([r.token_id], r.position, r.block_table) for r in rows])
"""


def test_what_a_part_replaces_is_named_and_passes_are_counted_below_the_names(check):
    rows, _ = check(solution(LAB) + REPLACES, seconds=30.0)
    assert rows["3.1"].status == "refused" and "LinearCounter.__call__" in rows["3.1"].message
    assert rows["3.8"].status == "wrong" and rows["3.8"].earned == 0
    assert [rows[f"3.{i}"].status for i in range(2, 8)] == ["ok"] * 6


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.isclose = lambda *a, **k: torch.ones(1).bool()",
        "import minillm.labs.grader.answers as a\na.encode = lambda *x: None",
        "import builtins\nbuiltins.len = lambda x: 1",
    ],
)
def test_a_file_that_replaces_something_when_it_is_loaded_gets_nothing(check, line):
    _, report = check(solution(LAB) + "\n" + line + "\n", seconds=30.0)
    assert report.earned == 0 and {row.status for row in report.results} <= {"refused", "unloadable"}
