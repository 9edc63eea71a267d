"""Builds the notebooks: from py:percent sources to executed .ipynb files that are stable in git.

    notebooks/src/NAME.py --jupytext--> cells --nbclient--> outputs --normalised--> notebooks/NAME.ipynb

Authors edit and review the source; readers open the .ipynb with its outputs. The build removes data that
differs between runs but is no result (execution times, random cell ids, versions). It fails if the outputs
contain something that must not be committed (absolute paths, object addresses, stderr, widgets, large
pictures).

    python scripts/dev/build_notebooks.py              build all
    python scripts/dev/build_notebooks.py 01           build those whose name starts with 01
    python scripts/dev/build_notebooks.py --check      write nothing; check that all are up to date and run

Needs the extra `notebooks`: pip install -e '.[notebooks]'
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
CELL_TIMEOUT = 180  # seconds: only to detect a hang; the first cell may compile kernels beside other work
MAX_PICTURE = 40 << 10  # bytes of a PNG
MAX_NOTEBOOK = 400 << 10

# A path of one machine. Paths in the repository are relative.
_ABSOLUTE_PATH = re.compile(r"(?<![\w./~])(?:/(?:home|root|tmp|usr|opt|var|mnt|work|Users)/|[A-Z]:\\)")
_ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}")
_TEXT_TYPES = ("text/plain", "text/html", "text/markdown")


def sources(prefixes: Sequence[str] = ()) -> list[Path]:
    """The source files whose name starts with one of `prefixes`; all without prefixes."""
    found = sorted((FOLDER / "src").glob("[0-9]*.py"))
    return [path for path in found if not prefixes or path.name.startswith(tuple(prefixes))]


def built_path(source: Path) -> Path:
    """The .ipynb file of a source."""
    return FOLDER / f"{source.stem}.ipynb"


def load(source: Path) -> Any:
    """The notebook of a source file, without outputs. Cell ids are positions, so they are stable."""
    cells = jupytext.read(source, fmt="py:percent").cells
    notebook = nbformat.v4.new_notebook()
    for i, cell in enumerate(cells):
        make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        notebook.cells.append(make(cell.source, id=f"cell-{i:02}"))
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def execute(notebook: Any, extra: Sequence[str] = ()) -> float:
    """Run all cells in a new kernel, in place, then the `extra` code cells; returns the seconds.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an error; the message shows the cell.
    """
    import matplotlib.font_manager  # noqa: F401 - the first import builds a cache and prints to stderr

    notebook.cells += [nbformat.v4.new_code_cell(text) for text in extra]
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # otherwise it warns about its unencrypted local port
    )
    started = time.perf_counter()
    client.execute(cwd=str(FOLDER))
    _normalise(notebook)
    return time.perf_counter() - started


def _normalise(notebook: Any) -> None:
    """Remove data that differs between runs but is no result."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = nbformat.from_dict({"name": "python"})
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code_cells, start=1):
        cell.metadata, cell.execution_count = nbformat.from_dict({}), count
        cell.outputs = _joined_streams(cell.outputs)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            if "metadata" in output:
                output.metadata = nbformat.from_dict(_alternative_text(output.metadata))
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _small_png(output.data["image/png"])


def _alternative_text(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata of an output without all but the text for readers who cannot see the picture."""
    alt = metadata.get("image/png", {}).get("alt")
    return {"image/png": {"alt": alt}} if alt else {}


def _joined_streams(outputs: list[Any]) -> list[Any]:
    """Joins consecutive pieces of a stream: where the text is split depends on the kernel's timing."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _small_png(encoded: str) -> str:
    """The picture with a palette of 256 colours: a third of the bytes, without the name of a library."""
    picture = (
        Image.open(io.BytesIO(base64.b64decode(encoded)))
        .convert("RGB")
        .quantize(256, dither=Image.Dither.NONE)
    )
    small = io.BytesIO()
    picture.save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def problems(notebook: Any) -> list[str]:
    """The things that must not be in a committed notebook, one line each."""
    found = []
    for cell, output in _outputs(notebook):
        if output.output_type == "error":
            found.append(f"{cell}: raised {output.ename}: {output.evalue}")
        if output.output_type == "stream" and output.name == "stderr":
            found.append(f"{cell}: writes to stderr: {output.text.strip()[:120]}")
        for text in _texts(output):
            for name, pattern in (("an absolute path", _ABSOLUTE_PATH), ("an address", _ADDRESS)):
                if match := pattern.search(text):
                    found.append(f"{cell}: shows {name}: {text[match.start() : match.start() + 60]!r}")
        data = output.get("data", {})
        found += [f"{cell}: holds a {kind}" for kind in data if "widget" in kind or "javascript" in kind]
        size = len(base64.b64decode(data.get("image/png", "")))
        if size > MAX_PICTURE:
            found.append(f"{cell}: a picture of {size} bytes, the limit is {MAX_PICTURE}")
    size = len(nbformat.writes(notebook).encode())
    if size > MAX_NOTEBOOK:
        found.append(f"the notebook has {size} bytes, the limit is {MAX_NOTEBOOK}")
    return found


def _outputs(notebook: Any) -> Iterator[tuple[str, Any]]:
    for i, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            yield f"cell {i}", output


def _texts(output: Any) -> list[str]:
    data = output.get("data", {})
    return [output.get("text", ""), *(data[kind] for kind in _TEXT_TYPES if kind in data)]


def differences(fresh: Any, committed: Any) -> list[str]:
    """The differences between the cells of a source and of its committed notebook, one line each."""
    ours, theirs = fresh.cells, committed.cells
    found = [
        f"cell {i}: source and notebook differ"
        for i, (a, b) in enumerate(zip(ours, theirs, strict=False))
        if (a.cell_type, a.source, a.id) != (b.cell_type, b.source, b.id)
    ]
    if len(ours) != len(theirs):
        found.append(f"the source has {len(ours)} cells, the notebook {len(theirs)}")
    return found


def build(source: Path) -> list[str]:
    """Execute a source and write its notebook, unless it has problems; returns the problems."""
    notebook = load(source)
    seconds = execute(notebook)
    found = problems(notebook)
    if not found:
        nbformat.write(notebook, built_path(source))
    print(f"{source.stem}: {seconds:.1f} s, {len(nbformat.writes(notebook)) >> 10} KiB")
    return found


def check(source: Path) -> list[str]:
    """Compare a source with its committed notebook and execute it again; returns the problems."""
    path, fresh = built_path(source), load(source)
    if not path.is_file():
        return [f"{path.name} is missing: run scripts/dev/build_notebooks.py"]
    committed = nbformat.read(path, as_version=4)
    found = differences(fresh, committed) + problems(committed)
    seconds = execute(fresh)
    print(f"{source.stem}: {seconds:.1f} s")
    return found + [f"executed now: {problem}" for problem in problems(fresh)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the notebooks from notebooks/src and execute them.")
    parser.add_argument("prefix", nargs="*", help="build only notebooks with this prefix, such as 01")
    parser.add_argument("--check", action="store_true", help="write nothing; report what is not up to date")
    options = parser.parse_args()
    failed = False
    for source in sources(options.prefix):
        for problem in (check if options.check else build)(source):
            print(f"{source.stem}: {problem}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
