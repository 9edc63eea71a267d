"""The `asan` flavour: AddressSanitizer finds accesses outside of memory, independently of the simulator.

The flavour needs a prepared process (minillm/toolchain/sanitizer.py), which ends at the first error. So the
tests start one such process, and it runs each kernel of bugs.cu and sync.cu in a forked copy of itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bugs import ALWAYS, ASAN, FILE, RIGHT, SYNC_ALWAYS, SYNC_FILE, SYNC_RIGHT

from minillm.errors import UsageError
from minillm.ops.simt import flavour, flavours
from minillm.toolchain.sanitizer import environment, preload

if not preload():
    pytest.skip("the compiler has no shared AddressSanitizer", allow_module_level=True)

REPO = Path(__file__).resolve().parents[2]
RUN_EACH = """
import json, os, sys, tempfile
import torch
from minillm.errors import MinillmError
from minillm.ops.simt import compile_kernels, flavour, profile, schedule

def attempt(library, name):
    try:
        with flavour("asan"), schedule(seed=5 if name.startswith("right") else 0):
            library.run("run_" + name, x=torch.arange(64.0), y=torch.zeros(256))
    except MinillmError as error:
        print(error, file=sys.stderr)

def in_a_copy(run, *arguments):
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 2)
            run(*arguments)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        said.seek(0)
        return [status, said.read()]

def counted():
    with profile():
        pass

found = {}
for file, names in json.loads(sys.argv[1]).items():
    library = compile_kernels(file)
    found |= {name: in_a_copy(attempt, library, name) for name in names}
for _ in range(3):  # kernels that stop half-way in one process: their stack frames must be unpoisoned
    attempt(library, "barrier_in_a_branch")
    attempt(library, "right_local_arrays")
try:
    counted()
except MinillmError as error:
    found["profile"] = [0, str(error)]
print(json.dumps(found))
"""


OUTSIDE = {
    "one_too_far": "heap-buffer-overflow",
    "before_the_start": "heap-buffer-overflow",
    "a_row_too_many": "index 2 out of bounds",
    "past_a_shared_array": "use-after-poison",
    "misaligned": "misaligned address",
}
LINES = {name: line for name, (_, line) in (SYNC_ALWAYS | ALWAYS | ASAN).items()}
SAYS = OUTSIDE | {name: what for name, (what, _) in ASAN.items()}
BY_THE_MACHINE = ["barrier_in_a_branch", "shuffle_in_a_branch", "warps_at_two_barriers", "too_much_shared"]
# The last file's library stays loaded for what runs in one process.
RUNS = {SYNC_FILE: [*SYNC_ALWAYS, *SYNC_RIGHT], FILE: [*SAYS, *BY_THE_MACHINE, *RIGHT]}


@pytest.fixture(scope="module")
def reports() -> dict[str, tuple[int, str]]:
    """For each kernel the exit status and the text on stderr."""
    command = [
        sys.executable,
        "-P",
        "-c",
        RUN_EACH,
        json.dumps({str(file): names for file, names in RUNS.items()}),
    ]
    here = os.environ | environment() | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: (status, said) for name, (status, said) in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", SAYS)
def test_what_lies_outside_ends_the_process_with_its_line(reports, name):
    status, said = reports[name]
    assert status != 0
    assert SAYS[name] in said
    places = re.findall(r"bugs\.cu:(\d+)", said)
    assert places and int(places[0]) == LINES[name], said[:2000]


@pytest.mark.parametrize("name", [*BY_THE_MACHINE, *SYNC_ALWAYS])
def test_what_the_machine_sees_it_sees_here_too(reports, name):
    status, said = reports[name]
    assert status == 0
    file = (SYNC_FILE if name in SYNC_ALWAYS else FILE).name
    assert f"{name}, block" in said and f"{file}:{LINES[name]}" in said


@pytest.mark.parametrize("name", [*RIGHT, *SYNC_RIGHT])
def test_right_kernels_may_use_their_stacks(reports, name):
    assert reports[name] == (0, "")


def test_nothing_is_counted_and_profile_says_so(reports):
    assert "counts nothing" in reports["profile"][1]


def test_a_process_that_is_not_prepared_says_what_to_do(monkeypatch):
    assert flavours() == ("fast", "check")
    with pytest.raises(UsageError, match="cannot run in this process"), flavour("asan"):
        pass
    monkeypatch.setenv("MINILLM_SANITIZE", "1")
    with pytest.raises(UsageError, match="cannot run in this process"), flavour("check"):
        pass
    code = "from minillm.ops.simt.machine import machine; machine()"
    here = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True)
    assert "UsageError" in done.stderr and "scripts/sanitize.sh" in done.stderr
