"""The corpus as token streams: documents shuffled each epoch, end to end, cut into windows.

    <|endoftext|> story <|endoftext|> story <|endoftext|> ...
    [ window of length + 1 tokens ][ window ][ window ]    input: all but the last, target: all but the first

Stories keep their documents whole (an epoch reads each once, in a new order). Books and tales are
long, so they are shuffled in pieces; a window then still reads consecutive text nearly everywhere.
The text is tokenised once, into one file, so that the machine that trains needs no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 4096
# Share of the windows that come from each source. Stories are what the models are for; books and
# tales widen their vocabulary and are the only long documents.
MIX = {"stories": 0.62, "tales": 0.09, "books": 0.29}
FILES = {
    "stories": "corpus/tinystories_train.txt",
    "tales": "fairytaleqa/stories.txt",
    "books": "corpus/childrens_books.txt",
    "valid": "corpus/tinystories_valid.txt",
}
CORPUS_FILE, TOKENIZER_FILE = "corpus.npz", "tokenizer.json"
_PIECE_TOKENS = 8192
_BOOK_CHARS_FOR_BPE = 40_000

Tokens = NDArray[np.uint16]


@dataclass(frozen=True)
class Corpus:
    """Token ids of every document, each led by end-of-text, by source; "valid" is held out."""

    docs: dict[str, list[Tokens]]
    token_bytes: NDArray[np.int64]  # [vocab_size]: bytes of text a token stands for; end-of-text has none


def documents(path: Path) -> list[str]:
    """The documents of a corpus file, without the end-of-text marks."""
    return [d.strip() for d in path.read_text(encoding="utf-8").split(END_OF_TEXT) if d.strip()]


def train_tokenizer(data: Path, path: Path) -> None:
    """Train the byte-level BPE on stories, tales and the start of each book, so that no book rules it."""
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


def pack(data: Path, folder: Path) -> None:
    """Write the tokenizer and the tokenised corpus of `data` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(data, folder / TOKENIZER_FILE)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    arrays = {"token_bytes": token_bytes(tokenizer)}
    for name, file in FILES.items():
        encoded = tokenizer.encode_batch(documents(data / file))
        arrays[f"{name}_ids"] = np.concatenate([np.array(e.ids, dtype=np.uint16) for e in encoded])
        arrays[f"{name}_lens"] = np.array([len(e.ids) for e in encoded])
    np.savez(folder / CORPUS_FILE, **arrays)


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Bytes of text that each token stands for: a byte-level token has one character for each byte."""
    tokens = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
    return np.array([0 if token == END_OF_TEXT else len(token) for token in tokens])


def load_corpus(folder: Path) -> Corpus:
    """What `pack` wrote."""
    with np.load(folder / CORPUS_FILE) as stored:
        docs = {
            name: np.split(stored[f"{name}_ids"], np.cumsum(stored[f"{name}_lens"])[:-1]) for name in FILES
        }
        return Corpus(docs, stored["token_bytes"])


class Source:
    """An endless stream of windows over shuffled documents."""

    def __init__(self, docs: list[Tokens], seed: int, in_pieces: bool) -> None:
        if in_pieces:
            docs = [d[i : i + _PIECE_TOKENS] for d in docs for i in range(0, len(d), _PIECE_TOKENS)]
        self._docs, self._seed = docs, seed
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._position = epoch, 0
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._docs))
        self._stream = np.concatenate([self._docs[i] for i in order])

    def take(self, count: int) -> Tokens:
        """The next `count` tokens; the last is the first of the next window (it is only a target)."""
        if self._position + count > len(self._stream):
            self._start_epoch(self._epoch + 1)
        window = self._stream[self._position : self._position + count]
        self._position += count - 1
        return window


class Mixture:
    """Batches of windows drawn from several sources; which source is a function of the step and the seed."""

    def __init__(self, sources: dict[str, Source], shares: dict[str, float], seed: int) -> None:
        self._sources, self._shares, self._seed = sources, shares, seed

    @classmethod
    def of_corpus(cls, corpus: Corpus, seed: int, stories: list[Tokens], share: float) -> Mixture:
        """The corpus in the shares of `MIX`, and beside it `share` of a model's own stories (none: 0)."""
        docs = {name: corpus.docs[name] for name in MIX}
        shares = {name: part * (1 - share) for name, part in MIX.items()}
        if stories:
            docs["generated"], shares["generated"] = stories, share
        sources = {
            name: Source(part, seed=seed * 10 + i, in_pieces=name in ("books", "tales"))
            for i, (name, part) in enumerate(docs.items())
        }
        return cls(sources, shares, seed)

    def batch(self, step: int, size: int, length: int) -> NDArray[np.int64]:
        """Windows [size, length + 1]."""
        rng = np.random.default_rng([99, self._seed, step])
        shares = np.array(list(self._shares.values()))
        names = rng.choice(list(self._shares), size=size, p=shares / shares.sum())
        return np.stack([self._sources[name].take(length + 1) for name in names]).astype(np.int64)
