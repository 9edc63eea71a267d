"""All metadata is in pyproject.toml. This file must not need torch: pip reads it before torch is there."""

from setuptools import setup

setup()
