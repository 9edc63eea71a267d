"""The engine's own part under a cover that leaves no code of the file on the stack when it is called.

In the task of the whole file the engine calls the file's parts, so a call through a cover looks like a
call by the engine. Here every function that the engine takes from the file is covered, and gets
no points.
"""

import pytest

from minillm.labs.grader.pipe import started
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import solution
from minillm.labs.grader.supervise import Limits, _run

# Each makes `cover` from `own`, the engine's function, with some code of the file in it, as a decoy.
COVERS = {
    "a lambda": "cover = lambda *a, **k: own(*a, **k)",
    "a bound method": """
class Has:
    part = staticmethod(own)
    def run(self, *a, **k): return self.part(*a, **k)
cover = Has().run
""",
    "a class with a call": """
class Has:
    __wrapped__ = staticmethod(decoy)
    def __call__(self, *a, **k): return own(*a, **k)
cover = Has()
""",
    "singledispatch": """
cover = functools.singledispatch(own)
cover.__wrapped__ = decoy
""",
    "singledispatch by type": """
cover = functools.singledispatch(decoy)
for kind in (list, tuple, torch.Tensor, object): cover.register(kind, own)
""",
    "a property": """
class Finds:
    __call__ = property(lambda self: own)
cover = Finds()
""",
    "a property with a partial": """
class Finds:
    __call__ = property(lambda self: functools.partial(own.__call__))
cover = Finds()
""",
    "a descriptor": """
class Gives:
    def __get__(self, holder, kind): return own
class Has:
    __wrapped__ = staticmethod(decoy)
    __call__ = Gives()
cover = Has()
""",
    "a partial in a class": """
class Has:
    __wrapped__ = staticmethod(decoy)
    __call__ = functools.partial(own)
cover = Has()
""",
    "a context of torch": """
cover = torch.no_grad()(own)
cover.__wrapped__ = decoy
""",
    "a property with a proxy": """
class Finds:
    __call__ = property(lambda self: weakref.proxy(own))
cover = Finds()
""",
}
# The functions that the engine takes from the file in the task of the whole file.
TAKEN = {
    1: {"minillm.ops.sampling": ["sample"]},
    2: {"minillm.ops.reference": ["apply_rope", "grouped_query_attention"]},
    3: {
        "minillm.memory.block_table": ["slot_mapping"],
        "minillm.ops.reference": ["write_cache", "read_cache"],
        "minillm.worker.prefill": ["prefill"],
        "minillm.worker.decode": ["decode"],
    },
    9: {"minillm.ops.verification": ["verify_coupled", "verify_draft"]},
}
NAMES = [(lab, name) for lab, modules in TAKEN.items() for names in modules.values() for name in names]
IMPORTS = "import contextlib, functools, torch, weakref"


def covered(lab, cover, chosen):
    """The finished file; the functions `chosen` are covers of the engine's own."""
    lines = [solution(find_lab(str(lab))), IMPORTS, "def decoy(*a): return []", "def covered(own):"]
    lines += [f"    {line}" for line in cover.strip().splitlines()] + ["    return cover"]
    for module, names in TAKEN[lab].items():
        lines += [f"import {module} as engines"]
        lines += [f"{name} = covered(engines.{name})" for name in names if name in chosen]
    return "\n".join(lines) + "\n"


@pytest.fixture
def outcome(tmp_path):
    """Run one task of a text in a child process."""

    def run(lab, text, number=-1):
        lab = find_lab(str(lab))
        file = tmp_path / lab.file
        file.write_text(text)
        first = [task.number for task in lab.tasks].index(number) if number != -1 else len(lab.tasks) - 1
        order = {"lab": str(lab.number), "seed": 0, "cases": "", "memory": 1 << 30, "cpu": 200}
        with started({**order, "first": first}, file, str(tmp_path)) as child:
            return _run(child, lab.tasks[first : first + 1], Limits(30.0))[0]

    return run


def cases(quick, *values):
    """Parameters; all but the quick ones are slow."""
    ids = ["-".join(map(str, value)).replace(" ", "-") for value in values]
    marks = [() if value in quick else pytest.mark.slow for value in values]
    return [pytest.param(*v, id=i, marks=m) for v, i, m in zip(values, ids, marks, strict=True)]


