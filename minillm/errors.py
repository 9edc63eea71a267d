"""All errors that minillm raises for its users.

An error is part of the interface. It has a type that a program can catch, one line that says what is
wrong, a hint that says what to do next, and the exit code of the command line. Input is checked with
these errors and never with `assert`, so `python -O` does not remove the checks.

    2 usage   3 not found, unreadable, not writable   4 unsupported model   5 weights   6 tokenizer   7 memory
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MinillmError(Exception):
    """Base class of all errors: `message` (what is wrong) and `hint` (what to do next).

    Both are one line that a terminal can show, whatever they quote.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = one_line(message), one_line(hint)
        super().__init__(f"{self.message} ({self.hint})" if hint else self.message)


def one_line(text: str) -> str:
    """`text` with line breaks, control characters and lone surrogates escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(MinillmError, ValueError):
    """An argument or a sampling parameter is wrong, or the request can never be served."""

    exit_code = 2


class GuaranteeError(UsageError):
    """The backend, an option or a part cannot keep the guarantee of determinism that was asked for."""


class TemplateLimit(UsageError):
    """A chat template that takes too many steps, too long, or too much memory."""


class PromptTooLong(UsageError):
    """The prompt and one more token do not fit the context."""


class LongRopeLimit(UsageError):
    """Prompt and answer would cross the length where longrope changes all keys; the hint says what fits."""


class QueueFull(MinillmError):
    """The engine's waiting queue is full; try again when requests have left it."""

    exit_code = 7


class UnknownRequest(MinillmError, LookupError):
    """No live request of this tenant has the id. Another tenant's request gives the same error."""

    exit_code = 3


class ModelNotFound(MinillmError, FileNotFoundError):
    """The model folder or hub id, or a file that every model needs, does not exist."""

    exit_code = 3


class UnreadableFile(MinillmError, OSError):
    """A file of the model exists, and the system does not let it be read."""

    exit_code = 3


class StorageError(MinillmError, OSError):
    """A folder cannot be written: no permission, or no space. Nothing incomplete is left in it."""

    exit_code = 3


class DownloadError(MinillmError):
    """A model cannot be downloaded, or what came is not what was asked for. Nothing of it was kept."""

    exit_code = 3


class UnsupportedModel(MinillmError):
    """The config names an architecture, rope kind, activation or key that is not implemented."""

    exit_code = 4


class WeightsError(MinillmError):
    """The weight files are damaged, or do not contain exactly the tensors that the config requires."""

    exit_code = 5


class TokenizerError(MinillmError):
    """The tokenizer is damaged, or does not belong to the model."""

    exit_code = 6


class OutOfMemory(MinillmError):
    """Base class of the memory errors; the message gives the estimate and what would fit."""

    exit_code = 7


class KVCapacityError(OutOfMemory):
    """A request or a configuration can never fit the KV memory."""


class OutOfBlocks(OutOfMemory):
    """The block pool has fewer free blocks than requested; nothing was allocated."""


class BackendError(MinillmError):
    """The requested backend or device is not available here."""

    exit_code = 2


class EngineBusy(MinillmError):
    """A part or a listener called `step` in the middle of a step."""


class ModelChanged(MinillmError):
    """The weights or the tokenizer of a running engine were replaced; its cache belongs to the old ones."""


class ForkedEngine(MinillmError):
    """The engine was made before this process was forked; its threads do not exist in this process."""


class StepInterrupted(MinillmError):
    """A step was interrupted while it changed this request. The request ended: its state is unknown."""


class PartError(MinillmError):
    """A replaced part of the engine returned something that cannot be used."""


class WireError(MinillmError):
    """The bytes are not an encoded step."""


class EncodingError(MinillmError, TypeError):
    """A value has no canonical encoding, so it cannot be part of a digest."""


class NotAnOutput(UsageError):
    """A file is no output that this version of minillm saved with `--json`, or was changed since."""


class NotARecord(UsageError):
    """A file is no divergence record that this version of minillm wrote, or was damaged since."""


class NotATrace(UsageError):
    """A file is no trace of requests, no recorded run, or damaged; the message names the line."""


def is_interrupt(error: BaseException) -> bool:
    """Whether `error` asks the program to stop: it belongs to the caller, not to a request.

    Everything else is a failure, even where it is no `Exception`: a library written in Rust raises its panics
    as direct subclasses of `BaseException`.
    """
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Let exceptions and interrupts through; raise a `PartError` instead of a panic."""
    try:
        yield
    except BaseException as error:
        if (failure := as_exception(error)) is not error:
            raise failure from None
        raise


def as_exception(error: BaseException) -> BaseException:
    """The error itself if it is an `Exception` or an interrupt; a `PartError` for a panic."""
    if isinstance(error, Exception) or is_interrupt(error):
        return error
    return PartError(f"a part raised {type(error).__name__}", "the library it uses has a fault")


@contextmanager
def failures_suppressed() -> Iterator[None]:
    """Suppress everything that is no interrupt."""
    try:
        yield
    except BaseException as error:
        if is_interrupt(error):
            raise


def own_copy(error: BaseException) -> Exception:
    """Copy an error without traceback and cause, which keep local variables and other requests alive."""
    if not isinstance(error, Exception):
        return PartError(f"a part raised {type(error).__name__}", "the library it uses has a fault")
    try:
        made = type(error).__new__(type(error), *error.args)
        made.args = error.args
        made.__dict__.update(error.__dict__)
    except Exception:  # an error with a constructor of its own
        return PartError(f"a part raised {type(error).__name__}")
    return made
