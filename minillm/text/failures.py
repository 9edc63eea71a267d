"""What the tokenizer library raises, as errors of this package.

The library is written in Rust. It raises plain `Exception` for most kinds of damage, and `BaseException` for
a panic, which no `except Exception` stops. Its messages may quote the text it was working on, so they are
repeated only where that text is a file of the model.
"""

from __future__ import annotations

from minillm.config.checks import shortened
from minillm.errors import MinillmError, TokenizerError, is_interrupt

_HINT = "tokenizer.json may be damaged: download the model again"


def tokenizer_failure(error: BaseException, what: str, quote: bool = False) -> BaseException:
    """The error to raise instead of `error`: typed errors and interrupts are themselves."""
    if isinstance(error, MinillmError) or is_interrupt(error):
        return error
    return TokenizerError(f"{what}: {shortened(str(error)) if quote else type(error).__name__}", _HINT)


def decoding_failure(error: BaseException) -> BaseException:
    """`tokenizer_failure` of a token that cannot be decoded."""
    return tokenizer_failure(error, "the tokenizer cannot decode a token")
