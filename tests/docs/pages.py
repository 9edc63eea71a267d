"""The Markdown pages of the project, cut into fenced blocks, links and anchors."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    *(".", "docs", "csrc", "notebooks", "notebooks/labs/*", "benchmarks"),
    *("minillm/zoo/*", "minillm/labs/*"),
)
FENCE = re.compile(
    r"^(?P<fence>`{3,})(?P<language>[a-z+]*)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block; `file` is what its first line says: `# file: minillm/labs/lab13_tail/lab.py`."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The path that the block is the content of, if it names one."""
        first = self.text.partition("\n")[0]
        found = re.fullmatch(r"(?:#|//|<!--) file: (\S+)(?: -->)?", first)
        return found[1] if found else None

    @property
    def content(self) -> str:
        """The text without the line that names its file."""
        return self.text.partition("\n")[2] if self.file else self.text


class Page:
    """One Markdown file."""

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, path.read_text(encoding="utf-8")

    @property
    def name(self) -> str:
        """Its path in the project."""
        return str(self.path.relative_to(ROOT))

    @cached_property
    def blocks(self) -> list[Block]:
        """Its fenced blocks, in order."""
        return [
            Block(m["language"], m["text"], self.text[: m.start()].count("\n") + 1)
            for m in FENCE.finditer(self.text)
        ]

    @cached_property
    def prose(self) -> str:
        """The text without fenced blocks."""
        return FENCE.sub("", self.text)

    @cached_property
    def links(self) -> list[str]:
        """Targets of the links and images outside of blocks."""
        without_code = re.sub(r"`[^`\n]*`", "code", self.prose)
        return re.findall(r"\]\(([^)\s]+)\)", without_code)

    @cached_property
    def anchors(self) -> set[str]:
        """What `#...` may name: the headings as GitHub writes them."""
        seen, anchors = Counter[str](), set[str]()
        for heading in re.findall(r"^#+ +(.+?) *$", self.prose, re.MULTILINE):
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
            anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            anchors.add(anchor if not seen[anchor] else f"{anchor}-{seen[anchor]}")
            seen[anchor] += 1
        return anchors

    def section(self, title: str) -> list[Block]:
        """The blocks under the heading `## title`, up to the next one."""
        blanked = FENCE.sub(lambda m: "\n" * m[0].count("\n"), self.text)
        lines = blanked.splitlines()
        start = lines.index(f"## {title}")
        end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("## ")), len(lines))
        return [block for block in self.blocks if start < block.line <= end]


def all_pages() -> list[Page]:
    """Every Markdown file of the project, in the order of their paths."""
    found = {path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.md")}
    return [Page(path) for path in sorted(found)]


def page(name: str) -> Page:
    """The page at `name`, a path in the project."""
    return Page(ROOT / name)
