"""minillm: a from-scratch LLM inference engine; an operating system for the KV cache."""

import warnings
from typing import TYPE_CHECKING, Any

from minillm.config import SamplingParams
from minillm.errors import MinillmError

if TYPE_CHECKING:
    from minillm.llm import LLM

# torch does not depend on NumPy and neither do we; where it is absent torch says so at its first import.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

__all__ = ["LLM", "MinillmError", "SamplingParams"]


def __getattr__(name: str) -> Any:
    """Import torch with the first use of LLM: `minillm doctor` must run where torch does not."""
    if name == "LLM":
        from minillm.llm import LLM

        return LLM
    raise AttributeError(f"module 'minillm' has no attribute {name!r}")
