"""Stories that the target generates, as training data of the draft: half greedy, half sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minillm import LLM, SamplingParams
from train.data import Tokens

_LENGTH = 200


def generated_documents(
    target: Path, openings: list[Tokens], work: Path, count: int, seed: int
) -> list[Tokens]:
    """The target's continuations of the first 4 to 16 tokens of `count` stories; cached in `work`."""
    cache = work / f"generated-{count}.npz"
    if not cache.is_file():
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(openings), count, replace=False)
        prompts = [openings[i][: rng.integers(4, 17)].tolist() for i in chosen]
        params = [SamplingParams(max_tokens=_LENGTH, temperature=0.8 * (i % 2), seed=i) for i in range(count)]
        outputs = LLM(target, max_num_seqs=128).generate(prompts, params, progress=True)
        docs = [o.prompt_token_ids + o.token_ids for o in outputs]
        np.savez(cache, ids=np.concatenate(docs).astype(np.uint16), lens=np.array([len(d) for d in docs]))
    stored = np.load(cache)
    return np.split(stored["ids"], np.cumsum(stored["lens"])[:-1])
