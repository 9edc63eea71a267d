"""The decisions of the set-up scripts in fake environments: nothing is installed or downloaded.

Each fake interpreter is a shell script that calls the Python of the tests. It hides or adds packages with
PYTHONPATH. It logs each `-m pip` and `-m venv` instead of running it.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((REPO / "scripts").glob("*.sh")), REPO / ".ci" / "run"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the set-up scripts need bash")

FAKE_PYTHON = """#!/bin/sh
here={here}
case "$*" in
"-m pip"*) echo "$@" >>"$here/calls"; exit {pip_status} ;;
"-m venv"*) echo "$@" >>"$here/calls"; for last; do :; done
    mkdir -p "$last/bin" && cp "$here/in_venv" "$last/bin/python"; exit 0 ;;
*"import pip"*|*"import venv"*) exit 0 ;;
"-P - "*) exit 0 ;;
esac
PYTHONPATH={site} exec {python} -S "$@"
"""


@pytest.fixture
def checkout(tmp_path):
    """The files that set-up reads, in a folder with spaces in its path."""
    root = tmp_path / "a check out"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(REPO / "scripts" / "env.sh", root / "scripts")
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(REPO / name, root)
    return root


def quote(path: Path | str) -> str:
    return "'" + str(path) + "'"


def make_python(folder: Path, torch: str | None, *, imports: bool = True, pip_status: int = 0) -> Path:
    """A fake interpreter with torch of the given version, or without; its .venv has the same packages."""
    site = folder / "site"
    site.mkdir(parents=True)
    if torch is not None:
        (site / f"torch-{torch}.dist-info").mkdir()
        (site / f"torch-{torch}.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {torch}\n")
        (site / "torch.py").write_text("" if imports else "raise ImportError('libcudart')\n")
    real = os.path.realpath(sys.executable)  # the interpreter outside any virtual environment
    script = FAKE_PYTHON.format(
        here=quote(folder), site=quote(site), python=quote(real), pip_status=pip_status
    )
    python = folder / "bin" / "python"
    python.parent.mkdir()
    for path in (python, folder / "in_venv"):
        path.write_text(script)
        path.chmod(0o755)
    return python


def calls(python: Path) -> list[str]:
    """The logged calls of pip and venv."""
    log = python.parent.parent / "calls"
    return log.read_text().splitlines() if log.exists() else []


def bash(code: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd), **variables}
    return subprocess.run(["bash", "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def setup(checkout: Path, extra: str = "", **variables: str) -> subprocess.CompletedProcess:
    # Run from another folder, with a path that has spaces.
    return bash(f"bash {quote(checkout / 'scripts' / 'env.sh')} {extra}", checkout.parent, **variables)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.mark.parametrize(
    ("torch", "imports", "kept"),
    [
        (None, True, False),
        ("2.13.0+cpu", True, True),
        ("2.10.0", True, True),
        ("2.14.0+cu130", True, True),
        ("2.11.0a0+git1", True, True),
        ("2.10.0a0+git1", True, False),
        ("2.9.1", True, False),
        ("2.13.0", False, False),
    ],
)
def test_which_torch_is_kept(tmp_path, torch, imports, kept):
    python = make_python(tmp_path / "py", torch, imports=imports)
    done = bash(f"source {quote(REPO / 'scripts' / 'env.sh')}; torch_to_keep {quote(python)}", tmp_path)
    assert done.returncode == (0 if kept else 1)
    assert done.stdout.strip() == (torch if kept else "")


def test_system_torch_is_kept_through_system_site_packages(tmp_path, checkout):
    python = make_python(tmp_path / "py", "2.13.0+cpu")
    done = setup(checkout, "test", PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    venv, install = calls(python)
    assert venv.startswith("-m venv --system-site-packages")
    assert install.endswith("[test]")
    assert (checkout / ".venv" / ".minillm-torch.txt").read_text() == "torch==2.13.0+cpu\n"


def test_without_torch_exactly_one_version_is_installed(tmp_path, checkout):
    python = make_python(tmp_path / "py", None)
    setup(checkout, PYTHON=str(python))
    assert "--system-site-packages" not in calls(python)[0]
    assert calls(python)[1] == "-m pip install torch==2.13.0"


CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def said_before_installing(tmp_path: Path, checkout: Path, system: str, gpu: bool, **variables: str) -> str:
    """What set-up says before it downloads torch, on such a machine."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, line in (("uname", f"echo {system}"), ("nvidia-smi", f"exit {0 if gpu else 9}")):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    python = make_python(tmp_path / "py", None, pip_status=1)
    path = f"{tools}:{os.environ['PATH']}"
    before, started, _ = setup(checkout, PYTHON=str(python), PATH=path, **variables).stderr.partition(
        "setup: installing torch"
    )
    assert started
    return before


@pytest.mark.parametrize("gpu", [False, True])
def test_the_size_of_the_download_is_said_before_it_starts(tmp_path, checkout, gpu):
    said = said_before_installing(tmp_path, checkout, "Linux", gpu)
    assert "CUDA libraries of about 5.5 GB" in said and f"MINILLM_TORCH_INDEX={CPU_INDEX}" in said
    assert ("no NVIDIA GPU was found" in said) is not gpu


