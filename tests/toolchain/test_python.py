"""A process that runs a module of minillm imports nothing from the current folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from minillm.toolchain.python import module_command, module_environment
from minillm.version import __version__


def version(command: Sequence[str], variables: Mapping[str, str]) -> tuple[int, str]:
    done = subprocess.run([*command, "--version"], env=variables, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize("given", ["", os.pathsep, f"{os.pathsep}/nowhere"])
def test_a_file_here_is_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    (tmp_path / "argparse.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", given)
    assert version(module_command("minillm"), module_environment()) == (0, f"minillm {__version__}")
    # The controls: each of the two protections alone is not enough.
    assert version([sys.executable, "-m", "minillm"], module_environment())[0] == 9
    with_here = {
        **module_environment(),
        "PYTHONPATH": os.pathsep.join(["", module_environment()["PYTHONPATH"]]),
    }
    assert version(module_command("minillm"), with_here)[0] == 9


def test_other_folders_come_after_minillm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/a", "", "/b", "/a"]))
    here, *others = module_environment()["PYTHONPATH"].split(os.pathsep)
    assert (Path(here) / "minillm").is_dir() and others == ["/a", "/b"]
    assert module_environment(["/c", ""])["PYTHONPATH"].split(os.pathsep)[1:] == ["/c"]
