"""The metrics of an engine for Prometheus, under vLLM's names where vLLM has one.

    EngineMetrics <--read-- EngineCollector <--scrape-- registry --> text that Prometheus stores

vLLM's `vllm:NAME` is `minillm:NAME` here and has the same meaning, so its dashboards need one replacement.
docs/observing.md has the table, also with the names of OpenTelemetry. Nothing is counted here: a scrape reads
what `EngineMetrics` has at that moment. Warm-ups are left out, but for the gauge `warmup_seconds`.

A label is a reason, a cause, a state, a keyed tenant label (contract C8), or the name that the operator gives
the model. It never is anything that a request brought.

Source: vLLM, "Production metrics" (docs.vllm.ai). Left out: the HTTP server; `prometheus_client` has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from minillm.config import shown
from minillm.errors import UsageError
from minillm.observe.figures import Figures
from minillm.observe.histogram import Histogram
from minillm.observe.online import EngineMetrics

PREFIX = "minillm:"


def make_registry(metrics: EngineMetrics, model_name: str = "") -> Any:
    """A registry of `prometheus_client` with the metrics of one engine.

    Args:
        model_name: the label `model_name` of every metric; without it there is no such label.

    Raises:
        UsageError: `prometheus_client` is not installed, or `model_name` cannot be a label.
    """
    _require_label(model_name)
    registry = _library().CollectorRegistry()
    registry.register(EngineCollector(metrics, model_name))
    return registry


class EngineCollector:
    """Makes the metrics of a scrape; `prometheus_client` calls `collect`."""

    def __init__(self, metrics: EngineMetrics, model_name: str = "") -> None:
        self._metrics, self._core = metrics, _library().core
        self._names, self._values = (["model_name"], [model_name]) if model_name else ([], [])

    def collect(self) -> Iterator[Any]:
        """Every metric, as it is now."""
        metrics, figures = self._metrics, self._metrics.steady
        for name, (text, value) in _gauges(metrics).items():
            yield self._family(self._core.GaugeMetricFamily, name, text, {"": value})
        for name, (text, label, values) in _labelled_gauges(metrics).items():
            yield self._family(self._core.GaugeMetricFamily, name, text, values, label)
        for name, (text, value) in _counters(figures).items():
            yield self._family(self._core.CounterMetricFamily, name, text, {"": value})
        for name, (text, label, values) in _labelled_counters(metrics).items():
            yield self._family(self._core.CounterMetricFamily, name, text, values, label)
        for name, (text, histogram) in _histograms(figures).items():
            yield self._histogram(name, text, histogram)

    def _family(self, kind: Any, name: str, text: str, values: Mapping[str, float], label: str = "") -> Any:
        family = kind(PREFIX + name, text, labels=[*self._names, *([label] if label else [])])
        for value_of_label, value in values.items():
            family.add_metric([*self._values, *([value_of_label] if label else [])], value)
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Any:
        family = self._core.HistogramMetricFamily(PREFIX + name, text, labels=self._names)
        bounds = [*map(_library().utils.floatToGoString, histogram.bounds), "+Inf"]
        buckets = list(zip(bounds, histogram.cumulative(), strict=True))
        family.add_metric(self._values, buckets, histogram.sum)
        return family


def _gauges(metrics: EngineMetrics) -> dict[str, tuple[str, float]]:
    memory = metrics.memory
    return {
        "num_requests_running": ("Requests that have started, preempted ones included.", metrics.running),
        "num_requests_waiting": ("Requests that have not started.", metrics.waiting),
        "kv_cache_usage_perc": ("Share of KV blocks that sequences use; 1 is all.", memory.usage),
        "kv_headroom_blocks": ("KV blocks that a sequence could get.", memory.headroom),
        "kv_headroom_bytes": ("Bytes of those blocks.", memory.headroom * memory.block_bytes),
        "kv_fragmentation_ratio": ("Share of allocated slots without a token.", memory.fragmentation),
    }


def _labelled_gauges(metrics: EngineMetrics) -> dict[str, tuple[str, str, Mapping[str, float]]]:
    memory, held = metrics.memory, metrics.newest["held"] if metrics.newest else {}
    sizes = {state: count * memory.block_bytes for state, count in memory.blocks.items()}
    return {
        "num_requests_waiting_by_reason": (
            "Waiting sequences, by what the first of them lacks.",
            "reason",
            held,
        ),
        "kv_blocks": ("KV blocks by state.", "state", memory.blocks),
        "kv_bytes": ("Bytes of KV blocks by state.", "state", sizes),
        "warmup_seconds": (
            "Seconds of starting.",
            "part",
            {part: seconds for part, seconds in metrics.startup.items() if part != "requests"},
        ),
    }


def _counters(figures: Figures) -> dict[str, tuple[str, float]]:
    return {
        "requests_queued": ("Requests that were accepted.", figures.requests),
        "prompt_tokens": (
            "Prompt tokens of requests that got a first token or ended.",
            figures.prompt_tokens,
        ),
        "generation_tokens": ("Tokens that were sampled.", figures.output_tokens),
        "prefill_tokens": ("Tokens that prefill computed, again after preemptions.", figures.prefill_tokens),
        "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", figures.prompt_tokens),
        "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", figures.cached_tokens),
        "num_preemptions": ("Sequences that lost their blocks.", figures.preemptions),
        "spec_decode_num_drafts": ("Drafts that were verified.", sum(figures.depths.copy().values())),
        "spec_decode_num_draft_tokens": ("Draft tokens.", figures.drafted),
        "spec_decode_num_accepted_tokens": ("Draft tokens that were accepted.", figures.accepted),
        "estimated_flops_per_gpu": ("FLOPs, estimated.", figures.flops),
        "estimated_read_bytes_per_gpu": ("Bytes read, estimated.", figures.read_bytes),
        "estimated_write_bytes_per_gpu": (
            "Bytes of keys and values written, estimated.",
            figures.written_bytes,
        ),
    }


def _labelled_counters(metrics: EngineMetrics) -> dict[str, tuple[str, str, Mapping[str, float]]]:
    figures, tenants = metrics.steady, dict(metrics.tenants)
    at = {str(position - 1): count for position, count in figures.accepted_at().items()}
    return {
        "request_success": ("Requests that ended, by reason.", "finished_reason", figures.finished.copy()),
        "requests_refused": ("Requests that were refused, by error.", "reason", figures.refused.copy()),
        "kv_evicted_blocks": (
            "Blocks that left the prefix cache, by cause.",
            "cause",
            figures.evicted.copy(),
        ),
        "spec_decode_num_accepted_tokens_per_pos": ("Accepted tokens by position.", "position", at),
        "tenant_requests": ("Requests.", "tenant", {k: v.requests for k, v in tenants.items()}),
        "tenant_prompt_tokens": (
            "Prompt tokens.",
            "tenant",
            {k: v.prompt_tokens for k, v in tenants.items()},
        ),
        "tenant_cached_tokens": ("Tokens found.", "tenant", {k: v.cached_tokens for k, v in tenants.items()}),
        "tenant_generation_tokens": (
            "Tokens that were sampled.",
            "tenant",
            {k: v.output_tokens for k, v in tenants.items()},
        ),
        "tenant_refused": (
            "Requests that were refused.",
            "tenant",
            {k: v.refused for k, v in tenants.items()},
        ),
    }


def _histograms(figures: Figures) -> dict[str, tuple[str, Histogram]]:
    return {
        "time_to_first_token_seconds": ("From submission to the first token.", figures.ttft),
        "inter_token_latency_seconds": ("Between two tokens.", figures.itl),
        "request_time_per_output_token_seconds": ("Mean time per later token.", figures.tpot),
        "e2e_request_latency_seconds": ("From submission to the end.", figures.e2e),
        "request_queue_time_seconds": ("From submission to the start.", figures.queue),
        "request_prompt_tokens": ("Prompt tokens of a request.", figures.prompt_sizes),
        "request_generation_tokens": ("Output tokens of a request.", figures.output_sizes),
        "iteration_tokens_total": ("Rows that a step computed.", figures.step_tokens),
        "iteration_sequences": ("Sequences in a step.", figures.batch),
        "iteration_duration_seconds": ("Time of a step.", figures.step_seconds),
        "iteration_kv_fragmentation_ratio": ("Share of slots without a token.", figures.fragmentation),
    }


def _require_label(name: object) -> None:
    """Refuse a name here that would make every scrape fail."""
    try:
        if isinstance(name, str):
            name.encode()
            return
    except UnicodeEncodeError:
        pass
    raise UsageError(f"model_name must be text, not {shown(name)}", "leave it out, or name the model")


def _library() -> Any:
    try:
        import prometheus_client.core
        import prometheus_client.utils
    except ImportError as error:
        raise UsageError(f"this needs prometheus_client: {error}", 'pip install "minillm[metrics]"') from None
    return prometheus_client
