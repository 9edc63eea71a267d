"""Shared by the tests of the native kernels.

A test module that imports this is skipped, with a reason, if the kernels cannot be built.
"""

import pytest
from cases import DTYPES, REFERENCE, Case, check, make_meta, random
from company import threads

from minillm.ops.registered import load_native
from minillm.toolchain.compiler import BuildFailed, find_compiler

__all__ = ["DTYPES", "REFERENCE", "Case", "check", "make_meta", "random", "threads"]

try:
    load_native()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"native kernels: {reason}", allow_module_level=True)
