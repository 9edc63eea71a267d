"""A user's code is type-checked truly: names that do not exist and values that are not allowed are errors.

The checker reads minillm from the checkout with the project's own settings, so that it shares its cache with
the project's own check.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

GOOD = """
from pathlib import Path
from typing import assert_type

from minillm import LLM, MinillmError, SamplingParams, __version__
from minillm.config import Backend, Device, DraftVerification, Dtype
from minillm.engine.outputs import RequestOutput

backend: Backend = "native"
dtype: Dtype = "bfloat16"
device: Device = "cpu"
verification: DraftVerification = "rejection"
assert_type(__version__, str)
llm = LLM(Path("model"), dtype=dtype, device=device, backend=backend, draft_verification=verification)
LLM(dtype="float32", kv_memory="64MiB", draft_model="auto", draft_tree=(3, 1))
params = SamplingParams(max_tokens=2, temperature=0)
try:
    outputs = llm.generate(["a", "b"], [params, params], progress=True) + llm.generate([[1, 2], [3]])
except MinillmError as error:
    assert_type(error.hint, str)
assert_type(outputs, list[RequestOutput])
assert_type(outputs[0].text, str)
messages = [{"role": "user", "content": "hello"}]
assert_type(llm.chat(messages, on_overflow="drop_oldest"), RequestOutput)
for piece in llm.stream("a"):
    assert_type(piece, str)
tokenizer = llm.get_tokenizer()
assert_type(llm.tokenizer.encode("a"), list[int])
assert_type(tokenizer.decode([1, 2], skip_special_tokens=False), str)
assert_type(tokenizer.eos_token_ids, tuple[int, ...])
assert_type(tokenizer.apply_chat_template(messages), list[int])
assert_type(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False), str)
"""

BAD = """
from minillm import LLM, SamplingParams
from minillm import Foo
import minillm
from minillm.config import Foo as Bar

llm = LLM()
minillm.generate("a")
LLM(dtype="float33")
LLM(backend="gpu")
LLM(device="tpu")
LLM(draft_verification="x")
LLM(blocksize=16)
LLM(seed="1")
llm.generate("a", temperature=0)
llm.generate({"a": 1})
llm.chat([{"role": "user", "content": "a"}], on_overflow="drop_newest")
llm.generate("a")[0].txt
llm.tokenizer.decode("a")
llm.tokenizer.encode([1])
len(llm.tokenizer.apply_chat_template([], tokenize=False).ids)
SamplingParams(max_tokens="many")
"""
FIRST_BAD_LINE = 3  # of BAD, counted from 1; below it every line but these is wrong
GOOD_LINES_IN_BAD = {"import minillm", "llm = LLM()", ""}


def test_the_types_of_the_public_surface(tmp_path: Path) -> None:
    """One run over both files: no line of the first is an error, every line of the second is."""
    pytest.importorskip("mypy")
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(GOOD)
    bad.write_text(BAD)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", good, bad],
        cwd=REPO,
        env=os.environ | {"MYPYPATH": "."},
        capture_output=True,
        text=True,
    )
    found = re.findall(r"(\w+\.py):(\d+): error", done.stdout)
    assert done.stderr == "" and {name for name, _ in found} == {"bad.py"}, done.stdout + done.stderr
    reported = {int(line) for _, line in found}
    lines = enumerate(BAD.splitlines(), start=1)
    wrong = {number for number, line in lines if number >= FIRST_BAD_LINE and line not in GOOD_LINES_IN_BAD}
    assert reported == wrong, done.stdout
