"""The corpus as streams of tokens: documents are shuffled in each epoch, joined, and cut into windows.

    <|endoftext|> story <|endoftext|> story <|endoftext|> ...
    [ window of length + 1 tokens ][ window ][ window ]    input: all but the last, target: all but the first

Stories are shuffled as whole documents: an epoch reads each story once, in a new order. Books and tales are
long, so they are shuffled in pieces; nearly all windows still contain consecutive text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 4096
# Share of the windows that come from each source. The models are made for stories; books and tales extend
# their vocabulary and are the only long documents.
MIX = {"stories": 0.72, "tales": 0.08, "books": 0.20}
FILES = {
    "stories": "corpus/tinystories_train.txt",
    "tales": "fairytaleqa/stories.txt",
    "books": "corpus/childrens_books.txt",
    "valid": "corpus/tinystories_valid.txt",
}
_PIECE_TOKENS = 8192
_BOOK_CHARS_FOR_BPE = 40_000

Tokens = NDArray[np.uint16]


def documents(path: Path) -> list[str]:
    """The documents of a corpus file, without the end-of-text marks."""
    return [d.strip() for d in path.read_text(encoding="utf-8").split(END_OF_TEXT) if d.strip()]


def train_tokenizer(data: Path, path: Path) -> None:
    """Train the byte-level BPE on stories, tales and the start of each book, so that no book dominates."""
    texts = documents(data / FILES["stories"]) + documents(data / FILES["tales"])
    texts += [book[:_BOOK_CHARS_FOR_BPE] for book in documents(data / FILES["books"])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A $B",
        special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))],
    )
    tokenizer.save(str(path))


def load_tokens(data: Path, work: Path, name: str) -> list[Tokens]:
    """Token ids of every document of source `name`, each after an end-of-text token; cached in `work`."""
    cache = work / f"{name}.npz"
    if not cache.is_file():
        tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
        encoded = tokenizer.encode_batch(documents(data / FILES[name]))
        ids = [np.array(e.ids, dtype=np.uint16) for e in encoded]
        np.savez(cache, ids=np.concatenate(ids), lens=np.array([len(i) for i in ids]))
    stored = np.load(cache)
    return np.split(stored["ids"], np.cumsum(stored["lens"])[:-1])


class Source:
    """An endless stream of windows over shuffled documents; its state is two integers."""

    def __init__(self, docs: list[Tokens], seed: int, in_pieces: bool) -> None:
        if in_pieces:
            docs = [d[i : i + _PIECE_TOKENS] for d in docs for i in range(0, len(d), _PIECE_TOKENS)]
        self._docs, self._seed = docs, seed
        self.seek(0, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Go to a position in the token stream of an epoch."""
        self.epoch, self.position = epoch, position
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._docs))
        self._stream = np.concatenate([self._docs[i] for i in order])

    def take(self, count: int) -> Tokens:
        """The next `count` tokens. The last one is only a target; it is also the first of the next window."""
        if self.position + count > len(self._stream):
            self.seek(self.epoch + 1, 0)
        window = self._stream[self.position : self.position + count]
        self.position += count - 1
        return window


class Mixture:
    """Batches of windows from several sources; the step number decides the sources."""

    def __init__(self, sources: dict[str, Source], shares: dict[str, float]) -> None:
        self.sources, self._shares = sources, shares

    @classmethod
    def of_corpus(cls, data: Path, work: Path) -> Mixture:
        """The corpus in the shares of `MIX`."""
        sources = {
            name: Source(load_tokens(data, work, name), seed=i + 1, in_pieces=name != "stories")
            for i, name in enumerate(MIX)
        }
        return cls(sources, MIX)

    def batch(self, step: int, size: int, length: int) -> NDArray[np.int64]:
        """Windows [size, length + 1]."""
        rng = np.random.default_rng([99, step])
        names = rng.choice(list(self._shares), size=size, p=list(self._shares.values()))
        return np.stack([self.sources[name].take(length + 1) for name in names]).astype(np.int64)

    def state(self) -> dict[str, tuple[int, int]]:
        """The position of every source."""
        return {name: (s.epoch, s.position) for name, s in self.sources.items()}

    def restore(self, state: dict[str, tuple[int, int]]) -> None:
        """Continue from `state`."""
        for name, (epoch, position) in state.items():
            self.sources[name].seek(epoch, position)
