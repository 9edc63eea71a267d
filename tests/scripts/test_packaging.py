"""The sdist is the whole project, and a wheel built from it is whole: its files; in the long form its use.

Built by the backend that pyproject.toml names, without network, in a copy of the checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import minillm

REPO = Path(__file__).resolve().parents[2]
# What a checkout collects and no archive may hold.
LITTER = (
    "minillm/__pycache__/old.cpython-311.pyc",
    "minillm/labs/lab1_sampling/__pycache__/old.cpython-311.pyc",
    "minillm/kernels/cpu-old.so",
    "minillm/zoo/storyteller-1m/.DS_Store",
    "csrc/cpu/old.o",
    "tests/__pycache__/old.cpython-311.pyc",
    "notebooks/.ipynb_checkpoints/old.ipynb",
    ".venv/lib/old.py",
    ".mypy_cache/old.json",
)

pytestmark = pytest.mark.skipif(
    not (REPO / ".git").exists() or shutil.which("git") is None, reason="only git knows the project's files"
)


def project_files() -> set[str]:
    """Every file of the project: tracked by git, or new and not ignored."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPO, capture_output=True, text=True, check=True).stdout.split("\0")
    return {name for name in names if name and (REPO / name).is_file()}


def copy_of_checkout(folder: Path) -> Path:
    """The project's files in `folder`, with the litter that a used checkout has."""
    for name in project_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, folder / name)
    for name in LITTER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def build(kind: str, source: Path, out: Path) -> Path:
    """The archive that `build_sdist` or `build_wheel` of the project's backend makes of `source`."""
    code = f"import setuptools.build_meta as backend; backend.build_{kind}({str(out)!r})"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (archive,) = out.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return archive


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpacks an sdist; returns the one folder in it."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def wheel_files() -> set[str]:
    """What a wheel must hold: the package, and csrc inside it."""
    in_wheel = {name for name in project_files() if name.startswith("minillm/")}
    return in_wheel | {f"minillm/{name}" for name in project_files() if name.startswith("csrc/")}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    checkout = copy_of_checkout(folder / "check out")
    return unpack(build("sdist", checkout, folder), folder / "unpacked")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist."""
    return build("wheel", sdist, tmp_path_factory.mktemp("wheel"))


def test_the_sdist_is_the_project(sdist: Path) -> None:
    made = {"PKG-INFO", "setup.cfg"}  # by setuptools, as is the egg-info
    found = {name for name in files_below(sdist) if not name.startswith("minillm.egg-info/")}
    assert found - made == project_files()


def test_a_wheel_from_the_sdist_is_whole(wheel: Path) -> None:
    """Nothing is missing, and nothing is there that the project does not have."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == wheel_files()
    assert {"minillm/py.typed", "minillm/csrc/cuda/linear/linear_l2.cu", "minillm/csrc/simt/simt.h"} <= found


def test_the_version_is_written_once(wheel: Path) -> None:
    """The package's metadata has the version of the code."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        assert f"\nVersion: {minillm.__version__}\n" in archive.read(metadata).decode()


def test_a_file_that_the_manifest_leaves_out_is_noticed(tmp_path: Path) -> None:
    """The control: what MANIFEST.in does not name is not in the sdist, and would be missed above."""
    checkout = copy_of_checkout(tmp_path / "checkout")
    (checkout / "MANIFEST.in").write_text("recursive-include csrc *.h *.cpp\n")
    listing = [sys.executable, "-P", "setup.py", "-q", "egg_info"]  # the list alone: an archive takes seconds
    subprocess.run(listing, cwd=checkout, capture_output=True, check=True)
    listed = (checkout / "minillm.egg-info" / "SOURCES.txt").read_text().splitlines()
    left_out = project_files() - set(listed)
    assert {"csrc/cuda/linear/linear_l2.cu", "tests/helpers/tiny.py", "scripts/env.sh"} <= left_out
    assert "csrc/cpu/isa.cpp" not in left_out


@pytest.mark.slow
def test_a_wheel_from_the_sdist_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Generates, simulates and checks labs in a new environment, with no variable of this one."""
    python = environment_with(wheel, tmp_path / "venv")
    home = tmp_path / "home"
    home.mkdir()

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        variables = {"HOME": str(home), "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin"}
        return subprocess.run(
            command, cwd=home, env=variables, capture_output=True, text=True, timeout=1200, check=False
        )

    where = run("python", "-c", "import minillm; print(minillm.__file__)").stdout
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    told = run("minillm", "generate", "-p", "Once upon a time", "-n", "8", "--temperature", "0", "--json")
    assert told.returncode == 0 and len(json.loads(told.stdout)["text"]) > 8, told.stderr
    counted = run("minillm", "bench", "kernels", "--backend", "simt", "--prompt-len", "8", "--json")
    assert counted.returncode == 0 and json.loads(counted.stdout), counted.stderr
    for lab in map(str, range(1, 10)):
        assert run("minillm", "labs", "start", lab).returncode == 0
        checked = run("minillm", "labs", "check", lab, "--json")
        report = json.loads(checked.stdout)
        assert checked.returncode == 1 and report["earned"] < report["points"], checked.stderr
        assert "the check itself failed" not in checked.stdout


def environment_with(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel; what it depends on is that of the interpreter that runs the tests.

    Through a .pth file: the paths in it are searched, but .pth files found there are not followed, so
    that an editable minillm stays out of reach. NumPy, which the tests need and minillm does not, is hidden.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PIP_NO_INPUT": "1"})
    target = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(target) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (Path(target) / "numpy.py").write_text("raise ModuleNotFoundError('No module named numpy')\n")
    return python
