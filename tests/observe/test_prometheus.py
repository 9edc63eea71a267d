"""What Prometheus gets: parsed back, it is what `EngineMetrics` has, under vLLM's names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
import tiny
from prometheus_client.parser import text_string_to_metric_families

from minillm import LLM, MinillmError, SamplingParams
from minillm.observe import prometheus
from minillm.observe.figures import Figures
from minillm.observe.histogram import Histogram
from minillm.observe.online import EngineMetrics
from minillm.observe.prometheus import make_registry
from minillm.observe.trace_file import read_trace

PAGE = Path(__file__).parents[2] / "docs" / "observing.md"
# As of July 2026, from vllm/v1/metrics/loggers.py, perf.py and spec_decode/metrics.py of vLLM.
VLLM = set(
    "num_requests_running num_requests_waiting num_requests_waiting_by_reason kv_cache_usage_perc "
    "prefix_cache_queries prefix_cache_hits num_preemptions prompt_tokens generation_tokens request_success "
    "time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds "
    "e2e_request_latency_seconds request_queue_time_seconds request_prompt_tokens request_generation_tokens "
    "iteration_tokens_total spec_decode_num_drafts spec_decode_num_draft_tokens "
    "spec_decode_num_accepted_tokens spec_decode_num_accepted_tokens_per_pos estimated_flops_per_gpu "
    "estimated_read_bytes_per_gpu estimated_write_bytes_per_gpu".split()
)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(metrics: EngineMetrics, model_name: str = "") -> tuple[str, Samples, dict[str, str]]:
    """The text, every sample by name and labels, and the type of each metric."""
    text = prometheus_client.generate_latest(make_registry(metrics, model_name)).decode()
    families = list(text_string_to_metric_families(text))
    samples = {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}
    return text, samples, {family.name: family.type for family in families}


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> EngineMetrics:
    """Of a run with preemptions, hits, evictions, drafts, refusals and a warm-up; two requests are alive."""
    folder = tiny.make_folder(tmp_path_factory.mktemp("prometheus") / "model")
    llm: LLM = tiny.load(folder, kv_memory=tiny.blocks(12), draft_model="ngram", adaptive_draft=False)
    llm.engine.scheduler.headroom_tokens = 0
    found = EngineMetrics(llm.engine)
    llm.warmup()
    prompts = [[(7 * i + j) % 250 for j in range(length)] for i, length in enumerate((3, 40, 90, 64))]
    params = SamplingParams(max_tokens=20, seed=1, ignore_eos=True)
    for tenant in ("a canary", "another canary"):
        llm.generate([*prompts, *prompts, [5, 6] * 9], params, tenant=tenant)
    repeated = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
    llm.generate([[5, 6] * 9, [8] * 40], repeated)  # greedy answers of a tiny model repeat themselves
    llm.generate("the canary cat", SamplingParams(max_tokens=20, temperature=0.0, n=2), tenant="a canary")
    with pytest.raises(MinillmError):
        llm.engine.add_request("a canary " * 300, params, "a canary")
    for _ in range(2):
        llm.engine.add_request([7] * 90, params, "a canary")
    for _ in range(2):
        llm.engine.step()
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples["minillm:" + name, frozenset(labels.items())]


COUNTERS: dict[str, Callable[[Figures], float]] = {
    "requests_queued": lambda f: f.requests,
    "prompt_tokens": lambda f: f.prompt_tokens,
    "generation_tokens": lambda f: f.output_tokens,
    "prefill_tokens": lambda f: f.prefill_tokens,
    "prefix_cache_queries": lambda f: f.prompt_tokens,
    "prefix_cache_hits": lambda f: f.cached_tokens,
    "num_preemptions": lambda f: f.preemptions,
    "spec_decode_num_drafts": lambda f: f.depths.total(),
    "spec_decode_num_draft_tokens": lambda f: f.drafted,
    "spec_decode_num_accepted_tokens": lambda f: f.accepted,
    "estimated_flops_per_gpu": lambda f: f.flops,
    "estimated_read_bytes_per_gpu": lambda f: f.read_bytes,
    "estimated_write_bytes_per_gpu": lambda f: f.written_bytes,
}
HISTOGRAMS: dict[str, Callable[[Figures], Histogram]] = {
    "time_to_first_token_seconds": lambda f: f.ttft,
    "inter_token_latency_seconds": lambda f: f.itl,
    "request_time_per_output_token_seconds": lambda f: f.tpot,
    "e2e_request_latency_seconds": lambda f: f.e2e,
    "request_queue_time_seconds": lambda f: f.queue,
    "request_prompt_tokens": lambda f: f.prompt_sizes,
    "request_generation_tokens": lambda f: f.output_sizes,
    "iteration_tokens_total": lambda f: f.step_tokens,
    "iteration_sequences": lambda f: f.batch,
    "iteration_duration_seconds": lambda f: f.step_seconds,
    "iteration_kv_fragmentation_ratio": lambda f: f.fragmentation,
}


def test_counters_are_the_figures(metrics: EngineMetrics) -> None:
    _, samples, types = scrape(metrics)
    for name, of in COUNTERS.items():
        assert value(samples, name + "_total") == of(metrics.steady) > 0, name
        assert types["minillm:" + name] == "counter"


def test_labelled_counters_are_the_figures(metrics: EngineMetrics) -> None:
    _, samples, _ = scrape(metrics)
    for name, label, counts in (
        ("request_success", "finished_reason", metrics.steady.finished),
        ("requests_refused", "reason", metrics.steady.refused),
        ("kv_evicted_blocks", "cause", metrics.steady.evicted),
        ("tenant_requests", "tenant", {key: use.requests for key, use in metrics.tenants}),
        ("tenant_prompt_tokens", "tenant", {key: use.prompt_tokens for key, use in metrics.tenants}),
        ("tenant_cached_tokens", "tenant", {key: use.cached_tokens for key, use in metrics.tenants}),
        ("tenant_generation_tokens", "tenant", {key: use.output_tokens for key, use in metrics.tenants}),
        ("tenant_refused", "tenant", {key: use.refused for key, use in metrics.tenants}),
    ):
        found = {dict(key[1])[label]: v for key, v in samples.items() if key[0] == f"minillm:{name}_total"}
        assert found == counts and counts, name
    at = [value(samples, "spec_decode_num_accepted_tokens_per_pos_total", position=str(i)) for i in range(2)]
    assert at == [metrics.steady.accepted_at()[1], metrics.steady.accepted_at()[2]]


def test_histograms_are_the_figures(metrics: EngineMetrics) -> None:
    _, samples, types = scrape(metrics)
    for name, of in HISTOGRAMS.items():
        histogram = of(metrics.steady)
        assert types["minillm:" + name] == "histogram"
        assert value(samples, name + "_count") == histogram.count > 0
        assert value(samples, name + "_sum") == histogram.sum
        found = {
            float(dict(labels)["le"]): count
            for (sample, labels), count in samples.items()
            if sample == f"minillm:{name}_bucket"
        }
        expected = dict(zip([*histogram.bounds, float("inf")], histogram.cumulative(), strict=True))
        assert found == expected, name
        if name.endswith("seconds"):
            assert min(found) == 0.001


def test_gauges_are_the_memory_now(metrics: EngineMetrics) -> None:
    _, samples, types = scrape(metrics)
    memory = metrics.memory
    assert value(samples, "num_requests_running") == metrics.running > 0
    assert value(samples, "num_requests_running") + value(samples, "num_requests_waiting") == 2
    assert value(samples, "kv_cache_usage_perc") == memory.used / 12 > 0
    assert value(samples, "kv_headroom_blocks") == memory.cached + memory.free
    assert value(samples, "kv_headroom_bytes") == (memory.cached + memory.free) * metrics.block_bytes
    assert value(samples, "kv_fragmentation_ratio") == memory.waste / memory.slots
    for state, count in memory.blocks.items():
        assert value(samples, "kv_blocks", state=state) == count
        assert value(samples, "kv_bytes", state=state) == count * metrics.block_bytes
    assert value(samples, "warmup_seconds", part="load") == metrics.startup["load"]
    assert types["minillm:kv_cache_usage_perc"] == "gauge"


@pytest.mark.parametrize(
    ("kv_dtype", "token_bytes"), [(None, tiny.BLOCK_BYTES), ("int8", 2 * 2 * 2 * (8 + 4))]
)
def test_bytes_are_those_of_the_cache(
    folder: Path, tmp_path: Path, kv_dtype: str | None, token_bytes: int
) -> None:
    """In 8 bits: K and V of 2 layers and 2 heads, each 8 codes and a scale; in a trace, too."""
    llm = tiny.load(folder, kv_dtype=kv_dtype, record=tmp_path / "run")
    metrics = EngineMetrics(llm.engine)
    llm.generate([[5] * 20], SamplingParams(max_tokens=3))
    _, samples, _ = scrape(metrics)
    exported = [value(samples, "kv_bytes", state=state) for state in metrics.memory.blocks]
    cache = llm.engine.worker.runner.cache
    there = sum(tensor.nbytes for tensor in (*cache.k, *cache.v))
    assert sum(exported) == there == llm.engine.pool.num_blocks * 16 * token_bytes
    assert read_trace(tmp_path / "run").header["kv_bytes_per_token"] == token_bytes


def test_the_page_lists_the_metrics_that_there_are(metrics: EngineMetrics) -> None:
    """Each once, beside vLLM's name where vLLM has one."""
    _, _, types = scrape(metrics)
    rows = re.findall(r"^\| `minillm:(\w+)` \| (?:`vllm:(\w+)`|-) \|", PAGE.read_text(), re.MULTILINE)
    names = [name.removeprefix("minillm:") for name in types]
    assert sorted(name for name, _ in rows) == sorted(names)
    assert all(other == (name if name in VLLM else "") for name, other in rows)
    assert set(names) >= VLLM


