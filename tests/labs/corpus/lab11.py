"""Lab 11: wrong solutions with their diagnoses, and odd but right ones."""

from corpus.variants import Rewrite, Slip

SLIPS = [
    Slip(
        "no owner",
        "return Scope(envelope, tenant, ",
        "return Scope(envelope, None, ",
        {"11.1": "the tenant is missing"},
    ),
    Slip("block 0 is none", "if after is not None:", "if after:", {"11.1": "the number 0 of a public block"}),
    Slip(
        "empty is nobody",
        "return Scope(envelope, tenant, ",
        "return Scope(envelope, tenant or None, ",
        {"11.1": "share their blocks: None is"},
    ),
    Slip(
        "seeds of nobody",
        "    if tenant is not None:\n        start ^=",
        "    if False:\n        start ^=",
        {"11.2": "the tenant is missing"},
    ),
    Slip(
        "idle guarantees lent",
        "sum(max(0, member.num_live - member.guaranteed) for member in self.members)",
        "sum(member.num_live - member.guaranteed for member in self.members)",
        {"11.3": "idle guarantees are lent"},
    ),
    Slip("borrows for ever", "if not share.borrows:", "if False:", {"11.3": "look at `borrows`"}),
    Slip(
        "the count forgotten",
        "max(0, share.guarantee_left - count)",
        "share.guarantee_left",
        {"11.4": "`count` is ignored"},
    ),
    Slip(
        "trims the flood",
        "if share.keeps_outside or surplus <= 0 or",
        "if surplus <= 0 or",
        {"11.4": "a share that keeps blocks outside is trimmed"},
    ),
    Slip(
        "age of the whole pool",
        "if count > self.pool.num_free and share.keeps_outside and share.cache:",
        "if count > self.pool.num_free and share.cache:",
        {"11.5": "cached blocks of a guaranteed share go while the flood's stand"},
    ),
    Slip(
        "the order of making",
        "in sorted(self.members, key=lambda share: -share.num_unused):",
        "in self.members:",
        {"11.5": "the share that was made first loses first"},
    ),
    Slip(
        "the prompt only",
        "prompt_len + sequence.max_tokens, len(group)",
        "prompt_len, len(group)",
        {"11.6": "only the prompt counts"},
    ),
    Slip(
        "all tenants count",
        " if s.tenant == sequence.tenant)",
        ")",
        {"11.6": "the blocks of other tenants count"},
    ),
    Slip(
        "overtakes",
        "if sequence.tenant not in self._parked and self._start",
        "if self._start",
        {"11.6": "a request overtakes a parked one"},
    ),
    Slip(
        "one queue",
        "for other in waiting if not config.has_guarantee(other.tenant)]",
        "for other in waiting]",
        {"11.7": "requests of guaranteed tenants fill the shared queue"},
    ),
]


def method(owner: str, name: str, body: str) -> str:
    """Code that defines a method again."""
    return f"{body}\n\n{owner}.{name} = {name}\n"


