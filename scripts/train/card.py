"""The model cards: measurements of the exported weights, and ten samples that were not selected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from minillm import LLM, SamplingParams
from train.data import Tokens
from train.evaluate import argmax_agreement, bits_per_byte, greedy_text
from train.model import LanguageModel

_BUCKETS = ((64, 512), (512, 1024), (1024, 2048), (2048, 3072), (3072, 4095))
_WINDOWS = 16
_PROMPT_TOKENS, _AGREEMENT_PROMPTS, _AGREEMENT_LENGTH = 8, 64, 120
_SAMPLES = 10

_TEXT = """---
license: mit
language: en
library_name: minillm
pipeline_tag: text-generation
---
# {name}

{what} Llama architecture, {parameters:,} parameters, {layers} layer(s), hidden size {hidden},
{heads} heads over {kv_heads} kv head(s) of 64, byte-level BPE of 4,096 tokens, context 4,096, bf16.

It tells short stories for children, in the manner of its data. It knows nothing else: do not ask it
for facts. It was trained on fiction from before the 1930s as well and may repeat that time's views.

## Data

| source | share of the windows | licence |
| --- | --- | --- |
| TinyStories, a part (5.6 MB, 6,836 stories) | 72 % | CDLA-Sharing-1.0 (results such as models are free) |
| 73 classic children's books (24.8 MB) | 20 % | public domain |
| FairytaleQA, the tales only (3.2 MB, 278 tales) | 8 % | Apache-2.0 |
{extra_data}
The texts themselves are not part of this repository. The weights are under the repository's licence.

## Measured on these weights

| | |
| --- | --- |
| bits per byte, TinyStories validation part (856 stories, each by itself) | **{bpb:.4f}** |
{rows}
## Made with

```
{command}
```

Steps of 8,192 tokens, {windows}. Muon for the matrices, AdamW for
the rest; see `scripts/train/`. Two CPU cores, torch {torch}.

## Ten samples, not picked

Seeds 0 to 9, temperature 0.8, top-p 0.95, at most 120 tokens; prompts are the first words of the
first ten validation stories.

{samples}
"""


_DRAFT_COMMANDS = """
python scripts/train.py draft --data DATA --steps 1000
python scripts/train.py polish --data DATA --steps 260"""


def write_cards(
    models: dict[str, LanguageModel], valid: list[Tokens], tokenizer: Tokenizer, folders: dict[str, Path]
) -> None:
    """Measure both models and write README.md into their folders."""
    scores = {name: bits_per_byte(model, valid, tokenizer) for name, model in models.items()}
    agreement = _agreement(models, valid)
    common = "python scripts/train.py target --data DATA --steps 1600"
    for name, model in models.items():
        shape, is_draft = model.shape, name == "draft"
        rows = [f"| loss by position, packed validation text | {_by_position(model, valid)} |"]
        if is_draft:
            rows += [
                f"| bits per byte more than the target | {scores['draft'] - scores['target']:.4f} |",
                f"| its likeliest token is the target's, on the target's greedy stories | {agreement:.1%} |",
            ]
        text = _TEXT.format(
            name=folders[name].name,
            what=(
                "The draft of storyteller-6m for speculative decoding: it imitates it."
                if is_draft
                else "The model that ships with minillm."
            ),
            parameters=sum(p.numel() for p in model.parameters()),
            layers=shape.num_hidden_layers,
            hidden=shape.hidden_size,
            heads=shape.num_attention_heads,
            kv_heads=shape.num_key_value_heads,
            extra_data=(
                "\nOf all windows 40 % (of the last 260 steps 85 %) are stories that storyteller-6m made "
                "itself; the\nshares above are of the rest. The loss is the cross-entropy against its "
                "distribution.\n"
                if is_draft
                else ""
            ),
            windows=(
                "in windows of 256, later of 512 and 4,096 in turns with them"
                if is_draft
                else "in windows of 256, then 512 (from 75 %), then 4,096 tokens (from 92 %)"
            ),
            bpb=scores[name],
            rows="\n".join(rows) + "\n",
            command=common + _DRAFT_COMMANDS * is_draft,
            torch=torch.__version__.split("+")[0],
            samples=_samples(folders[name], valid, tokenizer),
        )
        (folders[name] / "README.md").write_text(text, encoding="utf-8")
        print(f"{name}: {scores[name]:.4f} bits per byte")
    print(f"argmax agreement {agreement:.4f}")


def _agreement(models: dict[str, LanguageModel], valid: list[Tokens]) -> float:
    """Argmax agreement of draft and target on the target's greedy continuations of validation stories."""
    device = next(models["target"].parameters()).device
    openings = np.stack([doc[:_PROMPT_TOKENS] for doc in valid[:_AGREEMENT_PROMPTS]]).astype(np.int64)
    text = greedy_text(models["target"].eval(), torch.from_numpy(openings).to(device), _AGREEMENT_LENGTH)
    return argmax_agreement(models["target"], models["draft"].eval(), text, _PROMPT_TOKENS)


@torch.no_grad()
def _by_position(model: LanguageModel, valid: list[Tokens]) -> str:
    """Nats per token by range of positions: about equal if the model has learned all positions."""
    stream = np.concatenate(valid)[: _WINDOWS * 4096].astype(np.int64).reshape(_WINDOWS, 4096)
    losses = []
    for window in torch.from_numpy(stream).to(next(model.parameters()).device).split(2):
        with torch.autocast(window.device.type, torch.bfloat16):
            logits = model(window)[:, :-1].float()
        losses.append(F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="none"))
    by_position = torch.cat([loss.view(-1, 4095) for loss in losses]).mean(0)
    parts = [f"{a}-{b}: {by_position[a:b].mean():.3f}" for a, b in _BUCKETS]
    return "nats per token, " + ", ".join(parts)


def _samples(folder: Path, valid: list[Tokens], tokenizer: Tokenizer) -> str:
    llm = LLM(folder)
    prompts = [tokenizer.decode(doc[: 1 + 4 + i % 4].tolist()) for i, doc in enumerate(valid[:_SAMPLES])]
    params = [
        SamplingParams(max_tokens=120, temperature=0.8, top_p=0.95, seed=seed) for seed in range(_SAMPLES)
    ]
    outputs = llm.generate(prompts, params)
    quoted = []
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        body = f"**{prompt}**{output.text}{'' if output.finish_reason == 'stop' else ' …'}"
        quoted.append(f"{i}. " + body.replace("\n\n", "\n").replace("\n", "\n   "))
    return "\n\n".join(quoted)
