"""minillm: a from-scratch LLM inference engine; an operating system for the KV cache."""

import warnings
from typing import TYPE_CHECKING, Any

from minillm.config import SamplingParams
from minillm.errors import MinillmError

if TYPE_CHECKING:
    from minillm.llm import LLM

# minillm does not need NumPy. Without it, torch prints this warning at its first import.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

__all__ = ["LLM", "MinillmError", "SamplingParams"]


def __getattr__(name: str) -> Any:
    """Import torch at the first use of LLM, so that `minillm doctor` runs even if torch does not."""
    if name == "LLM":
        from minillm.llm import LLM

        return LLM
    raise AttributeError(f"module 'minillm' has no attribute {name!r}")
