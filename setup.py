"""What pyproject.toml cannot say: the kernels' sources go with the package, and compiled ones if asked.

    pip install .                                            kernels are compiled on first use
    MINILLM_PREBUILD=1 pip install --no-build-isolation .    they are compiled now, for the torch at hand

This file must not need torch at import: pip reads it in an environment without one. `-e` works as well.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PREBUILD = os.environ.get("MINILLM_PREBUILD") == "1"


class BuildPy(build_py):
    """Python files, then csrc as minillm/csrc, then minillm/kernels."""

    def run(self):
        super().run()
        package = ROOT / "minillm" if self.editable_mode else Path(self.build_lib) / "minillm"
        if not self.editable_mode:
            shutil.copytree(ROOT / "csrc", package / "csrc", dirs_exist_ok=True)
        if PREBUILD:
            sys.path.insert(0, str(ROOT))  # pip does not
            from minillm.toolchain.cpu import cpu_library  # needs torch, and nothing else that minillm needs

            (package / "kernels").mkdir(exist_ok=True)
            cpu_library().compile_into(package / "kernels")


class BdistWheel(bdist_wheel):
    """A wheel with compiled kernels is for one platform, for any Python 3."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = not PREBUILD

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
