# ruff: noqa: F401 - imports that the finished file uses
"""Lab 1: Sampling and streaming text.

Replace every `raise NotImplementedError(...)`; the docstrings describe the functions. All other code
is the engine's. Each task is checked on its own with the engine's other parts, so work in any order.

    minillm labs check 1        run the checks
    minillm labs hint 1.1       a hint; --level 2 and --level 3 give more detail

Made from the engine's source by `minillm labs start 1`.
"""

from __future__ import annotations

import bisect
import codecs
import math
from collections.abc import Sequence

import torch
from torch import Tensor
import torch.nn.functional as F
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import DecodeStream

from minillm.ops.sampling import NEG_INF, Filters, SamplingBatch, gumbel_noise
from minillm.text.detokenizer import CONTEXT_SIZES, token_bytes
from minillm.text.failures import decoding_failure


def penalise_repetition(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Penalise ids that occur in prompt or output: positive logits / penalty, negative logits * penalty.

    Args:
        logits: float32 [vocab_size]; not changed.
        seen: token ids that have occurred. An id that is listed several times is penalised once.
        penalty: above 1 makes repetition less likely, below 1 more likely.

    Returns:
        float32 [vocab_size]; ids that are not in `seen` keep their logits.

    Source: Keskar et al., "CTRL" (arXiv 1909.05858).
    """
    # Stuck? minillm labs hint 1.1
    raise NotImplementedError("Lab 1.1 penalise_repetition; hint: minillm labs hint 1.1")


def keep_top(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the `top_k` most likely ids, then the fewest of them whose probability reaches `top_p`.

    Of equal logits the lowest id counts as the most likely. The row is sorted at most once.

    Args:
        logits: float32 [vocab_size]; not changed.
        top_k: 0, or more than there are, keeps all.
        top_p: in (0, 1], the share of the probability that top-k has kept; 1 keeps all.

    Returns:
        float32 [vocab_size] with -inf for every dropped id.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration" (arXiv 1904.09751).
    """
    # Stuck? minillm labs hint 1.2
    raise NotImplementedError("Lab 1.2 keep_top; hint: minillm labs hint 1.2")


def filter_logits(logits: Tensor, params: Filters) -> Tensor:
    """Temperature, then top-k, top-p and min-p: excluded ids become -inf.

    Min-p keeps an id if its probability is at least `params.min_p` times the largest probability, after
    temperature. The row is sorted at most once.

    Args:
        logits: float32 [vocab_size], masked and penalised; not changed.
        params: temperature above 0; it may be tiny: the result still has no NaN.

    Returns:
        float32 [vocab_size], up to a constant (the softmax counts); at least the most likely id survives.
    """
    # Stuck? minillm labs hint 1.3
    raise NotImplementedError("Lab 1.3 filter_logits; hint: minillm labs hint 1.3")


def sample(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """Draw one token id per row.

    A row's token depends only on its logits, its parameters and its key: not on the other rows, not on a
    random generator. Ids that the tokenizer does not have get -inf. Then comes the row's repetition penalty.
    At temperature 0 the argmax is drawn. Above 0 the row is filtered, and the argmax of filtered logits +
    `gumbel_noise` of the row's key is drawn. Of equal scores the lowest id wins.

    Args:
        logits: [num_rows, vocab_size], any float dtype; not changed.
        batch: sampling parameters and noise keys of the `num_rows` rows.

    Returns:
        int64 [num_rows].
    """
    # Stuck? minillm labs hint 1.4
    raise NotImplementedError("Lab 1.4 sample; hint: minillm labs hint 1.4")


class StopMatcher:
    """Lets text through until a stop string appears; holds back what could be the start of one.

    A request may have thousands of stop strings, and every token is looked for in all of them. So they are
    kept as a set, with the lengths that occur, and sorted: those that begin with a text stand together.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._sorted, self._whole = tuple(stops), sorted(stops), frozenset(stops)
        self._lengths = sorted({len(stop) for stop in stops}, reverse=True)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take `text`; return what can no longer be part of a stop string.

        The result does not depend on how the text is cut into pieces. The stop string that ends first counts;
        of several that end at one place, the longest. At a match `matched` becomes the stop string, the text
        before it is returned, and the stop string and all text after it are dropped. Without a match the
        longest end of the text that begins a stop string is held back, and only this is stored.
        """
        # Stuck? minillm labs hint 1.5
        raise NotImplementedError("Lab 1.5 StopMatcher.push; hint: minillm labs hint 1.5")

    def flush(self) -> str:
        """Return the text that was held back; no more text will come."""
        out, self._held = self._held, ""
        return out


class Detokenizer:
    """Streams one completion. The pieces of `push` and `finish` joined are the completion's text.

    Decoding starts after the prompt's last tokens. SentencePiece-like decoders drop the space before the
    first word of a text, and the first word of a completion is rarely the first word of the text.
    """

    def __init__(
        self, tokenizer: RustTokenizer, stops: Sequence[str] = (), prompt_ids: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._before = self._context(prompt_ids)
        self._stream = self._new_stream(self._before)
        self._pending: list[int] = []
        self._stop = StopMatcher(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has appeared; text from it on is dropped."""
        return self._stop.matched is not None

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that is certain now (often empty).

        Text goes through the stop matcher before it is returned. Only the last tokens are decoded, so a token
        costs the same at the beginning and at the end of a long completion.

        Raises:
            TokenizerError: the tokenizer fails at it.
        """
        # Stuck? minillm labs hint 1.6
        raise NotImplementedError("Lab 1.6 Detokenizer.push, Detokenizer.finish; hint: minillm labs hint 1.6")

    def finish(self) -> str:
        """The rest, when no more tokens come: whole characters still held back; "" after a stop string.

        Text that the stop matcher holds comes out, too. A character whose last bytes never came is dropped,
        but a U+FFFD that the tokens encode is a character of the text.

        Raises:
            TokenizerError: the tokenizer fails at them.
        """
        # Stuck? minillm labs hint 1.6
        raise NotImplementedError("Lab 1.6 Detokenizer.push, Detokenizer.finish; hint: minillm labs hint 1.6")

    def _context(self, prompt_ids: Sequence[int]) -> list[int]:
        """The prompt's last tokens: as many as it takes to decode to whole characters."""
        for size in CONTEXT_SIZES:
            ids = list(prompt_ids[-size:])
            if not self._decode(ids).endswith("\ufffd"):
                return ids
        return []  # the prompt ends inside a character

    def _decode(self, ids: list[int]) -> str:
        try:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))
        except BaseException as error:
            raise decoding_failure(error) from None

    def _new_stream(self, ids: list[int]) -> DecodeStream:
        try:
            return DecodeStream(ids=ids, skip_special_tokens=True)
        except BaseException as error:
            raise decoding_failure(error) from None