REWRITES = [
    # --- 11.1, odd but right
    Rewrite(
        "a scope of repr",
        "def block_scope(envelope, tenant, is_long, after):\n"
        "    return Scope(envelope, tenant, repr((is_long, after)))\n",
    ),
    Rewrite(
        "a scope of digits",
        "def block_scope(*fields):\n"
        "    envelope, tenant, is_long, after = fields\n"
        "    number = -1 if after is None else after\n"
        "    return Scope(conditioning=str(2 * number + is_long), envelope=envelope, tenant=tenant)\n",
    ),
    Rewrite(
        "all in the envelope",
        "def block_scope(envelope, tenant, is_long, after):\n"
        "    return Scope(f'{after} {int(is_long)} {envelope}', tenant)\n",
    ),
    # --- 11.2, odd but right
    Rewrite(
        "a digest of repr",
        "def derived_seed(engine_seed, tenant, number):\n"
        "    import hashlib\n"
        "    text = repr((engine_seed, tenant, number)).encode()\n"
        "    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), 'big')\n",
    ),
    Rewrite(
        "the engine's encoding",
        "def derived_seed(engine_seed, tenant, number):\n"
        "    from minillm.memory.encoding import digest\n"
        "    return int(digest([engine_seed, tenant, number])[-8:], 16)\n",
    ),
    Rewrite(
        "Python's generator",
        "def derived_seed(engine_seed, tenant, number):\n"
        "    from random import Random\n"
        "    return Random(f'{engine_seed}/{number}/{tenant!r}').getrandbits(32)\n",
    ),
    # --- 11.2, wrong
    Rewrite(
        "a sum of seeds",
        "def derived_seed(engine_seed, tenant, number):\n"
        "    import zlib\n"
        "    own = 0 if tenant is None else zlib.crc32(tenant.encode()) + 1\n"
        "    return (engine_seed + own + number) % 2**32\n",
        {"11.2": "are added"},
    ),
    # --- 11.3, odd but right
    Rewrite(
        "room in a loop",
        method(
            "Shares",
            "room",
            "def room(self, share):\n"
            "    left = self.common\n"
            "    for other in self.members:\n"
            "        if other.num_live > other.guaranteed:\n"
            "            left -= other.num_live - other.guaranteed\n"
            "    own = share.guaranteed - share.num_live\n"
            "    own = own if own > 0 else 0\n"
            "    return own if not share.borrows or left <= 0 else own + left\n",
        ),
    ),
    Rewrite(
        "room from what is left",
        method(
            "Shares",
            "room",
            "def room(self, share):\n"
            "    live = sum(s.num_live for s in self.members)\n"
            "    idle = sum(s.guarantee_left for s in self.members)\n"
            "    total = self.common + sum(s.guaranteed for s in self.members)\n"
            "    common = max(total - live - idle, 0)\n"
            "    return share.guarantee_left + common * bool(share.borrows)\n",
        ),
    ),
    Rewrite(
        "room with a helper",
        "def beyond(s):\n    return s.num_live - min(s.num_live, s.guaranteed)\n\n\n"
        + method(
            "Shares",
            "room",
            "def room(self, share):\n"
            "    if not share.borrows:\n"
            "        return share.guarantee_left\n"
            "    return share.guarantee_left + max(0, self.common - sum(map(beyond, self.members)))\n",
        ),
    ),
    # --- 11.4, odd but right
    Rewrite(
        "trim one by one",
        method(
            "Shares",
            "trim",
            "def trim(self, share, count=0):\n"
            "    gone = 0\n"
            "    may_stay = max(share.guaranteed - share.num_live - count, 0)\n"
            "    while share.cache and not share.keeps_outside and share.num_unused > may_stay:\n"
            "        gone += share.cache.evict(1)\n"
            "    return gone\n",
        ),
    ),
    Rewrite(
        "trim by both sums",
        method(
            "Shares",
            "trim",
            "def trim(self, share, count=0):\n"
            "    if share.keeps_outside or not share.cache:\n"
            "        return 0\n"
            "    over = share.num_live + count + share.num_unused - share.guaranteed\n"
            "    return share.cache.evict(min(share.num_unused, max(0, over)))\n",
        ),
    ),
    Rewrite(
        "trim by the number that stays",
        method(
            "Shares",
            "trim",
            "def trim(self, share, count=0):\n"
            "    match share.keeps_outside, share.cache:\n"
            "        case (False, cache) if cache is not None:\n"
            "            stays = min(share.num_unused, max(0, share.guarantee_left - count))\n"
            "            return cache.evict(share.num_unused - stays)\n"
            "    return 0\n",
        ),
    ),
    # --- 11.5, odd but right
    Rewrite(
        "the largest of those that are left",
        method(
            "Shares",
            "reclaim",
            "def reclaim(self, count):\n"
            "    losers = [s for s in self.members if s.keeps_outside and s.cache]\n"
            "    before = self.pool.num_free\n"
            "    losers.sort(key=lambda s: s.num_unused, reverse=True)\n"
            "    while losers and self.pool.num_free < count:\n"
            "        losers.pop(0).cache.evict(count - self.pool.num_free)\n"
            "    return self.pool.num_free - before\n",
        ),
    ),
    Rewrite(
        "counted down",
        method(
            "Shares",
            "reclaim",
            "def reclaim(self, count):\n"
            "    missing = start = max(0, count - self.pool.num_free)\n"
            "    order = sorted(range(len(self.members)), key=lambda i: (-self.members[i].num_unused, i))\n"
            "    for share in (self.members[i] for i in order):\n"
            "        if missing and share.keeps_outside and share.cache is not None:\n"
            "            missing -= share.cache.evict(missing)\n"
            "    return start - missing\n",
        ),
    ),
    Rewrite(
        "by sizes",
        method(
            "Shares",
            "reclaim",
            "def reclaim(self, count):\n"
            "    sizes = {}\n"
            "    for share in self.members:\n"
            "        if share.keeps_outside and share.num_unused:\n"
            "            sizes.setdefault(share.num_unused, []).append(share)\n"
            "    gone = 0\n"
            "    for size in sorted(sizes, reverse=True):\n"
            "        for share in sizes[size]:\n"
            "            gone += share.cache.evict(max(0, count - self.pool.num_free))\n"
            "    return gone\n",
        ),
    ),
    # --- 11.6, odd but right
    Rewrite(
        "a start that returns early",
        method(
            "Quota",
            "_start",
            "def _start(self, sequence, most):\n"
            "    for old in [s for s in self._started if s.has_ended]:\n"
            "        self._started.remove(old)\n"
            "    mine = [s.blocks for s in self._started if s.tenant == sequence.tenant]\n"
            "    n, prompt = 1 + len(sequence.forks), len(sequence.prompt_token_ids)\n"
            "    blocks = group_blocks(prompt, prompt + sequence.max_tokens, n, self._size)\n"
            "    fits = not mine or sum(mine) + blocks <= most\n"
            "    if fits:\n"
            "        self._started += [Started(sequence.tenant, [sequence] + list(sequence.forks), blocks)]\n"
            "    return fits\n",
        ),
    ),
    Rewrite(
        "add with nested ifs",
        method(
            "Quota",
            "add",
            "def add(self, sequence):\n"
            "    most = limits_of(self._limits, sequence.tenant).max_blocks\n"
            "    if most is not None:\n"
            "        for started in self._started:\n"
            "            if sequence in started.sequences:\n"
            "                return True\n"
            "        line = self._parked.get(sequence.tenant)\n"
            "        if line is not None or not self._start(sequence, most):\n"
            "            if line is None:\n"
            "                line = self._parked[sequence.tenant] = WaitingLine()\n"
            "            line.add(sequence)\n"
            "            return False\n"
            "    return True\n",
        ),
    ),
    Rewrite(
        "released by tenants",
        method(
            "Quota",
            "released",
            "def released(self, now):\n"
            "    out = []\n"
            "    for tenant in tuple(self._parked):\n"
            "        most = limits_of(self._limits, tenant).max_blocks\n"
            "        while tenant in self._parked:\n"
            "            head = self._parked[tenant].first(now)\n"
            "            if not self._start(head, most):\n"
            "                break\n"
            "            self.remove(head)\n"
            "            out.append(head)\n"
            "    return out\n",
        ),
    ),
    # --- 11.7, odd but right
    Rewrite(
        "two sums",
        "def require_place(request, others, config):\n"
        "    def full(line, most_tokens, most_requests=None):\n"
        "        tokens = [len(r.sequences[0].prompt_token_ids) for r in line]\n"
        "        if most_requests is not None and len(line) >= most_requests:\n"
        "            return True\n"
        "        return len(line) > 0 and sum(tokens) + prompt_tokens(request) > most_tokens\n"
        "    line, own = [], []\n"
        "    is_own = config.has_guarantee(request.tenant)\n"
        "    for other in others:\n"
        "        if other.admitted is None:\n"
        "            if other.tenant == request.tenant:\n"
        "                own.append(other)\n"
        "            if not config.has_guarantee(other.tenant):\n"
        "                line.append(other)\n"
        "    limit = limits_of(config.tenant_limits, request.tenant).max_queued_tokens\n"
        "    if limit is not None and full(own, limit):\n"
        "        raise QueueFull('your share of the queue is full', 'try again later')\n"
        "    if full(own if is_own else line, config.max_queued_tokens, config.max_queued_requests):\n"
        "        raise QueueFull('the queue is full', 'try again later')\n",
    ),
    Rewrite(
        "counted while walking",
        "def require_place(request, others, config):\n"
        "    mine, guaranteed = request.tenant, config.has_guarantee(request.tenant)\n"
        "    count = tokens = own_count = own_tokens = 0\n"
        "    for other in others:\n"
        "        if other.admitted is not None:\n"
        "            continue\n"
        "        size = prompt_tokens(other)\n"
        "        own = other.tenant == mine\n"
        "        own_count, own_tokens = own_count + own, own_tokens + own * size\n"
        "        in_line = own if guaranteed else not config.has_guarantee(other.tenant)\n"
        "        count, tokens = count + in_line, tokens + in_line * size\n"
        "    new, most = prompt_tokens(request), limits_of(config.tenant_limits, mine).max_queued_tokens\n"
        "    is_full = count >= config.max_queued_requests\n"
        "    is_full |= count > 0 and tokens + new > config.max_queued_tokens\n"
        "    is_full |= most is not None and own_count > 0 and own_tokens + new > most\n"
        "    if is_full:\n"
        "        raise QueueFull('a queue is full')\n",
    ),
    Rewrite(
        "a class of its own",
        "class FullOfPrompts(QueueFull):\n    pass\n\n\n"
        "FullOfPrompts.__name__ = 'QueueFull'\n\n\n"
        "def require_place(request, others, config):\n"
        "    waits = [r for r in others if r.admitted is None]\n"
        "    own = [r for r in waits if r.tenant == request.tenant]\n"
        "    rest = [r for r in waits if not config.has_guarantee(r.tenant)]\n"
        "    line = own if config.has_guarantee(request.tenant) else rest\n"
        "    limit = limits_of(config.tenant_limits, request.tenant).max_queued_tokens\n"
        "    rules = [(line, config.max_queued_tokens)] + ([(own, limit)] if limit else [])\n"
        "    if len(line) >= config.max_queued_requests:\n"
        "        raise FullOfPrompts('requests')\n"
        "    for there, most in rules:\n"
        "        if there and sum(prompt_tokens(r) for r in [*there, request]) > most:\n"
        "            raise FullOfPrompts('tokens')\n",
    ),
]
