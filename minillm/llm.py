"""`LLM`: the offline face of the engine. Text in, text out.

Everything here is a loop around `Engine.add_request` and `Engine.step`; nothing is decided here
that the engine does not decide for every other caller. One LLM is to be used from one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Unpack
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from minillm.config import EngineOptions, SamplingParams, engine_config, require_int
from minillm.engine.engine import Engine
from minillm.engine.outputs import RequestOutput
from minillm.engine.parts import Parts
from minillm.errors import MinillmError, PromptTooLong, QueueFull, UsageError
from minillm.memory.block_table import BlockTable, blocks_for
from minillm.memory.budget import format_bytes
from minillm.model.loader import load_model
from minillm.model.locate import find_model
from minillm.model.runner import SequenceRows
from minillm.ops.swapped import SwappedOps
from minillm.progress import Bar
from minillm.speculation.pairing import load_draft
from minillm.text.tokenizer import Message, check_messages

MAX_LOGITS_BYTES = 1 << 30
Prompt = str | Sequence[int]


class LLM:
    """A model and an engine.

    Args:
        model: a folder in Hugging Face layout or a hub id; None is the model that ships.
        parts: parts of the engine to replace by name, see `engine/parts.py`.
        options: `dtype`, `device`, `backend`, `kv_memory`, `block_size`, `max_model_len`,
            `max_num_seqs`, `max_num_batched_tokens`, `prefill_chunk`, `max_queued_requests`,
            `max_queued_tokens`, `prefix_caching`, `draft_model`, `num_draft_tokens`,
            `draft_verification`, `draft_tree`, `adaptive_draft`, `seed`: see `EngineConfig`.

    Raises:
        MinillmError: the typed errors of `errors.py`, before anything runs.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        parts: Mapping[str, Any] | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        self.config = engine_config(options)
        seams = Parts.of(parts)
        folder = find_model(model)
        with Bar("loading weights", in_bytes=True) as bar:
            loaded = load_model(folder, self.config, progress=bar)
        if seams.rope or seams.attention or seams.linear:
            ops = SwappedOps(loaded.decoder.ops, seams.rope, seams.attention, seams.linear)
            loaded = replace(loaded, decoder=loaded.decoder.with_ops(ops))
        with Bar("loading draft", in_bytes=True) as bar:
            draft = None if seams.drafter else load_draft(loaded, self.config, bar)
        self.engine = Engine(loaded, self.config, parts, draft)
        self._streams: WeakValueDictionary[str, TextIterator] = WeakValueDictionary()

    @property
    def default_params(self) -> SamplingParams:
        """What `sampling_params=None` means: the model's generation_config.json."""
        return self.engine.model.default_params

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tenant: str | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Complete one prompt or many; answers come in the order of the prompts.

        All prompts are checked before any starts. More prompts than the queue holds are fed as it
        drains. On Ctrl-C what is running is ended and the exception goes on.

        Args:
            prompts: text or token ids, or a list of either.
            sampling_params: one for all, or one for each prompt; None for the model's own.
            tenant: cached prefixes are shared with the same tenant only; None is a tenant too.
            progress: show a bar on stderr.

        Raises:
            UsageError, PromptTooLong, KVCapacityError: naming the index of the bad prompt.
        """
        prompt_list = _as_list(prompts)
        params = _params_for(prompt_list, sampling_params, self.default_params)
        pairs = enumerate(zip(prompt_list, params, strict=True))
        ids = [_checked_ids(self.engine, i, prompt, param, tenant) for i, (prompt, param) in pairs]
        return self._run(ids, params, tenant, progress)

    def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        tenant: str | None = None,
        on_overflow: str = "refuse",
    ) -> RequestOutput:
        """Answer a conversation, given as [{"role": ..., "content": ...}, ...].

        `on_overflow="drop_oldest"` leaves out the oldest messages (system messages stay) until the
        rest fits the context; `dropped_messages` of the answer says which.

        Raises:
            UsageError: the model has no chat template, or a message is malformed.
            PromptTooLong: the conversation does not fit.
        """
        ids, dropped = self.chat_prompt(messages, on_overflow)
        return replace(self.generate([ids], sampling_params, tenant=tenant)[0], dropped_messages=dropped)

    def chat_prompt(
        self, messages: Sequence[Message], on_overflow: str = "refuse"
    ) -> tuple[list[int], list[int]]:
        """The token ids `chat` would use, and the indices of the messages it would leave out."""
        if on_overflow not in ("refuse", "drop_oldest"):
            raise UsageError(f"on_overflow={on_overflow!r} is not known", "use refuse or drop_oldest")
        tokenizer = self.engine.model.require_tokenizer()
        check_messages(messages)
        kept = list(range(len(messages)))
        while True:
            ids = tokenizer.encode_chat([messages[i] for i in kept])
            droppable = [i for i in kept[:-1] if messages[i]["role"] != "system"]
            fits = len(ids) < self.engine.model.max_model_len
            if fits or on_overflow == "refuse" or not droppable:
                return ids, [i for i in range(len(messages)) if i not in kept]
            oldest, *later = droppable
            # With its answers, so that what is left begins with the user: many templates insist on it.
            answers = takewhile(lambda i: messages[i]["role"] != "user", later)
            for i in [oldest, *answers]:
                kept.remove(i)

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        tenant: str | None = None,
    ) -> TextIterator:
        """Complete one prompt piece by piece; the pieces joined are the completion's text.

        Raises:
            UsageError, PromptTooLong, KVCapacityError: at once, before the first piece.
        """
        params = self.default_params if sampling_params is None else sampling_params
        if isinstance(params, SamplingParams) and params.n != 1:
            raise UsageError(f"stream gives one completion, not n={params.n}", "use generate")
        stream = TextIterator(self.engine, self.engine.add_request(prompt, params, tenant), self._step)
        self._streams[stream.request_id] = stream
        return stream

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Raw scores after each token, through the paged prefill path.

        Args:
            token_ids: taken as they are; no BOS is added.

        Returns:
            float32 [len(token_ids), vocab_size]; row i scores the token that follows token i.

        Raises:
            UsageError: a bad id, or a result above 1 GiB.
            PromptTooLong, OutOfBlocks: more tokens than the context, or than the free blocks hold.
        """
        model, chunk = self.engine.model, self.config.prefill_chunk
        try:
            ids = model.token_ids(list(token_ids))
        except TypeError:
            kind = type(token_ids).__name__
            raise UsageError(f"token_ids must be a list of token ids, not {kind}") from None
        if len(ids) > model.max_model_len:
            raise PromptTooLong(f"{len(ids)} tokens are more than the context of {model.max_model_len}")
        nbytes = 4 * len(ids) * model.config.vocab_size
        if nbytes > MAX_LOGITS_BYTES:
            raise UsageError(
                f"the logits would take {format_bytes(nbytes)}, more than {format_bytes(MAX_LOGITS_BYTES)}",
                "ask for fewer tokens at a time",
            )
        table = BlockTable(self.engine.pool)
        self.engine.memory.make_room(blocks_for(len(ids), self.config.block_size))
        table.grow(len(ids))
        try:
            hidden = [
                self.engine.runner.forward([SequenceRows(ids[i : i + chunk], i, table.block_ids)])
                for i in range(0, len(ids), chunk)
            ]
            return model.decoder.logits(torch.cat(hidden)).float().cpu()
        finally:
            table.release()

    def _run(
        self, prompts: list[list[int]], params: list[SamplingParams], tenant: str | None, progress: bool
    ) -> list[RequestOutput]:
        answers: dict[str, RequestOutput | None] = {}  # in the order of the prompts submitted so far
        num_done = 0
        try:
            with Bar("requests", len(prompts), enabled=progress) as bar:
                while num_done < len(prompts):
                    self._feed(prompts, params, tenant, answers)
                    for output in self._step():
                        if output.finished and output.request_id in answers:
                            answers[output.request_id] = output
                            num_done += 1
                    bar.update(num_done)
        except BaseException:
            self._abandon(answers)
            raise
        return [answer for answer in answers.values() if answer]

    def _feed(
        self,
        prompts: list[list[int]],
        params: list[SamplingParams],
        tenant: str | None,
        answers: dict[str, RequestOutput | None],
    ) -> None:
        """Submit prompts from the first that is not yet submitted, until the queue is full."""
        while len(answers) < len(prompts):
            number = len(answers)
            try:
                answers[self.engine.add_request(prompts[number], params[number], tenant)] = None
            except QueueFull:
                return

    def _abandon(self, request_ids: Iterable[str]) -> None:
        """End what is still running, so that its blocks are free for the next call."""
        for request_id in request_ids:
            self.engine.abort_request(request_id)
        self._step()

    def _step(self) -> list[RequestOutput]:
        """One engine step; every open stream learns of its request, whoever asked for the step."""
        outputs = self.engine.step()
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.output = output
        return outputs


