"""Every message that docs/troubleshooting.md quotes is one that the program can print."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

from pages import ROOT, page

PAGE = page("docs/troubleshooting.md")
PROGRAM = "minillm: "  # stands before every error of the command line
MIN_CONSTANT = 8  # characters that a message must have besides what differs


def python_texts() -> Iterator[str]:
    """Every string of the package; what an f-string fills in as <>."""
    for path in sorted((ROOT / "minillm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(v.value if isinstance(v, ast.Constant) else "<>" for v in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[sdr]", "<>", node.value)  # what logging fills in


def shell_texts() -> Iterator[str]:
    """What the set-up says; what the shell fills in as <>."""
    text = (ROOT / "scripts" / "env.sh").read_text(encoding="utf-8")
    for quoted in re.findall(r'"([^"\n]*)"', text):
        yield re.sub(r"\$\{[^}]*\}|\$\([^)]*\)|\$\w+", "<>", quoted)


@cache
def patterns() -> tuple[re.Pattern[str], ...]:
    """A pattern for each text; a <> takes anything that is put there."""
    texts = {text.removeprefix(PROGRAM) for text in (*python_texts(), *shell_texts())}
    texts = {text for text in texts if len(text.replace("<>", "")) >= MIN_CONSTANT}
    return tuple(re.compile(re.escape(text).replace("<>", ".+?")) for text in texts)


def is_said(line: str) -> bool:
    """Whether the line is a text of the program, or texts with "; " between them."""
    if any(pattern.fullmatch(line) for pattern in patterns()):
        return True
    cuts = [m.start() for m in re.finditer("; ", line)]
    return any(is_said(line[:cut]) and is_said(line[cut + 2 :]) for cut in cuts)


def quoted_lines() -> list[str]:
    blocks = [block.text for block in PAGE.blocks if block.language == "text"]
    return [line for text in blocks for line in text.splitlines()]


def test_every_quoted_message_is_in_the_source() -> None:
    lines = quoted_lines()
    assert len(lines) > 25
    assert [line for line in lines if not is_said(line.removeprefix(PROGRAM))] == []


def test_control_other_words_are_noticed() -> None:
    right = (
        'kv_memory of <size> is more than the <size> that are free; lower kv_memory, or leave it at "auto"'
    )
    assert is_said(right)
    assert not is_said(right.replace("more than", "above"))
    assert not is_said(right.replace("; lower", ", lower"))
    assert not is_said("<anything>") and not is_said("there is no such message")
