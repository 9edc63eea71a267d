"""Lab 9: wrong solutions with their diagnoses, and odd but right ones."""

from corpus.variants import Rewrite, Slip

SLIPS = [
    Slip(
        "the first child by position",
        "if parent[n] == at - begin and draft[n] == target[at])",
        "if n == at + 1 and draft[n] == target[at])",
        {"9.1": "siblings can come before it"},
    ),
    Slip(
        "anybody's child",
        "if parent[n] == at - begin and draft[n] == target[at])",
        "if draft[n] == target[at])",
        {"9.1": "only a child of the current node"},
    ),
    Slip(
        "compared with the draft's own row",
        "draft[n] == target[at])",
        "draft[n] == target[n])",
        {"9.1": "the token sampled after its parent"},
    ),
    Slip(
        "drafts instead of draws",
        "tokens[depth], nodes[depth] = target[at],",
        "tokens[depth], nodes[depth] = draft[at],",
        {"9.1": "the drafted tokens are emitted"},
    ),
    Slip(
        "nodes over all requests",
        "target[at], at - begin\n",
        "target[at], at\n",
        {"9.1": "the nodes returned count from"},
    ),
    Slip(
        "the last child that fits",
        "at, depth = next(children, None), depth + 1",
        "at, depth = max(children, default=None), depth + 1",
        {"9.1": "take the first"},
    ),
    Slip(
        "residual not clamped",
        "weights = p if q is None else (p - q).clamp(min=0.0)\n    if weights.sum() == 0.0:",
        "weights = p if q is None else p - q\n    if weights.abs().sum() == 0.0:",
        {"9.2": "not clamped at 0"},
    ),
    Slip(
        "residual not normalised",
        "uniform * running[-1]",
        "uniform",
        {"9.2": "the weights are not normalised"},
    ),
    Slip(
        "q instead of what is left of p",
        "(p - q).clamp(min=0.0)",
        "q",
        {"9.2": "drawn from q"},
    ),
    Slip(
        "p equals q",
        "    if weights.sum() == 0.0:\n        weights = p\n",
        "",
        {"9.2": "if p equals q"},
    ),
    Slip(
        "a border belongs to the id before",
        "(running > uniform",
        "(running >= uniform",
        {"9.2": "`>=` instead of `>`"},
    ),
    Slip(
        "accepted at equality",
        "if not uniforms[i, stands] * q[token_id] < p[token_id]:",
        "if not uniforms[i, stands] * q[token_id] <= p[token_id]:",
        {"9.3": "accepted with `<=`"},
    ),
    Slip(
        "p and q exchanged",
        "* q[token_id] < p[token_id]:",
        "* p[token_id] < q[token_id]:",
        {"9.3": "p and q are exchanged"},
    ),
    Slip(
        "everything accepted",
        "if not uniforms[i, stands] * q[token_id] < p[token_id]:",
        "if False:",
        {"9.3": "every draft is accepted"},
    ),
    Slip(
        "no bonus token",
        "        tokens[i, stands] = draw_leftover(",
        "        if q is not None:\n            tokens[i, stands] = draw_leftover(",
        {"9.3": "no bonus token"},
    ),
    Slip(
        "the bonus from the last draft's row",
        "draw_leftover(target_probs[i, stands].double(), q,",
        "draw_leftover(target_probs[i, stands - (q is None and stands > 0)].double(), q,",
        {"9.3": "the last draft's row"},
    ),
    Slip(
        "the bonus from the padding",
        "draw_leftover(target_probs[i, stands].double(), q,",
        "draw_leftover(target_probs[i, k if q is None else stands].double(), q,",
        {"9.3": "from row k"},
    ),
    Slip(
        "the replacement from q",
        "draw_leftover(target_probs[i, stands].double(), q,",
        "draw_leftover(target_probs[i, stands].double() if q is None else q, None,",
        {"9.3": "replaced by a draw from q"},
    ),
    Slip(
        "the replacement from p",
        "draw_leftover(target_probs[i, stands].double(), q,",
        "draw_leftover(target_probs[i, stands].double(), None,",
        {"9.3": "replaced by a draw from p"},
    ),
    Slip(
        "one uniform for two draws",
        "uniforms[i, k])",
        "uniforms[i, stands])",
        {"9.3": "is used again"},
    ),
    Slip(
        "the drawn token counted as drafted",
        "accepted[i] = stands",
        "accepted[i] = stands + 1",
        {"9.3": "counts the last token"},
    ),
    Slip(
        "the refused draft counted",
        "accepted[i] = stands",
        "accepted[i] = stands + (q is not None)",
        {"9.3": "counts the rejected draft"},
    ),
    Slip(
        "padding is a token",
        "            if token_id < 0:\n                break\n",
        "",
        {"9.3": "padding is read as a token"},
    ),
    Slip(
        "a point mass is even",
        "q = _one_hot(token_id, p) if draft_probs is None",
        "q = torch.full_like(p, 1 / len(p)) if draft_probs is None",
        {"9.3": "without draft_probs, q is 1"},
    ),
    Slip(
        "the earliest place",
        "for start in reversed(self._next.get(tuple(self.tokens[-n:]), ())):",
        "for start in self._next.get(tuple(self.tokens[-n:]), ()):",
        {"9.4": "the earliest occurrence is copied"},
    ),
    Slip(
        "short n-grams first",
        "for n in range(min(LONGEST, len(self.tokens)), SHORTEST - 1, -1):",
        "for n in range(SHORTEST, min(LONGEST, len(self.tokens)) + 1):",
        {"9.4": "short n-grams are searched first"},
    ),
    Slip(
        "the copy ends with the text",
        "[self.tokens[start + i % period] for i in range(length)]",
        "self.tokens[start : start + min(length, period)]",
        {"9.4": "a copy stops at the end of the text"},
    ),
    Slip(
        "twins",
        "branches.setdefault(self.tokens[start], self._copy(start, length))",
        "branches.setdefault(start, self._copy(start, length))",
        {"9.4": "two branches begin with the same token"},
    ),
    Slip(
        "a branch too many",
        "if len(branches) == count:",
        "if len(branches) > count:",
        {"9.4": "more branches than `count`"},
    ),
    Slip(
        "the partly full block given back",
        "keep = blocks_for(num_tokens, self._pool.block_size)",
        "keep = num_tokens // self._pool.block_size",
        {"9.5": "round up"},
    ),
    Slip(
        "a spare block kept",
        "keep = blocks_for(num_tokens, self._pool.block_size)",
        "keep = num_tokens // self._pool.block_size + 1",
        {"9.5": "exactly full"},
    ),
    Slip("rejected blocks leak", "        self._pool.free(behind)\n", "", {"9.5": "leak memory"}),
    Slip(
        "freed and still listed",
        "        self.block_ids = self.block_ids[:keep]\n",
        "",
        {"9.5": "still in the table"},
    ),
    Slip(
        "the block of the parting shared",
        "self._pool.allocate(blocks_for(num_tokens, size) - start // size)",
        "self._pool.allocate(blocks_for(num_tokens, size) - blocks_for(start, size))",
        {"9.6": "both branches will write to it"},
    ),
    Slip(
        "a position for an index",
        "shared = start // self._pool.block_size\n        before",
        "shared = start\n        before",
        {"9.6": "the table counts blocks"},
    ),
    Slip(
        "the losers freed twice",
        "        before, self.block_ids = self.block_ids[shared:], self.block_ids[:shared] + own\n",
        "        before, self.block_ids = self.block_ids[shared:], self.block_ids[:shared] + own\n"
        "        self._pool.free(before)\n",
        {"9.6": "freed twice"},
    ),
]


