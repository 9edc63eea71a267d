"""Chat templates: a conversation as one prompt.

A chat template is a program that came with a download. It runs in a sandbox (`template_sandbox.py`) and
within limits (`template_limits.py`). `template_values.py` says what it gets to see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from minillm.config.checks import shortened
from minillm.config.files import exists, read_text, unreadable
from minillm.errors import TemplateLimit, TokenizerError, UsageError
from minillm.text.template_limits import Budget
from minillm.text.template_sandbox import Refused, Sandbox
from minillm.text.template_values import template_values

Message = Mapping[str, Any]
MAX_TEMPLATE = 1 << 18  # characters; the longest published ones have a tenth of it


def find_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates of a model folder, by name. Files of their own win over tokenizer_config.json.

        chat_template.jinja                      "default"
        additional_chat_templates/NAME.jinja     NAME

    Raises:
        UnreadableFile, TokenizerError: a file cannot be read, or is not UTF-8.
    """
    files = {"default": folder / "chat_template.jinja"}
    try:
        more = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    except OSError as error:
        raise unreadable(folder, error) from None
    files |= {path.stem: path for path in more}
    found = {name: read_text(path, TokenizerError) for name, path in files.items() if exists(path)}
    return found or _in_settings(settings.get("chat_template"))


def _in_settings(given: Any) -> dict[str, str]:
    """`chat_template` of tokenizer_config.json: a text, or a list of {"name": ..., "template": ...}."""
    entries = given if isinstance(given, list) else [{"name": "default", "template": given}]
    pairs = [(entry.get("name"), entry.get("template")) for entry in entries if isinstance(entry, dict)]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def pick_template(templates: Mapping[str, str], wanted: str | None, with_tools: bool) -> str | None:
    """The template named `wanted`, or `wanted` itself; without it the one for tools, or the default.

    Raises:
        UsageError: the model has templates, and none is the default.
    """
    if wanted is not None:
        return templates.get(wanted, wanted)
    name = "tool_use" if with_tools and "tool_use" in templates else "default"
    if templates and name not in templates:
        names = ", ".join(shortened(known) for known in sorted(templates))
        raise UsageError(
            "this model has several chat templates and no default", f"pass chat_template=, one of {names}"
        )
    return templates.get(name)


def render(template: str | None, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
    """The prompt the template makes of `messages`.

    Args:
        variables: what else the template reads: `bos_token`, `tools`, `add_generation_prompt`, ...

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
    sandbox = Sandbox(Budget(messages, variables))
    values = template_values(messages, variables)
    try:
        return sandbox.from_string(template).render(values)
    except TemplateLimit:
        raise
    except (jinja2.TemplateSyntaxError, SyntaxError) as error:  # the second: {% break %} outside of a loop
        reason = getattr(error, "message", None) or error.msg  # type: ignore[union-attr]
        raise UsageError(
            f"the chat template is not valid in line {error.lineno}: {shortened(reason)}",
            "use another template",
        ) from None
    except Refused as error:
        raise UsageError(
            f"the chat template refused the messages: {_in_one_line(error)}", "check the order of roles"
        ) from None
    except Exception as error:  # the template is a program: it can raise anything
        raise UsageError(
            f"the chat template failed: {_in_one_line(error)}",
            "it may need other messages or variables: chat_template.jinja in the folder replaces it",
        ) from None


def _in_one_line(error: Exception) -> str:
    return shortened(" ".join(str(error).split()) or type(error).__name__)


def check_messages(messages: Sequence[Message]) -> None:
    """Raise UsageError unless `messages` is a list of objects with a text role and a content.

    A content is text or a list of parts. It may be missing only beside `tool_calls`.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError("messages must be a non-empty list of {'role': ..., 'content': ...}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError(f"message {i} has no text 'role'", "each has a role and a content")
        content = message.get("content")
        is_parts = isinstance(content, list) and all(isinstance(part, Mapping) for part in content)
        if not (isinstance(content, str) or is_parts or (content is None and message.get("tool_calls"))):
            raise UsageError(f"message {i} has no text 'content'", "each has a role and a content")
