"""The table of bars on a tiny model: what is counted, what counts as met, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from benchmarks import bars
from benchmarks.bars import NO, OTHER, UNKNOWN, YES, Bar, Bench, Line
from torch import Tensor

from sfumato.api import Model
from sfumato.benchmark import ceilings, peers
from sfumato.benchmark.shapes import named_shape, random_model
from sfumato.benchmark.statistics import summarise
from sfumato.benchmark.timing import Effort, Timing
from sfumato.errors import ContextLengthError, UsageError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.ops.head import soft
from sfumato.ops.kernels import choose
from tests.helpers import Shape, tiny_config

SHAPE = Shape(pattern="SSF", window=8, canvas=12, expert_width=32)
CONFIG = tiny_config(SHAPE)
BRIEF = Effort(repeats=2, seconds=0.0, warmups=0)
SHORT, LONG, PROMPT = 16, 400, 20
needs_kernels = pytest.mark.skipif(choose() is None, reason="there are no kernels here")


@pytest.fixture(autouse=True)
def _short_and_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ceilings, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "_SIZES", (32,))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Model:
    """A tiny model with random weights, which kernels serve where there are any."""
    return random_model(CONFIG, "float32", kernels=choose())


@pytest.fixture
def bench(model: Model) -> Bench:
    """Everything of the size of the tiny model."""
    network = model.network
    return Bench(CONFIG, network, network, BRIEF, prompt=PROMPT, contexts=(SHORT, LONG))


def _measured(bench: Bench, *names: str) -> list[Line]:
    with torch.inference_mode():
        return list(bars.measured_lines(bench, names))


def _pairs(tokens: int, window: int | None) -> int:
    """Pairs of a position and one that it sees, itself included, in a causal pass."""
    return sum(min(place + 1, window or tokens) for place in range(tokens))


def test_every_line_counts_what_must_be_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the formulas for this shape, written out: an addition and a product a value."""
    counted: list[float] = []
    rated = bars.rated

    def spy(name: str, take: object, amount: float, *rest: object, **options: bool) -> Line:
        counted.append(amount)
        return rated(name, take, amount, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bars, "rated", spy)
    monkeypatch.setattr(bars, "outputs", _equal)
    lines = _measured(bench, *bars.LINES)
    hidden, heads, canvas, vocab = SHAPE.hidden, SHAPE.heads, SHAPE.canvas, SHAPE.vocab
    expert = 3 * hidden * SHAPE.expert_width
    sliding = hidden * (2 * heads + 2 * SHAPE.kv_heads) * SHAPE.head_dim
    full = hidden * (2 * heads + SHAPE.global_kv_heads) * SHAPE.global_head_dim
    mlp, router = 3 * hidden * CONFIG.text.intermediate_size, hidden * SHAPE.experts
    row = 2 * sliding + full + 3 * (mlp + router + SHAPE.top_k * expert)  # in three layers

    def step(context: int) -> int:
        seen = 2 * SHAPE.head_dim * (canvas + SHAPE.window - 1)
        seen += SHAPE.global_head_dim * (canvas + context)
        return canvas * (2 * (row + mlp + hidden * vocab) + 4 * heads * seen)

    causal = 2 * SHAPE.head_dim * _pairs(PROMPT, SHAPE.window)
    causal += SHAPE.global_head_dim * _pairs(PROMPT, None)
    projection = 2 * canvas * hidden * heads * SHAPE.head_dim
    assert counted == [
        projection,
        projection,
        2 * canvas * SHAPE.top_k * expert,
        2 * canvas * hidden * vocab,
        2 * step(bars.CONTEXT),
        2 * PROMPT * row + 4 * heads * causal,
        4 * heads * SHAPE.global_head_dim * canvas * (LONG - SHORT),
        4 * (row + hidden * vocab),  # bytes, in fp32
        step(bars.SUDOKU),
    ]
    assert len(lines) == len(counted) + 2
    assert {line.met for line in lines} <= {YES, NO, OTHER, UNKNOWN}
    assert all(" % of " in line.share or line.share == "-" for line in lines)


