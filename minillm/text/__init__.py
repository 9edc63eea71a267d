"""Text in and text out: tokenizer, chat template, streaming detokenizer."""
