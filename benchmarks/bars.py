"""Measure the project's speed bars, each beside what this machine can do, in one Markdown table.

Usage: python benchmarks/bars.py [CHECKPOINT] [--threads N] [--repeats N] [--long N]
           [--only NAME ...] [--output FILE]

CHECKPOINT is a folder as benchmarks/random_checkpoint.py writes it for released:4; lines that need
one are only listed without it. NAME is one of projections, experts, head (all at released widths,
with random weights of their own), bits, rows, encode, growth (to a context of --long),
autoregressive, and small, the small model's step. --output writes the same text to a file.

A share is of the ceiling measured just before and after, the better of both: torch's products of
matrices in fp32 and bf16, or for the autoregressive line reading memory. Ends with 1 if the bits of
a row depend on the rows beside it or on the threads, with 2 for what cannot be meant.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sfumato import Model, load  # before torch: waiting threads then wait as in the command line

# isort: split
import torch
from torch import Tensor

from sfumato.api import SMALL_FOLDER
from sfumato.benchmark import counting
from sfumato.benchmark.ceilings import measure_ceilings
from sfumato.benchmark.counting import denoise_work, total
from sfumato.benchmark.passes import Passes, random_ids
from sfumato.benchmark.peers import alternate, commit, whole
from sfumato.benchmark.report import duration
from sfumato.benchmark.run import bytes_a_value, stored_bytes
from sfumato.benchmark.shapes import RandomWeights, named_shape
from sfumato.benchmark.statistics import ratio_of_medians
from sfumato.benchmark.timing import Effort, Timing, measure, seconds_of, watching
from sfumato.config.model import ModelConfig
from sfumato.diffusion.samplers import check_finite, draws_for
from sfumato.diffusion.steps import FusedSteps
from sfumato.errors import ContextLengthError, EvaluationError, SfumatoError, UsageError
from sfumato.evaluation.facts import gather
from sfumato.evaluation.files import check_target, write_text
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.ops.experts import experts
from sfumato.ops.head import head, soft
from sfumato.ops.linear import linear
from sfumato.ops.weight import nvfp4, rows
from sfumato.quant.nvfp4 import GROUP, Nvfp4Tensor
from sfumato.weights.names import EMBEDDING

CPU = torch.device("cpu")
GIGA, MEGA = 1e9, 1e6
YES, NO, OTHER, UNKNOWN = "yes", "no", "other machine", "not measured"
# Bars in seconds or GFLOP/s are stated for a processor of this rate, of which torch reached 0.85e12
# to 0.93e12 operations a second. A machine with `SAME` of it is as good: the bar's own unit counts.
STATED, SAME = 1.04e12, 0.8
CEILING_EFFORT = Effort(repeats=3, seconds=0.05)  # small, as it is spent twice on every line
CONTEXT, SUDOKU = 32, 104  # cached positions: of whole passes, and of the small model's prompts
SHORT, LONG = 1024, 32_768  # between which growth is measured
TEMPERATURE = 0.6  # between the released model's first and last
BITS = "bits of rows alone and together, 1 and 2 threads"
MOST_EXTRA, MOST_COST = 64 * MEGA, 1.1
NOTE = (
    "other machine: missed in the bar's own unit, which is stated for a faster processor, but "
    "reached as a share of the ceiling."
)


@dataclass(frozen=True)
class Bar:
    """What is asked for: a `share` of the ceiling at least.

    A bar with a `rate` asks for that on a processor of the rate `STATED`; `share` is its share.
    """

    text: str
    share: float
    rate: float | None = None

    @classmethod
    def of_ceiling(cls, share: float) -> Bar:
        """A share of whatever the machine can do."""
        return cls(f"at least {100 * share:.0f} %", share)

    @classmethod
    def stated(cls, text: str, rate: float) -> Bar:
        """`text`, for which so many operations a second must be done."""
        share = rate / STATED
        where = f"where the ceiling is {STATED / GIGA:,.0f} GFLOP/s"
        return cls(f"{text} {where}: {100 * share:.0f} %", share, rate)

    def met(self, rate: float, ceiling: float) -> str:
        """Whether `rate` reaches it on a machine that reaches `ceiling` at best."""
        fair = rate >= self.share * ceiling
        if self.rate is None:
            return YES if fair else NO
        if ceiling >= SAME * STATED:
            return YES if fair and rate >= self.rate else NO
        if rate >= self.rate:
            return YES
        return OTHER if fair else NO


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    name: str
    measured: str
    share: str
    bar: str
    met: str

    def row(self) -> str:
        """In Markdown."""
        return f"| {self.name} | {self.measured} | {self.share} | {self.bar} | {self.met} |"


HEADER = Line("line", "measured", "share of ceiling", "bar", "met").row() + "\n|" + " --- |" * 5


@dataclass(frozen=True)
class Bench:
    """What is measured: `widths` with random weights, the small model, and the one `given`.

    `prompt` is what encode reads; `contexts` are the two that growth lies between.
    """

    widths: ModelConfig
    small: DiffusionGemma
    given: DiffusionGemma | None
    effort: Effort
    prompt: int = 2048
    contexts: tuple[int, int] = (SHORT, LONG)

    @property
    def network(self) -> DiffusionGemma:
        """The model given, or the small one."""
        return self.small if self.given is None else self.given

    def timing(self, work: Callable[[], object]) -> Callable[[], Timing]:
        """Measures `work` when it is called."""
        return partial(measure, work, self.effort, CPU)

    def check(self, names: Sequence[str]) -> None:
        """Raise UsageError or ContextLengthError for lengths that the lines cannot have."""
        short, long = self.contexts
        if long <= short:
            raise UsageError(f"--long must be above {short:,}, not {long:,}")
        if self.given is None:
            return
        config = self.given.config
        limit = config.text.max_position_embeddings
        needs = {"encode": self.prompt, "growth": long + config.canvas_length}
        longest = max((needs.get(name, 0) for name in names), default=0)
        if longest > limit:
            raise ContextLengthError(
                f"{longest:,} positions are needed, and this model has {limit:,}",
                hint="choose a shorter --long, or other lines with --only",
            )


def ceiling_of(*, memory: bool) -> float:
    """Bytes a second that `memory` is read at now, or operations of torch's best product."""
    found = measure_ceilings(CPU, CEILING_EFFORT)
    rate = found.read if memory else found.best_for(torch.bfloat16)
    assert rate is not None, "torch multiplies matrices in fp32 everywhere"
    return rate


