"""Lab 5: wrong and odd solutions, and the diagnosis of each wrong one."""

from corpus.variants import Rewrite, Slip

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
        {"5.4": "both rules are about the newest"},
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
    Slip("ages are rounded", "- int((now", "- round((now", {"5.1": "the age is rounded"}),
    Slip(
        "waits alone",
        " and sequence.is_prefilling and len(self.running) > 1:",
        " and sequence.is_prefilling:",
        {"5.4": "although it runs alone"},
    ),
    Slip(
        "preempts once",
        "while needed and plan.num_blocks",
        "if needed and plan.num_blocks",
        {"5.4": "look again"},
    ),
    Slip("nothing counted", "        plan.take(sequence, needed)\n", "", {"5.4": "call `plan.take`"}),
    Slip(
        "decode without the newest token",
        "plan, sequence, sequence.num_computed_tokens + 1",
        "plan, sequence, sequence.num_computed_tokens",
        {"5.5": "no room is made for the newest token"},
    ),
    Slip(
        "copies of full blocks",
        "self._copies(sequence) if is_last else 0",
        "sequence.num_forks if is_last else 0",
        {"5.3": "although the last block is full"},
    ),
    Slip(
        "copies in every chunk",
        "self._copies(sequence) if is_last else 0",
        "self._copies(sequence)",
        {"5.3": "only the last needs them"},
    ),
    Slip(
        "a full chunk if there is no room",
        "size = room if room > 0 else min(size, block_size)",
        "size = room if room > 0 else size",
        {"5.3": "a full chunk is tried"},
    ),
    Slip(
        "room of other sequences",
        "self._memory.available - plan.num_blocks) * block_size",
        "self._memory.available) * block_size",
        {"5.3": "taken for room"},
    ),
    Slip(
        "no room for the next token",
        "blocks_for(sequence.num_tokens + 1, size)",
        "blocks_for(sequence.num_tokens, size)",
        {"5.6": "no room for the first output token"},
    ),
    Slip(
        "headroom for idle engines",
        "if left < self._headroom() and (self.running or left < 0):",
        "if left < max(self._headroom(), 2):",
        {"5.6": "even if no sequence runs"},
    ),
    Slip(
        "anything if idle",
        "if left < self._headroom() and (self.running or left < 0):",
        "if left < self._headroom() and self.running:",
        {"5.6": "it must fit even then"},
    ),
]

