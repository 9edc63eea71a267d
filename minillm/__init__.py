"""minillm: a from-scratch LLM inference engine; an operating system for the KV cache.

Status, such as the compilation of the kernels on first use, goes to the logger `minillm`. After
`logging.basicConfig(level="INFO")` it shows, and progress bars with it where stderr is a terminal. Warnings
show without that.
"""

import warnings
from typing import TYPE_CHECKING

from minillm.config import SamplingParams, TenantLimits
from minillm.errors import MinillmError
from minillm.version import __version__

if TYPE_CHECKING:
    from minillm.llm import LLM

# minillm does not need NumPy. Without it, torch prints this warning at its first import.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

__all__ = ["LLM", "MinillmError", "SamplingParams", "TenantLimits", "__version__"]

if not TYPE_CHECKING:  # a type checker must not see it: any name would pass as an attribute

    def __getattr__(name: str) -> object:
        """Import torch at the first use of LLM, so that `minillm doctor` runs even if torch does not."""
        if name == "LLM":
            from minillm.llm import LLM

            return LLM
        raise AttributeError(f"module 'minillm' has no attribute {name!r}")
