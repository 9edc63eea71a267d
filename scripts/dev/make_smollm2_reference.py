"""Writes tests/model/smollm2.json: what transformers makes of SmolLM2 on 20 prompts.

The folder is the one that `minillm pull smollm2` writes, so both engines read the same numbers: bfloat16
weights, computed in float32. For each prompt the file holds its token ids, the logits of the last position
at `PROBES` ids and at the largest ten, and the greedy continuation. Chat prompts hold messages, the rendered
text and ids. `tests/model/test_smollm2.py` compares minillm with it, without transformers.

A greedy step where the two best logits are nearly equal could go either way by rounding. The script refuses
such prompts, so that an equal text proves equal logits and an unequal one is a fault.

Needs transformers: `pip install transformers`. Written with 5.24.
Run: python scripts/dev/make_smollm2_reference.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from minillm.model.locate import find_model

OUTPUT = Path(__file__).resolve().parents[2] / "tests" / "model" / "smollm2.json"
NEW_TOKENS = 32
SMALLEST_GAP = 1e-3  # between the two best logits of a greedy step; C1 allows about 6e-3 in the worst case
PROBES = list(range(0, 49152, 512))

PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a small robot who",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4, 5,",
    "Water boils at a temperature of",
    " leading space, and  two  inside",
    "Line one\nLine two\n\nLine four\n",
    "Numbers: 1234567890 and 3.14159 and 2026-11-27",
    "Ünïcödé: naïve café, Straße, señor, Žluťoučký kůň",
    "Привет, мир! Как дела?",
    "日本語のテキストと中文文本",
    "Emoji 🦙🚀 and symbols ∑∫√ ≠ ≤",
    "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    '{"name": "Ada", "born": 1815, "tags": ["math",',
    "It's what they'd say; we'll see if I'm right, you've got 's and 'T.",
]
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Give me three colours, separated by commas."}],
    [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ],
    [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada!"},
        {"role": "user", "content": "What is my name?"},
    ],
    [{"role": "user", "content": "Write a Python function that adds two numbers.\n\nKeep it short."}],
]


def main() -> None:
    """Compute and write."""
    folder = find_model("smollm2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [entry(model, tokenizer, text, tokenizer(text).input_ids) for text in PROMPTS]
    for messages in CHATS:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        prompts.append({"messages": messages} | entry(model, tokenizer, text, ids))
    lines = ",\n".join(json.dumps(prompt, ensure_ascii=False) for prompt in prompts)  # one prompt a line
    head = f'{{"transformers": "{transformers.__version__}", "probes": {PROBES}, "prompts": ['
    OUTPUT.write_text(f"{head}\n{lines}\n]}}\n", encoding="utf-8")
    print(f"{OUTPUT}: {len(prompts)} prompts, {OUTPUT.stat().st_size} bytes")


@torch.no_grad()
def entry(model: Any, tokenizer: Any, text: str, ids: list[int]) -> dict[str, Any]:
    """What transformers makes of one prompt."""
    first = model(torch.tensor([ids]), use_cache=True)
    logits, last = first.logits[0], first.logits[0, -1]
    top = last.topk(10)
    greedy, gap = continuation(model, first)
    print(f"{gap:8.4f}  {tokenizer.decode(greedy)!r}")
    if gap < SMALLEST_GAP:
        raise SystemExit(f"the greedy text of {text!r} hangs on rounding: take another prompt")
    return {
        "text": text,
        "ids": ids,
        "scale": logits.abs().max().item(),
        "probes": [round(n, 5) for n in last[PROBES].tolist()],
        "top_ids": top.indices.tolist(),
        "top": [round(n, 5) for n in top.values.tolist()],
        "greedy_ids": greedy,
        "greedy_text": tokenizer.decode(greedy, skip_special_tokens=True),
    }


def continuation(model: Any, state: Any) -> tuple[list[int], float]:
    """The greedy ids after a prompt's pass, and the smallest gap between the two best logits of a step."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    made: list[int] = []
    gaps: list[float] = []
    while len(made) < NEW_TOKENS and (not made or made[-1] not in ends):
        best = state.logits[0, -1].topk(2)
        made.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        state = model(torch.tensor([made[-1:]]), past_key_values=state.past_key_values)
    return made, min(gaps)


if __name__ == "__main__":
    main()