def test_growth_at_released_widths_is_the_full_layer_s() -> None:
    added = bars.added_operations(named_shape("released:4"), 1024, 32_768)
    assert added == 4 * 16 * 512 * 256 * (32_768 - 1024)


@pytest.mark.parametrize(
    ("bar", "rate", "ceiling", "met"),
    [
        (Bar.of_ceiling(0.75), 75.0, 100.0, YES),
        (Bar.of_ceiling(0.75), 74.0, 100.0, NO),
        (Bar.stated("", 450e9), 450e9, 0.9e12, YES),
        (Bar.stated("", 450e9), 440e9, 0.9e12, NO),  # its own machine: the share is no excuse
        (Bar.stated("", 450e9), 60e9, 0.1e12, OTHER),
        (Bar.stated("", 450e9), 40e9, 0.1e12, NO),
        (Bar.stated("", 450e9), 460e9, 0.5e12, YES),
        (Bar.stated("", 450e9), 500e9, 4e12, NO),  # a better machine must do better
    ],
)
def test_what_meets_a_bar(bar: Bar, rate: float, ceiling: float, met: str) -> None:
    assert bar.met(rate, ceiling) == met


def test_bars_name_their_share() -> None:
    assert Bar.of_ceiling(0.6).text == "at least 60 %"
    assert Bar.stated("450 GFLOP/s", 450e9).text.endswith("1,040 GFLOP/s: 43 %")


def _timing(seconds: float, others: float | None = None) -> Timing:
    return Timing(summarise([seconds]), None, None, others)


def test_a_share_is_of_the_better_ceiling_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([2e9, 4e9])
    monkeypatch.setattr(bars, "ceiling_of", lambda *, memory: next(found))
    line = bars.rated("work", lambda: _timing(0.5, 0.25), 1e9, Bar.of_ceiling(0.6))
    measured = "2.0 GFLOP/s, 500 ms (others took 0.2 cores)"
    assert line == Line("work", measured, "50 % of 4 GFLOP/s", "at least 60 %", NO)
    assert line.row() == f"| work | {measured} | 50 % of 4 GFLOP/s | at least 60 % | no |"
    assert bars.HEADER.splitlines()[1].count("---") == line.row().count(" | ") + 1


def test_a_difference_below_the_noise_meets_nothing() -> None:
    line = bars.rated("growth", lambda: _timing(-0.001), 1e9, Bar.of_ceiling(0.4))
    assert (line.share, line.met) == ("-", UNKNOWN)


def test_lines_that_need_a_checkpoint_say_so(bench: Bench) -> None:
    alone = dataclasses.replace(bench, given=None)
    assert alone.network is bench.small
    lines = _measured(alone, "rows", "encode", "growth", "autoregressive")
    assert {(line.measured, line.met) for line in lines} == {("needs a checkpoint", "-")}
    assert [line.bar for line in lines] == [
        "at most 1.1 times", "at least 60 %", "at least 40 %", "at least 60 %"
    ]  # fmt: skip


def test_memory_above_the_bar_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    status = Path("/proc/self/clear_refs").exists()
    torch.ones(4_000_000)  # when this has gone the C library keeps smaller pieces in its heap
    held = [torch.ones(250_000) for _ in range(200)]
    del held[50:150]  # 100 MB lie free there, and would hide what is taken from them
    assert _measured(bench, "head")[1].met == (YES if status else UNKNOWN)

    def wasteful(x: Tensor, *rest: object) -> Tensor:
        held.extend(torch.ones(250_000) for _ in range(80))
        return soft(x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bars, "soft", wasteful)
    assert _measured(bench, "head")[1].met == (NO if status else UNKNOWN)


