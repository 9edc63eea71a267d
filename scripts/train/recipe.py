"""How the shipped models are trained: two teachers, a student of both, a draft that imitates the best.

    corpus --> teacher-1 --+
    corpus --> teacher-2 --+--> student     target: the best of the three --> draft --> polished draft
           stories they tell ^                              stories it tells ^

The corpus is small: 9 million tokens, each read 10 times and more. A model that imitates the mean of
two teachers, on the corpus and on stories that they tell, overfits less than a model that learns from
the corpus alone. The best is the one with the fewest bits per byte on held-out stories.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from train.clock import Clock
from train.data import Corpus, Mixture, Tokens
from train.evaluate import agreement, bits_per_byte
from train.generated import continue_texts, first_story, generated_documents
from train.loop import Trainer, distillation_loss, next_token_loss
from train.model import SHAPES, LanguageModel
from train.parts import save_parts, write_results

_QUICK_DOCS = 200
_STORIES = 20_480
_BATCH_TOKENS_PER_STORY = 2  # one story in telling for so many tokens of a training batch
_SAMPLES, _SAMPLE_LENGTH = 10, 200


@dataclass(frozen=True)
class Stage:
    """One model in training: it learns from the corpus, or imitates teachers there and on their stories."""

    name: str
    shape: str
    ends: float  # share of the run's time
    dropout: float = 0.0
    weight_decay: float = 0.1  # of the hidden matrices
    teachers: tuple[str, ...] = ()
    stories: float = 0.0  # share of the windows that are the teachers' own stories
    temperatures: tuple[float, ...] = (0.0, 0.8)  # of these stories, in turns
    peak: float = 1.0  # of the learning rate
    begins_as: str | None = None  # the model it goes on from


# The draft learns first mostly on the corpus, for language; then mostly on what it will have to guess.
STAGES = (
    Stage("teacher-1", "target", ends=0.27, dropout=0.1, weight_decay=0.3),
    Stage("teacher-2", "target", ends=0.47, dropout=0.2, weight_decay=0.3),
    Stage(
        "student",
        "target",
        ends=0.82,
        dropout=0.05,
        weight_decay=0.2,
        teachers=("teacher-1", "teacher-2"),
        stories=0.4,
        temperatures=(1.0,),
    ),
    Stage("draft", "draft", ends=0.915, teachers=("target",), stories=0.4),
    Stage("polish", "draft", ends=0.955, teachers=("target",), stories=0.85, peak=0.4, begins_as="draft"),
)


@dataclass
class Run:
    """All stages in one process. Every check writes the best models so far to `out`."""

    corpus: Corpus
    tokenizer: Tokenizer
    out: Path
    clock: Clock
    device: torch.device
    batch_tokens: int
    results: dict[str, Any] = field(default_factory=lambda: {"stages": {}})

    def __post_init__(self) -> None:
        self._models: dict[str, LanguageModel] = {}
        self._stories: dict[tuple[str, ...], list[Tokens]] = {}
        self._best_target = math.inf
        self.results |= {
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
            "torch": torch.__version__,
            "seconds_given": self.clock.seconds,
            "batch_tokens": self.batch_tokens,
        }

    def run(self) -> None:
        """Train all stages, then measure; what the clock leaves no time for is left out."""
        for seed, stage in enumerate(STAGES, 1):
            self._train(stage, seed)
        if self.clock.share() < 1 and "target" in self._models:
            self._measure()
        self.results["seconds"] = self.clock.elapsed()
        write_results(self.results, self.out)

    def _train(self, stage: Stage, seed: int) -> None:
        teachers = [self._models[name] for name in stage.teachers if name in self._models]
        stories = self._told(stage, teachers)
        if self.clock.share() >= stage.ends or (stage.teachers and not teachers):
            return
        torch.manual_seed(seed)
        model = LanguageModel(SHAPES[stage.shape], stage.dropout).to(self.device)
        if stage.begins_as in self._models:
            model.load_state_dict(self._models[stage.begins_as].state_dict())
        mixture = Mixture.of_corpus(self.corpus, seed, stories, stage.stories)
        loss = distillation_loss(teachers) if teachers else next_token_loss
        trainer = Trainer(model, mixture, loss, self.batch_tokens, stage.weight_decay, stage.peak)
        started, checks, stage_best = self.clock.elapsed(), [], math.inf

        def check(step: int, value: float, rate: float) -> None:
            nonlocal stage_best
            score = bits_per_byte(model, self.corpus.docs["valid"][:_QUICK_DOCS], self.corpus.token_bytes)
            seconds = self.clock.elapsed() - started
            print(
                f"{self.clock.elapsed():6.1f} s  {stage.name} step {step}: loss {value:.4f}, "
                f"{score:.4f} bits/byte, rate {rate:.2f}, {step * self.batch_tokens / seconds:,.0f} tokens/s",
                flush=True,
            )
            checks.append([step, value, score])
            # A draft is not judged by bits per byte: its last weights imitate best.
            if stage.shape == "draft" or score < stage_best:
                stage_best = score
                self._keep(stage, model, score, step)
            self.results["stages"][stage.name] = {
                "steps": step,
                "tokens": step * self.batch_tokens,
                "seconds": seconds,
                "stories": len(stories),
                "best": stage_best,
                "checks": checks,
            }
            write_results(self.results, self.out)

        trainer.run(self.clock.until(stage.ends), check)

    def _keep(self, stage: Stage, model: LanguageModel, score: float, step: int) -> None:
        """Keep a stage's weights as they ship, in bfloat16; write them if they are the best of their kind."""
        kept = self._models[stage.name] = _rounded(model)
        version = f"{stage.name} {step}"
        if stage.shape == "draft":
            save_parts(kept, self.out, "draft", version)
        elif score < self._best_target:
            self._best_target = score
            self._models["target"] = kept
            self.results["target"] = version
            save_parts(kept, self.out, "target", version)

    def _told(self, stage: Stage, teachers: list[LanguageModel]) -> list[Tokens]:
        """The teachers' stories; telling them takes at most a quarter of the stage's time."""
        if not teachers:
            return []
        if stage.teachers not in self._stories:
            now = self.clock.share()
            self._stories[stage.teachers] = generated_documents(
                teachers,
                self.corpus.docs["stories"],
                _STORIES,
                stage.temperatures,
                max(1, self.batch_tokens // _BATCH_TOKENS_PER_STORY),
                self.clock.until(now + (stage.ends - now) / 4),
            )
        return self._stories[stage.teachers]

    def _measure(self) -> None:
        """Every kept model on all held-out stories, the draft's agreement with the target, and samples."""
        valid, target = self.corpus.docs["valid"], self._models["target"]
        scores = self.results["bits_per_byte"] = {}
        for name, model in self._models.items():
            scores[name] = bits_per_byte(model, valid, self.corpus.token_bytes)
            print(f"{self.clock.elapsed():6.1f} s  {name}: {scores[name]:.4f} bits/byte", flush=True)
        write_results(self.results, self.out)
        draft = self._models.get("polish", self._models.get("draft"))
        if draft is not None:
            agreed = self.results["agreement"] = agreement(target, draft, valid)
            print(f"{self.clock.elapsed():6.1f} s  argmax agreement {agreed:.4f}", flush=True)
        samples = self.results["samples"] = self._samples(target)
        print(*samples, sep="\n\n", flush=True)

    def _samples(self, target: LanguageModel) -> list[str]:
        openings = [doc[: 1 + 4 + i % 4] for i, doc in enumerate(self.corpus.docs["valid"][:_SAMPLES])]
        temperatures = torch.full((len(openings),), 0.8)
        texts = continue_texts(target, openings, _SAMPLE_LENGTH, temperatures, seed=0)
        return [self.tokenizer.decode(first_story(row).tolist()) for row in texts.cpu().numpy()]


def _rounded(model: LanguageModel) -> LanguageModel:
    """A copy for inference, its weights rounded to bfloat16."""
    copy = LanguageModel(model.shape).to(next(model.parameters()).device)
    copy.load_state_dict({key: value.bfloat16() for key, value in model.state_dict().items()})
    return copy.eval().requires_grad_(False)
