"""A run over tiny shapes: what is measured, what is told, and what the cache is filled with."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.api import SMALL_FOLDER, load
from sfumato.benchmark import ceilings, passes, report, timing
from sfumato.benchmark.ceilings import Ceilings, measure_ceilings
from sfumato.benchmark.passes import Passes, filled_cache
from sfumato.benchmark.run import PARTS, Benchmark, Plan, bytes_a_value, run, stored_bytes
from sfumato.benchmark.shapes import random_model
from sfumato.benchmark.timing import Effort, measure, watching
from sfumato.errors import ContextLengthError, UsageError
from sfumato.kv.cache import KVCache
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.ops.kernels import choose
from sfumato.weights.quantise import quantise_checkpoint
from tests.helpers import Shape, tiny_config

SHAPE = Shape(pattern="SSF", window=8, canvas=12)
BRIEF = Effort(repeats=2, seconds=0.0, warmups=0)
CPU = torch.device("cpu")
RESULT = {
    "part", "threads", "batch", "context", "tokens", "seconds", "gflop", "gflops", "ceiling_share",
    "weight_bytes", "weight_gbs", "read_share", "peak_bytes", "extra_bytes", "others_cores",
}  # fmt: skip
REPORT = {
    "schema", "kind", "model", "weight_bytes", "kernels", "canvas_length", "plan",
    "gflop_of_a_denoising_step", "ceilings", "results", "comparisons",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _short_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "_SIZES", (32, 64))


@pytest.fixture(scope="module")
def network() -> DiffusionGemma:
    """A tiny model with random weights."""
    return random_model(tiny_config(SHAPE), "float32").network


@pytest.fixture(scope="module")
def benchmark(network: DiffusionGemma) -> Benchmark:
    """One run with everything in it."""
    plan = Plan(contexts=(5, 9), threads=(1,), batches=(1, 2), prompts=(3, 20), effort=BRIEF)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "READ_BYTES", 1 << 20)
        patch.setattr(ceilings, "_SIZES", (32,))
        return run(network, plan)


def test_everything_is_measured_at_every_setting(benchmark: Benchmark) -> None:
    found = [(one.part, one.batch, one.context) for one in benchmark.results]
    assert len(set(found)) == len(found) == 2 * (2 + 2 * 8)
    assert ("encode 20", 2, 0) in found
    assert ("whole step", 2, 9) in found
    assert [one.costs.rows for one in benchmark.comparisons] == [1, 1, 2, 2]
    assert all(one.timing.seconds.median > 0 for one in benchmark.results)
    assert all(one.timing.seconds.samples == 2 for one in benchmark.results)


def test_the_json_has_these_fields_and_no_others(benchmark: Benchmark) -> None:
    data = report.to_json(benchmark, {"model": "tiny"})
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert set(data) == REPORT
    assert (data["schema"], data["kind"], data["model"]) == (report.SCHEMA, "benchmark", "tiny")
    assert data["plan"]["contexts"] == [5, 9]
    assert data["plan"]["repeats"] == 2
    for one in data["results"]:
        assert set(one) == RESULT
        assert set(one["seconds"]) == {"median", "low", "high", "best", "samples"}
        assert one["gflops"] == pytest.approx(one["gflop"] / one["seconds"]["median"])
    assert set(data["ceilings"][0]) == {
        "threads", "bfloat16_gflops", "float32_gflops", "8_bits_gflops", "read_gbs", "reasons",
    }  # fmt: skip
    comparison = data["comparisons"][0]
    assert set(comparison["costs"]) == {"rows", "length", "first", "step", "commit", "token"}
    assert set(comparison["answers"][0]) == {
        "tokens", "diffusion_seconds", "autoregressive_seconds", "diffusion_rate",
        "autoregressive_rate", "quicker",
    }  # fmt: skip


def test_the_tables_name_everything(benchmark: Benchmark) -> None:
    tables = report.Tables(benchmark.plan)
    told = "\n".join(filter(None, map(tables.add, found_by(benchmark)))) + tables.end()
    for words in ("memory read", "whole step", "autoregressive token", "rows", "quicker"):
        assert words in told
    assert "threads  " not in told, "one number of threads is left to the title"
    assert told.count("Diffusion against left to right") == 4


def test_a_table_has_a_row_for_each_result_in_columns(benchmark: Benchmark) -> None:
    tables = report.Tables(benchmark.plan)
    first, *others = (tables.add(one) for one in benchmark.results)
    assert first is not None
    _, above, header, row = first.splitlines()
    rows = [row, *(other or "" for other in others)]
    assert len(rows) == len(benchmark.results)
    ends = {len(line) for line in (above, header, *rows)}
    assert ends == {len(header)}, "nothing is wider than its column"
    for line, result in zip(rows, benchmark.results, strict=True):
        assert line.startswith(f"{result.part} ")
        assert line[30:39].strip() == str(result.batch)
        assert line[39:48].strip() == f"{result.context:,}"


def test_what_is_found_is_told_at_once_and_in_order(network: DiffusionGemma) -> None:
    plan = Plan(contexts=(5,), threads=(1,), parts=("head", "autoregressive"), effort=BRIEF)
    told: list[object] = []
    found = run(network, plan, lambda part: told.append(part.split(":")[0]), told.append)
    assert [one for one in told if not isinstance(one, str)] == found_by(found)
    for result in found.results:
        assert told[told.index(result) - 1] == result.part


def found_by(benchmark: Benchmark) -> list[Any]:
    """Everything that a run of one number of threads found, in the order of finding."""
    comparisons = iter(benchmark.comparisons)
    found: list[Any] = list(benchmark.ceilings)
    for one in benchmark.results:
        found.append(one)
        if one.part == "autoregressive token":
            found.append(next(comparisons))
    return found


def test_parts_that_are_left_out_are_not_measured(network: DiffusionGemma) -> None:
    plan = Plan(contexts=(5,), threads=(1,), parts=("head",), effort=BRIEF)
    told: list[str] = []
    found = run(network, plan, told.append)
    assert [one.part for one in found.results] == ["head"]
    assert (found.ceilings, found.comparisons) == ((), ())
    assert found.results[0].operations_share is None
    assert "head: 1 threads, 1 rows, 5 cached" in told
    row = (report.Tables(plan).add(found.results[0]) or "").splitlines()[-1]
    assert row[30 + 4 * 9 :].split()[:3:2] == ["-", "-"], "no shares without ceilings"


def test_threads_are_put_back(network: DiffusionGemma) -> None:
    before = torch.get_num_threads()
    plan = Plan(contexts=(5,), threads=(1, 2), parts=("head",), effort=BRIEF)
    found = run(network, plan)
    assert [one.threads for one in found.results] == [1, 2]
    assert torch.get_num_threads() == before


def test_plans_that_cannot_be_are_refused() -> None:
    config = tiny_config(SHAPE)  # 4,096 positions
    with pytest.raises(UsageError, match="there is no part 'heads'"):
        Plan(contexts=(5,), threads=(1,), parts=("heads",)).check(config)
    with pytest.raises(ContextLengthError, match="pass this model's 4,096 positions"):
        Plan(contexts=(5, 4090), threads=(1,)).check(config)
    with pytest.raises(ContextLengthError, match="a prompt of 5,000"):
        Plan(contexts=(5,), threads=(1,), prompts=(5000,)).check(config)
    Plan(contexts=(4084,), threads=(1,), prompts=(4096,), parts=PARTS).check(config)


def _shapes(network: DiffusionGemma, cache: KVCache, index: int) -> list[torch.Size]:
    """Shapes of what a layer sees when one position joins the cache."""
    layer = network.layers[index]
    ids = torch.zeros(cache.batch_size, 1, dtype=torch.long)
    x = network.embed(ids)
    fresh = layer.project(x, network.tables(ids, x.dtype)[layer.kind])[1]
    pair = cache.joined(index, fresh)
    return [] if pair is None else [one.shape for one in pair]


def test_a_long_cache_is_like_an_encoded_one(
    network: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filled up with copies: the same shapes, positions and window as encoding gives."""
    encoded = filled_cache(network, 2, 30)
    monkeypatch.setattr(passes, "ENCODED", 7)
    filled = filled_cache(network, 2, 30)
    assert (filled.length, filled.dropped, filled.padded) == (30, encoded.dropped, False)
    assert torch.equal(filled.positions, encoded.positions)  # type: ignore[arg-type]
    assert torch.equal(filled.next_position, encoded.next_position)  # type: ignore[arg-type]
    assert len(filled.layers) == len(encoded.layers)
    for index in range(len(filled.layers)):
        shapes = [_shapes(network, cache, index) for cache in (filled, encoded)]
        assert shapes[0] == shapes[1]
    logits = network.denoise(torch.zeros(2, 12, dtype=torch.long), filled)
    assert bool(torch.isfinite(logits).all())


