"""`LLM`: the offline interface to the engine. Text in, text out.

Its methods call `Engine.add_request` and then `Engine.step` in a loop. The engine makes all decisions, as
for any other caller. Several threads may use one LLM: their requests run in the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn, Unpack

from torch import Tensor

from minillm.config import EngineOptions, SamplingParams, engine_config, require_int, shown
from minillm.config.sampling import ANSWER_TOKENS
from minillm.engine.delivery import Delivery, Ticket
from minillm.engine.engine import Engine
from minillm.engine.live_change import FixedAttributes
from minillm.engine.outputs import RequestOutput
from minillm.engine.parts import Parts
from minillm.engine.prompt import EncodedPrompt, Prompt, text_digest
from minillm.engine.warmup import Warmup, warm_up
from minillm.errors import MinillmError, QueueFull, UsageError
from minillm.model.loader import load_model
from minillm.model.locate import find_model
from minillm.progress import Bar
from minillm.speculation.pairing import load_draft
from minillm.text.chat_template import Message, check_messages
from minillm.text.conversation import kept_messages
from minillm.text.tokenizer import Tokenizer

Overflow = Literal["refuse", "drop_oldest"]


class LLM(FixedAttributes):
    """A model and an engine that runs it.

    Args:
        model: a folder in Hugging Face layout, a GGUF file, the name of a model in the cache ("smollm2"), or
            a hub id; None means the model that ships with minillm.
        parts: replacements for parts of the engine, by name; see `engine/parts.py`.
        options: `dtype`, `quantization`, `kv_dtype`, `device`, `backend`, `kv_memory`, `block_size`,
            `max_model_len`, `max_num_seqs`, `max_num_batched_tokens`, `prefill_chunk`, `max_queued_requests`,
            `max_queued_tokens`, `prefix_caching`, `draft_model`, `num_draft_tokens`,
            `draft_verification`, `draft_tree`, `adaptive_draft`, `seed`, `allow_config_keys`,
            `public_prefixes`, `tenant_limits`, `guarantee`, `diverge_record`, `record`: see `EngineConfig`.

    Raises:
        MinillmError: a typed error of `errors.py`, before any request runs.
    """

    _fixed = frozenset(("engine", "config"))

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        parts: Mapping[str, Any] | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        self.config = engine_config(options)
        has_drafter = Parts.of(parts).drafter is not None
        folder = find_model(model)
        with Bar("loading weights", in_bytes=True) as bar:
            loaded = load_model(folder, self.config, progress=bar)
        with Bar("loading draft", in_bytes=True) as bar:
            draft = None if has_drafter else load_draft(loaded, self.config, bar)
        self.engine = Engine(loaded, self.config, parts, draft)
        self._delivery = Delivery(self.engine)

    @property
    def default_params(self) -> SamplingParams:
        """The model's generation_config.json. `replace(llm.default_params, max_tokens=200)` keeps the rest.

        It is what `generate` uses without `sampling_params`; `stream` and `chat` allow more tokens.
        """
        return self.engine.model.default_params

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer: `encode`, `decode`, `apply_chat_template`, `eos_token_ids`.

        Raises:
            TokenizerError: the model's folder has none, so that only token ids can be used.
        """
        return self.engine.model.require_tokenizer()

    def get_tokenizer(self) -> Tokenizer:
        """The same as `tokenizer`, by vLLM's name."""
        return self.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tenant: str | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Complete one prompt or many; return the outputs in the order of the prompts.

        All prompts are checked before any starts. If there are more prompts than the queue holds, the rest is
        submitted as requests leave the queue. Ctrl-C ends the running requests and is then raised again.

        Args:
            prompts: text or token ids, or a list of either.
            sampling_params: one for all prompts, or one per prompt; None means the model's own.
            tenant: cached prefixes are shared only within a tenant; None is a tenant too.
            progress: show a progress bar on stderr.

        Raises:
            UsageError, PromptTooLong, KVCapacityError: a prompt is wrong; the message gives its index.
        """
        prompt_list = _as_list(prompts)
        params = _params_for(prompt_list, sampling_params, self.default_params)
        pairs = enumerate(zip(prompt_list, params, strict=True))
        checked = [_checked(self.engine, i, prompt, param, tenant) for i, (prompt, param) in pairs]
        return self._run(checked, params, tenant, progress)

    def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        tenant: str | None = None,
        on_overflow: Overflow = "refuse",
    ) -> RequestOutput:
        """Answer a conversation, given as [{"role": ..., "content": ...}, ...].

        `on_overflow="drop_oldest"` drops the oldest turns, but no system messages, so that the rest and its
        answer fit the context and the KV cache; see `text/conversation.py`. The output's `dropped_messages`
        lists their indices. Without `sampling_params` the answer has at most 256 tokens.

        Raises:
            UsageError: the model has no chat template, or a message is malformed.
            PromptTooLong: the conversation does not fit the context.
        """
        params = self._answer_params(sampling_params)
        prompt, dropped = self.chat_prompt(messages, on_overflow, params.max_tokens, tenant)
        return replace(self.generate([prompt], params, tenant=tenant)[0], dropped_messages=dropped)

    def chat_prompt(
        self,
        messages: Sequence[Message],
        on_overflow: Overflow = "refuse",
        max_tokens: int = ANSWER_TOKENS,
        tenant: str | None = None,
    ) -> tuple[EncodedPrompt, list[int]]:
        """The prompt `chat` would use, and the indices of the messages it would drop.

        `max_tokens`: room that "drop_oldest" keeps for the answer, at most half of what there is.
        """
        if on_overflow not in ("refuse", "drop_oldest"):
            raise UsageError(f"on_overflow={shown(on_overflow)} is not known", "use refuse or drop_oldest")
        tokenizer = self.tokenizer
        check_messages(messages)

        def prompt(kept: Sequence[int]) -> EncodedPrompt:
            text = tokenizer.apply_chat_template([messages[i] for i in kept], tokenize=False)
            return EncodedPrompt(tokenizer.encode(text, add_special_tokens=False), text_digest(text))

        if on_overflow == "refuse":
            return prompt(range(len(messages))), []
        memory = self.engine.memory
        room = min(self.engine.model.max_model_len, memory.most_blocks(tenant) * memory.pool.block_size)
        limit = room - min(max_tokens, room // 2)
        kept = kept_messages(messages, lambda kept: len(prompt(kept).token_ids), limit)
        return prompt(kept), [i for i in range(len(messages)) if i not in kept]

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        tenant: str | None = None,
    ) -> TextIterator:
        """Complete one prompt and return an iterator over pieces of its text.

        Without `sampling_params` the text has at most 256 tokens.

        Raises:
            UsageError, PromptTooLong, KVCapacityError: raised by this call, not by the iterator.
        """
        params = self._answer_params(sampling_params)
        if isinstance(params, SamplingParams) and params.n != 1:
            raise UsageError(f"stream gives one completion, not n={params.n}", "use generate")
        ticket = Ticket()
        try:
            self._delivery.submit(ticket, prompt, params, tenant)
            stream = TextIterator(self._delivery, ticket)
        except BaseException:
            self._delivery.drop(ticket)
            raise
        return stream

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Compute the raw logits after each token, with the paged prefill path.

        Args:
            token_ids: used unchanged; no BOS is added.

        Returns:
            float32 [len(token_ids), vocab_size] on the CPU; row i scores the token that follows token i.

        Raises:
            UsageError: an id is out of range, or the result would be larger than 1 GiB.
            PromptTooLong: more tokens than the context holds.
            OutOfBlocks: more tokens than the free blocks hold.
        """
        return self.engine.logits(token_ids)

    def warmup(self) -> Warmup:
        """Run a few requests, so that the cost of first calls is in no later latency (engine/warmup.py)."""
        return warm_up(self.engine, lambda ids, own, tenant: self.generate(ids, own, tenant=tenant))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UsageError(
            "an LLM cannot be copied or pickled", "make one in each process, from the same folder"
        )

    def _answer_params(self, given: SamplingParams | None) -> SamplingParams:
        """`given`, or for None the model's parameters with room for an answer that a person reads."""
        return replace(self.default_params, max_tokens=ANSWER_TOKENS) if given is None else given

    def _run(
        self, prompts: list[EncodedPrompt], params: list[SamplingParams], tenant: str | None, progress: bool
    ) -> list[RequestOutput]:
        ticket = Ticket()
        try:
            with Bar("requests", len(prompts), enabled=progress) as bar:
                while (num_done := len(ticket.finished)) < len(prompts):
                    self._feed(ticket, prompts, params, tenant)
                    self._delivery.advance(lambda: len(ticket.finished) > num_done)
                    bar.update(len(ticket.finished))
        except BaseException:
            self._abandon(ticket)
            raise
        return [ticket.outputs[request_id] for request_id in ticket.ids]

    def _feed(
        self, ticket: Ticket, prompts: list[EncodedPrompt], params: list[SamplingParams], tenant: str | None
    ) -> None:
        """Submit the prompts that are not yet submitted, until the queue is full."""
        with suppress(QueueFull):
            while (number := len(ticket.ids)) < len(prompts):
                self._delivery.submit(ticket, prompts[number], params[number], tenant)

    def _abandon(self, ticket: Ticket) -> None:
        """End the requests that still run, so that their blocks are free for the next call."""
        self._delivery.drop(ticket)
        with suppress(Exception):  # the caller gets the first exception
            self._delivery.step()


