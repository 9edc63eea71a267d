"""Lab 1: one-line mistakes in the finished file, and the diagnosis of each."""

from wrong.slips import Slip

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
