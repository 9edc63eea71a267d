"""A prompt as token ids, with a digest of what was serialized.

    messages --chat template--> text --tokenizer--> token ids --> the model
                                 |                    |
                                 prompt_digest        prompt_token_digest      both are in the output

The same text can be cut into other tokens, and two texts into the same. So an output has both digests. The
first one is of the exact text after the chat template, or of the token ids if those were given.

The digests are for the caller, who knows the prompt. Everybody can compute them, so everybody could test a
guessed prompt with them: they stand in no event, log or trace (`keyed.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minillm.memory.encoding import digest

if TYPE_CHECKING:  # `minillm verify same` needs the digests and no torch
    from minillm.model.loader import LoadedModel


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids, and the digest of the text or the ids that they were made of."""

    token_ids: list[int]
    digest: str


Prompt = str | Sequence[int] | EncodedPrompt


def encoded_prompt(prompt: Prompt, model: LoadedModel) -> EncodedPrompt:
    """The prompt's token ids, checked. The digest of an `EncodedPrompt` is kept.

    Raises:
        UsageError, TokenizerError: as `LoadedModel.token_ids`.
    """
    if isinstance(prompt, EncodedPrompt):
        return EncodedPrompt(model.token_ids(prompt.token_ids), prompt.digest)
    ids = model.token_ids(prompt)
    return EncodedPrompt(ids, text_digest(prompt) if isinstance(prompt, str) else ids_digest(ids))


def text_digest(text: str) -> str:
    """The digest of a serialized prompt."""
    return digest(["text", text])


def ids_digest(token_ids: Sequence[int]) -> str:
    """The digest of token ids. They are packed first: an answer may have a hundred thousand."""
    return digest(["token ids", struct.pack(f"<{len(token_ids)}q", *token_ids)])
