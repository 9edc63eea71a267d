"""Makes the replay page: one HTML file with its style, its program and its data in it.

    page.html    the skeleton       {{style}} {{script}} {{data}} {{policy}} are filled in here
    page.css
    *.js         in the order of `SCRIPTS`, as one function: no global names, no library
    data         one <script type="application/json">, which a browser does not run

The page loads nothing: its policy (Content-Security-Policy) allows this style and this program, by their
digests, and forbids every connection. Data cannot end its element: every "<" in it is written as \\u003c.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SCRIPTS = ("base", "model", "timeline", "blocks", "lanes", "panels", "main")
# What could end the element, begin a comment, or be a line break to an old parser of JavaScript.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def make_page(data: dict[str, Any]) -> str:
    """The page of `replay_data`."""
    style, script = f"\n{_read('page.css')}", f"\n{_script()}"
    parts = {
        "policy": f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}",
        "style": style,
        "script": script,
        "data": embedded(data),
    }
    page = _read("page.html")
    for name, text in parts.items():  # the data come last: nothing is replaced in them
        page = page.replace("{{" + name + "}}", text)
    return page


def embedded(data: dict[str, Any]) -> str:
    """Data as JSON that can stand in a <script> element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def _script() -> str:
    return "(function () {\n" + "\n".join(_read(f"{name}.js") for name in SCRIPTS) + "})();\n"


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