def test_a_batch_that_costs_more_misses_its_bar(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cost, met in ((1.09, YES), (1.11, NO)):
        seconds = ([cost] * 3, [1.0] * 3)
        monkeypatch.setattr(bars, "in_turns", lambda *_, found=seconds: found)
        (line,) = _measured(bench, "rows")
        assert line.met == met
        assert line.measured.startswith(f"{cost} times (95 %: {cost}-{cost}); ")


def test_both_take_turns_at_being_first() -> None:
    order: list[str] = []
    left, right = bars.in_turns(lambda: order.append("a"), lambda: order.append("b"), 3)
    assert "".join(order) == "ba" + "ab" + "ba" + "ab"
    assert len(left) == len(right) == 3


def _equal(network: DiffusionGemma, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Rows that depend on nothing."""
    return {"entropies": torch.tensor([[0.5], [0.25]])[list(seeds)]}


def _differing(network: DiffusionGemma, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Rows whose last bit depends on whether they are alone."""
    found = _equal(network, seeds)["entropies"]
    return {"entropies": found.nextafter(torch.ones(1)) if seeds == (1,) else found}


@needs_kernels
def test_bits_are_equal_and_looked_at(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    one_layer = tiny_config(dataclasses.replace(SHAPE, pattern="F"))  # two threads wait a lot
    network = random_model(one_layer, "float32", kernels=choose()).network
    bench = dataclasses.replace(bench, given=network)
    (line,) = _measured(bench, "bits")
    assert (line.measured, line.met) == ("equal", YES)
    monkeypatch.setattr(bars, "outputs", _differing)
    (line,) = _measured(bench, "bits")
    where = "entropies of row 1 alone in"
    assert line.measured == f"{where} 1 threads, {where} 2 threads differ"
    assert line.met == NO


def test_rows_apart_are_not_the_same_row(bench: Bench) -> None:
    with torch.inference_mode():
        found = bars.outputs(bench.network, (0, 1))
    assert all(len(one) == 2 and not torch.equal(one[0], one[1]) for one in found.values())


@needs_kernels
def test_the_table_is_printed_and_written_and_bits_that_differ_fail(
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(bars, "load", lambda *_: model)
    monkeypatch.setattr(bars, "outputs", _equal)
    target = tmp_path / "bars.md"
    wanted = ["--only", "bits", "rows", "--output", str(target), "--repeats", "1"]
    assert bars.main(wanted) == 0
    told = capsys.readouterr().out
    assert told == target.read_text(encoding="utf-8")
    lines = told.splitlines()
    for word in ("threads", "kernels", "torch", "commit", "small in float32"):
        assert word in lines[0]
    assert lines[2:4] == bars.HEADER.splitlines()
    assert lines[4] == f"| {bars.BITS} | equal | - | equal | yes |"
    assert lines[5] == "| rows | needs a checkpoint | - | at most 1.1 times | - |"
    monkeypatch.setattr(bars, "outputs", _differing)
    assert bars.main(wanted) == 1
    assert "differ | - | equal | no |" in target.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "head", "heads"], "there is no line 'heads'"),
        (["no/such/folder"], "no/such/folder is not a folder"),
        (["--output", "/none/at/all"], "no folder"),
        (["--long", "1024"], "--long must be above 1,024"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_ends_with_two(
    arguments: list[str],
    said: str,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bars, "load", lambda *_: model)
    if model.network.kernels is None and "--long" in arguments:
        pytest.skip("there are no kernels here, which is said first")
    assert bars.main(arguments) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert (told.err.count("\n"), told.out) == (1, "")


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--repeats", "²"], ["--speed"]])
def test_options_that_are_none_end_with_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        bars.parse(arguments)
    assert left.value.code == 2


def test_without_kernels_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bars, "load", lambda *_: random_model(CONFIG, "float32"))
    assert bars.main([]) == 2
    assert "there are no kernels here" in capsys.readouterr().err


def test_a_context_that_the_model_cannot_have_is_refused_first(bench: Bench) -> None:
    long = dataclasses.replace(bench, contexts=(16, 4090))  # of 4,096 positions
    long.check(["encode"])
    with pytest.raises(ContextLengthError, match="4,102 positions are needed"):
        long.check(["encode", "growth"])
    dataclasses.replace(long, given=None).check(["growth"])
    with pytest.raises(UsageError, match="must be above 16"):
        dataclasses.replace(bench, contexts=(16, 16)).check([])


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert peers.commit(__file__) == "unknown"
