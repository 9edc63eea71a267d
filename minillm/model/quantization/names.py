"""Names of modules against the patterns of a `quantization_config`.

A pattern comes from a file that somebody published, and a regular expression can take hours for a short name
(`(a+)+$`). So those that can are refused: a repeated group, or more than five repetitions of any length.
"""

from __future__ import annotations

import re

from minillm.config import shown
from minillm.errors import UnsupportedModel
from minillm.model.quantization.stored import Matcher

_LONGEST = 2000  # characters of a pattern
_MOST_REPETITIONS = 5
_EMBEDDINGS = ("embed_tokens", "embed_positions", "wte", "wpe", "word_embeddings")
_ROUTERS = ("gate", "router", "shared_expert_gate")


def exactly(name: str) -> Matcher:
    """Matches one module."""
    return lambda module: module == name


def containing(text: str) -> Matcher:
    """Matches modules whose name has `text` in it."""
    return lambda module: text in module


def beginning_with(pattern: str) -> Matcher:
    """Matches modules whose name begins with what the regular expression `pattern` describes."""
    expression = _compiled(pattern)
    return lambda module: expression.match(module) is not None


def under(pattern: str) -> Matcher:
    """Matches a module, what is in it, and names that end so: `modules_to_not_convert` of transformers."""
    expression = _compiled(pattern, r"(?:{})(?:(?<=\.)|(?=\.|$))")
    return lambda module: expression.match(module) is not None or module.endswith(pattern)


def is_linear(module: str) -> bool:
    """Whether a matrix is no embedding."""
    return _last(module) not in _EMBEDDINGS


def is_kept_plain(module: str) -> bool:
    """Whether quantisers leave a matrix alone without a word in the config: embeddings, heads, routers."""
    return _last(module) in (*_EMBEDDINGS, *_ROUTERS, "lm_head")


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _compiled(pattern: str, template: str = "{}") -> re.Pattern[str]:
    refusal = UnsupportedModel(
        f"quantization_config has a regular expression that is not supported: {shown(pattern)}",
        "supported: no repeated groups, at most 5 repetitions",
    )
    without_sets = re.sub(r"\[\^?\]?[^\]]*\]", "x", re.sub(r"\\.", "x", pattern, flags=re.DOTALL))
    repeated_group = re.search(r"\)[*+{]", without_sets)
    repetitions = len(re.findall(r"[*+{]", without_sets))
    if len(pattern) > _LONGEST or repeated_group or repetitions > _MOST_REPETITIONS:
        raise refusal
    try:
        return re.compile(template.format(pattern))
    except (re.error, OverflowError, RecursionError):
        raise refusal from None
