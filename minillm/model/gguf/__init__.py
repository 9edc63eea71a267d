"""GGUF files, as llama.cpp writes them, turned into model folders in Hugging Face layout.

header.py         what a file declares: metadata and where each tensor lies
architecture.py   metadata -> config.json
vocabulary.py     metadata -> tokenizer.json and the names of special tokens
pretokenizers.py  the split rules that llama.cpp knows by name
blocks.py         quantised blocks -> float32 numbers
layout.py         which tensor becomes which, and how its rows are ordered
convert.py        all of it, streamed into a folder that appears complete or not at all
"""
