"""Lab 3: one-line mistakes in the finished file, and the diagnosis of each."""

from wrong.slips import Slip

SLIPS = [
    Slip("rounded down", "-(-num_tokens // block_size)", "num_tokens // block_size", {"3.1": "rounded down"}),
    Slip(
        "a block too many",
        "-(-num_tokens // block_size)",
        "num_tokens // block_size + 1",
        {"3.1": "one block too many"},
    ),
    Slip(
        "slots ignore the block table",
        "return [block_table[pos // block_size] * block_size + pos % block_size for pos in positions]",
        "return list(positions)",
        {"3.2": "slot ignores the block table"},
    ),
    Slip(
        "block id as a slot",
        "[pos // block_size] * block_size + pos",
        "[pos // block_size] + pos",
        {"3.2": "not multiplied by block_size"},
    ),
    Slip(
        "grows by everything",
        " - len(self.block_ids)\n",
        "\n",
        {"3.3": "grow allocates for all tokens again"},
    ),
    Slip(
        "grows one by one",
        "self.block_ids += self._pool.allocate(missing)",
        "for _ in range(missing):\n                self.block_ids += self._pool.allocate(1)",
        {"3.3": "a failed grow keeps the blocks"},
    ),
    Slip(
        "grows a block early",
        "missing = blocks_for(num_tokens, self._pool",
        "missing = blocks_for(num_tokens + 1, self._pool",
        {"3.3": "as soon as the last one is full"},
    ),
    Slip(
        "fork shares the partial block",
        "num_full, rest = divmod(num_tokens, self._pool.block_size)",
        "num_full, rest = len(self.block_ids), 0",
        {"3.4": "the last, partly full block is shared"},
    ),
    Slip(
        "fork adds no owner",
        "        self._pool.share(self.block_ids[:num_full])\n",
        "",
        {"3.4": "no second owner"},
    ),
    Slip(
        "fork asks for no copy",
        "((self.block_ids[num_full], own[0]) if own else None)",
        "None",
        {"3.4": "the fork's own block is empty"},
    ),
    Slip(
        "positions restart in the second chunk",
        "SequenceRows(tokens, chunk.start, ",
        "SequenceRows(tokens, 0, ",
        {"3.5": "positions restart at 0"},
    ),
    Slip(
        "the prompt read from its beginning",
        "request.tokens(chunk.start, chunk.end)",
        "request.tokens(0, chunk.end - chunk.start)",
        {"3.5": "reads the prompt from its beginning"},
    ),
    Slip(
        "prefill notes no progress",
        "chunk.request.num_computed_tokens = chunk.end",
        "pass",
        {"3.5": "num_computed_tokens stays where it was"},
    ),
    Slip(
        "decode does not advance",
        "request.num_computed_tokens += 1",
        "pass",
        {"3.6": "num_computed_tokens does not grow"},
    ),
    Slip(
        "decode runs the first token again",
        "request.output_token_ids[-1:], position",
        "request.output_token_ids[:1], position",
        {"3.6": "the first output token"},
    ),
    Slip(
        "position one too high",
        "position = request.num_computed_tokens\n",
        "position = request.num_computed_tokens + 1\n",
        {"3.6": "the position is one too high"},
    ),
    Slip(
        "decode forgets to grow",
        "        request.block_table.grow(position + 1)\n",
        "",
        {"3.6": "the table does not grow"},
    ),
]