def test_a_long_cache_takes_the_memory_of_an_encoded_one(network: DiffusionGemma) -> None:
    """No page of it is another one again."""
    ids = torch.zeros(1, 600, dtype=torch.long)  # longer than a page
    with torch.inference_mode():
        cache = network.encode(ids)
        passes.lengthen(network, cache, ids, 2_000)
    raw = [held.raw for held in cache.layers if held.raw is not None]
    starts = [page.memory.tensor.data_ptr() for pages in raw for page in pages.pages]
    assert len(starts) == len(set(starts)) > 2 * len(raw)


def test_passes_leave_the_context_as_it_was(network: DiffusionGemma) -> None:
    ready = Passes.make(network, 2, 9)
    for work in (ready.commit(), ready.token(), ready.encode(4), ready.head()):
        work()
    for conditioned in (False, True):
        ready.denoise(self_conditioning=conditioned)()
    assert ready.cache.length == 9


def test_whole_steps_are_as_many_as_asked_for(network: DiffusionGemma) -> None:
    found = Passes.make(network, 1, 5).whole_steps(Effort(repeats=4, seconds=0.0))
    assert found.seconds.samples == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_models_are_finite_and_of_the_asked_size(dtype: str) -> None:
    model = random_model(tiny_config(SHAPE), dtype)
    assert str(model.network.dtype) == f"torch.{dtype}"
    ids = torch.arange(20).view(1, 20)
    cache = model.encode(ids)
    logits = model.denoise(ids[:, :12], cache)
    assert bool(torch.isfinite(logits).all())
    assert 0 < float(logits.std()) < 30
    config = model.config
    sizes = bytes_a_value(config, stored_bytes(model.network))
    assert set(sizes.values()) == {4.0 if dtype == "float32" else 2.0}


