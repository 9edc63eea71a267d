"""Every error a user of minillm can meet.

An error is part of the interface: it has a type a program can catch, one line that says what is
wrong, a hint that says what to do next, and the exit code the command line ends with. Input is
checked with these and never with `assert`, so the checks survive `python -O`.

    2 usage   3 not found   4 unsupported model   5 weights   6 tokenizer   7 memory
"""

from __future__ import annotations


class MinillmError(Exception):
    """Base of all typed errors: `message` (what is wrong) and `hint` (what to do next)."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message} ({hint})" if hint else message)


class UsageError(MinillmError, ValueError):
    """An argument, a sampling parameter or a request that can never be served as given."""

    exit_code = 2


class PromptTooLong(UsageError):
    """The prompt plus one token does not fit the context."""


class QueueFull(MinillmError):
    """The engine's waiting queue is at its limit; try again when it has drained."""

    exit_code = 7


class ModelNotFound(MinillmError, FileNotFoundError):
    """The model folder or hub id, or a file that every model needs, does not exist."""

    exit_code = 3


class UnsupportedModel(MinillmError):
    """The config names an architecture, rope kind, activation or key that is not implemented."""

    exit_code = 4


class WeightsError(MinillmError):
    """The weight files are damaged, or do not hold exactly the tensors the config asks for."""

    exit_code = 5


class TokenizerError(MinillmError):
    """The tokenizer is damaged, or does not belong to the model."""

    exit_code = 6


class OutOfMemory(MinillmError):
    """Base of the memory errors; the message holds the estimate and what would fit."""

    exit_code = 7


class KVCapacityError(OutOfMemory):
    """A request, or the configuration, can never fit the KV memory."""


class OutOfBlocks(OutOfMemory):
    """The block pool has fewer free blocks than were asked for; nothing was allocated."""


class BackendError(MinillmError):
    """The requested backend or device is not available here."""

    exit_code = 2


class EngineBusy(MinillmError):
    """A step was asked for in the middle of a step, by a part or a listener."""


class ForkedEngine(MinillmError):
    """The engine was made before this process was forked; its threads and locks did not come along."""


class StepInterrupted(MinillmError):
    """A step was interrupted while it was changing this request, whose state is unknown: it has ended."""


class PartError(MinillmError):
    """A replaced part of the engine returned something that cannot be used."""


class WireError(MinillmError):
    """Bytes that should hold a step do not."""


def own_copy(error: Exception) -> Exception:
    """The same error without traceback and cause: they refer to all that was at hand, of others too."""
    try:
        made = type(error).__new__(type(error), *error.args)
        made.args = error.args
        made.__dict__.update(error.__dict__)
    except Exception:  # an error with a constructor of its own
        return PartError(f"a part raised {type(error).__name__}")
    return made