def methods(owner: str, code: str, *names: str) -> str:
    """Code that defines methods of a class again."""
    return code + "\n\n" + "".join(f"{owner}.{name} = {name}\n" for name in names)


REWRITES = [
    # --- 9.1, wrong
    Rewrite(
        "a chain is assumed",
        "def verify_coupled(sampled, drafted, parents, node_start):\n"
        "    tokens, nodes = torch.full_like(sampled, -1), torch.full_like(sampled, -1)\n"
        "    for begin, end in pairwise(node_start.tolist()):\n"
        "        for n in range(end - begin):\n"
        "            tokens[begin + n], nodes[begin + n] = sampled[begin + n], n\n"
        "            if begin + n + 1 >= end or drafted[begin + n + 1] != sampled[begin + n]:\n"
        "                break\n"
        "            if parents[begin + n + 1] != n:\n"
        "                break\n"
        "    return tokens, nodes\n",
        {"9.1": "the next node is used as the child"},
    ),
    Rewrite(
        "no last token",
        "def verify_coupled(sampled, drafted, parents, node_start):\n"
        "    s, d, p = sampled.tolist(), drafted.tolist(), parents.tolist()\n"
        "    tokens, nodes = [-1] * len(s), [-1] * len(s)\n"
        "    for b, e in pairwise(node_start.tolist()):\n"
        "        at, out = 0, b\n"
        "        while True:\n"
        "            fits = (p[b + n] == at and d[b + n] == s[b + at] for n in range(at + 1, e - b))\n"
        "            n = next((at + 1 + i for i, is_next in enumerate(fits) if is_next), None)\n"
        "            if n is None:\n"
        "                break\n"
        "            tokens[out], nodes[out] = s[b + at], at\n"
        "            at, out = n, out + 1\n"
        "    return torch.tensor(tokens), torch.tensor(nodes)\n",
        {"9.1": "the token after the last accepted draft is missing"},
    ),
    Rewrite(
        "written over sampled",
        "def verify_coupled(sampled, drafted, parents, node_start):\n"
        "    s, d, p = sampled.tolist(), drafted.tolist(), parents.tolist()\n"
        "    nodes = torch.full_like(sampled, -1)\n"
        "    sampled.fill_(-1)\n"
        "    for b, e in pairwise(node_start.tolist()):\n"
        "        at, out = (0, b) if b < e else (None, b)\n"
        "        while at is not None:\n"
        "            sampled[out], nodes[out] = s[b + at], at\n"
        "            fits = [n for n in range(at + 1, e - b) if p[b + n] == at and d[b + n] == s[b + at]]\n"
        "            at, out = (fits[0] if fits else None), out + 1\n"
        "    return sampled, nodes\n",
        {"9.1": "written over `sampled`"},
    ),
    # --- 9.1, odd but right
    Rewrite(
        "a dict of children",
        "def verify_coupled(sampled, drafted, parents, node_start):\n"
        "    tokens, nodes = torch.full_like(sampled, -1), torch.full_like(sampled, -1)\n"
        "    starts = [int(x) for x in node_start]\n"
        "    for begin, end in zip(starts, starts[1:]):\n"
        "        child = {}\n"
        "        for n in range(end - begin - 1, 0, -1):\n"
        "            child[int(parents[begin + n]), int(drafted[begin + n])] = n\n"
        "        walk = [0] if end > begin else []\n"
        "        while walk and (walk[-1], int(sampled[begin + walk[-1]])) in child:\n"
        "            walk.append(child[walk[-1], int(sampled[begin + walk[-1]])])\n"
        "        for i, node in enumerate(walk):\n"
        "            tokens[begin + i] = sampled[begin + node]\n"
        "            nodes[begin + i] = node\n"
        "    return tokens, nodes\n",
    ),
    Rewrite(
        "recursive walk",
        "def verify_coupled(sampled, drafted, parents, node_start):\n"
        "    def walk(at, s, d, p):\n"
        "        fits = ((p == at) & (d == s[at])).nonzero().flatten()\n"
        "        fits = fits[fits > at]\n"
        "        return [at] + (walk(int(fits[0]), s, d, p) if len(fits) else [])\n"
        "    tokens, nodes = [], []\n"
        "    for begin, end in pairwise(node_start.tolist()):\n"
        "        s, d, p = sampled[begin:end], drafted[begin:end], parents[begin:end]\n"
        "        path = walk(0, s, d, p) if end > begin else []\n"
        "        rest = [-1] * (end - begin - len(path))\n"
        "        tokens += [int(s[n]) for n in path] + rest\n"
        "        nodes += path + rest\n"
        "    return torch.tensor(tokens, dtype=torch.int64), torch.tensor(nodes, dtype=torch.int64)\n",
    ),
    Rewrite(
        "accepted from the root on",
        "def verify_coupled(sampled, drafted, parents, node_start):\n"
        "    tokens, nodes = torch.full_like(sampled, -1), torch.full_like(sampled, -1)\n"
        "    for i in range(len(node_start) - 1):\n"
        "        begin, end = node_start[i].item(), node_start[i + 1].item()\n"
        "        s, d, p = (t[begin:end].tolist() for t in (sampled, drafted, parents))\n"
        "        newest, count = -1, 0\n"
        "        for n in range(end - begin):\n"
        "            if p[n] == newest and (n == 0 or d[n] == s[p[n]]):\n"
        "                tokens[begin + count], nodes[begin + count] = s[n], n\n"
        "                newest, count = n, count + 1\n"
        "    return tokens, nodes\n",
    ),
    # --- 9.2, wrong
    Rewrite(
        "softmax",
        "def draw_leftover(p, q, uniform):\n"
        "    weights = torch.softmax(p if q is None else p - q, dim=0)\n"
        "    running = weights.cumsum(0)\n"
        "    return int((running > uniform * running[-1]).nonzero()[0])\n",
        {"9.2": "softmax is not a normalisation"},
    ),
    Rewrite(
        "q taken from p in place",
        "def draw_leftover(p, q, uniform):\n"
        "    if q is not None and bool((p > q).any()):\n"
        "        p.sub_(q).clamp_(min=0)\n"
        "    running = p.cumsum(0)\n"
        "    return int((running > uniform * running[-1]).nonzero()[0])\n",
        {"9.2": "q is subtracted from the caller's p"},
    ),
    Rewrite(
        "not normalised, and no id",
        "def draw_leftover(p, q, uniform):\n"
        "    weights = p if q is None else (p - q).clamp(min=0)\n"
        "    if weights.sum() == 0:\n"
        "        weights = p\n"
        "    return int((weights.cumsum(0) > uniform).nonzero()[0])\n",
        {"9.2": "the weights are not normalised"},
    ),
    Rewrite(
        "torch draws",
        "def draw_leftover(p, q, uniform):\n"
        "    weights = p if q is None else (p - q).clamp(min=0)\n"
        "    return int(torch.multinomial(weights if weights.sum() > 0 else p, 1))\n",
        {"9.2": "the uniform is not used"},
    ),
    Rewrite(
        "divided by a sum and a little more",
        "def draw_leftover(p, q, uniform):\n"
        "    weights = p if q is None else (p - q).clamp(min=0)\n"
        "    if weights.sum() < 1e-6:\n"
        "        weights = p\n"
        "    running = weights.cumsum(0)\n"
        "    return int((running > uniform * running[-1]).nonzero()[0])\n",
        {"9.2": "a small sum counts as 0"},
    ),
    # --- 9.2, odd but right
    Rewrite(
        "a loop over ids",
        "def draw_leftover(p, q, uniform):\n"
        "    less = [0.0] * len(p) if q is None else q.tolist()\n"
        "    weights = [max(a - b, 0.0) for a, b in zip(p.tolist(), less)]\n"
        "    if not any(weights):\n"
        "        weights = p.tolist()\n"
        "    level, total = float(uniform) * sum(weights), 0.0\n"
        "    for i, weight in enumerate(weights):\n"
        "        total += weight\n"
        "        if total > level:\n"
        "            return i\n"
        "    return max(i for i, weight in enumerate(weights) if weight > 0)\n",
    ),
    Rewrite(
        "searchsorted",
        "def draw_leftover(p, q, uniform):\n"
        "    weights = p.clone() if q is None else torch.relu(p - q)\n"
        "    weights = weights if bool(weights.any()) else p\n"
        "    running = torch.cumsum(weights / weights.sum(), 0)\n"
        "    found = int(torch.searchsorted(running, uniform, right=True))\n"
        "    return min(found, int(weights.nonzero().max()))\n",
    ),
    Rewrite(
        "one tensor at a time",
        "def draw_leftover(p, q, uniform):\n"
        "    weights = torch.where(p > q, p - q, torch.zeros_like(p)) if q is not None else p\n"
        "    if weights.max() == 0:\n"
        "        weights = p\n"
        "    below = torch.tensor(0.0, dtype=p.dtype)\n"
        "    level = uniform * weights.sum()\n"
        "    for i in range(len(weights)):\n"
        "        below = below + weights[i]\n"
        "        if below > level:\n"
        "            return i\n"
        "    return int(weights.nonzero()[-1])\n",
    ),
    # --- 9.3, wrong
    Rewrite(
        "the first column for all",
        "def verify_draft(draft, draft_probs, target_probs, uniforms):\n"
        "    n, k = draft.shape\n"
        "    tokens, accepted = torch.full((n, k + 1), -1), torch.zeros(n, dtype=torch.int64)\n"
        "    for i in range(n):\n"
        "        at, q = 0, None\n"
        "        while at < k and draft[i, at] >= 0:\n"
        "            token, p = int(draft[i, at]), target_probs[i, at].double()\n"
        "            q = torch.zeros_like(p) if draft_probs is None else draft_probs[i, at].double()\n"
        "            if draft_probs is None:\n"
        "                q[token] = 1\n"
        "            if not uniforms[i, 0] * q[token] < p[token]:\n"
        "                break\n"
        "            tokens[i, at], at, q = token, at + 1, None\n"
        "        tokens[i, at] = draw_leftover(target_probs[i, at].double(), q, uniforms[i, k])\n"
        "        accepted[i] = at\n"
        "    return tokens, accepted\n",
        {"9.3": "the uniform of the first column decides"},
    ),
    Rewrite(
        "rejected drafts marked in place",
        "def verify_draft(draft, draft_probs, target_probs, uniforms):\n"
        "    n, k = draft.shape\n"
        "    tokens, accepted = torch.full((n, k + 1), -1), torch.zeros(n, dtype=torch.int64)\n"
        "    for i in range(n):\n"
        "        at, q = 0, None\n"
        "        while at < k and draft[i, at] >= 0:\n"
        "            token, p = int(draft[i, at]), target_probs[i, at].double()\n"
        "            q = torch.zeros_like(p) if draft_probs is None else draft_probs[i, at].double()\n"
        "            if draft_probs is None:\n"
        "                q[token] = 1\n"
        "            if not uniforms[i, at] * q[token] < p[token]:\n"
        "                draft[i, at:] = -1\n"
        "                break\n"
        "            tokens[i, at], at, q = token, at + 1, None\n"
        "        tokens[i, at] = draw_leftover(target_probs[i, at].double(), q, uniforms[i, k])\n"
        "        accepted[i] = at\n"
        "    return tokens, accepted\n",
        {"9.3": "rejected drafts are changed in the caller's tensor"},
    ),
    # --- 9.3, odd but right
    Rewrite(
        "ratios, all at once",
        "def verify_draft(draft, draft_probs, target_probs, uniforms):\n"
        "    n, k = draft.shape\n"
        "    p = target_probs.double()\n"
        "    ids = draft.clamp(min=0)\n"
        "    if draft_probs is None:\n"
        "        q = torch.nn.functional.one_hot(ids, p.shape[-1]).double()\n"
        "    else:\n"
        "        q = draft_probs.double()\n"
        "    taken = [x.gather(-1, ids[..., None])[..., 0] for x in (q, p[:, :k])]\n"
        "    is_ok = (uniforms[:, :k] * taken[0] < taken[1]) & (draft >= 0)\n"
        "    accepted = is_ok.long().cumprod(1).sum(1)\n"
        "    tokens = torch.full((n, k + 1), -1)\n"
        "    for i in range(n):\n"
        "        a = int(accepted[i])\n"
        "        is_refused = a < k and bool(draft[i, a] >= 0)\n"
        "        tokens[i, :a] = draft[i, :a]\n"
        "        tokens[i, a] = draw_leftover(p[i, a], q[i, a] if is_refused else None, uniforms[i, k])\n"
        "    return tokens, accepted\n",
    ),
    Rewrite(
        "lists",
        "def verify_draft(draft, draft_probs, target_probs, uniforms):\n"
        "    k, rows, counts = draft.shape[1], [], []\n"
        "    for i, drafted in enumerate(draft.tolist()):\n"
        "        out = []\n"
        "        for at, token in enumerate(t for t in drafted if t != -1):\n"
        "            p = target_probs[i, at].to(torch.float64)\n"
        "            q = (torch.arange(len(p)) == token).double()\n"
        "            if draft_probs is not None:\n"
        "                q = draft_probs[i, at].double()\n"
        "            if float(p[token]) <= float(uniforms[i, at]) * float(q[token]):\n"
        "                out.append(draw_leftover(p, q, uniforms[i, -1]))\n"
        "                break\n"
        "            out.append(token)\n"
        "        else:\n"
        "            out.append(draw_leftover(target_probs[i, len(out)].double(), None, uniforms[i, -1]))\n"
        "        counts.append(len(out) - 1)\n"
        "        rows.append(out + [-1] * (k + 1 - len(out)))\n"
        "    return torch.tensor(rows), torch.tensor(counts)\n",
    ),
    Rewrite(
        "from the last draft to the first",
        "def verify_draft(draft, draft_probs, target_probs, uniforms):\n"
        "    def one(i):\n"
        "        k = draft.shape[1]\n"
        "        count = int((draft[i] >= 0).sum())\n"
        "        out = [draw_leftover(target_probs[i, count].double(), None, uniforms[i, k])]\n"
        "        for at in reversed(range(count)):\n"
        "            token, p = int(draft[i, at]), target_probs[i, at].double()\n"
        "            if draft_probs is None:\n"
        "                q = torch.zeros_like(p)\n"
        "                q[token] = 1\n"
        "            else:\n"
        "                q = draft_probs[i, at].double()\n"
        "            is_kept = uniforms[i, at] * q[token] < p[token]\n"
        "            out = [token, *out] if is_kept else [draw_leftover(p, q, uniforms[i, k])]\n"
        "        return torch.tensor(out + [-1] * (k + 1 - len(out)))\n"
        "    tokens = torch.stack([one(i) for i in range(len(draft))])\n"
        "    return tokens, (tokens >= 0).sum(1) - 1\n",
    ),
    # --- 9.4, wrong
    Rewrite(
        "made again each time",
        methods(
            "NgramIndex",
            "def extend(self, tokens):\n"
            "    self.tokens = self.tokens + list(tokens)\n"
            "    self._next = {}\n"
            "    for end in range(len(self.tokens)):\n"
            "        for n in range(SHORTEST, min(LONGEST, end) + 1):\n"
            "            gram = tuple(self.tokens[end - n : end])\n"
            "            self._next.setdefault(gram, deque(maxlen=PLACES)).append(end)\n",
            "extend",
        ),
        {"9.4": "the index is made again"},
    ),
    Rewrite(
        "no index",
        methods(
            "NgramIndex",
            "def extend(self, tokens):\n"
            "    self.tokens += tokens\n\n"
            "def continuations(self, length, count):\n"
            "    found, t = {}, self.tokens\n"
            "    for n in range(min(LONGEST, len(t)), SHORTEST - 1, -1):\n"
            "        ends = [e for e in range(len(t) - 1, n - 1, -1) if t[e - n : e] == t[-n:]][:PLACES]\n"
            "        for e in ends:\n"
            "            if len(found) < count and t[e] not in found:\n"
            "                found[t[e]] = [t[e + i % (len(t) - e)] for i in range(length)]\n"
            "    return list(found.values())",
            "extend",
            "continuations",
        ),
        {"9.4": "the whole text is searched"},
    ),
    Rewrite(
        "all places",
        methods(
            "NgramIndex",
            "def extend(self, tokens):\n"
            "    for token in tokens:\n"
            "        end = len(self.tokens)\n"
            "        for n in range(SHORTEST, min(LONGEST, end) + 1):\n"
            "            self._next.setdefault(tuple(self.tokens[end - n :]), []).append(end)\n"
            "        self.tokens.append(token)\n",
            "extend",
        ),
        {"9.4": "every occurrence is kept"},
    ),
    Rewrite(
        "the caller's list",
        methods(
            "NgramIndex",
            "def extend(self, tokens):\n"
            "    old = len(self.tokens)\n"
            "    text = self.tokens + list(tokens)\n"
            "    for end in range(old, len(text)):\n"
            "        for n in range(SHORTEST, min(LONGEST, end) + 1):\n"
            "            places = self._next.setdefault(tuple(text[end - n : end]), deque(maxlen=PLACES))\n"
            "            places.append(end)\n"
            "    self.tokens = tokens if old == 0 and isinstance(tokens, list) else text\n",
            "extend",
        ),
        {"9.4": "the caller's list is kept"},
    ),
    # --- 9.4, odd but right
    Rewrite(
        "the index keeps slices",
        methods(
            "NgramIndex",
            "def extend(self, tokens):\n"
            "    start = len(self.tokens)\n"
            "    self.tokens.extend(tokens)\n"
            "    for end in range(start, len(self.tokens)):\n"
            "        for n in range(SHORTEST, LONGEST + 1):\n"
            "            if n <= end:\n"
            "                key = tuple(self.tokens[end - n : end])\n"
            "                self._next[key] = (self._next.get(key, []) + [end])[-PLACES:]\n",
            "extend",
        ),
    ),
    Rewrite(
        "one dict for each length",
        methods(
            "NgramIndex",
            "def extend(self, tokens):\n"
            "    new = {n: {} for n in range(SHORTEST, LONGEST + 1)}\n"
            "    tables = self.__dict__.setdefault('tables', new)\n"
            "    for token in tokens:\n"
            "        for n, table in tables.items():\n"
            "            if len(self.tokens) >= n:\n"
            "                places = table.setdefault(tuple(self.tokens[-n:]), [])\n"
            "                places.insert(0, len(self.tokens))\n"
            "                del places[PLACES:]\n"
            "        self.tokens = [*self.tokens, token]\n\n"
            "def continuations(self, length, count):\n"
            "    found = []\n"
            "    for n, table in reversed(self.__dict__.get('tables', {}).items()):\n"
            "        if len(self.tokens) < n:\n"
            "            continue\n"
            "        for place in table.get(tuple(self.tokens[-n:]), []):\n"
            "            copy = list(self.tokens[place:])\n"
            "            while len(copy) < length:\n"
            "                copy += self.tokens[place:]\n"
            "            if all(copy[0] != other[0] for other in found):\n"
            "                found.append(copy[:length])\n"
            "    return found[:count]",
            "extend",
            "continuations",
        ),
    ),
    Rewrite(
        "a generator of places",
        methods(
            "NgramIndex",
            "def places(self):\n"
            "    for n in sorted(range(SHORTEST, LONGEST + 1), reverse=True):\n"
            "        if n <= len(self.tokens):\n"
            "            yield from reversed(self._next.get(tuple(self.tokens[-n:]), []))\n\n"
            "def continuations(self, length, count):\n"
            "    seen, found = set(), []\n"
            "    for place in places(self):\n"
            "        if len(found) >= count:\n"
            "            break\n"
            "        if self.tokens[place] not in seen:\n"
            "            seen.add(self.tokens[place])\n"
            "            text = list(self.tokens)\n"
            "            for i in range(length):\n"
            "                text.append(text[place + i])\n"
            "            found.append(text[place : place + length])\n"
            "    return found",
            "continuations",
        ),
    ),
    # --- 9.5, wrong
    Rewrite(
        "freed for every owner",
        methods(
            "BlockTable",
            "def truncate(self, num_tokens):\n"
            "    keep = blocks_for(num_tokens, self._pool.block_size)\n"
            "    behind, self.block_ids = self.block_ids[keep:], self.block_ids[:keep]\n"
            "    for block in behind:\n"
            "        while self._pool.ref_count(block) > 0:\n"
            "            self._pool.free([block])\n"
            "    return len(behind)\n",
            "truncate",
        ),
        {"9.5": "freed for all of its owners"},
    ),
    Rewrite(
        "all freed, some allocated",
        methods(
            "BlockTable",
            "def truncate(self, num_tokens):\n"
            "    keep = min(blocks_for(num_tokens, self._pool.block_size), len(self.block_ids))\n"
            "    freed = len(self.block_ids) - keep\n"
            "    self._pool.free(self.block_ids)\n"
            "    self.block_ids = self._pool.allocate(keep)\n"
            "    return freed\n",
            "truncate",
        ),
        {"9.5": "all blocks are freed and new ones allocated"},
    ),
    Rewrite(
        "minus zero",
        methods(
            "BlockTable",
            "def truncate(self, num_tokens):\n"
            "    n = max(0, len(self.block_ids) - blocks_for(num_tokens, self._pool.block_size))\n"
            "    behind, self.block_ids = self.block_ids[-n:], self.block_ids[:-n]\n"
            "    self._pool.free(behind)\n"
            "    return len(behind)\n",
            "truncate",
        ),
        {"9.5": "`-0:` is the whole list"},
    ),
    # --- 9.5, odd but right
    Rewrite(
        "block after block",
        methods(
            "BlockTable",
            "def truncate(self, num_tokens):\n"
            "    freed = 0\n"
            "    while (len(self.block_ids) - 1) * self._pool.block_size >= num_tokens and self.block_ids:\n"
            "        self._pool.free([self.block_ids.pop()])\n"
            "        freed += 1\n"
            "    return freed\n",
            "truncate",
        ),
    ),
    Rewrite(
        "del",
        methods(
            "BlockTable",
            "def truncate(self, num_tokens):\n"
            "    before = len(self.block_ids)\n"
            "    keep = (num_tokens + self._pool.block_size - 1) // self._pool.block_size\n"
            "    self._pool.free(iter(self.block_ids[keep:]))\n"
            "    del self.block_ids[keep:]\n"
            "    return before - len(self.block_ids)\n",
            "truncate",
        ),
    ),
    Rewrite(
        "comprehensions",
        methods(
            "BlockTable",
            "def truncate(self, num_tokens):\n"
            "    size = self._pool.block_size\n"
            "    kept = [b for i, b in enumerate(self.block_ids) if i * size < num_tokens]\n"
            "    gone = [b for i, b in enumerate(self.block_ids) if i * size >= num_tokens]\n"
            "    for block in gone:\n"
            "        self._pool.free([block])\n"
            "    self.block_ids = kept\n"
            "    return len(gone)\n",
            "truncate",
        ),
    ),
    # --- 9.6, wrong
    Rewrite(
        "counted from start",
        methods(
            "BlockTable",
            "def branch(self, start, num_tokens):\n"
            "    return self._pool.allocate(blocks_for(num_tokens - start, self._pool.block_size))\n",
            "branch",
        ),
        {"9.6": "count from the block's beginning"},
    ),
    Rewrite(
        "one after the other",
        methods(
            "BlockTable",
            "def branch(self, start, num_tokens):\n"
            "    own = []\n"
            "    size = self._pool.block_size\n"
            "    for _ in range(blocks_for(num_tokens, size) - start // size):\n"
            "        own += self._pool.allocate(1)\n"
            "    return own\n",
            "branch",
        ),
        {"9.6": "allocate all at once"},
    ),
    Rewrite(
        "the list kept",
        methods(
            "BlockTable",
            "def adopt(self, start, own):\n"
            "    first = start // self._pool.block_size\n"
            "    before = self.block_ids[first:]\n"
            "    own[:0] = self.block_ids[:first]\n"
            "    self.block_ids = own\n"
            "    return before\n",
            "adopt",
        ),
        {"9.6": "the branch's list becomes the table's list"},
    ),
    # --- 9.6, odd but right
    Rewrite(
        "in place",
        methods(
            "BlockTable",
            "def adopt(self, start, own):\n"
            "    first = start // self._pool.block_size\n"
            "    before = self.block_ids[first:]\n"
            "    self.block_ids[first:] = own\n"
            "    return before\n",
            "adopt",
        ),
    ),
    Rewrite(
        "one table popped",
        methods(
            "BlockTable",
            "def branch(self, start, num_tokens):\n"
            "    shared, _ = divmod(start, self._pool.block_size)\n"
            "    return [*self._pool.allocate(blocks_for(num_tokens - shared * self._pool.block_size,\n"
            "                                            self._pool.block_size))]\n\n"
            "def adopt(self, start, own):\n"
            "    old = []\n"
            "    while len(self.block_ids) > start // self._pool.block_size:\n"
            "        old.insert(0, self.block_ids.pop())\n"
            "    self.block_ids.extend(own)\n"
            "    return old\n",
            "branch",
            "adopt",
        ),
    ),
    Rewrite(
        "a range of blocks",
        methods(
            "BlockTable",
            "def branch(self, start, num_tokens):\n"
            "    size = self._pool.block_size\n"
            "    own = range(start // size, (num_tokens - 1) // size + 1)\n"
            "    return self._pool.allocate(len(own))\n\n"
            "def adopt(self, start, own):\n"
            "    cut = int(start / self._pool.block_size)\n"
            "    kept, old = list(self.block_ids[:cut]), list(self.block_ids[cut:])\n"
            "    self.block_ids = [*kept, *own]\n"
            "    return old\n",
            "branch",
            "adopt",
        ),
    ),
]