@pytest.mark.skipif(choose() is None, reason="there are no kernels here")
def test_a_packed_copy_is_what_is_read() -> None:
    model = load(kernels="auto")
    sizes = bytes_a_value(model.config, stored_bytes(model.network))
    assert sizes["experts"] == sizes["dense MLP"] == 2.0
    assert sizes["head"] == 4.0


@pytest.mark.skipif(choose() is None, reason="there are no kernels here")
def test_what_stays_quantised_is_read_so(tmp_path: Path) -> None:
    """Codes and scales: 4.5 bits a value, and 8 of the embedding; parameters are not there."""
    quantise_checkpoint(SMALL_FOLDER, tmp_path / "q", int8_embedding=True)
    model = load(tmp_path / "q", kernels="auto")
    sizes = bytes_a_value(model.config, stored_bytes(model.network))
    for name in ("attention projections", "dense MLP", "experts", "self-conditioning"):
        assert sizes[name] == pytest.approx(4.5 / 8, rel=0.01)
    assert sizes["head"] == pytest.approx(1.0, rel=0.02)
    assert sizes["router"] == 2.0


def test_rows_of_random_matrices_differ() -> None:
    embedding = random_model(tiny_config(SHAPE), "float32").network.model.decoder.embed_tokens
    assert len({tuple(row) for row in embedding.weight.tolist()}) == SHAPE.vocab


