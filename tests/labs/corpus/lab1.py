"""Lab 1: wrong and odd solutions, and the diagnosis of each wrong one."""

from corpus.variants import Rewrite, Slip

SLIPS = [
    Slip(
        "penalty divides negative logits",
        "torch.where(picked > 0, picked / penalty, picked * penalty)",
        "picked / penalty",
        {"1.1": "negative logits are divided"},
    ),
    Slip(
        "penalty written into the argument",
        "return logits.index_copy(0",
        "return logits.index_copy_(0",
        {"1.1": "work on a copy"},
    ),
    Slip(
        "top-p drops the crossing token",
        "ordered[before >= top_p * mass.sum()]",
        "ordered[before + mass > top_p * mass.sum()]",
        {"1.2": "top-p drops the token that crosses"},
    ),
    Slip(
        "ties to the highest id",
        "ordered, ids = logits.sort(descending=True, stable=True)",
        "ordered, ids = (part.flip(0) for part in logits.sort(stable=True))",
        {"1.2": "of equal logits the highest id is kept"},
    ),
    Slip(
        "logits left in sorted order",
        "return torch.empty_like(logits).index_copy_(0, ids, ordered)",
        "return ordered",
        {"1.2": "sorted order"},
    ),
    Slip(
        "top-p before top-k",
        "    if top_k:\n        ordered[top_k:] = NEG_INF\n    if top_p < 1.0:",
        "    if top_p < 1.0 and top_k:\n        first = keep_top(logits, 0, top_p)\n"
        "        return keep_top(first, top_k, 1.0)\n"
        "    if top_k:\n        ordered[top_k:] = NEG_INF\n    if top_p < 1.0:",
        {"1.2": "applied to the whole distribution"},
    ),
    Slip(
        "temperature multiplied",
        "(logits - logits.max()) / _moderate(params.temperature)",
        "(logits - logits.max()) * params.temperature",
        {"1.3": "multiplied by the temperature"},
    ),
    Slip("no min-p", "if params.min_p > 0.0:", "if False:", {"1.3": "min-p is missing"}),
    Slip("no noise", "filtered.double() + noise", "filtered.double()", {"1.4": "no noise"}),
    Slip(
        "one key for all rows",
        "gumbel_noise([batch.keys[row] for row in drawn]",
        "gumbel_noise([batch.keys[0] for row in drawn]",
        {"1.4": "first row's key"},
    ),
    Slip(
        "ids without text are drawn",
        "    logits[:, batch.num_token_ids :] = NEG_INF\n    for",
        "    for",
        {"1.4": "ids that the tokenizer does not have"},
    ),
    Slip(
        "stop string leaks between pieces",
        "keep = self._overlap()",
        "keep = 0",
        {"1.5": "a stop string may span pieces"},
    ),
    Slip(
        "the stop string comes out",
        "self._held = self._held[: end - len(self.matched)]",
        "self._held = self._held[:end]",
        {"1.5": "the stop string is returned"},
    ),
    Slip(
        "the first listed stop string",
        "self.matched = next((stop for stop in last if stop in self._whole), None)",
        "self.matched = next((stop for stop in self._stops if stop in self._held), None)\n"
        '            end = self._held.find(self.matched or "") + len(self.matched or "")',
        {"1.5": "is first in the list"},
    ),
    Slip(
        "half characters emitted",
        "text = self._stream.step(self._tokenizer, token_id)",
        "text = self._decode([token_id])",
        {"1.6": "half characters are emitted"},
    ),
    Slip(
        "the tail of the matcher lost",
        "return self._stop.push(self._tail()) + self._stop.flush()",
        "return self._stop.push(self._tail())",
        {"1.6": "flush it"},
    ),
    Slip(
        "a cut character comes out",
        "while cut > 0:",
        "while cut > 0 and False:",
        {"1.6": "becomes U+FFFD"},
    ),
    Slip(
        "stop strings ignored",
        "self._stop = StopMatcher(stops)",
        "self._stop = StopMatcher(())",
        {"1.6": "stop strings are ignored"},
    ),
]


