"""What a chat template sees of a conversation: plain values, as transformers would give them.

    messages, tools, documents      as given; tools and documents are None where there are none
    add_generation_prompt           whether the header of the assistant's turn follows
    bos_token, eos_token, ...       every token that has a name
    enable_thinking, ...            whatever the caller adds

Fields of a message that are None are left out: most templates ask only whether a field is there. Values are
rebuilt from plain types, so that no method of a caller's object is in a template's reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.errors import UsageError

_REASONING = ("reasoning_content", "thinking", "reasoning")


def template_values(messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a rendering. The caller has checked that nothing is nested too deeply.

    Raises:
        UsageError: a value that JSON does not have.
    """
    return {
        **{name: _plain(value) for name, value in variables.items()},
        "messages": list(map(_message, messages)),
    }


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message, with its reasoning under each name that templates read."""
    fields: dict[str, Any] = {name: _plain(value) for name, value in message.items() if value is not None}
    reasoning = next((fields[name] for name in _REASONING if name in fields), None)
    if reasoning is None:
        return fields
    return {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value) if kind is not str else str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_plain(part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    raise UsageError(
        f"a chat template cannot be given {type(value).__name__}", "give text, numbers, lists and objects"
    )
