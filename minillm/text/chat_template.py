"""Chat templates: a conversation as one prompt.

A chat template is a program that came with a download. It runs in a sandbox (`template_sandbox.py`) and
within limits (`template_limits.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from minillm.config.checks import shortened
from minillm.config.files import exists, read_text
from minillm.errors import TemplateLimit, TokenizerError, UsageError
from minillm.text.template_limits import Budget
from minillm.text.template_sandbox import Sandbox

Message = Mapping[str, Any]
MAX_TEMPLATE = 1 << 18  # characters; the longest published ones have a tenth of it


def find_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template of a model folder: a file of its own, or in tokenizer_config.json; None without one.

    Raises:
        UnreadableFile, TokenizerError: the file cannot be read, or is not UTF-8.
    """
    path = folder / "chat_template.jinja"
    if exists(path):
        return read_text(path, TokenizerError)
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates: the one called default
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[-1].get("template") if named else None
    return template if isinstance(template, str) else None


def render(template: str | None, messages: Sequence[Message], variables: Mapping[str, str | bool]) -> str:
    """The prompt the template makes of `messages`.

    Args:
        variables: what else the template reads: `bos_token`, `eos_token`, `add_generation_prompt`.

    Raises:
        UsageError: no template, a malformed message, or a template that refuses or fails.
        TemplateLimit: a template that takes too many steps, too long, or too much memory.
    """
    check_messages(messages)
    if template is None:
        raise UsageError(
            "this model has no chat template", "use generate, or add chat_template.jinja to its folder"
        )
    if len(template) > MAX_TEMPLATE:
        raise TemplateLimit(f"the chat template has more than {MAX_TEMPLATE:,} characters", "use another one")
    sandbox = Sandbox(Budget(messages))
    try:
        program = sandbox.from_string(template)
        return program.render(messages=[dict(m) for m in messages], **variables)
    except TemplateLimit:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(
            f"the chat template is not valid in line {error.lineno}: {error.message}", "use another template"
        ) from None
    except Exception as error:  # the template is a program: it can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"the chat template failed: {shortened(reason)}", "check the order of roles"
        ) from None


def check_messages(messages: Sequence[Message]) -> None:
    """Raise UsageError unless `messages` is a list of objects with a text role and a text content."""
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError("messages must be a non-empty list of {'role': ..., 'content': ...}")
    for i, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                raise UsageError(f"message {i} has no text {key!r}", "each has a role and a content")