REWRITES = [
    # --- 1.1 --------------------------------------------------------------------------------------------
    Rewrite(
        "1.1 a loop over the seen ids",
        """
def penalise_repetition(logits, seen, penalty):
    out = logits.clone()
    for token_id in dict.fromkeys(seen):
        out[token_id] = out[token_id] / penalty if out[token_id] > 0 else out[token_id] * penalty
    return out
""",
    ),
    Rewrite(
        "1.1 a mask over the vocabulary",
        """
def penalise_repetition(logits, seen, penalty):
    has_occurred = torch.zeros(logits.shape[0], dtype=torch.bool)
    if len(seen):
        has_occurred[torch.as_tensor(list(seen))] = True
    changed = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(has_occurred, changed, logits)
""",
    ),
    Rewrite(
        "1.1 plain Python numbers",
        """
def penalise_repetition(logits, seen, penalty):
    row, ids = logits.tolist(), frozenset(seen)
    change = [(x / penalty if x > 0 else x * penalty) for x in row]
    return torch.tensor([change[i] if i in ids else x for i, x in enumerate(row)])
""",
    ),
    Rewrite(
        "1.1 every id",
        """
def penalise_repetition(logits, seen, penalty):
    return torch.where(logits > 0, logits / penalty, logits * penalty)
""",
        {"1.1": "ids that have not occurred"},
    ),
    Rewrite(
        "1.1 once for each time",
        """
def penalise_repetition(logits, seen, penalty):
    out = logits.clone()
    for token_id in seen:
        out[token_id] = out[token_id] / penalty if out[token_id] > 0 else out[token_id] * penalty
    return out
""",
        {"1.1": "penalised several times"},
    ),
    Rewrite(
        "1.1 subtracted",
        """
def penalise_repetition(logits, seen, penalty):
    out = logits.clone()
    out[list(set(seen))] -= penalty
    return out
""",
        {"1.1": "it is a factor"},
    ),
    Rewrite(
        "1.1 a loop over the vocabulary",
        """
def penalise_repetition(logits, seen, penalty):
    out = logits.clone()
    for i in range(len(logits)):
        if i in seen:
            out[i] = out[i] / penalty if out[i] > 0 else out[i] * penalty
        else:
            out[i] = logits[i]
    return out
""",
        {"1.1": "every id of the vocabulary costs"},
    ),
    Rewrite(
        "1.1 negative logits are left",
        """
def penalise_repetition(logits, seen, penalty):
    out = logits.clone()
    ids = [i for i in set(seen) if logits[i] > 0]
    out[ids] = out[ids] / penalty
    return out
""",
        {"1.1": "negative logits stay"},
    ),
    # --- 1.2 --------------------------------------------------------------------------------------------
    Rewrite(
        "1.2 topk and a mask",
        """
def keep_top(logits, top_k, top_p):
    order = torch.argsort(logits, descending=True, stable=True)
    kept = order[:top_k] if top_k else order
    if top_p < 1:
        share = logits[kept].double().softmax(-1).cumsum(-1)
        count = int((share < top_p - 1e-12).sum()) + 1
        kept = kept[:count]
    out = torch.full_like(logits, float("-inf"))
    out[kept] = logits[kept]
    return out
""",
    ),
    Rewrite(
        "1.2 plain Python",
        """
def keep_top(logits, top_k, top_p):
    row = logits.tolist()
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))[: top_k or None]
    total = sum(math.exp(row[i] - row[order[0]]) for i in order)
    kept, reached = [], 0.0
    for i in order:
        if top_p < 1 and reached >= top_p * total:
            break
        kept.append(i)
        reached += math.exp(row[i] - row[order[0]])
    out = torch.full((len(row),), -math.inf)
    out[kept] = logits[kept]
    return out
""",
    ),
    Rewrite(
        "1.2 a threshold for top-p, scatter at the end",
        """
def keep_top(logits, top_k, top_p):
    if top_k == 0 and top_p >= 1:
        return logits
    values, ids = torch.sort(logits, descending=True, stable=True)
    dropped = torch.zeros_like(values, dtype=torch.bool)
    if 0 < top_k:
        dropped |= torch.arange(len(values)) >= top_k
    if top_p < 1:
        probs = values.masked_fill(dropped, -torch.inf).double().softmax(0)
        dropped |= (probs.cumsum(0) - probs) >= top_p
    values = values.masked_fill(dropped, -torch.inf)
    return torch.zeros_like(logits).scatter(0, ids, values)
""",
    ),
    Rewrite(
        "1.2 ties of the k-th logit",
        """
def keep_top(logits, top_k, top_p):
    out = logits.clone()
    if 0 < top_k < len(out):
        out[out < out.topk(top_k).values[-1]] = NEG_INF
    if top_p < 1.0:
        ordered, ids = out.sort(descending=True, stable=True)
        probs = ordered.double().softmax(-1)
        out[ids[probs.cumsum(-1) - probs >= top_p]] = NEG_INF
    return out
""",
        {"1.2": "all ids equal to the k-th logit"},
    ),
    Rewrite(
        "1.2 each filter sorts",
        """
def keep_top(logits, top_k, top_p):
    out = logits.clone()
    if top_k:
        out[out.argsort(descending=True, stable=True)[top_k:]] = NEG_INF
    if top_p < 1.0:
        ordered, ids = out.sort(descending=True, stable=True)
        probs = ordered.double().softmax(-1)
        out[ids[probs.cumsum(-1) - probs >= top_p]] = NEG_INF
    return out
""",
        {"1.2": "the row is sorted more than once"},
    ),
    Rewrite(
        "1.2 probabilities below top_p",
        """
def keep_top(logits, top_k, top_p):
    out, order = logits.clone(), logits.argsort(descending=True, stable=True)
    if top_k:
        out[order[top_k:]] = NEG_INF
    if top_p < 1:
        out[out.softmax(-1) < top_p] = NEG_INF
    return out
""",
        {"1.2": "probability below top_p"},
    ),
    Rewrite(
        "1.2 top_k off drops all",
        """
def keep_top(logits, top_k, top_p):
    out, order = logits.clone(), logits.argsort(descending=True, stable=True)
    out[order[top_k:]] = NEG_INF
    if top_p < 1:
        probs = out[order].double().softmax(-1)
        out[order[probs.cumsum(-1) - probs >= top_p]] = NEG_INF
    return out
""",
        {"1.2": "top_k 0 drops everything"},
    ),
    Rewrite(
        "1.2 the inverse by a second sort",
        """
def keep_top(logits, top_k, top_p):
    order = logits.argsort(descending=True, stable=True)
    ordered = logits[order]
    ordered[top_k or len(ordered) :] = NEG_INF
    if top_p < 1:
        probs = ordered.double().softmax(-1)
        ordered[probs.cumsum(-1) - probs >= top_p] = NEG_INF
    return ordered[order.argsort()]
""",
        {"1.2": "the row is sorted more than once"},
    ),
    # --- 1.3 --------------------------------------------------------------------------------------------
    Rewrite(
        "1.3 min-p with probabilities",
        """
def filter_logits(logits, params):
    scaled = keep_top((logits - logits.max()).div(params.temperature), params.top_k, params.top_p)
    probs = scaled.softmax(-1)
    return scaled.masked_fill(probs < params.min_p * probs.max() * (1 - 1e-6), -math.inf)
""",
    ),
    Rewrite(
        "1.3 in float64",
        """
def filter_logits(logits, params):
    wide = (logits.double() - float(logits.max())) / params.temperature
    kept = keep_top(wide.float(), params.top_k, params.top_p)
    if params.min_p:
        kept[wide < math.log(params.min_p)] = float("-inf")
    return kept
""",
    ),
    Rewrite(
        "1.3 log-probabilities",
        """
def filter_logits(logits, params):
    logprobs = ((logits - logits.amax()) / params.temperature).log_softmax(-1)
    if params.top_k > 0 or params.top_p != 1:
        logprobs = keep_top(logprobs, params.top_k, params.top_p)
    if params.min_p > 0:
        least = math.log(params.min_p) + logprobs.max()
        logprobs = torch.where(logprobs + 1e-6 >= least, logprobs, torch.full_like(logprobs, NEG_INF))
    return logprobs
""",
    ),
    Rewrite(
        "1.3 no maximum",
        """
def filter_logits(logits, params):
    scaled = keep_top(logits / params.temperature, params.top_k, params.top_p)
    if params.min_p > 0:
        probs = scaled.softmax(-1)
        scaled[probs < params.min_p * probs.max() * 0.999999] = NEG_INF
    return scaled
""",
        {"1.3": "the maximum is not subtracted"},
    ),
    Rewrite(
        "1.3 min_p is a probability",
        """
def filter_logits(logits, params):
    scaled = keep_top((logits - logits.max()) / params.temperature, params.top_k, params.top_p)
    return torch.where(scaled.softmax(-1) >= params.min_p, scaled, torch.tensor(NEG_INF))
""",
        {"1.3": "compared with min_p: compare it with min_p times"},
    ),
    Rewrite(
        "1.3 temperature last",
        """
def filter_logits(logits, params):
    kept = keep_top(logits - logits.max(), params.top_k, params.top_p)
    if params.min_p:
        probs = kept.softmax(-1)
        kept[probs < params.min_p * probs.max() * 0.999999] = NEG_INF
    return kept / params.temperature
""",
        {"1.3": "temperature is applied after top-p"},
    ),
    Rewrite(
        "1.3 no top-k",
        """
def filter_logits(logits, params):
    scaled = keep_top((logits - logits.max()) / params.temperature, 0, params.top_p)
    if params.min_p:
        scaled[scaled < torch.tensor(math.log(params.min_p))] = NEG_INF
    return scaled
""",
        {"1.3": "top-k is missing"},
    ),
    Rewrite(
        "1.3 two calls of keep_top",
        """
def filter_logits(logits, params):
    scaled = (logits - logits.max()) / params.temperature
    scaled = keep_top(keep_top(scaled, params.top_k, 1.0), 0, params.top_p)
    if params.min_p:
        scaled[scaled < torch.tensor(math.log(params.min_p))] = NEG_INF
    return scaled
""",
        {"1.3": "the row is sorted more than once"},
    ),
    Rewrite(
        "1.3 in place",
        """
def filter_logits(logits, params):
    logits -= logits.max()
    logits /= params.temperature
    scaled = keep_top(logits, params.top_k, params.top_p)
    if params.min_p:
        scaled[scaled < torch.tensor(math.log(params.min_p))] = NEG_INF
    return scaled
""",
        {"1.3": "in place"},
    ),
    # --- 1.4 --------------------------------------------------------------------------------------------
    Rewrite(
        "1.4 row by row",
        """
def sample(logits, batch):
    tokens = []
    for row in range(logits.shape[0]):
        scores = logits[row].to(torch.float32, copy=True)
        scores[batch.num_token_ids :] = NEG_INF
        params = batch.params[row]
        if params.repetition_penalty != 1:
            scores = penalise_repetition(scores, batch.seen[row], params.repetition_penalty)
        if params.temperature != 0:
            noise = gumbel_noise([batch.keys[row]], logits.shape[1])
            scores = filter_logits(scores, params) + noise[0]
        tokens.append(int(scores.argmax()))
    return torch.tensor(tokens)
""",
    ),
    Rewrite(
        "1.4 noise for all rows, and a choice between two argmaxes",
        """
def sample(logits, batch):
    exists = torch.arange(logits.shape[1]) < batch.num_token_ids
    plain = torch.where(exists, logits.float(), NEG_INF)
    plain = torch.stack([
        penalise_repetition(row, seen, params.repetition_penalty)
        for row, params, seen in zip(plain, batch.params, batch.seen)
    ])
    warm = torch.tensor([params.temperature > 0 for params in batch.params])
    filtered = torch.stack([
        filter_logits(row, params) if params.temperature > 0 else row
        for row, params in zip(plain, batch.params)
    ])
    noisy = filtered.to(torch.float64) + gumbel_noise(list(batch.keys), logits.shape[-1])
    return torch.where(warm, noisy.argmax(-1), plain.argmax(-1))
""",
    ),
    Rewrite(
        "1.4 groups of rows",
        """
def one_group(logits, batch, rows):
    part = batch.rows(rows)
    scores = logits[rows].double()
    scores = scores.index_fill(1, torch.arange(batch.num_token_ids, logits.shape[1]), -math.inf)
    for i, params in enumerate(part.params):
        scores[i] = penalise_repetition(scores[i].float(), part.seen[i], params.repetition_penalty)
        if params.temperature > 0:
            scores[i] = filter_logits(scores[i].float(), params)
    if part.params[0].temperature > 0:
        scores = scores + gumbel_noise(part.keys, logits.shape[1])
    return scores.max(dim=-1).indices

def sample(logits, batch):
    tokens = torch.zeros(len(logits), dtype=torch.long)
    for is_greedy in (True, False):
        rows = [row for row, params in enumerate(batch.params) if (params.temperature == 0) == is_greedy]
        if rows:
            tokens[rows] = one_group(logits, batch, rows)
    return tokens
""",
    ),
    Rewrite(
        "1.4 multinomial",
        """
def sample(logits, batch):
    scores, tokens = masked(logits, batch), []
    for row, params in zip(scores, batch.params):
        if params.temperature == 0:
            tokens.append(row.argmax())
        else:
            tokens.append(torch.multinomial(filter_logits(row, params).softmax(-1), 1)[0])
    return torch.stack(tokens)
""",
        {"1.4": "torch.multinomial"},
    ),
    Rewrite(
        "1.4 torch.rand",
        """
def sample(logits, batch):
    scores = masked(logits, batch)
    drawn = [row for row, params in enumerate(batch.params) if params.temperature > 0]
    if drawn:
        noise = -torch.log(-torch.log(torch.rand(len(drawn), logits.shape[1])))
        filtered = torch.stack([filter_logits(scores[row], batch.params[row]) for row in drawn])
        scores[drawn] = filtered + noise
    return scores.argmax(-1)
""",
        {"1.4": "torch's global generator"},
    ),
    Rewrite(
        "1.4 generators seeded by the key",
        """
def sample(logits, batch):
    scores = masked(logits, batch).double()
    for row, params in enumerate(batch.params):
        if params.temperature > 0:
            generator = torch.Generator().manual_seed(batch.keys[row])
            uniform = torch.rand(logits.shape[1], generator=generator)
            scores[row] = filter_logits(scores[row].float(), params) - torch.log(-torch.log(uniform))
    return scores.argmax(-1)
""",
        {"1.4": "a generator is seeded"},
    ),
    Rewrite(
        "1.4 the first row's parameters",
        """
def sample(logits, batch):
    first, scores = batch.params[0], masked(logits, SamplingBatch(
        [batch.params[0]] * len(batch.params), batch.keys, batch.seen, batch.num_token_ids))
    if first.temperature == 0:
        return scores.argmax(-1)
    noise = gumbel_noise(batch.keys, logits.shape[1])
    return (torch.stack([filter_logits(row, first) for row in scores]).double() + noise).argmax(-1)
""",
        {"1.4": "first row's parameters"},
    ),
    Rewrite(
        "1.4 keys of the first rows",
        """
def sample(logits, batch):
    scores = masked(logits, batch).double()
    drawn = [row for row, params in enumerate(batch.params) if params.temperature > 0]
    for row, noise in zip(drawn, gumbel_noise(batch.keys[: len(drawn)] or [0], logits.shape[1])):
        scores[row] = filter_logits(scores[row].float(), batch.params[row]) + noise
    return scores.argmax(-1)
""",
        {"1.4": "keys and rows do not match"},
    ),
    Rewrite(
        "1.4 no filters",
        """
def sample(logits, batch):
    scores = masked(logits, batch).double()
    for row, params in enumerate(batch.params):
        if params.temperature > 0:
            scores[row] += gumbel_noise([batch.keys[row]], logits.shape[1])[0]
    return scores.argmax(-1)
""",
        {"1.4": "temperature and filters are missing"},
    ),
    # --- 1.5 --------------------------------------------------------------------------------------------
    Rewrite(
        "1.5 one character at a time",
        """
def push_characters(self, text):
    out = ""
    for character in text:
        self._held += character
        ended = [stop for stop in self._stops if self._held.endswith(stop)]
        if ended:
            self.matched = max(ended, key=len)
            out += self._held[: len(self._held) - len(self.matched)]
            self._held = ""
            return out
        while self._held and not any(stop.startswith(self._held) for stop in self._stops):
            out, self._held = out + self._held[0], self._held[1:]
    return out

StopMatcher.push = push_characters
""",
    ),
    Rewrite(
        "1.5 a set of beginnings",
        """
def push_beginnings(self, text):
    starts = {stop[:n] for stop in self._stops for n in range(1, len(stop))}
    held, self._held = self._held + text, ""
    ends = [(held.index(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in held]
    if ends:
        end, _, self.matched = min(ends)
        return held[: end - len(self.matched)]
    longest = max(map(len, self._stops), default=0)
    for at in range(max(0, len(held) - longest), len(held)):
        if held[at:] in starts:
            held, self._held = held[:at], held[at:]
            break
    return held

StopMatcher.push = push_beginnings
""",
    ),
    Rewrite(
        "1.5 a list of characters",
        """
class StopMatcher:
    def __init__(self, stops):
        self._stops = sorted(stops, key=len, reverse=True)
        self._chars = []
        self.matched = None

    def push(self, text):
        out = []
        for char in text:
            self._chars.append(char)
            held = "".join(self._chars)
            for stop in self._stops:
                if held.endswith(stop):
                    self.matched, self._chars = stop, []
                    return "".join(out) + held[: -len(stop)]
            ends = (n for stop in self._stops for n in range(len(stop)) if held.endswith(stop[:n]))
            room = max(ends, default=0)
            out.extend(self._chars[: len(held) - room])
            self._chars = self._chars[len(held) - room :]
        return "".join(out)

    def flush(self):
        out, self._chars = "".join(self._chars), []
        return out
""",
    ),
    Rewrite(
        "1.5 only the new piece",
        """
def push_piece(self, text):
    before, self._held = self._held, ""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
    if found:
        end, _, self.matched = min(found)
        return before + text[: end - len(self.matched)]
    keep = max((n for s in self._stops for n in range(len(s)) if text.endswith(s[:n])), default=0)
    self._held = text[len(text) - keep :]
    return before + text[: len(text) - keep]

StopMatcher.push = push_piece
""",
        {"1.5": "in the new piece only"},
    ),
    Rewrite(
        "1.5 a fixed number of characters",
        """
def push_fixed(self, text):
    held = self._held + text
    found = [(held.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in held]
    if found:
        end, _, self.matched = min(found)
        self._held = ""
        return held[: end - len(self.matched)]
    keep = max((len(stop) for stop in self._stops), default=1) - 1
    cut = max(len(held) - keep, 0)
    self._held = held[cut:]
    return held[:cut]

StopMatcher.push = push_fixed
""",
        {"1.5": "a fixed number of characters"},
    ),
    Rewrite(
        "1.5 the first that starts",
        """
own_push = StopMatcher.push

def push_start(self, text):
    held = self._held + text
    found = [(held.find(stop), stop) for stop in self._stops if stop in held]
    if not found:
        return own_push(self, text)
    start, self.matched = min(found)
    self._held = ""
    return held[:start]

StopMatcher.push = push_start
""",
        {"1.5": "that starts first is used"},
    ),
    Rewrite(
        "1.5 the rest is not dropped",
        """
whole_push = StopMatcher.push

def push_rest(self, text):
    held = self._held + text
    out = whole_push(self, text)
    if self.matched:
        self._held = held[len(out) + len(self.matched) :]
    return out

StopMatcher.push = push_rest
""",
        {"1.5": "stays held, so `flush` returns it"},
    ),
    Rewrite(
        "1.5 the whole text is searched",
        """
def push_whole(self, text):
    self._text = getattr(self, "_text", "") + text
    sent = getattr(self, "_sent", 0)
    places = [(self._text.find(stop), stop) for stop in self._stops]
    found = [(at + len(stop), -len(stop), stop) for at, stop in places if at >= 0]
    if found:
        end, _, self.matched = min(found)
        self._held = ""
        return self._text[sent : end - len(self.matched)]
    keep = max((n for s in self._stops for n in range(len(s)) if self._text.endswith(s[:n])), default=0)
    cut = len(self._text) - keep
    out, self._sent, self._held = self._text[sent:cut], cut, self._text[cut:]
    return out

StopMatcher.push = push_whole
""",
        {"1.5": "all text is stored"},
    ),
    # --- 1.6 --------------------------------------------------------------------------------------------
    Rewrite(
        "1.6 the text of the last tokens, decoded twice",
        """
def push_decoded(self, token_id):
    self._pending.append(token_id)
    before, text = self._decode(self._before), self._decode(self._before + self._pending)
    if text.endswith("\\ufffd"):
        return ""
    self._before, self._pending = self._pending, []
    return self._stop.push(text[len(before) :])

Detokenizer.push = push_decoded
""",
    ),
    Rewrite(
        "1.6 finish in two steps",
        """
def finish_in_steps(self):
    pieces = []
    if not self._stop.matched:
        rest = self._tail()
        if rest:
            pieces.append(self._stop.push(rest))
        pieces.append(self._stop.flush())
    return "".join(pieces)

Detokenizer.finish = finish_in_steps
""",
    ),
    Rewrite(
        "1.6 the tail is cut by length",
        """
def tail_by_bytes(self):
    special = self._tokenizer.get_added_tokens_decoder()
    ids = [i for i in self._pending if i not in special]
    data = b"".join(token_bytes(self._tokenizer, i) for i in ids)
    for end in range(len(data), max(len(data) - 4, -1), -1):
        try:
            return data[:end].decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                return data[:end].decode(errors="replace")
    return ""

Detokenizer._tail = tail_by_bytes
""",
    ),
    Rewrite(
        "1.6 everything is decoded again",
        """
def push_everything(self, token_id):
    if not hasattr(self, "_ids"):
        self._ids, self._sent = list(self._before), len(self._decode(self._before))
    self._ids.append(token_id)
    self._pending.append(token_id)
    text = self._decode(self._ids)
    if text.endswith("\\ufffd"):
        return ""
    new, self._sent = text[self._sent :], len(text)
    self._before, self._pending = self._pending, []
    return self._stop.push(new)

Detokenizer.push = push_everything
""",
        {"1.6": "a token costs more and more"},
    ),
    Rewrite(
        "1.6 the tail is lost",
        """
def finish_held(self):
    return "" if self.stopped else self._stop.flush()

Detokenizer.finish = finish_held
""",
        {"1.6": "loses the stream's pending tokens"},
    ),
    Rewrite(
        "1.6 the tail beside the matcher",
        """
def finish_beside(self):
    return "" if self.stopped else self._tail() + self._stop.flush()

Detokenizer.finish = finish_beside
""",
        {"1.6": "the tail before the held text"},
    ),
    Rewrite(
        "1.6 every U+FFFD is dropped",
        """
def tail_stripped(self):
    return self._decode(self._pending).rstrip("\\ufffd")

Detokenizer._tail = tail_stripped
""",
        {"1.6": "a real U+FFFD"},
    ),
]