def rated(
    name: str, take: Callable[[], Timing], amount: float, bar: Bar, *, memory: bool = False
) -> Line:
    """The line of `amount` operations, or bytes of `memory`, in the median time that `take` gives.

    The ceiling is the better of those before and after, so that a load in passing helps no share.
    """
    before = ceiling_of(memory=memory)
    timing = take()
    ceiling = max(before, ceiling_of(memory=memory))
    seconds, load = timing.seconds.median, timing.others_cores or 0.0
    busy = f" (others took {load:.1f} cores)" if load >= 0.1 else ""
    if seconds <= 0:  # a difference
        return Line(name, f"lost in the noise{busy}", "-", bar.text, UNKNOWN)
    rate, unit = amount / seconds, "GB/s" if memory else "GFLOP/s"
    measured = f"{rate / GIGA:,.1f} {unit}, {duration(seconds)}{busy}"
    share = f"{100 * rate / ceiling:.0f} % of {ceiling / GIGA:,.0f} {unit}"
    return Line(name, measured, share, bar.text, bar.met(rate, ceiling))


def random_nvfp4(*shape: int) -> Nvfp4Tensor:
    """Matrices [.., N, K] of any codes, with scales from 0.5 to 2: time asks for no more."""
    *leading, n, k = shape
    packed = torch.randint(256, (*leading, n, k // 2), dtype=torch.uint8)
    scale = torch.randint(0x30, 0x40, (*leading, n, k // GROUP), dtype=torch.uint8)
    factors = torch.full(tuple(leading), k**-0.5 / 3)
    return Nvfp4Tensor(packed, scale.view(torch.float8_e4m3fn), factors)


ENCODE, GROWTH, TOKEN = Bar.of_ceiling(0.6), Bar.of_ceiling(0.4), Bar.of_ceiling(0.6)
ROWS = Bar(f"at most {MOST_COST} times", 0.0)  # of a time, and not of the ceiling


def in_turns(
    left: Callable[[], object], right: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, as `alternate` gives them."""
    return alternate((partial(seconds_of, left, CPU), partial(seconds_of, right, CPU)), repeats)


def projections(bench: Bench) -> Iterator[Line]:
    """A canvas through the query projection of a sliding layer."""
    text, m = bench.widths.text, bench.widths.canvas_length
    k, n = text.hidden_size, text.num_attention_heads * text.layers[0].head_dim
    x = torch.randn(m, k).bfloat16()
    bf16, codes = rows(torch.randn(n, k).bfloat16()), nvfp4([random_nvfp4(n, k)])
    for layout, weight in (("bf16 rows", bf16), ("NVFP4", codes)):
        work = partial(linear, x, weight, bench.small.kernels)
        name = f"projection {m} x {k} -> {n}, {layout}"
        yield rated(name, bench.timing(work), 2.0 * m * n * k, Bar.of_ceiling(0.75))


def mixture(bench: Bench) -> Iterator[Line]:
    """A canvas through the experts of a layer, the rows dealt out evenly."""
    text, length = bench.widths.text, bench.widths.canvas_length
    count, width, slots = text.num_experts, text.moe_intermediate_size, text.top_k_experts
    up = (count, width, text.hidden_size)
    gate_up = nvfp4([random_nvfp4(*up)], [random_nvfp4(*up)])
    down = nvfp4([random_nvfp4(count, text.hidden_size, width)])
    chosen = torch.arange(length * slots).remainder(count).view(length, slots)
    shares = torch.full((length, slots), 1.0 / slots)
    x = torch.randn(length, text.hidden_size).bfloat16()
    work = partial(experts, x, chosen, shares, gate_up, down, bench.small.kernels)
    operations = denoise_work(bench.widths, 1, 0)[counting.EXPERTS].operations / len(text.layers)
    name = f"{count} experts of width {width}, {length * slots / count:g} rows each, NVFP4"
    yield rated(name, bench.timing(work), operations, Bar.stated("450 GFLOP/s", 450e9))


def vocabulary(bench: Bench) -> Iterator[Line]:
    """What a step of the loop does after its layers, and the memory that it takes meanwhile."""
    config, text, length = bench.widths, bench.widths.text, bench.widths.canvas_length
    kernels, cap = bench.small.kernels, text.final_logit_softcapping
    # Their spread is a trained model's: evenly spread logits would leave nothing improbable out.
    table = rows(RandomWeights(config, "bfloat16").tensor(EMBEDDING))
    x = torch.randn(length, text.hidden_size).bfloat16()
    temperatures = torch.full((length,), TEMPERATURE)
    uniforms = torch.rand(length, dtype=torch.float64)

    def step() -> Tensor:
        beliefs = head(x, table, cap, temperatures, uniforms, kernels)
        check_finite(beliefs.entropy)
        return soft(x, table, cap, temperatures, beliefs, text.hidden_size**0.5, kernels)

    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)  # what lies free in the heap would hide as much
    with watching(CPU) as watch:
        step()
    operations = counting.head_work(config, length).operations
    name = f"head {length} x {text.hidden_size} -> {text.vocab_size} to soft embeddings"
    yield rated(name, bench.timing(step), operations, Bar.stated("0.6 s", operations / 0.6))
    seen, met = "the system does not say", UNKNOWN
    if watch.extra_bytes is not None:
        seen = f"{watch.extra_bytes / MEGA:.1f} MB"
        met = YES if watch.extra_bytes < MOST_EXTRA else NO
    yield Line("head, extra memory", seen, "-", f"under {MOST_EXTRA / MEGA:.0f} MB", met)


def same_bits(bench: Bench) -> Iterator[Line]:
    """Whether rows alone and together, in one thread and in two, have the same bits."""
    before, expected, found = torch.get_num_threads(), None, []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for seeds in ((0, 1), (0,), (1,)):
                got = outputs(bench.network, seeds)
                expected = got if expected is None else expected
                where = f"of row {seeds[0]} alone" if len(seeds) == 1 else "of both rows"
                found += [
                    f"{name} {where} in {threads} threads"
                    for name, tensor in got.items()
                    if not torch.equal(tensor, expected[name][torch.tensor(seeds)])
                ]
    finally:
        torch.set_num_threads(before)
    measured = f"{', '.join(found)} differ" if found else "equal"
    yield Line(BITS, measured, "-", "equal", NO if found else YES)


def outputs(network: DiffusionGemma, seeds: Sequence[int]) -> dict[str, Tensor]:
    """What an encode and two steps of the loop give, for a row of each seed."""
    length = network.config.canvas_length
    ids = torch.cat([random_ids(network, 1, CONTEXT, seed) for seed in seeds])
    canvas = torch.cat([random_ids(network, 1, length, seed + 1) for seed in seeds])
    hidden, cache = network.encode_hidden(ids)
    draws, temperature = draws_for(list(seeds), CPU), torch.tensor(TEMPERATURE)
    first = FusedSteps().take(network, canvas, cache, temperature, None, draws)
    step = FusedSteps().take(network, canvas, cache, temperature, first.believed(None), draws)
    found = {"argmax": step.argmax, "samples": step.sampled, "entropies": step.entropies}
    return {"hidden states": hidden, **found, "soft embeddings": step.believed(None)}


def batched(bench: Bench) -> Iterator[Line]:
    """A denoise pass of two rows beside one of each row."""
    both = Passes.make(bench.network, 2, CONTEXT)
    passes = [
        Passes(both.network, both.cache.select(at), both.canvas[at], both.beliefs[at])
        for at in map(torch.tensor, ([0, 1], [0], [1]))
    ]
    pair, *alone = [one.denoise(self_conditioning=True) for one in passes]
    samples: list[list[float]] = []

    def take() -> Timing:
        with watching(CPU) as watch:
            samples.extend(in_turns(pair, lambda: [one() for one in alone], bench.effort.repeats))
        return watch.timing(samples[0])

    operations = total(denoise_work(bench.network.config, 2, CONTEXT)).operations
    line = rated("denoise 2 rows beside each alone", take, operations, ROWS)
    ratio = ratio_of_medians(samples[0], samples[1])
    measured = f"{ratio.value:.2f} times (95 %: {ratio.low:.2f}-{ratio.high:.2f}); {line.measured}"
    yield replace(line, measured=measured, met=YES if ratio.value <= MOST_COST else NO)


def encode(bench: Bench) -> Iterator[Line]:
    """Reading a prompt."""
    network, tokens = bench.network, bench.prompt
    ids = random_ids(network, 1, tokens, 0)
    operations = total(counting.encode_work(network.config, 1, tokens)).operations
    take = bench.timing(partial(network.encode, ids))
    yield rated(f"encode {tokens:,} tokens", take, operations, ENCODE)


def growth(bench: Bench) -> Iterator[Line]:
    """What the layers take longer after a long context: counted are the full layers alone."""
    network, (short, long) = bench.network, bench.contexts
    works = [Passes.make(network, 1, context).layers() for context in (short, long)]

    def take() -> Timing:
        with watching(CPU) as watch:
            few, many = in_turns(works[0], works[1], bench.effort.repeats)
        return watch.timing([later - sooner for later, sooner in zip(many, few, strict=True)])

    operations = added_operations(network.config, short, long)
    yield rated(f"growth of a step from {short:,} to {long:,} cached", take, operations, GROWTH)


def added_operations(config: ModelConfig, short: int, long: int) -> float:
    """Operations that a step needs after `long` positions and not after `short` ones."""
    works = [total(denoise_work(config, 1, context)) for context in (long, short)]
    return works[0].operations - works[1].operations


def autoregressive(bench: Bench) -> Iterator[Line]:
    """The next token left to right, which is bound by reading the weights that it touches."""
    network = bench.network
    passes = Passes.make(network, 1, CONTEXT)
    amount, take = touched_bytes(network, CONTEXT), bench.timing(passes.token())
    yield rated("autoregressive token", take, amount, TOKEN, memory=True)


def touched_bytes(network: DiffusionGemma, context: int) -> float:
    """Bytes of the weights that one token needs, as they are stored."""
    sizes = bytes_a_value(network.config, stored_bytes(network))
    work = counting.autoregressive_work(network.config, 1, context)
    return sum(part.weights * sizes.get(name, 0.0) for name, part in work.items())


def small_step(bench: Bench) -> Iterator[Line]:
    """A whole step of the small model after a prompt of the length of a Sudoku's."""
    take = partial(Passes.make(bench.small, 1, SUDOKU).whole_steps, bench.effort)
    operations = total(denoise_work(bench.small.config, 1, SUDOKU)).operations
    bar = Bar.stated("5 ms", operations / 0.005)
    yield rated("whole step of the small model", take, operations, bar)


LINES: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "projections": projections,
    "experts": mixture,
    "head": vocabulary,
    "bits": same_bits,
    "rows": batched,
    "encode": encode,
    "growth": growth,
    "autoregressive": autoregressive,
    "small": small_step,
}
# Lines about a model at released widths, which must be given.
ON_CHECKPOINT = {"rows": ROWS, "encode": ENCODE, "growth": GROWTH, "autoregressive": TOKEN}


def measured_lines(bench: Bench, names: Sequence[str]) -> Iterator[Line]:
    """The lines called `names`, each when it has been measured."""
    for name in names:
        if bench.given is None and name in ON_CHECKPOINT:
            yield Line(name, "needs a checkpoint", "-", ON_CHECKPOINT[name].text, "-")
        else:
            yield from LINES[name](bench)


def title(model: Model, name: str) -> str:
    """What is measured, on what and when."""
    facts = gather(model, name, commit(__file__))
    return (
        f"{facts.model} in {facts.dtype}; {facts.processor}, {facts.threads} threads of "
        f"{facts.cores} cores, kernels {facts.kernels or 'none: torch alone'}, torch "
        f"{facts.torch}, sfumato {facts.sfumato} (commit {facts.commit}), {facts.date}"
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. Raises UsageError, or ends the program with 2, for what cannot be meant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", type=Path)
    for name, most in (("threads", 4096), ("repeats", 10_000), ("long", 1 << 20)):
        parser.add_argument(f"--{name}", type=whole(most))
    parser.set_defaults(threads=2, repeats=7, long=LONG)
    parser.add_argument("--only", nargs="+", default=list(LINES), metavar="NAME")
    parser.add_argument("--output", type=Path)
    found = parser.parse_args(arguments)
    for name in found.only:
        if name not in LINES:
            raise UsageError(f"there is no line {name[:40]!r}", hint=f"known: {', '.join(LINES)}")
    if found.checkpoint is not None and not found.checkpoint.is_dir():
        raise UsageError(f"{found.checkpoint} is not a folder", hint="name a checkpoint's folder")
    if found.output is not None:
        check_target(found.output)
    return found


@torch.inference_mode()
def run(options: argparse.Namespace) -> int:
    """Measure, print each line when it is there, and write; 1 if bits differ."""
    small = load()
    if small.network.kernels is None:
        raise UsageError("there are no kernels here", hint="sfumato doctor says why")
    given = None if options.checkpoint is None else load(options.checkpoint)
    effort = Effort(repeats=options.repeats)
    network = None if given is None else given.network
    contexts = (SHORT, options.long)
    bench = Bench(named_shape("released:4"), small.network, network, effort, contexts=contexts)
    bench.check(options.only)
    texts = [title(given or small, str(options.checkpoint or SMALL_FOLDER)) + "\n", HEADER]
    print("\n".join(texts), flush=True)
    failed = False
    for line in measured_lines(bench, options.only):
        print(line.row(), flush=True)
        texts.append(line.row())
        failed |= line.name == BITS and line.met == NO
    print(f"\n{NOTE}")
    if options.output is not None:
        write_text(options.output, "\n".join([*texts, "", NOTE, ""]))
    return 1 if failed else 0


def main(arguments: Sequence[str]) -> int:
    """Measure; 1 for a model that cannot be used or bits that differ, 2 for what is asked wrong."""
    try:
        options = parse(arguments)
        torch.set_num_threads(options.threads)
        return run(options)
    except SfumatoError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, EvaluationError) else error.exit_code  # of --output


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