def test_no_cuda_libraries_are_announced_where_there_are_none(tmp_path, checkout):
    said = said_before_installing(tmp_path, checkout, "Darwin", False)
    assert "0.2 GB" in said and "CUDA" not in said


def test_one_variable_names_the_index_of_torch_alone(tmp_path, checkout):
    said = said_before_installing(tmp_path, checkout, "Linux", False, MINILLM_TORCH_INDEX=CPU_INDEX)
    assert CPU_INDEX in said and "Ctrl-C" not in said
    assert (
        calls(tmp_path / "py" / "bin" / "python")[-1]
        == f"-m pip install --index-url {CPU_INDEX} torch==2.13.0"
    )
    python = make_python(tmp_path / "active", "2.13.0")
    done = setup(checkout, VIRTUAL_ENV=str(tmp_path / "active"), MINILLM_TORCH_INDEX=CPU_INDEX)
    assert done.returncode == 0 and "download" not in done.stderr, "a torch that is there is kept"
    (install,) = calls(python)
    assert "--index-url" not in install


def test_active_environment_is_used_and_its_torch_kept(tmp_path, checkout):
    python = make_python(tmp_path / "active", "2.10.0+cu126")
    done = setup(checkout, VIRTUAL_ENV=str(tmp_path / "active"))
    assert done.returncode == 0, done.stderr
    assert len(calls(python)) == 1  # minillm itself, and no torch
    assert not (checkout / ".venv").exists()


def test_active_environment_with_a_broken_torch_is_left_alone(tmp_path, checkout):
    python = make_python(tmp_path / "active", "2.13.0", imports=False)
    done = setup(checkout, VIRTUAL_ENV=str(tmp_path / "active"))
    assert done.returncode == 1
    assert "cannot be imported" in done.stderr
    assert calls(python) == []


def test_second_run_does_nothing_until_the_project_changes(tmp_path, checkout):
    python = make_python(tmp_path / "py", "2.13.0")
    setup(checkout, "test", PYTHON=str(python))
    first = calls(python)
    setup(checkout, "test", PYTHON=str(python))
    setup(checkout, PYTHON=str(python))  # the packages of the tests include those of the demo
    assert calls(python) == first
    (checkout / "setup.py").write_text("# changed\n")
    setup(checkout, PYTHON=str(python))
    assert len(calls(python)) == len(first) + 1


def test_demo_environment_gets_the_test_packages_when_asked(tmp_path, checkout):
    python = make_python(tmp_path / "py", "2.13.0")
    setup(checkout, PYTHON=str(python))
    setup(checkout, "test", PYTHON=str(python))
    assert calls(python)[-1].endswith("[test]")


def test_killed_installation_is_rebuilt(tmp_path, checkout):
    python = make_python(tmp_path / "py", "2.13.0")
    setup(checkout, PYTHON=str(python))
    (checkout / ".venv" / ".minillm-stamp").unlink()
    (checkout / ".venv" / ".minillm-busy").touch()
    done = setup(checkout, PYTHON=str(python))
    assert "rebuilding .venv" in done.stderr
    assert sum(call.startswith("-m venv") for call in calls(python)) == 2
    assert (checkout / ".venv" / ".minillm-stamp").exists()


def test_a_strangers_broken_venv_is_never_deleted(tmp_path, checkout):
    python = make_python(tmp_path / "py", "2.13.0")
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "precious").touch()
    done = setup(checkout, PYTHON=str(python))
    assert done.returncode == 1
    assert "remove it" in done.stderr
    assert (checkout / ".venv" / "precious").exists()


def test_pip_failure_is_shown_and_is_the_exit_code(tmp_path, checkout):
    python = make_python(tmp_path / "py", "2.13.0", pip_status=1)
    done = setup(checkout, PYTHON=str(python))
    assert done.returncode == 1
    assert "installing minillm: failed" in done.stderr
    assert not (checkout / ".venv" / ".minillm-stamp").exists()


def test_old_python_and_missing_venv_are_refused_in_one_line(tmp_path, checkout):
    old = tmp_path / "old"
    old.write_text('#!/bin/sh\ncase "$*" in *version_info*) echo 3.10; exit 1;; esac\n')
    bare = tmp_path / "bare"
    bare.write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; *version_info*) echo 3.12;; esac\n')
    refusals = {old: "is 3.10", bare: "lacks venv or ensurepip", tmp_path / "none": "does not run"}
    for python, reason in refusals.items():
        if python.exists():
            python.chmod(0o755)
        done = setup(checkout, PYTHON=str(python))
        assert done.returncode == 1
        assert reason in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (checkout / ".venv").exists()


def test_every_code_folder_is_a_package():
    """setuptools silently leaves a folder without __init__.py out of the wheel."""
    package = REPO / "minillm"
    data = {package / "zoo", package / "labs"}
    folders = {path.parent for path in package.rglob("*.py") if not data & set(path.parents)}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_test_extra_does_not_drift():
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for tool in ("ruff", "mypy"):
        assert any(need.startswith(tool) and "<" in need for need in extras["test"])
