"""Chat templates: a conversation as one prompt.

A chat template is a program that came with a download, so it runs in jinja2's immutable sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minillm.errors import TokenizerError, UsageError

Message = Mapping[str, Any]


def find_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template of a model folder: a file of its own, or in tokenizer_config.json; None without one.

    Raises:
        TokenizerError: the file is not UTF-8.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{path} is not UTF-8: {error}", "download the model again") from None
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates: the one called default
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def render(template: str | None, messages: Sequence[Message], variables: Mapping[str, str | bool]) -> str:
    """The prompt the template makes of `messages`.

    Args:
        variables: what else the template reads: `bos_token`, `eos_token`, `add_generation_prompt`.

    Raises:
        UsageError: no template, a malformed message, or a template that refuses or fails.
    """
    check_messages(messages)
    if template is None:
        raise UsageError(
            "this model has no chat template", "use generate, or add chat_template.jinja to its folder"
        )
    try:
        program = _environment().from_string(template)
        return program.render(messages=[dict(m) for m in messages], **variables)
    except Exception as error:  # the template is a program: it can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"the chat template failed: {reason}", "check the order of roles") from None


def _environment() -> ImmutableSandboxedEnvironment:
    """The functions published templates rely on, and nothing else."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return env


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def check_messages(messages: Sequence[Message]) -> None:
    """Raise UsageError unless `messages` is a list of objects with a text role and a text content."""
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError("messages must be a non-empty list of {'role': ..., 'content': ...}")
    for i, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                raise UsageError(f"message {i} has no text {key!r}", "each has a role and a content")
