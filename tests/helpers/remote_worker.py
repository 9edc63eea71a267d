"""A worker in a separate process: `StepInput` frames on stdin, `StepOutput` frames on stdout.

python remote_worker.py MODEL_FOLDER '{"draft_model": ...}'        a frame: 8 bytes of length | the bytes
"""

from __future__ import annotations

import json
import struct
import sys
from typing import Any, BinaryIO

LENGTH = struct.Struct("<Q")


def send(pipe: BinaryIO, data: bytes) -> None:
    pipe.write(LENGTH.pack(len(data)) + data)
    pipe.flush()


def receive(pipe: BinaryIO) -> bytes | None:
    """The next frame; None at the end."""
    head = pipe.read(LENGTH.size)
    return pipe.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else None


def main(folder: str, options: str) -> None:
    import tiny

    from minillm.worker.wire import from_bytes, to_bytes

    worker: Any = tiny.load(folder, **json.loads(options)).engine.worker  # type: ignore[arg-type]
    send(sys.stdout.buffer, b"ready")
    while (frame := receive(sys.stdin.buffer)) is not None:
        send(sys.stdout.buffer, to_bytes(worker.execute(from_bytes(frame))))


if __name__ == "__main__":
    main(*sys.argv[1:])