ORDER = [
    Rewrite(
        "ranks kept by id",
        """
_RANKS = {}

def rank(sequence, now):
    if id(sequence) not in _RANKS:
        age = int((now - sequence.arrival) / AGING_SECONDS)
        _RANKS[id(sequence)] = sequence, (sequence.params.priority - age, sequence.order, sequence.index)
    return _RANKS[id(sequence)][1]
""",
        {"5.1": "kept from an earlier time"},
    ),
    Rewrite(
        "rank with a floor",
        """
def rank(sequence, now):
    age = (now - sequence.arrival) // AGING_SECONDS
    return (sequence.params.priority - age, sequence.order, sequence.index)
""",
    ),
    Rewrite(
        "rank counted in a loop",
        """
def rank(sequence, now):
    priority, waited = sequence.params.priority, now - sequence.arrival
    while waited >= AGING_SECONDS:
        priority, waited = priority - 1, waited - AGING_SECONDS
    return priority, sequence.order, sequence.index
""",
    ),
    Rewrite(
        "rank as a named tuple",
        """
import math
from typing import NamedTuple

class Rank(NamedTuple):
    level: int
    order: int
    index: int

def rank(sequence, now):
    level = sequence.params.priority - math.floor((now - sequence.arrival) / AGING_SECONDS)
    return Rank(level, sequence.order, sequence.index)
""",
    ),
    Rewrite(
        "first of all by sorting",
        """
def first(self, now):
    everyone = [sequence for line in self._lines.values() for sequence in line]
    return sorted(everyone, key=lambda r: rank(r, now))[0] if everyone else None

WaitingLine.first = first
""",
    ),
    Rewrite(
        "first in a loop",
        """
def first(self, now):
    best = None
    for priority in sorted(self._lines):
        head = self._lines[priority][0]
        if best is None or rank(head, now) < rank(best, now):
            best = head
    return best

WaitingLine.first = first
""",
    ),
    Rewrite(
        "first with a heap",
        """
import heapq

def first(self, now):
    heap = [(rank(line[0], now), i, line[0]) for i, line in enumerate(self._lines.values())]
    heapq.heapify(heap)
    return heap[0][-1] if heap else None

WaitingLine.first = first
""",
    ),
    Rewrite(
        "first that removes",
        """
def first(self, now):
    heads = [line[0] for line in self._lines.values()]
    best = min(heads, key=lambda r: rank(r, now), default=None)
    if best is not None:
        self.remove(best)
    return best

WaitingLine.first = first
""",
        {"5.2": "`first` only looks"},
    ),
    Rewrite(
        "first that is kept",
        """
def first(self, now):
    found = getattr(self, "_found", None)
    if found is None or not any(found in line for line in self._lines.values()):
        found = min((line[0] for line in self._lines.values()), key=lambda r: rank(r, now), default=None)
        self._found = found
    return found

WaitingLine.first = first
""",
        {"5.2": "an earlier answer is kept"},
    ),
]
CHUNKS = [
    Rewrite(
        "chunk counted as computed",
        """
def _prefill(self, plan, sequence, budget):
    start, total = sequence.num_computed_tokens, sequence.num_tokens
    size = min(self._config.prefill_chunk, budget, total - start)
    block_size = self._memory.pool.block_size
    free = self._memory.available - plan.num_blocks
    room = (len(sequence.block_table.block_ids) + free) * block_size - start
    if room < size:
        size = room if room > 0 else min(size, block_size)
    if not self._fits(plan, sequence, start + size, self._copies(sequence) if start + size == total else 0):
        return 0
    plan.prefill.append(Chunk(sequence, start, start + size))
    sequence.num_computed_tokens = start + size
    return size

Scheduler._prefill = _prefill
""",
        {"5.3": "counted as computed"},
    ),
    Rewrite(
        "chunk by bounds in a list",
        """
def _prefill(self, plan, sequence, budget):
    start, block_size = sequence.num_computed_tokens, self._memory.pool.block_size
    bounds = [self._config.prefill_chunk, budget, sequence.num_tokens - start]
    free = self._memory.available - plan.num_blocks
    room = (len(sequence.block_table.block_ids) + free) * block_size - start
    bounds.append(room if room > 0 else block_size)
    end = start + min(bounds)
    forks = self._copies(sequence) * (end == sequence.num_tokens)
    if self._fits(plan, sequence, end, forks):
        plan.prefill += [Chunk(sequence, start, end)]
        return end - start
    return 0

Scheduler._prefill = _prefill
""",
    ),
    Rewrite(
        "chunk that grows token by token",
        """
def _prefill(self, plan, sequence, budget):
    start, total = sequence.num_computed_tokens, sequence.num_tokens
    most = min(self._config.prefill_chunk, budget, total - start)
    end = start
    while end < start + most:
        needed = self._memory.shortage(sequence, end + 1)
        if needed and needed + plan.num_blocks > self._memory.available:
            break
        end += 1
    if end == start:
        end = start + min(most, self._memory.pool.block_size)
    extra = 0
    if end == total:
        extra = self._copies(sequence)
    fits = self._fits(plan, sequence, end, forks=extra)
    if fits:
        plan.prefill.append(Chunk(sequence=sequence, start=start, end=end))
    return end - start if fits else 0

Scheduler._prefill = _prefill
""",
    ),
    Rewrite(
        "chunk with a helper",
        """
def _room(self, plan, sequence):
    owned = len(sequence.block_table.block_ids) * self._memory.pool.block_size
    free = (self._memory.available - plan.num_blocks) * self._memory.pool.block_size
    return owned - sequence.num_computed_tokens + free

def _prefill(self, plan, sequence, budget):
    rest = sequence.num_tokens - sequence.num_computed_tokens
    size, room = min(rest, budget, self._config.prefill_chunk), self._room(plan, sequence)
    if 0 < room < size:
        size = room
    elif room <= 0:
        size = min(size, self._memory.pool.block_size)
    chunk = Chunk(sequence, sequence.num_computed_tokens, sequence.num_computed_tokens + size)
    forks = 0 if size < rest else self._copies(sequence)
    if not self._fits(plan, sequence, chunk.end, forks):
        return 0
    plan.prefill.append(chunk)
    return size

Scheduler._room = _room
Scheduler._prefill = _prefill
""",
    ),
]
FITS = [
    Rewrite(
        "fits by recursion",
        """
def _fits(self, plan, sequence, num_tokens, forks=0):
    needed = self._memory.shortage(sequence, num_tokens) + forks
    if not needed or needed <= self._memory.available - plan.num_blocks:
        plan.take(sequence, needed)
        return True
    newest = self.running[-1]
    if newest is not sequence:
        self._preempt(plan, newest)
        return self._fits(plan, sequence, num_tokens, forks)
    if not (sequence.is_prefilling and len(self.running) > 1):
        self._preempt(plan, sequence)
    return False

Scheduler._fits = _fits
""",
    ),
    Rewrite(
        "fits with for",
        """
def _fits(self, plan, sequence, num_tokens, forks=0):
    size = self._memory.pool.block_size
    owned = len(sequence.block_table.block_ids)
    needed = max(0, (num_tokens + size - 1) // size - owned) + forks
    for newest in list(reversed(self.running)):
        if needed == 0 or plan.num_blocks + needed <= self._memory.available:
            break
        if newest is sequence and len(self.running) > 1 and sequence.is_prefilling:
            return False
        self._preempt(plan, newest)
        if newest is sequence:
            return False
    plan.take(sequence, needed)
    return True

Scheduler._fits = _fits
""",
    ),
    Rewrite(
        "fits without take",
        """
def _fits(self, plan, sequence, num_tokens, forks=0):
    needed = self._memory.shortage(sequence, num_tokens) + forks
    while needed > 0:
        if self._memory.available >= plan.num_blocks + needed:
            break
        newest = self.running[-1]
        is_self = newest is sequence
        if is_self and sequence.is_prefilling and self.running != [sequence]:
            return False
        self._preempt(plan, newest)
        if is_self:
            return False
    plan.blocks[sequence] = needed
    plan.num_blocks = plan.num_blocks + needed
    return True

Scheduler._fits = _fits
""",
    ),
    Rewrite(
        "preempts all newer ones",
        """
def _fits(self, plan, sequence, num_tokens, forks=0):
    needed = self._memory.shortage(sequence, num_tokens) + forks
    if needed and plan.num_blocks + needed > self._memory.available:
        while self.running[-1] is not sequence:
            self._preempt(plan, self.running[-1])
        if plan.num_blocks + needed > self._memory.available:
            if not sequence.is_prefilling or len(self.running) == 1:
                self._preempt(plan, sequence)
            return False
    plan.take(sequence, needed)
    return True

Scheduler._fits = _fits
""",
        {"5.4": "all newer sequences are preempted"},
    ),
]
STEPS = [
    Rewrite(
        "one plan for all steps",
        """
def schedule(self, now):
    plan = self.__dict__.setdefault("_plan", StepPlan())
    plan.prefill, plan.decode, plan.blocks, plan.num_blocks, plan.preempted = [], [], {}, 0, []
    self._order_running(now)
    prefilling = [r for r in self.running if r.is_prefilling]
    for sequence in [r for r in self.running if not r.is_prefilling]:
        if sequence not in plan.preempted and self._fits(plan, sequence, sequence.num_computed_tokens + 1):
            plan.decode.append(sequence)
    budget = self._config.max_num_batched_tokens - len(plan.decode)
    for sequence in prefilling:
        if budget > 0 and sequence not in plan.preempted:
            budget -= self._prefill(plan, sequence, budget)
    self._admit(plan, budget, now)
    return plan

Scheduler.schedule = schedule
""",
        {"5.5": "the same plan object is returned"},
    ),
    Rewrite(
        "schedule over the list itself",
        """
def schedule(self, now):
    plan = StepPlan()
    self.current = None
    self._order_running(now)
    for sequence in self.running:
        if not sequence.is_prefilling and self._fits(plan, sequence, sequence.num_computed_tokens + 1):
            plan.decode.append(sequence)
    budget = self._config.max_num_batched_tokens - len(plan.decode)
    for sequence in self.running:
        if sequence.is_prefilling and budget > 0:
            budget -= self._prefill(plan, sequence, budget)
    self._admit(plan, budget, now)
    self.current = None
    return plan

Scheduler.schedule = schedule
""",
    ),
    Rewrite(
        "schedule by index",
        """
def schedule(self, now):
    plan, i = StepPlan(), 0
    self._order_running(now)
    while i < len(self.running):
        sequence = self.running[i]
        if not sequence.is_prefilling:
            if self._fits(plan, sequence, sequence.num_computed_tokens + 1):
                plan.decode.append(sequence)
        i += 1
    left, i = self._config.max_num_batched_tokens - plan.num_rows, 0
    while left > 0 and i < len(self.running):
        if self.running[i].is_prefilling:
            left -= self._prefill(plan, self.running[i], left)
        i += 1
    self._admit(plan, left, now)
    self.current = None
    return plan

Scheduler.schedule = schedule
""",
    ),
    Rewrite(
        "schedule from sets",
        """
def schedule(self, now):
    plan = StepPlan(prefill=[], decode=[], blocks={}, num_blocks=0, preempted=[])
    self._order_running(now)
    order = tuple(self.running)
    begun = {id(r) for r in order if r.is_prefilling}
    for r in order:
        if id(r) not in begun and r in self.running and self._fits(plan, r, 1 + r.num_computed_tokens):
            plan.decode += [r]
    for r in order:
        left = self._config.max_num_batched_tokens - plan.num_rows
        if id(r) in begun and r in self.running and left > 0:
            self._prefill(plan, r, left)
    self._admit(plan, self._config.max_num_batched_tokens - plan.num_rows, now)
    self.current = None
    return plan

Scheduler.schedule = schedule
""",
    ),
    Rewrite(
        "start that takes first",
        """
def _start(self, plan, sequence):
    found = self._memory.match(sequence)
    size = self._memory.pool.block_size
    needed = blocks_for(sequence.num_tokens + 1, size) - len(found) + self._copies(sequence)
    left = self._memory.available_without(found) - plan.num_blocks - needed
    self._memory.start_from(sequence, found)
    return left >= self._headroom() or (not self.running and left >= 0)

Scheduler._start = _start
""",
        {"5.6": "first look, then take"},
    ),
    Rewrite(
        "start with a lower bound",
        """
def _start(self, plan, sequence):
    found = self._memory.match(sequence)
    required = self._headroom() if self.running else 0
    required += blocks_for(sequence.num_tokens + 1, self._memory.pool.block_size)
    required += self._copies(sequence) + plan.num_blocks
    if self._memory.available_without(found) + len(found) >= required:
        self._memory.start_from(sequence, found)
        return True
    return False

Scheduler._start = _start
""",
    ),
    Rewrite(
        "start that counts unused blocks",
        """
def _start(self, plan, sequence):
    memory = self._memory
    found = memory.match(sequence)
    unused = sum(1 for block in found if memory.cache.is_unused(block))
    free = memory.pool.num_free + memory.num_unused - unused - plan.num_blocks
    tokens = sequence.num_tokens + 1 - len(found) * memory.pool.block_size
    free -= blocks_for(tokens, memory.pool.block_size) + self._copies(sequence)
    room = free >= self._headroom() if self.running else free >= 0
    if room:
        memory.start_from(sequence, found)
    return room

Scheduler._start = _start
""",
    ),
    Rewrite(
        "start that looks twice",
        """
def _start(self, plan, sequence):
    def left():
        found = self._memory.match(sequence)
        needed = blocks_for(sequence.num_tokens + 1, self._memory.pool.block_size) - len(found)
        return self._memory.available_without(found) - needed - self._copies(sequence) - plan.num_blocks

    if left() < (self._headroom() if len(self.running) else 0):
        return False
    self._memory.start_from(sequence, self._memory.match(sequence))
    return True

Scheduler._start = _start
""",
    ),
]
COSTS = [
    Rewrite(
        "rank counted in seconds",
        """
def rank(sequence, now):
    age = sum(1 for second in range(1, int(now - sequence.arrival) + 1) if second % AGING_SECONDS == 0)
    return sequence.params.priority - age, sequence.order, sequence.index
""",
        {"5.1": "lines of Python run for an age of 300 steps"},
    ),
    Rewrite(
        "rank of a deep copy",
        """
import copy

def rank(sequence, now):
    mine = copy.deepcopy(sequence)
    mine.params = sequence.params
    return mine.params.priority - int((now - mine.arrival) / AGING_SECONDS), mine.order, mine.index
""",
        {"5.1": "lines of Python run for an age of 300 steps"},
    ),
    Rewrite(
        "rank with a copy of the tokens",
        """
def rank(sequence, now):
    tokens = sequence.prompt_token_ids + sequence.output_token_ids
    age = int((now - sequence.arrival) / AGING_SECONDS)
    return sequence.params.priority - age * (len(tokens) > 0), sequence.order, sequence.index
""",
        {"5.1": "bytes are needed at once for an age of 300 steps"},
    ),
    Rewrite(
        "rank with a list of the steps",
        """
def rank(sequence, now):
    steps, since = [], sequence.arrival + AGING_SECONDS
    while since <= now:
        steps.append((since, sequence.order))
        since += AGING_SECONDS
    return sequence.params.priority - len(steps), sequence.order, sequence.index
""",
    ),
    Rewrite(
        "rank by recursion",
        """
def rank(sequence, now):
    if now - sequence.arrival < AGING_SECONDS:
        return sequence.params.priority, sequence.order, sequence.index
    level, *rest = rank(sequence, now - AGING_SECONDS)
    return (level - 1, *rest)
""",
    ),
    Rewrite(
        "first of all compared with all",
        """
def first(self, now):
    everyone = []
    for line in self._lines.values():
        everyone.extend(line)
    for sequence in reversed(everyone):
        beaten = [other for other in everyone if rank(other, now) < rank(sequence, now)]
        if not beaten:
            return sequence
    return None

WaitingLine.first = first
""",
        {"5.2": "lines of Python run for 400 sequences"},
    ),
    Rewrite(
        "first by selection sort",
        """
def first(self, now):
    rest, order = [sequence for line in self._lines.values() for sequence in line], []
    while rest:
        order.append(min(rest, key=lambda r: rank(r, now)))
        rest.remove(order[-1])
    return order[0] if order else None

WaitingLine.first = first
""",
        {"5.2": "lines of Python run for 400 sequences"},
    ),
    Rewrite(
        "first with a copy of the line for each",
        """
def first(self, now):
    ranked = []
    for line in self._lines.values():
        for i in range(len(line)):
            ahead = line[:i]
            ranked.append((rank(line[len(ahead)], now), i, line[len(ahead)]))
    return min(ranked)[2] if ranked else None

WaitingLine.first = first
""",
        {"5.2": "all of a waiting line is read more than 20 times"},
    ),
    Rewrite(
        "first by a comparison",
        """
from functools import cmp_to_key

def first(self, now):
    def compare(left, right):
        mine, other = rank(left, now), rank(right, now)
        return (mine > other) - (mine < other)

    everyone = sum(self._lines.values(), [])
    everyone = sorted(everyone, key=cmp_to_key(compare))
    return everyone[0] if everyone else None

WaitingLine.first = first
""",
    ),
    Rewrite(
        "chunk end searched in the whole sequence",
        """
def _prefill(self, plan, sequence, budget):
    start, total = sequence.num_computed_tokens, sequence.num_tokens
    block_size = self._memory.pool.block_size
    blocks = len(sequence.block_table.block_ids) + self._memory.available - plan.num_blocks
    most = start + min(self._config.prefill_chunk, budget)
    ends = [end for end in range(start + 1, total + 1) if end <= most]
    fitting = [end for end in ends if end <= blocks * block_size]
    end = max(fitting) if fitting else min(ends[-1], start + block_size)
    if not self._fits(plan, sequence, end, self._copies(sequence) if end == total else 0):
        return 0
    plan.prefill.append(Chunk(sequence, start, end))
    return end - start

Scheduler._prefill = _prefill
""",
        {"5.3": "lines of Python run for a chunk of 64 tokens"},
    ),
    Rewrite(
        "chunk with a copy of the prompt for each token",
        """
def _prefill(self, plan, sequence, budget):
    start, size = sequence.num_computed_tokens, 0
    block_size = self._memory.pool.block_size
    blocks = len(sequence.block_table.block_ids) + self._memory.available - plan.num_blocks
    room = blocks * block_size - start
    room = room if room > 0 else block_size
    while size < min(self._config.prefill_chunk, budget, room):
        tokens = sequence.prompt_token_ids + sequence.output_token_ids
        if start + size == len(tokens):
            break
        size += 1
    forks = self._copies(sequence) if start + size == sequence.num_tokens else 0
    if not self._fits(plan, sequence, start + size, forks):
        return 0
    plan.prefill.append(Chunk(sequence, start, start + size))
    return size

Scheduler._prefill = _prefill
""",
        {"5.3": "all of the prompt is read more than 20 times"},
    ),
    Rewrite(
        "chunk with one copy of all tokens",
        """
def _prefill(self, plan, sequence, budget):
    start, tokens = sequence.num_computed_tokens, sequence.prompt_token_ids + sequence.output_token_ids
    total, block_size = len(tokens), self._memory.pool.block_size
    size = len(tokens[start:][: min(self._config.prefill_chunk, budget)])
    taken = sum(plan.blocks[other] for other in self.running if other in plan.blocks)
    room = (len(sequence.block_table.block_ids) + self._memory.available - taken) * block_size - start
    if room < size:
        size = room if room > 0 else min(size, block_size)
    if not self._fits(plan, sequence, start + size, self._copies(sequence) if start + size == total else 0):
        return 0
    plan.prefill.append(Chunk(sequence, start, start + size))
    return size

Scheduler._prefill = _prefill
""",
    ),
    Rewrite(
        "fits with a search for the newest",
        """
def _fits(self, plan, sequence, num_tokens, forks=0):
    needed = self._memory.shortage(sequence, num_tokens) + forks
    while needed and plan.num_blocks + needed > self._memory.available:
        newest = max(self.running, key=lambda r: r.rank)
        if newest is sequence and sequence.is_prefilling and len(self.running) > 1:
            return False
        self._preempt(plan, newest)
        if newest is sequence:
            return False
    plan.take(sequence, needed)
    return True

Scheduler._fits = _fits
""",
        {"5.4": "lines of Python run for 400 running sequences"},
    ),
    Rewrite(
        "fits with a copy for each victim",
        """
def _fits(self, plan, sequence, num_tokens, forks=0):
    needed = self._memory.shortage(sequence, num_tokens) + forks
    while needed and plan.num_blocks + needed > self._memory.available:
        newest, *older = reversed(self.running)
        if newest is sequence and sequence.is_prefilling and older:
            return False
        self._preempt(plan, newest)
        if newest is sequence:
            return False
    plan.take(sequence, needed)
    return True

Scheduler._fits = _fits
""",
        {"5.4": "all of the list of running sequences is read more than 20 times"},
    ),
    Rewrite(
        "fits with victims sorted first",
        """
def _fits(self, plan, sequence, num_tokens, forks=0):
    victims = sorted(list(self.running), key=lambda r: r.rank)
    while True:
        needed = self._memory.shortage(sequence, num_tokens) + forks
        if needed == 0 or plan.num_blocks + needed <= self._memory.available:
            plan.take(sequence, needed)
            return True
        newest = victims.pop()
        if newest is sequence and sequence.is_prefilling and victims:
            return False
        self._preempt(plan, newest)
        if newest is sequence:
            return False

Scheduler._fits = _fits
""",
    ),
    Rewrite(
        "schedule with a new order for each",
        """
def schedule(self, now):
    plan, self.current = StepPlan(), None
    self._order_running(now)
    done = 0
    while done < len(self.running):
        waiting = [r for r in self.running if not r.is_prefilling and r not in plan.blocks]
        if not waiting:
            break
        sequence = min(waiting, key=lambda r: r.rank)
        if self._fits(plan, sequence, sequence.num_computed_tokens + 1):
            plan.decode.append(sequence)
        done += 1
    budget = self._config.max_num_batched_tokens - len(plan.decode)
    for sequence in [r for r in self.running if r.is_prefilling]:
        if budget > 0 and sequence not in plan.preempted:
            budget -= self._prefill(plan, sequence, budget)
    self._admit(plan, budget, now)
    self.current = None
    return plan

Scheduler.schedule = schedule
""",
        {"5.5": "lines of Python run for 1,020 running sequences"},
    ),
    Rewrite(
        "schedule with a copy for each",
        """
def schedule(self, now):
    plan, i = StepPlan(), 0
    self._order_running(now)
    while i < len(self.running):
        sequence = tuple(self.running)[i]
        if not sequence.is_prefilling:
            if self._fits(plan, sequence, sequence.num_computed_tokens + 1):
                plan.decode.append(sequence)
        i += 1
    left = self._config.max_num_batched_tokens - len(plan.decode)
    for sequence in tuple(self.running):
        if sequence.is_prefilling and sequence not in plan.preempted and left > 0:
            left -= self._prefill(plan, sequence, left)
    self._admit(plan, left, now)
    self.current = None
    return plan

Scheduler.schedule = schedule
""",
        {"5.5": "all of the list of running sequences is read more than 20 times"},
    ),
    Rewrite(
        "schedule with sorted copies",
        """
def schedule(self, now):
    plan = StepPlan()
    self._order_running(now)
    by_rank = sorted(self.running, key=lambda r: rank(r, now))
    decoding = sorted((r for r in by_rank if not r.is_prefilling), key=lambda r: rank(r, now))
    started = [r for r in list(by_rank) if r not in decoding]
    for r in decoding:
        if r in self.running and self._fits(plan, r, r.num_computed_tokens + 1):
            plan.decode = plan.decode + [r]
    left = self._config.max_num_batched_tokens - plan.num_rows
    for r in started:
        if r in self.running and left > 0:
            left -= self._prefill(plan, r, left)
    self._admit(plan, left, now)
    self.current = None
    return plan

Scheduler.schedule = schedule
""",
    ),
    Rewrite(
        "start with the headroom of each",
        """
def _start(self, plan, sequence):
    found = self._memory.match(sequence)
    size = self._memory.pool.block_size
    needed = blocks_for(sequence.num_tokens + 1, size) - len(found) + self._copies(sequence)
    left = self._memory.available_without(found) - plan.num_blocks - needed
    enough = all(left >= self._headroom() for _ in self.running)
    if left < 0 or not enough:
        return False
    self._memory.start_from(sequence, found)
    return True

Scheduler._start = _start
""",
        {"5.6": "lines of Python run for 300 running sequences"},
    ),
    Rewrite(
        "start that matches for each block",
        """
def _start(self, plan, sequence):
    count = 0
    while count < len(self._memory.match(sequence)):
        count += 1
    needed = blocks_for(sequence.num_tokens + 1, self._memory.pool.block_size) + self._copies(sequence)
    found = self._memory.match(sequence)[:count]
    left = self._memory.available_without(found) - plan.num_blocks - needed + count
    if left < (self._headroom() if self.running else 0):
        return False
    self._memory.start_from(sequence, found)
    return True

Scheduler._start = _start
""",
        {"5.6": "lines of Python run for 300 running sequences"},
    ),
    Rewrite(
        "start that looks three times",
        """
def _start(self, plan, sequence):
    needed = blocks_for(sequence.num_tokens + 1, self._memory.pool.block_size) + self._copies(sequence)
    needed -= len(self._memory.match(sequence))
    rest = self._memory.available_without(self._memory.match(sequence)) - plan.num_blocks - needed
    found = list(self._memory.match(sequence))
    if self.running and rest < self._headroom() or rest < 0:
        return False
    self._memory.start_from(sequence, found)
    return True

Scheduler._start = _start
""",
    ),
]
REWRITES = [*ORDER, *CHUNKS, *FITS, *STEPS, *COSTS]
