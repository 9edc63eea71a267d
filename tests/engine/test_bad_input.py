"""Every bad parameter raises a typed error of one line, also under `python -O`.

The tables run twice: here, and in a subprocess without assertions (`python -O test_bad_input.py`).
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from minillm import LLM, MinillmError, SamplingParams

NAN, INF = math.nan, math.inf
LONG, UNPRINTABLE = 10**400, 10**5000  # beyond all floats, and beyond what Python writes out

# parameter -> values that SamplingParams must refuse
PARAMS: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 1.0, 2.5, True, "16", None, NAN, -LONG, UNPRINTABLE],
    "temperature": [-0.1, NAN, INF, -INF, "hot", None, True, [1.0], LONG, -LONG, UNPRINTABLE],
    "top_k": [-1, 1.0, 2.5, "5", None, True, UNPRINTABLE],
    "top_p": [0, 0.0, -0.5, 1.1, NAN, INF, "1", None, True, LONG, -LONG, UNPRINTABLE],
    "min_p": [-0.1, 1.1, NAN, INF, "0", None, LONG, -LONG, UNPRINTABLE],
    "repetition_penalty": [0, -1.0, NAN, INF, "1", None, LONG, -LONG, UNPRINTABLE],
    "seed": [1.0, "7", True, NAN, UNPRINTABLE, -UNPRINTABLE],
    "stop": ["", [""], ["a", ""], 5, [5], None, {"a": 1}, [None], b"x", [b"x"]],
    "stop_token_ids": [5, [-1], [1.0], ["1"], [True], "1", None, [UNPRINTABLE], UNPRINTABLE],
    "ignore_eos": [1, 0, "yes", None],
    "logprobs": [-1, 1.0, "2", True, UNPRINTABLE],
    "n": [0, -1, 1.0, "2", True, None, UNPRINTABLE],
    "deadline": [0, -1.0, NAN, INF, "1", True, LONG, UNPRINTABLE],
    "priority": [1.0, "high", None, True, UNPRINTABLE],
}

# options of an engine that count something
SIZES = """block_size max_model_len max_num_seqs max_num_batched_tokens prefill_chunk max_queued_requests
max_queued_tokens num_draft_tokens kv_memory seed""".split()

# name -> a call that must be refused
CALLS: dict[str, Callable[[LLM], Any]] = {
    "empty text": lambda llm: llm.generate(""),
    "empty ids": lambda llm: llm.generate([[]]),
    "id out of range": lambda llm: llm.generate([tiny.VOCAB_SIZE]),
    "id far out of range": lambda llm: llm.generate([2**70]),
    "unprintable id": lambda llm: llm.generate([UNPRINTABLE]),
    "negative id": lambda llm: llm.generate([-1]),
    "bool id": lambda llm: llm.generate([True]),
    "float id": lambda llm: llm.generate([[1.0]]),
    "text id": lambda llm: llm.generate([["1"]]),
    "null id": lambda llm: llm.generate([[None]]),
    "longer than the context": lambda llm: llm.generate([5] * 256),
    "longer than the pool": lambda llm: llm.generate([5] * 200),
    "n longer than the pool": lambda llm: llm.generate([5] * 17, SamplingParams(n=60)),
    "n more than sequences": lambda llm: llm.generate([5], SamplingParams(n=65)),
    "prompt is null": lambda llm: llm.generate(None),
    "prompt is a number": lambda llm: llm.generate(5),
    "prompt is bytes": lambda llm: llm.generate(b"abc"),
    "prompt is a dict": lambda llm: llm.generate({"a": 1}),
    "prompt is a set": lambda llm: llm.generate({5, 6}),
    "prompt in a list is bytes": lambda llm: llm.generate([b"abc"]),
    "params is a dict": lambda llm: llm.generate("a", {"max_tokens": 5}),
    "params is a number": lambda llm: llm.generate("a", 5),
    "params is an unprintable number": lambda llm: llm.generate("a", UNPRINTABLE),
    "too many params": lambda llm: llm.generate("a", [SamplingParams()] * 2),
    "no params": lambda llm: llm.generate("a", []),
    "params holds null": lambda llm: llm.generate("a", [None]),
    "stream of two prompts": lambda llm: llm.stream(["a", "b"]),
    "stream with n": lambda llm: llm.stream("a", SamplingParams(n=2)),
    "stream with a dict": lambda llm: llm.stream("a", {}),
    "add_request of null": lambda llm: llm.engine.add_request(None),
    "add_request with a dict": lambda llm: llm.engine.add_request("a", {}),
    "logits of text": lambda llm: llm.logits("abc"),
    "logits of nothing": lambda llm: llm.logits([]),
    "logits of null": lambda llm: llm.logits(None),
    "logits beyond the context": lambda llm: llm.logits([5] * 257),
    "logits beyond the pool": lambda llm: llm.logits([5] * 200),
    "chat without a template": lambda llm: llm.chat([{"role": "user", "content": "a"}]),
    "chat of null": lambda llm: llm.chat(None),
    "unknown part": lambda llm: tiny.load(llm.engine.model.folder, parts={"x": print}),
    "unknown option": lambda llm: tiny.load(llm.engine.model.folder, bogus=1),
    "unknown backend": lambda llm: tiny.load(llm.engine.model.folder, backend="x"),
    "unknown device": lambda llm: tiny.load(llm.engine.model.folder, device="x"),
    "unknown dtype": lambda llm: tiny.load(llm.engine.model.folder, dtype="x"),
    "garbage kv_memory": lambda llm: tiny.load(llm.engine.model.folder, kv_memory="12 parsecs"),
    **{
        f"huge {name}": lambda llm, name=name: tiny.load(llm.engine.model.folder, **{name: LONG})
        for name in SIZES
    },
    "no such model": lambda llm: LLM("/no/such/model"),
}

# The control: the nearest valid values are accepted.
GOOD: dict[str, list[Any]] = {
    "max_tokens": [1, 10**12],
    "temperature": [0, 0.0, 1e-320, 1e308],
    "top_k": [0, 10**9],
    "top_p": [1, 1e-9],
    "min_p": [0, 1.0],
    "repetition_penalty": [1e-300, 1e300],
    "seed": [None, -5, 2**80],
    "stop": [(), [], "x", ["x", "y"], ("x",)],
    "stop_token_ids": [[], (5,)],
    "logprobs": [None, 0, 10**6],
    "n": [2],
    "deadline": [None, 1e-9, 1e9],
    "priority": [-5],
}


def why_not_typed(call: Callable[[], Any]) -> str | None:
    """None if `call` raises a MinillmError of one line; otherwise a description of what happened."""
    try:
        call()
    except MinillmError as error:
        return None if "\n" not in str(error) and error.exit_code > 1 else f"unfit for a user: {error!r}"
    except BaseException as error:
        return f"raised {error!r}"
    return "was accepted"


def run_table(llm: LLM) -> list[str]:
    """The entries of the tables that are not refused correctly."""
    failures = []
    for name, values in PARAMS.items():
        for value in values:
            reason = why_not_typed(lambda name=name, value=value: SamplingParams(**{name: value}))
            failures += [f"{name}={value!r} {reason}"] if reason else []
    for name, call in CALLS.items():
        reason = why_not_typed(lambda call=call: call(llm))
        failures += [f"{name}: {reason}"] if reason else []
        if not tiny.all_free(llm):
            failures.append(f"{name}: a request is left in the engine")
    return failures


def small(folder: Path) -> LLM:
    return tiny.load(folder, kv_memory=tiny.blocks(8))


def test_bad_input_is_a_typed_error(folder: Path) -> None:
    assert run_table(small(folder)) == []


def test_the_same_without_assertions(folder: Path) -> None:
    command = [sys.executable, "-O", __file__, str(folder)]
    helpers = os.pathsep.join(filter(None, [str(Path(tiny.__file__).parent), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": helpers}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.stdout.splitlines() == ["assertions are off"], done.stdout + done.stderr
    assert done.returncode == 0


def test_control_an_assert_would_not_survive() -> None:
    code = "assert False, 'this check is gone'"
    assert subprocess.run([sys.executable, "-O", "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in GOOD.items() for v in values], ids=str)
def test_the_nearest_good_values_work(folder: Path, name: str, value: Any) -> None:
    llm = small(folder)
    params = SamplingParams(**({"max_tokens": 3} | {name: value}))
    output = llm.generate([5, 6], params)[0]
    assert output.finish_reason in ("length", "stop", "deadline") and output.error is None
    assert all(math.isfinite(v) for row in output.logprobs or () for v in row.values())
    assert tiny.all_free(llm)


if __name__ == "__main__":
    if not __debug__:
        print("assertions are off")
    problems = run_table(small(Path(sys.argv[1])))
    print("\n".join(problems), end="")
    sys.exit(bool(problems))
