"""Everything is in pyproject.toml; this file is where compiled kernels will be declared (torch is not needed here)."""

from setuptools import setup

setup()