class TextIterator(Iterator[str]):
    """Pieces of one completion. Dropping it ends the request.

    A request that ends with an error gives its text first; then the iteration raises that error.
    """

    def __init__(self, engine: Engine, request_id: str, step: Callable[[], list[RequestOutput]]) -> None:
        self.request_id = request_id
        self._engine, self._step = engine, step
        self._given = 0
        self.output: RequestOutput | None = None

    def __next__(self) -> str:
        while not (piece := self._take()):
            if self.output is not None and self.output.finished:
                raise self.output.error or StopIteration
            self._advance()
        return piece

    @property
    def result(self) -> RequestOutput:
        """The finished answer; runs the request to its end if it is not there yet."""
        while self.output is None or not self.output.finished:
            self._advance()
        return self.output

    def close(self) -> str:
        """End the request now, if it is running; returns the text not yet given out."""
        self._engine.abort_request(self.request_id)
        return self._take() if self.result else ""

    def _take(self) -> str:
        """Text that has come since the last call."""
        text = self.output.text if self.output else ""
        piece, self._given = text[self._given :], len(text)
        return piece

    def _advance(self) -> None:
        if not self._engine.has_unfinished_requests():
            raise MinillmError(f"{self.request_id} ended unseen", "only one loop may step an engine")
        self._step()

    def __del__(self) -> None:
        self._engine.abort_request(self.request_id)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt (text, or a list of ids) or a list of prompts, as a list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        raise UsageError(f"prompts must be text, token ids or a list of them, not {type(prompts).__name__}")
    if prompts and all(isinstance(p, int) for p in prompts):
        return [[require_int("token id", p) for p in prompts]]
    return list(prompts)


def _params_for(
    prompts: list[Prompt],
    given: SamplingParams | Sequence[SamplingParams] | None,
    default: SamplingParams,
) -> list[SamplingParams]:
    if given is None or isinstance(given, SamplingParams):
        return [given or default] * len(prompts)
    if not isinstance(given, list | tuple) or len(given) != len(prompts):
        raise UsageError(
            f"sampling_params must be one SamplingParams, or {len(prompts)}: one for each prompt"
        )
    return list(given)


def _checked_ids(
    engine: Engine, index: int, prompt: Prompt, params: SamplingParams, tenant: str | None
) -> list[int]:
    """Token ids of one prompt of many, checked; an error names its index."""
    try:
        return engine.check_request(prompt, params, tenant)
    except MinillmError as error:
        raise type(error)(f"prompt {index}: {error.message}", error.hint) from None