ALL_PARTS = [(3, cover) for cover in COVERS]
ALL_PARTS += [(lab, cover) for lab in TAKEN if lab != 3 for cover in ("a property", "singledispatch")]


@pytest.mark.parametrize(("lab", "cover"), cases({(3, "singledispatch"), (3, "a property")}, *ALL_PARTS))
def test_no_cover_around_all_parts_passes_in_the_engine(outcome, lab, cover):
    names = [name for names in TAKEN[lab].values() for name in names]
    assert refused(outcome(lab, covered(lab, COVERS[cover], names)))


@pytest.mark.slow
@pytest.mark.parametrize(("lab", "name"), NAMES)
def test_one_covered_part_is_enough(outcome, lab, name):
    assert refused(outcome(lab, covered(lab, COVERS["a property"], [name])))


def refused(outcome):
    status, message = outcome.failure or ("ok", "")
    return status in ("engine", "refused") and ("the engine's own" in message or "looks at" in message)


METHODS = {
    "3.5": ("minillm.memory.block_table", "BlockTable", "grow"),
    "3.9": ("minillm.memory.block_table", "BlockTable", "fork"),
    "4.1": ("minillm.memory.block_pool", "BlockPool", "allocate"),
    "4.6": ("minillm.memory.block_pool", "BlockPool", "free"),
    "5.4": ("minillm.engine.scheduler", "Scheduler", "_fits"),
    "5.7": ("minillm.engine.scheduler", "Scheduler", "_start"),
    "6.4": ("minillm.memory.prefix_cache", "PrefixCache", "match"),
    "6.8": ("minillm.memory.prefix_cache", "PrefixCache", "evict"),
}


@pytest.mark.parametrize("number", cases({("5.4",)}, *((number,) for number in METHODS)))
def test_a_method_that_a_property_finds_is_refused(outcome, number):
    module, owner, method = METHODS[number]
    found = f"{owner}.{method} = property(lambda self: functools.partial(engines.{owner}.{method}, self))"
    text = f"{solution(find_lab(number[0]))}\nimport functools, {module} as engines\n{found}\n"
    assert refused(outcome(number[0], text, number))


def test_another_function_of_the_engine_that_computes_the_same_is_refused(outcome):
    """The attention of models with softcaps and sinks computes plain attention if both are None."""
    text = solution(find_lab("2")) + "\nimport minillm.ops.variants as engines\n"
    text += "def grouped_query_attention(q, k, v, scale, window):\n"
    text += "    return engines.attention(q, k, v, scale, window, None, None)\n"
    assert refused(outcome(2, text, "2.4"))


TOP = "import torch, minillm.ops.sampling as engines\n"
AT_LOADING = {
    "a trace": "traced = torch.jit.trace(lambda x: engines.keep_top(x, 3, 1.0), torch.randn(2, 9))",
    "a table": "answers = list(map(engines.keep_top, [torch.randn(2, 9)], [3], [1.0]))",
}


@pytest.mark.parametrize("name", cases({("a trace",)}, *((name,) for name in AT_LOADING)))
def test_no_answers_are_made_while_the_file_is_loaded(outcome, name):
    assert refused(outcome(1, solution(find_lab("1")) + TOP + AT_LOADING[name], "1.2"))


@pytest.mark.slow
def test_control_the_engine_may_run_while_the_file_is_loaded(outcome):
    run = (
        "engines.probabilities(torch.randn(1, 9), engines.SamplingBatch([SamplingParams()], [0], [[]], 9))\n"
    )
    text = TOP + "from minillm import SamplingParams\n" + run
    assert outcome(1, solution(find_lab("1")) + text, "1.2").failure is None


@pytest.mark.parametrize("lab", cases({(3,)}, *((lab,) for lab in TAKEN)))
def test_control_a_finished_file_is_not_refused(outcome, lab):
    assert outcome(lab, solution(find_lab(str(lab)))).failure is None


@pytest.mark.slow
@pytest.mark.parametrize(("lab", "name"), NAMES)
def test_control_a_cover_around_the_files_own_part_is_allowed(outcome, lab, name):
    own = f"engines = sys.modules[__name__]\n{name} = covered({name})\n"
    text = covered(lab, COVERS["a property with a partial"], []) + "import sys\n" + own
    assert outcome(lab, text).failure is None
