"""A lab in CUDA: its parts are sections of one .cu file, which the simulator runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.labs.grader.cuda_text import emptied
from minillm.labs.grader.lab import Lab, Part


@dataclass(frozen=True)
class Section(Part):
    """A section of a CUDA lab: `module` is the .cu file, the section is the body of function `name`."""

    @property
    def own(self) -> Any:
        """The finished file, as kernels that can be run."""
        # Imported here, because it imports torch and the simulator; the command line needs neither.
        from minillm.labs.grader.cuda_kernels import finished

        return finished(Path(self.module))

    @property
    def label(self) -> str:
        """The name of the section."""
        return self.name


@dataclass(frozen=True)
class CudaLab(Lab):
    """A lab whose file is `labN.cu`."""

    @property
    def file(self) -> str:
        """Name of the student's file."""
        return f"lab{self.number}.cu"

    def own(self) -> Any:
        """The finished file, as kernels that can be run."""
        from minillm.labs.grader.cuda_kernels import finished

        return finished(self.package / self.file)

    def solution(self) -> str:
        """The finished file."""
        return (self.package / self.file).read_text(encoding="utf-8")

    def skeleton(self) -> str:
        """The file from which a student starts."""
        return emptied(self.solution())