@pytest.mark.parametrize("part", ["layer_scalar", "q_norm.weight", "per_expert_scale"])
def test_random_norms_and_scalars_differ(part: str) -> None:
    tensors = random_model(tiny_config(SHAPE), "float32").network.state_dict()
    values = [one for name, tensor in tensors.items() if part in name for one in tensor.tolist()]
    assert len(values) == len(set(values)) > 1
    assert max(values) < 2 * min(values)


@pytest.mark.parametrize(("takes", "count"), [(30.0, 2), (1.0, 5), (0.001, 50)])
def test_what_takes_long_is_not_repeated_for_minutes(
    monkeypatch: pytest.MonkeyPatch, takes: float, count: int
) -> None:
    monkeypatch.setattr(ceilings, "seconds_of", lambda _work, _device: takes)
    effort = Effort(repeats=50, seconds=0.01)
    assert len(list(ceilings._samples(lambda: None, CPU, effort))) == count


def test_ceilings_are_rates() -> None:
    found = measure_ceilings(CPU, BRIEF)
    assert found.read > 0
    assert set(found.operations) == {"bfloat16", "float32", "8 bits"}
    rate = found.best_for(torch.float32)
    assert rate is not None
    assert rate > 0


def test_a_share_is_of_the_best_rate_that_holds_the_weights() -> None:
    rates: dict[str, float | None] = {"bfloat16": 10.0, "float32": 80.0, "8 bits": 200.0}
    assert Ceilings(1, rates, 1.0).best_for(torch.bfloat16) == 80.0
    assert Ceilings(1, rates | {"bfloat16": 300.0}, 1.0).best_for(torch.bfloat16) == 300.0
    assert Ceilings(1, rates | {"bfloat16": 300.0}, 1.0).best_for(torch.float32) == 80.0
    assert Ceilings(1, {"bfloat16": None, "float32": None}, 1.0).best_for(torch.bfloat16) is None


def test_a_product_that_there_is_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such product\nand more")

    monkeypatch.setattr(ceilings, "_packed_product", lambda: refuse)
    monkeypatch.setattr(ceilings, "_integer_product", lambda device: refuse)
    found = measure_ceilings(CPU, BRIEF)
    assert found.operations["8 bits"] is None
    assert found.reasons == {"8 bits": "no such product"}
    told = report._ceilings(found)
    assert told.splitlines()[-1] == "8 bits: no such product"


def test_measuring_takes_the_repeats_and_the_time_asked_for() -> None:
    calls: list[int] = []
    found = measure(lambda: calls.append(1), Effort(3, 0.0, warmups=2), CPU)
    assert (len(calls), found.seconds.samples) == (5, 3)
    found = measure(lambda: None, Effort(1, 0.002), CPU)
    assert found.seconds.samples > 1


def test_memory_and_load_are_seen() -> None:
    # New pages, whatever the allocator has in hand.
    with watching(CPU) as watch, mmap.mmap(-1, 1 << 26) as held:
        held.write(b"x" * (1 << 26))
    found = watch.timing([1.0])
    if Path("/proc/self/clear_refs").exists():
        assert found.extra_bytes is not None
        assert found.extra_bytes >= 1 << 25
        assert found.others_cores is not None


def test_systems_that_say_nothing_leave_fields_empty(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(timing, "_PROC", tmp_path)
    found = measure(lambda: None, BRIEF, CPU)
    assert (found.peak_bytes, found.extra_bytes, found.others_cores) == (None, None, None)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(12.345, "12.3 s"), (0.01234, "12.3 ms"), (4.5e-6, "4.5 µs"), (5000.0, "5,000 s")],
)
def test_durations(seconds: float, said: str) -> None:
    assert report.duration(seconds) == said