class TextIterator(Iterator[str]):
    """Iterates over pieces of the text of one completion. Dropping the iterator ends the request.

    If the request ends with an error, the iterator yields the remaining text and then raises the error.
    """

    def __init__(self, delivery: Delivery, ticket: Ticket) -> None:
        self._delivery, self._ticket = delivery, ticket
        self._given = 0

    @property
    def request_id(self) -> str:
        """The engine's id of the request."""
        return self._ticket.ids[0]

    @property
    def output(self) -> RequestOutput | None:
        """The output so far; None before the first step."""
        return self._ticket.outputs.get(self.request_id)

    def __next__(self) -> str:
        while True:
            seen = self.output  # first: another thread's step may bring a newer one at any moment
            if piece := self._take():
                return piece
            if seen is not None and seen.finished:
                raise seen.error or StopIteration
            self._wait(seen)

    @property
    def result(self) -> RequestOutput:
        """The finished output; this runs the request to its end if necessary."""
        while (output := self.output) is None or not output.finished:
            self._wait(output)
        return output

    def close(self) -> str:
        """End the request, if it is running; return the text that has not been yielded."""
        self._delivery.drop(self._ticket)
        return self._take() if self.result else ""

    def _take(self) -> str:
        """The new text since the last call."""
        text = output.text if (output := self.output) else ""
        piece, self._given = text[self._given :], len(text)
        return piece

    def _wait(self, seen: RequestOutput | None) -> None:
        """Wait for a newer output than `seen`."""
        self._delivery.advance(lambda: self.output is not seen)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UsageError("a stream cannot be copied or pickled", "read its text so far from stream.output")

    def __del__(self) -> None:
        if hasattr(self, "_ticket"):  # an interrupt may have come before __init__ set it
            self._delivery.drop(self._ticket)  # takes no lock


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Make a list of prompts from one prompt (text or a list of ids) or a list of prompts."""
    if isinstance(prompts, str | EncodedPrompt):
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
            f"sampling_params must be one SamplingParams or a list of {len(prompts)}, one for each prompt"
        )
    return list(given)


def _checked(
    engine: Engine, index: int, prompt: Prompt, params: SamplingParams, tenant: str | None
) -> EncodedPrompt:
    """Check prompt number `index` and return it as token ids. An error message begins with the index."""
    try:
        return engine.check_request(prompt, params, tenant)
    except MinillmError as error:
        raise type(error)(f"prompt {index}: {error.message}", error.hint) from None
