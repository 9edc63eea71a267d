"""The schemes of `minillm quantize`, and their defaults.

    w8a16   8-bit integers, symmetric; one scale for each output, or for a group of its inputs
    w4a16   4-bit integers, symmetric or with zero points; likewise
    fp8     e4m3; one scale for each output

"a16": activations stay as they are. Schemes that round activations as well are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from minillm.config import shown
from minillm.config.quantization import CHANNEL
from minillm.errors import UsageError
from minillm.model.compress.grid import Grid

SCHEMES = ("w8a16", "w4a16", "fp8")
GROUPS: Mapping[str, int] = {"32": 32, "64": 64, "128": 128, "channel": CHANNEL}
_DEFAULT_GROUP = {"w8a16": "channel", "w4a16": "64", "fp8": "channel"}


@dataclass(frozen=True)
class Scheme:
    """A scheme as the user names it. `group`: a key of `GROUPS`, or None for the scheme's default.

    Raises:
        UsageError: there is no such scheme, no such group, or they do not go together.
    """

    name: str
    group: str | None = None
    asymmetric: bool = False

    def __post_init__(self) -> None:
        if self.name not in SCHEMES:
            raise UsageError(f"there is no scheme {shown(self.name)}", f"there are {', '.join(SCHEMES)}")
        if self.group is not None and self.group not in GROUPS:
            raise UsageError(f"there is no group {shown(self.group)}", f"there are {', '.join(GROUPS)}")
        if self.name == "fp8" and self.group not in (None, "channel"):
            raise UsageError("fp8 has one scale for each output", "leave --group out")
        if self.asymmetric and self.name != "w4a16":
            raise UsageError(f"{self.name} is symmetric", "only w4a16 has an asymmetric form")

    def grid(self, dtype: torch.dtype) -> Grid:
        """The grid of a model whose dtype is `dtype`."""
        bits, group = 4 if self.name == "w4a16" else 8, GROUPS[self.group or _DEFAULT_GROUP[self.name]]
        return Grid(bits, group, dtype, symmetric=not self.asymmetric, floating=self.name == "fp8")

    def __str__(self) -> str:
        group = self.group or _DEFAULT_GROUP[self.name]
        groups = "one scale for each output" if group == "channel" else f"groups of {group}"
        return f"{self.name}, {groups}{', asymmetric' if self.asymmetric else ''}"
