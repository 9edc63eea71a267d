"""The tokenizer inside a GGUF file, as a tokenizer.json.

    tokenizer.ggml.model   "gpt2": byte-level BPE      "llama": SentencePiece's BPE, with byte fallback
    tokens, token_type     text and kind of every id
    merges                 gpt2: pairs in the order of their rank
    scores                 llama: the highest score is merged first

A score belongs to a token and a rank to a pair. `_merges_of_scores` writes one merge for each way to cut a
token into two tokens. Where tokens have equal scores, llama.cpp merges the leftmost pair; ranks can say that
for runs of one character only, so other ties are refused.

Left out: unigram (t5), WordPiece (bert), RWKV: no supported family uses them. No Unicode normaliser is
written, because llama.cpp applies none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from minillm.config import shown
from minillm.config.checks import shortened
from minillm.errors import MinillmError, TokenizerError, is_interrupt
from minillm.model.gguf.metadata import Metadata
from minillm.model.gguf.pretokenizers import pre_tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_MAX_TOKEN_CHARS = 4096
# Texts by which llama.cpp knows the end of a turn or a text, whatever the file calls it.
_END_TEXTS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> "
    "_<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <｜end▁of▁sentence｜>".split()
)


@dataclass(frozen=True)
class Vocabulary:
    """A file's tokens and what they are for. `special` names ids: bos, eos, unk, pad."""

    model: str
    tokens: list[str]
    kinds: list[int]
    special: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    space_prefix: bool
    metadata: Metadata = field(repr=False)

    @classmethod
    def read(cls, metadata: Metadata) -> Vocabulary:
        """Raises TokenizerError: no tokenizer, one of another kind, or one that contradicts itself."""
        model = metadata.text("tokenizer.ggml.model", "")
        if model not in ("gpt2", "llama"):
            what = f"has the tokenizer kind {shown(model)}" if model else "has no tokenizer"
            raise TokenizerError(f"{metadata.name} {what}", "supported: gpt2 (BPE), llama (SentencePiece)")
        tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(metadata.strings("tokenizer.ggml.tokens"))]
        kinds = metadata.integers("tokenizer.ggml.token_type", len(tokens), _NORMAL)
        _require_distinct(metadata.name, tokens)
        is_spm = model == "llama"
        rule_adds_bos = is_spm or pre_tokenizer(metadata.text("tokenizer.ggml.pre", "")).adds_bos
        return cls(
            model,
            tokens,
            kinds,
            _special_ids(metadata, len(tokens), is_spm),
            metadata.flag("tokenizer.ggml.add_bos_token", rule_adds_bos),
            metadata.flag("tokenizer.ggml.add_eos_token", False),
            metadata.flag("tokenizer.ggml.add_space_prefix", is_spm),
            metadata,
        )

    def end_ids(self) -> list[int]:
        """Ids that end a text: the file's own EOS first, then all that llama.cpp takes for one."""
        count = len(self.tokens)
        named = [self.metadata.token_id(f"tokenizer.ggml.{key}_token_id", count) for key in ("eot", "eom")]
        ids = [self.special.get("eos"), *named]
        ids += [i for i, text in enumerate(self.tokens) if text in _END_TEXTS]
        return list(dict.fromkeys(i for i in ids if i is not None))

    def text_of(self, name: str) -> str | None:
        """The text of the special token `name`, None where there is none."""
        return self.tokens[self.special[name]] if name in self.special else None

    def tokenizer_json(self) -> str:
        """The content of tokenizer.json.

        Raises:
            TokenizerError: merges that do not belong to the tokens, an unknown pre-tokenizer.
        """
        try:
            made = self._sentencepiece() if self.model == "llama" else self._byte_level()
            made.add_tokens(self._added())
            self._add_ends(made)
            return str(made.to_str())
        except BaseException as error:  # the library raises panics that are no Exception
            if isinstance(error, MinillmError) or is_interrupt(error):
                raise
            raise TokenizerError(
                f"the tokenizer of {self.metadata.name} makes no sense: {shortened(str(error))}",
                "the file is damaged, or was made wrongly: get another one",
            ) from None

    def _ids(self) -> dict[str, int]:
        """Text -> id. Left out is what conversion wrote for ids without a token: [PAD5] at id 5, unused."""
        kinds = zip(self.tokens, self.kinds, strict=True)
        return {t: i for i, (t, kind) in enumerate(kinds) if kind != _UNUSED or t != f"[PAD{i}]"}

    def _added(self) -> list[AddedToken]:
        """Tokens that are found in a text before anything else; all but user-defined ones are special."""
        kinds = zip(self.tokens, self.kinds, strict=True)
        return [
            AddedToken(text, special=kind != _USER, normalized=False)
            for text, kind in kinds
            if kind in (_CONTROL, _USER, _UNKNOWN)
        ]

    def _byte_level(self) -> RustTokenizer:
        rule = pre_tokenizer(self.metadata.text("tokenizer.ggml.pre", ""))
        pairs = [_pair(merge) for merge in self.metadata.strings("tokenizer.ggml.merges")]
        made = RustTokenizer(models.BPE(self._ids(), pairs, ignore_merges=rule.whole_words))
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=self.space_prefix, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
        made.decoder = decoders.ByteLevel()
        return made

    def _sentencepiece(self) -> RustTokenizer:
        ids = self._ids()
        scores = self.metadata.numbers("tokenizer.ggml.scores", len(self.tokens), None)
        made = RustTokenizer(
            models.BPE(
                ids,
                _merges_of_scores(self.metadata.name, self._mergeable(), ids, scores),
                unk_token=self.text_of("unk"),
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        prefix = [normalizers.Prepend("▁")] if self.space_prefix else []
        made.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
        strip = [decoders.Strip(" ", 1, 0)] if self.space_prefix else []
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        return made

    def _mergeable(self) -> list[str]:
        kinds = zip(self.tokens, self.kinds, strict=True)
        return [text for text, kind in kinds if kind in (_NORMAL, _UNUSED) and len(text) > 1]

    def _add_ends(self, made: RustTokenizer) -> None:
        """BOS before and EOS after every text, as the file says."""
        first = ["bos"] if self.adds_bos else []
        last = ["eos"] if self.adds_eos else []
        for name in first + last:
            if name not in self.special:
                raise TokenizerError(f"{self.metadata.name} adds {name.upper()} to texts, but names none")
        texts = {name: self.tokens[self.special[name]] for name in first + last}
        if texts:
            single = [*(texts[n] for n in first), "$A", *(texts[n] for n in last)]
            pairs = [(text, self.special[name]) for name, text in texts.items()]
            made.post_processor = processors.TemplateProcessing(single=single, special_tokens=pairs)


def _require_distinct(name: str, tokens: Sequence[str]) -> None:
    if not tokens:
        raise TokenizerError(f"{name} has no tokens")
    twice = [text for text, count in Counter(tokens).items() if count > 1]
    if twice:
        raise TokenizerError(f"{name} has {shown(twice[0])} under two ids", "text would have two encodings")
    longest = max(map(len, tokens))
    if longest > _MAX_TOKEN_CHARS:
        raise TokenizerError(f"{name} has a token of {longest} characters", "no tokenizer has such tokens")


def _special_ids(metadata: Metadata, count: int, is_spm: bool) -> dict[str, int]:
    defaults = {"bos": 1, "eos": 2, "unk": 0} if is_spm else {}
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {}
    for name, key in keys.items():
        token_id = metadata.token_id(f"tokenizer.ggml.{key}_token_id", count)
        token_id = defaults.get(name) if token_id is None else token_id
        if token_id is not None and token_id < count:
            found[name] = token_id
    return found


def _pair(merge: str) -> tuple[str, str]:
    """Both halves of "left right"; the left one may itself begin with a space."""
    cut = merge.find(" ", 1)
    if cut < 0:
        raise TokenizerError(f"the merge {shown(merge)} is no pair of tokens")
    return merge[:cut], merge[cut + 1 :]


def _merges_of_scores(
    name: str, mergeable: Sequence[str], ids: dict[str, int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, the pair with the highest score first."""
    pairs: list[tuple[float, str, str]] = []
    for text in mergeable:
        score = scores[ids[text]] if text in ids else math.nan
        cuts = [(text[:k], text[k:]) for k in range(1, len(text))]
        pairs += [(score, a, b) for a, b in cuts if a in ids and b in ids]
    if any(math.isnan(score) for score, *_ in pairs):
        raise TokenizerError(f"{name} has tokens whose score is not a number")
    _require_order(name, {(score, a + b) for score, a, b in pairs})
    ranked = sorted(pairs, key=lambda pair: (-pair[0], -len(pair[1] + pair[2]), -len(pair[1])))
    return [(a, b) for _, a, b in ranked]


def _require_order(name: str, made: set[tuple[float, str]]) -> None:
    """Refuse tokens of equal score, unless they are runs of one character: 1, 2, ... 16 spaces.

    llama.cpp then merges the leftmost pair. In a run of equal characters the symbols become shorter from left
    to right, so the leftmost pair is the longest one, and an order by length says the same.
    """
    letters: dict[float, set[str]] = {}
    count = Counter(score for score, _ in made)
    for score, text in made:
        if count[score] > 1:
            letters.setdefault(score, set()).update(text)
    mixed = [score for score, found in letters.items() if len(found) > 1]
    if mixed:
        raise TokenizerError(
            f"{name} has {count[mixed[0]]} tokens of score {mixed[0]:g}, so their merges have no order",
            "use the model's folder in Hugging Face layout",
        )
