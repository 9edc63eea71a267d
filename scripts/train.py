"""Train the models that ship with minillm. After an interruption, run the same command again to resume.

    python scripts/train.py target --data DATA --steps 1600      about an hour on two CPU cores
    python scripts/train.py draft  --data DATA --steps 1000      trains the draft to imitate the target
    python scripts/train.py polish --data DATA --steps 260       trains the draft further, mostly on stories
                                                                 that the target has generated
    python scripts/train.py export --data DATA                   measures both models and writes minillm/zoo/

DATA contains corpus/ and fairytaleqa/ (described in the model cards). Work files (tokenizer, token caches,
checkpoints) are written to --work. Needs numpy; a GPU is used if there is one.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from train.card import write_cards
from train.data import MIX, Mixture, Source, load_tokens, train_tokenizer
from train.evaluate import bits_per_byte
from train.export import export
from train.generated import generated_documents
from train.loop import Loss, Trainer, distillation_loss, long_in_turns, long_last, next_token_loss
from train.model import SHAPES, LanguageModel

ZOO = Path(__file__).resolve().parent.parent / "minillm" / "zoo"
FOLDERS = {"target": ZOO / "storyteller-6m", "draft": ZOO / "storyteller-1m"}
_EVALUATE_EVERY = 200
_QUICK_DOCS = 100


@dataclass(frozen=True)
class Imitation:
    """A stage of the draft's training on stories of the target, whose tokens the draft will have to guess."""

    stories: int
    seed: int
    share: float  # share of the windows that come from these stories
    peak: float  # peak learning rate, relative to the target's


# First mostly the corpus, to learn the language; then mostly stories of the target.
IMITATIONS = {"draft": Imitation(2000, 7, 0.4, 1.0), "polish": Imitation(6000, 8, 0.85, 0.4)}


def main() -> int:
    """Parse the command line and run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=["target", "draft", "polish", "export"])
    parser.add_argument("--data", type=Path, required=True, help="folder with corpus/ and fairytaleqa/")
    parser.add_argument("--work", type=Path, default=Path("build/train"), help="work files (build/train)")
    parser.add_argument("--steps", type=int, default=1600, help="steps in all, of 8,192 tokens")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "tokenizer.json").is_file():
        train_tokenizer(args.data, args.work / "tokenizer.json")
    if args.stage == "export":
        _export(args)
    else:
        _train(args)
    return 0


def _train(args: argparse.Namespace) -> None:
    torch.manual_seed(1234)
    mixture = Mixture.of_corpus(args.data, args.work)
    loss: Loss = next_token_loss
    windows, peak, imitation = long_last, 1.0, IMITATIONS.get(args.stage)
    if imitation:
        target = _trained("target", args.work)
        export(target, args.work / "tokenizer.json", FOLDERS["target"])
        mixture = _with_generated(mixture, imitation, args)
        loss, windows, peak = distillation_loss(target), long_in_turns, imitation.peak
    model = LanguageModel(SHAPES["draft" if imitation else "target"]).to(_device())
    if args.stage == "polish":
        model.load_state_dict(torch.load(args.work / "draft.pt", weights_only=True)["model"])
    trainer = Trainer(model, mixture, args.work / f"{args.stage}.pt", loss, windows, peak)
    valid = load_tokens(args.data, args.work, "valid")
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(args.stage, total=args.steps)

        def report(step: int, value: float, info: dict[str, float]) -> None:
            state = f"{args.stage} loss {value:.3f} window {info['window']:.0f} rate {info['rate']:.2f}"
            bar.update(task, completed=step, description=state)
            if step % 10 == 0 and bar.disable:
                print(f"step {step} {state}", flush=True)
            if step % _EVALUATE_EVERY == 0:
                print(f"step {step}: {bits_per_byte(model, valid[:_QUICK_DOCS], tokenizer):.4f} bits/byte")

        trainer.run(args.steps, report)
    print(f"{args.stage}: {bits_per_byte(model, valid, tokenizer):.4f} bits per byte, all validation stories")


def _with_generated(mixture: Mixture, imitation: Imitation, args: argparse.Namespace) -> Mixture:
    """The corpus, with the stories that the target generated as another source."""
    openings = load_tokens(args.data, args.work, "stories")
    docs = generated_documents(FOLDERS["target"], openings, args.work, imitation.stories, imitation.seed)
    sources = {**mixture.sources, "generated": Source(docs, seed=len(MIX) + 1, in_pieces=False)}
    shares = {name: share * (1 - imitation.share) for name, share in MIX.items()}
    return Mixture(sources, {**shares, "generated": imitation.share})


def _export(args: argparse.Namespace) -> None:
    models = {"target": _trained("target", args.work), "draft": _trained("polish", args.work)}
    for name, model in models.items():
        export(model, args.work / "tokenizer.json", FOLDERS[name])
    valid = load_tokens(args.data, args.work, "valid")
    write_cards(models, valid, Tokenizer.from_file(str(args.work / "tokenizer.json")), FOLDERS)


def _trained(name: str, work: Path) -> LanguageModel:
    """The model of a finished stage, with weights rounded to bfloat16 as in the exported file."""
    model = LanguageModel(SHAPES["target" if name == "target" else "draft"])
    state = torch.load(work / f"{name}.pt", weights_only=True)["model"]
    model.load_state_dict({key: value.bfloat16() for key, value in state.items()})
    return model.to(_device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    sys.exit(main())
