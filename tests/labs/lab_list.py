"""The labs that can be checked on this machine."""

import pytest

from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.registry import all_labs
from minillm.toolchain.compiler import find_compiler

# Labs in CUDA need a compiler for the simulator.
LABS = [lab for lab in all_labs() if find_compiler() or not isinstance(lab, CudaLab)]
each_lab = pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.folder)

# For what takes long and goes through the same code in every lab: the others in the long form.
_OFTEN = (1, 8)
few_labs = pytest.mark.parametrize(
    "lab",
    [lab if lab.number in _OFTEN else pytest.param(lab, marks=pytest.mark.slow) for lab in LABS],
    ids=lambda lab: lab.folder,
)
