"""How llama.cpp cuts a text into words before byte-pair encoding, by the names it gives these rules.

A GGUF file does not hold the rule, only its name (`tokenizer.ggml.pre`). Each name stands for a list of
regular expressions, applied one after the other: every match becomes a piece, and so does what lies between
two matches. A model whose text is cut in another way gets other token ids and answers worse, without an
error. So a name that is not in this table is refused.

The expressions are those of the models' own tokenizer.json files, with `(?i:'s|...)` written as `'[sS]|...`,
since llama.cpp's does not fold the long s.
"""

from __future__ import annotations

from dataclasses import dataclass

from minillm.config import shown
from minillm.errors import TokenizerError

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def _llama3(digits: str) -> str:
    """Words, then runs of `digits`, then punctuation with the line breaks after it, then white space."""
    words = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
    return words + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _END


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _END
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _END
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True)
class PreTokenizer:
    """One rule.

    `whole_words`: a word that is a token is taken as it is, without merges. `adds_bos`: a text begins with
    BOS where the file does not say whether it does.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False


_RULES = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2": PreTokenizer(
        (_llama3(r"\p{N}{1,3}"),), whole_words=True, adds_bos=True
    ),
    "dbrx smaug-bpe chatglm-bpe": PreTokenizer((_llama3(r"\p{N}{1,3}"),)),
    "glm4": PreTokenizer((_llama3(r"\p{N}{1,3}"),), whole_words=True),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": PreTokenizer(
        (_llama3(r"\p{N}"),)
    ),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _llama3(r"\p{N}+")), whole_words=True),
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert exaone4 mpt olmo "
    "jais trillion granite-docling": PreTokenizer((_GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b": PreTokenizer((r"\p{N}", _GPT2)),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "deepseek-v3 hunyuan-dense": PreTokenizer((r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)),
    "tekken": PreTokenizer((_TEKKEN,), whole_words=True, adds_bos=True),
    "poro-chat bloom gpt3-finnish": PreTokenizer((_BLOOM,)),
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
}
RULES = {name: rule for names, rule in _RULES.items() for name in names.split()}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The rule of this name; "" is "default", as in llama.cpp.

    Raises:
        TokenizerError: it is not known.
    """
    rule = RULES.get(name or "default")
    if rule is None:
        raise TokenizerError(
            f"the pre-tokenizer {shown(name)} is not known, so token ids would be wrong",
            f"known names: {', '.join(sorted(RULES))}",
        )
    return rule
