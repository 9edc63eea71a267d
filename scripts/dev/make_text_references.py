"""Writes tests/text/references.json: token ids and chat prompts that transformers makes of small folders.

The tests must run without transformers, so its results are computed here, once. The folders and
conversations are in `tests/helpers/side_files.py`, the chat templates in `tests/text/templates`. These
templates are written for the tests; together they use what published ones use. With `--templates DIR` the
templates of another folder are rendered by transformers and by minillm, and differences are printed; nothing
is written.

Needs transformers, which the package itself does not need: `pip install transformers`. Written with 5.24.
Run: python scripts/dev/make_text_references.py [--templates DIR]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import side_files  # noqa: E402
import tiny  # noqa: E402

from minillm.errors import MinillmError  # noqa: E402
from minillm.text.tokenizer import Tokenizer  # noqa: E402

OUTPUT = ROOT / "tests" / "text" / "references.json"
TEMPLATES = ROOT / "tests" / "text" / "templates"


def main() -> int:
    """Write the file, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templates", type=Path, metavar="DIR", help="compare these templates instead")
    args = parser.parse_args()
    if args.templates:
        return compare(args.templates)
    rendered = {path.stem: prompts(path) for path in sorted(TEMPLATES.glob("*.jinja"))}
    if silent := [name for name, found in rendered.items() if not any(found.values())]:
        raise SystemExit(f"these render no conversation: {silent}")
    folders = {name: folder_reference(name) for name in side_files.FOLDERS}
    references = {"folders": folders, "templates": rendered}
    OUTPUT.write_text(json.dumps(references, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    return 0


def folder_reference(name: str) -> list[dict[str, Any]]:
    """Ids and decoded text of each text of `side_files.TEXTS`."""
    with tempfile.TemporaryDirectory() as folder:
        side_files.write_folder(Path(folder), name)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        ids = [tokenizer.encode(text) for text in side_files.TEXTS]
        return [{"ids": i, "text": tokenizer.decode(i, skip_special_tokens=True)} for i in ids]


def prompts(path: Path) -> dict[str, str | None]:
    """The prompt of each conversation; None where the template refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        write_template_folder(Path(folder), path)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        return {name: theirs(tokenizer, talk) for name, talk in side_files.TALKS.items()}


def write_template_folder(folder: Path, path: Path) -> None:
    """A tokenizer with the template."""
    tiny.byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "chat_template.jinja").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")


def theirs(tokenizer: Any, talk: dict[str, Any]) -> str | None:
    """What transformers makes of a conversation; None for any exception of the template."""
    options = {"add_generation_prompt": True} | {k: v for k, v in talk.items() if k != "messages"}
    try:
        return str(tokenizer.apply_chat_template(talk["messages"], **options, tokenize=False))
    except Exception:
        return None


def compare(folder: Path) -> int:
    """Render every template of `folder` with both; print where they differ."""
    different = count = 0
    for path in sorted(folder.glob("*.jinja")):
        for name, expected in prompts(path).items():
            found, why = ours(path, side_files.TALKS[name])
            count += 1
            if found != expected:
                different += 1
                print(f"{path.name}, {name}:\n  transformers {expected!r}\n  minillm      {found!r} {why}")
    print(f"{count} prompts, {different} differ")
    return 1 if different else 0


def ours(path: Path, talk: dict[str, Any]) -> tuple[str | None, str]:
    """What minillm makes of a conversation, or why it makes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        write_template_folder(Path(folder), path)
        try:
            return Tokenizer(Path(folder)).apply_chat_template(**talk, tokenize=False), ""
        except MinillmError as error:
            return None, str(error)


if __name__ == "__main__":
    sys.exit(main())
