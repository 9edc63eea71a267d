"""Lab 5: one-line mistakes in the finished file, and the diagnosis of each."""

from corpus.variants import Slip

SLIPS = [
    Slip(
        "a larger priority first",
        "        sequence.params.priority - int(",
        "        -sequence.params.priority - int(",
        {"5.1": "the larger priority goes first"},
    ),
    Slip(
        "no aging",
        "int((now - sequence.arrival) / AGING_SECONDS)",
        "0",
        {"5.1": "there is no aging"},
    ),
    Slip(
        "fractions of an age",
        "int((now - sequence.arrival) / AGING_SECONDS)",
        "(now - sequence.arrival) / AGING_SECONDS",
        {"5.1": "age counts in whole steps"},
    ),
    Slip(
        "the newest of a line",
        "heads = [line[0] for",
        "heads = [line[-1] for",
        {"5.2": "the newest of a line"},
    ),
    Slip("nobody is unexpected", ", default=None)", ")", {"5.2": "it fails if no sequence waits"}),
    Slip(
        "by the rank of long ago",
        "key=lambda r: rank(r, now)",
        "key=lambda r: r.rank",
        {"5.2": "from an earlier step"},
    ),
    Slip(
        "no chunks",
        "size = min(self._config.prefill_chunk, budget, total - start)",
        "size = min(budget, total - start)",
        {"5.3": "the prompt is not cut"},
    ),
    Slip(
        "the prompt alone",
        "start, total = sequence.num_computed_tokens, sequence.num_tokens",
        "start, total = sequence.num_computed_tokens, len(sequence.prompt_token_ids)",
        {"5.3": "must also recompute its answer"},
    ),
    Slip(
        "a full chunk or nothing",
        "if room < size:",
        "if False:",
        {"5.3": "a shorter chunk would fit"},
    ),
    Slip(
        "no blocks for the copies",
        "self._copies(sequence) if is_last else 0",
        "0",
        {"5.3": "blocks for the copies of the other samples"},
    ),
    Slip(
        "the chunk's size kept secret",
        "        return size\n",
        "        return 0\n",
        {"5.3": "is not returned"},
    ),
    Slip(
        "the oldest goes",
        "newest = self.running[-1]",
        "newest = self.running[0]",
        {"5.4": "the oldest is preempted"},
    ),
    Slip(
        "no waiting",
        "if newest is sequence and sequence.is_prefilling and len(self.running) > 1:",
        "if False:",
        {"5.4": "it can wait and keep"},
    ),
    Slip(
        "blocks promised twice",
        "plan.num_blocks + needed >",
        "needed >",
        {"5.4": "blocks are counted twice"},
    ),
    Slip(
        "the cache's unused blocks left out",
        "needed > self._memory.available:",
        "needed > self._memory.pool.num_free:",
        {"5.4": "unused blocks of the prefix cache"},
    ),
    Slip(
        "decode is free",
        "budget = self._config.max_num_batched_tokens - len(plan.decode)",
        "budget = self._config.max_num_batched_tokens",
        {"5.5": "not subtracted from the budget"},
    ),
    Slip(
        "the preempted runs on",
        "            if sequence not in plan.preempted and self._fits(",
        "            if self._fits(",
        {"5.5": "preempted in the same step"},
    ),
    Slip(
        "static batches",
        "        self._admit(plan, budget, now)\n",
        "        if not self.running:\n            self._admit(plan, budget, now)\n",
        {"5.5": "this is static batching"},
    ),
    Slip(
        "ranks of long ago",
        "        self._order_running(now)\n",
        "",
        {"5.5": "the ranks are those of admission"},
    ),
    Slip(
        "no headroom",
        "if left < self._headroom() and (self.running or left < 0):",
        "if left < 0:",
        {"5.6": "no headroom"},
    ),
    Slip(
        "found blocks counted twice",
        "left = self._memory.available_without(found) -",
        "left = self._memory.available -",
        {"5.6": "`available_without`"},
    ),
    Slip(
        "the plan forgotten at the door",
        " - plan.num_blocks - needed",
        " - needed",
        {"5.6": "already counted are counted as available"},
    ),
    Slip(
        "found and not taken",
        "        self._memory.start_from(sequence, found)\n",
        "",
        {"5.6": "the found blocks are not used"},
    ),
]
