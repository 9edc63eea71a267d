"""Write notebooks/labs/: the handout and the skeleton of each lab, from minillm/labs and the engine's source.

python scripts/dev/build_labs.py            write the files that differ
python scripts/dev/build_labs.py --check    write nothing; exit code 1 if a file differs
"""

from __future__ import annotations

import argparse
from pathlib import Path

from minillm.labs.grader.registry import all_labs
from minillm.labs.grader.skeleton import skeleton

LABS = Path(__file__).resolve().parents[2] / "notebooks" / "labs"


def built_files() -> dict[Path, str]:
    """Path and content of every generated file."""
    files = {}
    for lab in all_labs():
        files[LABS / lab.folder / "README.md"] = lab.handout()
        files[LABS / lab.folder / lab.file] = skeleton(lab)
    return files


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args()
    stale = [
        (path, text)
        for path, text in built_files().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        print(f"{'differs' if args.check else 'written'}: {path.relative_to(LABS.parent.parent)}")
        if not args.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