def test_nothing_private_is_exported(metrics: EngineMetrics) -> None:
    text, samples, _ = scrape(metrics)
    assert "canary" not in text and "warmup-" not in text
    for _, labels in samples:
        for name, label in labels:
            assert (
                re.fullmatch("[0-9a-f]{16}|other", label)
                if name == "tenant"
                else re.fullmatch(r"[A-Za-z]+|[0-9.e+-]+|\+Inf", label)
            ), (name, label)


def test_control_a_name_would_be_noticed(metrics: EngineMetrics) -> None:
    text, *_ = scrape(metrics, model_name="canary")
    assert text.count('model_name="canary"') > 50


def test_the_model_s_name_is_a_label_only_if_it_is_given(metrics: EngineMetrics) -> None:
    _, samples, _ = scrape(metrics, "tiny")
    assert all(("model_name", "tiny") in labels for _, labels in samples)
    assert not any("model_name" in dict(labels) for _, labels in scrape(metrics)[1])


@pytest.mark.parametrize("name", ["\ud800", 3, b"a", True, None], ids=ascii)
def test_a_name_that_no_scrape_could_write_is_refused_at_once(metrics: EngineMetrics, name: Any) -> None:
    with pytest.raises(MinillmError, match="model_name must be text"):
        make_registry(metrics, name)


@pytest.mark.parametrize("name", ['a"b\\c\nd', "日本", '{le="1"}'])
def test_an_odd_name_stays_one_label(metrics: EngineMetrics, name: str) -> None:
    _, samples, _ = scrape(metrics, name)
    assert samples and all(dict(labels)["model_name"] == name for _, labels in samples)


def test_an_engine_that_did_nothing_has_all_metrics(folder: Path) -> None:
    _, samples, types = scrape(EngineMetrics(tiny.load(folder).engine))
    assert set(types) >= {"minillm:" + name for name in VLLM}
    assert value(samples, "time_to_first_token_seconds_count") == 0


def test_without_the_library_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client.core", None)
    with pytest.raises(MinillmError, match=r"prometheus_client.*minillm\[metrics\]"):
        make_registry(SimpleNamespace())  # type: ignore[arg-type]
    assert prometheus.PREFIX == "minillm:"
