"""Headers that lie: each is refused with one typed line, quickly, before memory is taken for its claims."""

from __future__ import annotations

import os
import random
import struct
import time
import tracemalloc
from pathlib import Path

import ggufs
import pytest
from ggufs import Stored, Typed

from minillm.errors import MinillmError, UnreadableFile, UnsupportedModel, WeightsError
from minillm.model.gguf.header import is_gguf, read_header
from minillm.model.gguf.metadata import Metadata
from minillm.model.gguf.vocabulary import Vocabulary

KEYS = {"general.architecture": "llama", "a": 1.0e-5, "b": True, "c": ["x", "y"], "d": Typed(11, -5)}
TENSOR = {"t": Stored((4, 2), ggufs.F32, b"\0" * 32)}


def raw(key: str, kind: int, payload: bytes) -> bytes:
    """A file with one key, whose value is written byte by byte."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + ggufs.string(key) + struct.pack("<I", kind)
    return head + payload + b"\0" * 64


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    for version in (2, 3):
        made = read_header(ggufs.write(tmp_path / "m.gguf", KEYS, TENSOR, version=version))
        assert made.metadata == {
            "general.architecture": "llama",
            "a": 1e-5,
            "b": True,
            "c": ["x", "y"],
            "d": -5,
        }
        assert made.tensors["t"].shape == (2, 4)
        assert made.size - made.tensors["t"].offset == 32


HUGE = (1 << 64) - 1
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "other format": (b"\x80\x02ckpt" * 9, "not a GGUF file"),
    "git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git-LFS"),
    "older format": (b"tjgg" + b"\0" * 60, "older"),
    "zip": (b"PK\x03\x04" + b"\0" * 60, "zip"),
    "magic alone": (b"GGUF", "longer than the file"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version from the future": (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version 99"),
    "many tensors": (ggufs.whole({}, {}, num_tensors=HUGE), "tensors"),
    "many keys": (ggufs.whole({}, {}, num_keys=1 << 40), "keys"),
    "more keys than there are": (ggufs.whole(KEYS, {}, num_keys=20), "has 20 keys|twice"),
    "key as long as 2**63": (raw("k", 8, struct.pack("<Q", 1 << 63)), "longer than the file"),
    "array of 2**60 texts": (raw("k", 9, struct.pack("<IQ", 8, 1 << 60)), "elements"),
    "array of 2**64-1 bytes": (raw("k", 9, struct.pack("<IQ", 0, HUGE)), "elements"),
    "array of arrays": (raw("k", 9, struct.pack("<IQ", 9, 1)), "array of arrays"),
    "unknown value type": (raw("k", 77, b""), "type 77"),
    "unknown element type": (raw("k", 9, struct.pack("<IQ", 77, 1)), "type 77"),
    "bool of 2": (raw("k", 7, b"\x02"), "neither true nor false"),
    "value not UTF-8": (raw("k", 8, ggufs.string(b"\xff\xfe")), "not UTF-8"),
    "key not UTF-8": (ggufs.whole({b"\xff": 1}, {}), "not UTF-8"),  # type: ignore[dict-item]
    "text in an array not UTF-8": (ggufs.whole({"k": [b"a", b"\xff"]}, {}), "not UTF-8"),
    "tensor name not UTF-8": (ggufs.whole({}, {b"\xff": TENSOR["t"]}), "not UTF-8"),  # type: ignore[dict-item]
    "alignment 0": (ggufs.whole({"general.alignment": 0}, TENSOR), "power of two"),
    "alignment 48": (ggufs.whole({"general.alignment": 48}, TENSOR), "power of two"),
    "alignment as text": (ggufs.whole({"general.alignment": "32"}, TENSOR), "power of two"),
    "no dimensions": (ggufs.whole({}, {"t": Stored((), 0, b"1234")}), "0 dimensions"),
    "nine dimensions": (ggufs.whole({}, {"t": Stored((1,) * 9, 0, b"1234")}), "9 dimensions"),
    "2**32-1 dimensions": (
        b"GGUF"
        + struct.pack("<IQQ", 3, 1, 0)
        + ggufs.string("t")
        + struct.pack("<I", 0xFFFFFFFF)
        + b"\0" * 99,
        "dimensions",
    ),
    "size of 0": (ggufs.whole({}, {"t": Stored((4, 0), 0, b"1234")}), "sizes"),
    "size of 2**63": (ggufs.whole({}, {"t": Stored((4, 1 << 63), 0, b"1234")}), "sizes"),
    "offset beyond the file": (ggufs.whole({}, {"t": Stored((4,), 0, b"1" * 16, offset=1 << 62)}), "outside"),
    "offset between two places": (
        ggufs.whole({}, {"t": Stored((4,), 0, b"1" * 99, offset=7)}),
        "multiple of 32",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_header_is_refused_cheaply(tmp_path: Path, case: str) -> None:
    data, word = BAD[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises((UnsupportedModel, WeightsError, UnreadableFile), match=word) as caught:
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20 and time.monotonic() - started < 2
    assert "\n" not in str(caught.value)


def test_names_that_appear_twice_are_refused(tmp_path: Path) -> None:
    entry = ggufs.string("k") + ggufs.value(1)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + entry * 2)
    with pytest.raises(WeightsError, match="twice"):
        read_header(path)
    info = ggufs.string("t") + struct.pack("<IQIQ", 1, 4, 0, 0)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + info * 2 + b"\0" * 64)
    with pytest.raises(WeightsError, match="twice"):
        read_header(path)


def test_random_damage_is_always_typed(tmp_path: Path) -> None:
    """Bytes of a sound file are changed at random: it is read, or a typed error names it."""
    metadata, stored = ggufs.model("llama_mha")
    sound = ggufs.whole(metadata, dict(list(stored.items())[:3]))
    path, refused = tmp_path / "m.gguf", 0
    generator = random.Random(5)
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(generator.choice((1, 4, 64))):
            data[generator.randrange(min(len(data), 20000))] = generator.randrange(256)
        path.write_bytes(data[: generator.choice((len(data), len(data), generator.randrange(len(data))))])
        try:
            Vocabulary.read(Metadata("m.gguf", read_header(path).metadata)).tokenizer_json()
        except MinillmError:
            refused += 1
    assert 50 < refused < 300


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    for name in ("pipe.gguf", "folder.gguf", "absent.gguf"):
        with pytest.raises(UnreadableFile):
            read_header(tmp_path / name)


def test_a_gguf_file_is_known_by_its_name_or_its_beginning(tmp_path: Path) -> None:
    named = tmp_path / "a.GGUF"
    named.write_bytes(b"")
    bare = ggufs.write(tmp_path / "blob", KEYS, {})
    other = tmp_path / "text"
    other.write_text("hello")
    assert (is_gguf(named), is_gguf(bare), is_gguf(other)) == (True, True, False)
