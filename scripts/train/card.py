"""The model cards: what was measured on the exported weights, and ten samples nobody picked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from minillm import LLM, SamplingParams
from train.data import MIX, Corpus, Tokens
from train.evaluate import agreement, bits_per_byte
from train.model import LanguageModel

_BUCKETS = ((64, 512), (512, 1024), (1024, 2048), (2048, 3072), (3072, 4095))
_WINDOWS = 16
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
| TinyStories, a part (5.6 MB, 6,836 stories) | {stories:.0%} | CDLA-Sharing-1.0 (leaves models free) |
| 73 classic children's books (24.8 MB) | {books:.0%} | public domain |
| FairytaleQA, the tales only (3.2 MB, 278 tales) | {tales:.0%} | Apache-2.0 |
{extra_data}
The texts themselves are not part of this repository. The weights are under the repository's licence.

## Measured on these weights

| | |
| --- | --- |
| bits per byte, TinyStories validation part (856 stories, each by itself) | **{bpb:.4f}** |
{rows}
## Made with

```
python scripts/train.py pack --data DATA
python scripts/train.py train --seconds {seconds:.0f}
python scripts/train.py export
```

{steps} Muon for the matrices, AdamW for the rest; see
`scripts/train/recipe.py`. {device}, torch {torch}.

## Ten samples, not picked

Seeds 0 to 9, temperature 0.8, top-p 0.95, at most 120 tokens; prompts are the first words of the
first ten validation stories.

{samples}
"""


_TARGET_DATA = """
Two teachers of the same shape learned from these texts. The model imitates the mean of their
distributions, on the same texts (70 % of the windows) and on stories that the teachers told (30 %).
"""
_ALONE_DATA = """
The model learned from these texts alone. No model that imitated it had fewer bits per byte.
"""
_DRAFT_DATA = """
Of the windows 40 %, and at the end 85 %, are stories that {target} told; the shares above are
of the rest. The loss is the cross-entropy against its distribution.
"""


def write_cards(
    models: dict[str, LanguageModel],
    corpus: Corpus,
    tokenizer: Path,
    folders: dict[str, Path],
    results: dict[str, Any],
) -> None:
    """Measure both models and write README.md into their folders; `results` is what the run noted."""
    valid = corpus.docs["valid"]
    scores = {name: bits_per_byte(model, valid, corpus.token_bytes) for name, model in models.items()}
    agreed = agreement(models["target"], models["draft"], valid)
    kept = results["target"].split()[0]
    for name, model in models.items():
        shape, is_draft = model.shape, name == "draft"
        rows = [f"| loss by position, packed validation text | {_by_position(model, valid)} |"]
        if is_draft:
            rows += [
                f"| bits per byte more than the target | {scores['draft'] - scores['target']:.4f} |",
                f"| its likeliest token is the target's, on the target's greedy stories | {agreed:.1%} |",
            ]
        target = folders["target"].name
        text = _TEXT.format(
            name=folders[name].name,
            what=(
                f"The draft of {target} for speculative decoding: it imitates it."
                if is_draft
                else "The model that ships with minillm."
            ),
            parameters=sum(p.numel() for p in model.parameters()),
            layers=shape.num_hidden_layers,
            hidden=shape.hidden_size,
            heads=shape.num_attention_heads,
            kv_heads=shape.num_key_value_heads,
            extra_data=(
                _DRAFT_DATA.format(target=target)
                if is_draft
                else _TARGET_DATA
                if kept == "student"
                else _ALONE_DATA
            ),
            **MIX,
            bpb=scores[name],
            rows="\n".join(rows) + "\n",
            seconds=results["seconds_given"],
            steps=_steps(results, ("draft", "polish") if is_draft else ("teacher-1", "teacher-2", "student")),
            device=results["device"],
            torch=results["torch"].split("+")[0],
            samples=_samples(folders[name], valid, Tokenizer.from_file(str(tokenizer))),
        )
        (folders[name] / "README.md").write_text(text, encoding="utf-8")
        print(f"{name}: {scores[name]:.4f} bits per byte")
    print(f"argmax agreement {agreed:.4f}")


def _steps(results: dict[str, Any], stages: tuple[str, ...]) -> str:
    """How long each stage took."""
    found = {name: results["stages"][name] for name in stages if name in results["stages"]}
    parts = [f"{name} {stage['steps']:,} steps in {stage['seconds']:.0f} s" for name, stage in found.items()]
    return f"Steps of {results['batch_tokens']:,} tokens: {', '.join(parts)}."


@torch.no_grad()
def _by_position(model: LanguageModel, valid: list[Tokens]) -> str:
    """Nats per token in ranges of positions: flat where positions are sound."""
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
