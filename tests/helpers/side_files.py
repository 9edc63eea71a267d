"""Folders whose tokens stand in several files, and conversations for chat templates.

`scripts/dev/make_text_references.py` writes down what transformers makes of them
(`tests/text/references.json`), and `tests/text/test_references.py` compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
from tokenizers import Tokenizer


def token(content: str, **flags: bool) -> dict[str, Any]:
    """An entry of added_tokens_decoder; special, if `flags` do not say otherwise."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, "special": True} | plain | flags


START, SIZE = "<|im_start|>", tiny.byte_level_tokenizer().get_vocab_size()
TEXTS = [
    "the cat",
    "<s>the cat</s>",
    "<s><s>the",
    f"{START}user\nthe cat{START} sat",
    "a <pad> b[IMG]c<think>d",
    " once</s>",
]
# Name -> (whether tokenizer.json adds a BOS, files beside it).
FOLDERS: dict[str, tuple[bool, dict[str, Any]]] = {
    "nothing beside": (False, {}),
    "names only": (False, {"tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>"}}),
    "add_bos_token, and none in tokenizer.json": (
        False,
        {"tokenizer_config.json": {"bos_token": "<s>", "add_bos_token": True}},
    ),
    "no add_bos_token, and one in tokenizer.json": (
        True,
        {"tokenizer_config.json": {"bos_token": "<s>", "add_bos_token": False}},
    ),
    "null bos, as qwen": (
        False,
        {"tokenizer_config.json": {"bos_token": None, "add_bos_token": False, "eos_token": "</s>"}},
    ),
    "a name as an object": (
        False,
        {"tokenizer_config.json": {"bos_token": {"__type": "AddedToken", **token("<s>")}}},
    ),
    "added_tokens_decoder": (
        False,
        {"tokenizer_config.json": {"added_tokens_decoder": {str(SIZE): token(START)}}},
    ),
    "a decoder of two, one not special": (
        False,
        {
            "tokenizer_config.json": {
                "added_tokens_decoder": {
                    str(SIZE + 1): token("<think>", special=False),
                    str(SIZE): token(START, lstrip=True, rstrip=True),
                }
            }
        },
    ),
    "a decoder that changes flags": (
        False,
        {"tokenizer_config.json": {"added_tokens_decoder": {"1": token("</s>", lstrip=True)}}},
    ),
    "added_tokens.json": (
        False,
        {"tokenizer_config.json": {"bos_token": "<s>"}, "added_tokens.json": {START: SIZE}},
    ),
    "added_tokens.json, special by the map": (
        False,
        {
            "added_tokens.json": {START: SIZE, "<s>": 0},
            "special_tokens_map.json": {"additional_special_tokens": [START], "bos_token": token("<s>")},
        },
    ),
    "added_tokens.json beside a decoder": (
        False,
        {
            "tokenizer_config.json": {"added_tokens_decoder": {"0": token("<s>")}},
            "added_tokens.json": {START: SIZE},
            "special_tokens_map.json": {"pad_token": "<pad>"},
        },
    ),
    "the map wins": (
        False,
        {
            "tokenizer_config.json": {"bos_token": "</s>", "eos_token": "</s>", "pad_token": None},
            "special_tokens_map.json": {"bos_token": "<s>", "pad_token": "<pad>"},
        },
    ),
    "names that no vocabulary has": (
        False,
        {"tokenizer_config.json": {"pad_token": "<pad>", "image_token": "[IMG]", "bos_token": "<s>"}},
    ),
    "extra special tokens": (
        False,
        {"tokenizer_config.json": {"additional_special_tokens": ["<think>", "<pad>", "</s>"]}},
    ),
    "extra special tokens with names": (
        False,
        {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "[IMG]"}}},
    ),
    "an ordinary token named as special": (False, {"tokenizer_config.json": {"eos_token": "the"}}),
    "special tokens are split": (False, {"tokenizer_config.json": {"split_special_tokens": True}}),
    "truncation and padding": (False, {"tokenizer.json": {"truncation": True, "padding": True}}),
}


def write_folder(folder: Path, name: str) -> None:
    """The tokenizer's files of a case."""
    adds_bos, files = FOLDERS[name]
    tokenizer: Tokenizer = tiny.byte_level_tokenizer(adds_bos)
    if "tokenizer.json" in files:
        tokenizer.enable_truncation(3)
        tokenizer.enable_padding(length=12, pad_token="<s>")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for file, content in files.items():
        if file != "tokenizer.json":
            (folder / file).write_text(json.dumps(content))


# ---- chat templates -------------------------------------------------------------------------------

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a town <b>now</b>",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string"}},
                "required": ["town"],
            },
        },
    }
]
CALL = {
    "type": "function",
    "id": "call12345",
    "function": {"name": "weather", "arguments": {"town": "Zürich"}},
}
TALKS: dict[str, dict[str, Any]] = {
    "one message": {"messages": [{"role": "user", "content": "  hello <b>é</b> "}]},
    "with a system message": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "ho\n"},
            {"role": "user", "content": "and?"},
        ]
    },
    "no prompt for an answer": {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        "add_generation_prompt": False,
    },
    "with tools": {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS},
    "a tool was called": {
        "messages": [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "name": "weather", "content": '{"sky": "blue"}', "tool_call_id": "call12345"},
        ],
        "tools": TOOLS,
    },
    "with documents": {
        "messages": [{"role": "user", "content": "hi"}],
        "documents": [{"title": "T", "text": "a & b"}],
    },
    "reasoning, and a variable": {
        "messages": [
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "<think>\nadd\n</think>\n\n2", "thinking": "add"},
            {"role": "user", "content": "and?"},
        ],
        "enable_thinking": False,
    },
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
}
