"""minillm: a from-scratch LLM inference engine; an operating system for the KV cache."""

from minillm.config import SamplingParams
from minillm.errors import MinillmError
from minillm.llm import LLM

__all__ = ["LLM", "MinillmError", "SamplingParams"]
