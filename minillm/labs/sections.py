"""Labs in CUDA: the student's file is a .cu with sections to fill in.

    handouts/lab7.cu         // begin 7.2          the finished file; a skeleton is the same without what
                             ...                   stands between the two lines
                             // end 7.2
    handouts/lab7_check.cu                         kernels around single functions, for the checks only

Texts only; `labs/cuda.py` runs them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.labs.lab import Lab, Part

_HANDOUTS = Path(__file__).parent / "handouts"
STUB = "NOT_WRITTEN();"


def sections(text: str) -> dict[str, tuple[int, str]]:
    """{task number: (line after its `// begin`, the lines up to `// end`)}."""
    found = re.finditer(r"^ *// begin (\S+)[^\n]*\n(.*?)^ *// end \1 *$", text, re.MULTILINE | re.DOTALL)
    return {m[1]: (text.count("\n", 0, m.start(2)) + 1, m[2]) for m in found}


def replaced(text: str, number: str, body: str) -> str:
    """`text` with another section `number`."""
    pattern = rf"(^ *// begin {re.escape(number)}\b[^\n]*\n).*?(^ *// end {re.escape(number)} *$)"
    return re.sub(pattern, lambda m: m[1] + body + m[2], text, count=1, flags=re.MULTILINE | re.DOTALL)


def handout(file: str) -> str:
    """The text of a .cu file among the handouts."""
    return (_HANDOUTS / file).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Section(Part):
    """A section of a CUDA lab: `module` is the lab's .cu file, `name` the function it is the body of."""

    @property
    def own(self) -> Any:
        """The finished file, as kernels that can be run."""
        from minillm.labs.cuda import finished  # with torch and the simulator, which a skeleton needs not

        return finished(self.module)

    @property
    def label(self) -> str:
        """What the section is called."""
        return self.name


@dataclass(frozen=True)
class CudaLab(Lab):
    """A lab whose file is `labN.cu`."""

    @property
    def file(self) -> str:
        """Name of the student's file."""
        return f"lab{self.number}.cu"

    def solution(self) -> str:
        """The finished file."""
        return handout(self.file)

    def skeleton(self) -> str:
        """The file a student starts from."""
        text = self.solution()
        for number in sections(text):
            text = replaced(text, number, f"  {STUB}  // stuck? minillm labs hint {number}\n")
        return text
