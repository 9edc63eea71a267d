"""Names of modules against the patterns of a `quantization_config`.

A pattern comes from a file that somebody published, and a regular expression can take hours for a short name.
Python tries every way to match: `(a+)+$` has 2^n of them for n letters, and `(?:.|.)` written 40 times 2^40.
So the ways are bounded before a pattern is used, and what can have more than 2^24 is refused:

    a repeated group                          refused
    k repetitions, * + {                      the ways to place k ends in a name of 64 letters
    a group of n alternatives                 n
    an optional part, ?                       2
    flags, comments, atomic groups, (?...     refused: they change what the other characters mean
"""

from __future__ import annotations

import math
import re

from minillm.config import shown
from minillm.errors import UnsupportedModel
from minillm.model.quantization.stored import Matcher

_LONGEST = 2000  # characters of a pattern
_LETTERS = 64  # of a name
_MOST_WAYS = 1 << 24
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
        "supported: no repeated groups, no flags, at most 5 repetitions, few alternatives",
    )
    if len(pattern) > _LONGEST or _ways(pattern) > _MOST_WAYS:
        raise refusal
    try:
        return re.compile(template.format(pattern))
    except (re.error, OverflowError, RecursionError):
        raise refusal from None


def _ways(pattern: str) -> int:
    """A bound of the ways in which `pattern` can match a name; more than `_MOST_WAYS` if there is none."""
    text = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    text = re.sub(r"\[\^?\]?[^\]]*\]", "x", text)
    text = re.sub(r"\(\?(:|=|!|<=|<!|P<\w+>)", "(", text)
    if "(?" in text or re.search(r"\)[*+{]", text):
        return _MOST_WAYS + 1
    quantifiers = re.findall(r"(\{[^}]*\}|[*+?{])\??", text)
    repetitions = len([quantifier for quantifier in quantifiers if quantifier != "?"])
    optional = len(quantifiers) - repetitions
    ways = math.comb(_LETTERS + repetitions, repetitions) * math.prod(_alternatives(text))
    return ways << optional


def _alternatives(text: str) -> list[int]:
    """The number of alternatives of each group, and of all that is in none."""
    closed, groups = [], [1]
    for letter in text:
        if letter == "(":
            groups.append(1)
        elif letter == "|":
            groups[-1] += 1
        elif letter == ")" and len(groups) > 1:
            closed.append(groups.pop())
    return closed + groups
