"""Lab 3: one-line mistakes in the finished file, and the diagnosis of each."""

from corpus.variants import Slip

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
        {"3.2": "the block table is ignored"},
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
        {"3.3": "grow allocates blocks for all tokens again"},
    ),
    Slip(
        "grows one by one",
        "self.block_ids += self._pool.allocate(missing)",
        "for _ in range(missing):\n                self.block_ids += self._pool.allocate(1)",
        {"3.3": "a failed grow keeps some blocks"},
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
        "            self._pool.share(self.block_ids[:num_full])\n",
        "            pass\n",
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
        "SequenceRows(chunk.token_ids, chunk.start, ",
        "SequenceRows(chunk.token_ids, 0, ",
        {"3.5": "positions restart at 0"},
    ),
    Slip(
        "only the last token of a chunk",
        "SequenceRows(chunk.token_ids, chunk.start, ",
        "SequenceRows(chunk.token_ids[-1:], chunk.end - 1, ",
        {"3.5": "only the chunk's last token is run"},
    ),
    Slip(
        "a pass for each chunk",
        "    batch = [SequenceRows(chunk.token_ids, chunk.start, chunk.block_table) for chunk in chunks]\n"
        "    return runner.last_logits(batch)",
        "    batch = [SequenceRows(chunk.token_ids, chunk.start, chunk.block_table) for chunk in chunks]\n"
        "    return __import__('torch').cat([runner.last_logits([rows]) for rows in batch])",
        {"3.5": "one run of the model for each chunk"},
    ),
    Slip(
        "the first chunk's blocks for all",
        "chunk.start, chunk.block_table) for chunk",
        "chunk.start, chunks[0].block_table) for chunk",
        {"3.5": "all chunks use the first chunk's block table"},
    ),
    Slip(
        "logits of every row",
        "chunk.block_table) for chunk in chunks]\n    return runner.last_logits(batch)",
        "chunk.block_table) for chunk in chunks]\n    return runner.all_logits(batch)",
        {"3.5": "logits of every token are returned"},
    ),
    Slip(
        "position one too high",
        "row.position, row.block_table)",
        "row.position + 1, row.block_table)",
        {"3.6": "the position is one too high"},
    ),
    Slip(
        "position one too low",
        "row.position, row.block_table)",
        "row.position - 1, row.block_table)",
        {"3.6": "the position is one too low"},
    ),
    Slip(
        "decode computes everything again",
        "SequenceRows([row.token_id], row.position, row.block_table)",
        "SequenceRows([row.token_id] * (row.position + 1), 0, row.block_table)",
        {"3.6": "the whole sequence is computed again"},
    ),
    Slip(
        "the last block only",
        "row.position, row.block_table)",
        "row.position, row.block_table[-1:])",
        {"3.6": "the table is cut to its last block"},
    ),
    Slip(
        "the first row's blocks for all",
        "row.position, row.block_table)",
        "row.position, rows[0].block_table)",
        {"3.6": "all rows use the first row's block table"},
    ),
    Slip(
        "a pass for each sequence",
        "row.block_table) for row in rows]\n    return runner.last_logits(batch)",
        "row.block_table) for row in rows]\n"
        "    return __import__('torch').cat([runner.last_logits([rows]) for rows in batch])",
        {"3.6": "one run of the model for each sequence"},
    ),
]
