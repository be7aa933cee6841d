"""A benchmark: ceilings and passes over every number of threads, rows and cached positions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from sfumato.benchmark import counting
from sfumato.benchmark.ceilings import Ceilings, measure_ceilings
from sfumato.benchmark.compare import Comparison, Costs, compare
from sfumato.benchmark.counting import Parts, total
from sfumato.benchmark.passes import Passes
from sfumato.benchmark.timing import Effort, Timing, measure
from sfumato.config.model import ModelConfig
from sfumato.errors import ContextLengthError, UsageError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.model.fast_layer import kernel_weights
from sfumato.weights.inventory import part_of, take_inventory
from sfumato.weights.names import EMBEDDING

CEILINGS, ENCODE, DENOISE, HEAD = "ceilings", "encode", "denoise", "head"
STEP, AUTOREGRESSIVE = "step", "autoregressive"
PARTS = (CEILINGS, ENCODE, DENOISE, HEAD, STEP, AUTOREGRESSIVE)
PROMPTS = (32, 256, 1024)
# Where the parts of `counting` have their weights, in the words of `weights.inventory`.
_STORED = {
    counting.PROJECTIONS: "attention",
    counting.DENSE_MLP: "dense_mlp",
    counting.ROUTER: "router",
    counting.EXPERTS: "experts",
    counting.HEAD: "embedding",
    counting.SELF_CONDITIONING: "self_conditioning",
}
_LAYERS, _BARE, _DENOISE = "layers", "denoise, no self-conditioning", "denoise"
_FIRST, _WHOLE = "first step", "whole step"
_COMMIT, _TOKEN = "encode a canvas", "autoregressive token"

OnPart = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure. `prompts` None are the usual lengths that the model can hold."""

    contexts: tuple[int, ...]
    threads: tuple[int, ...]
    batches: tuple[int, ...] = (1,)
    prompts: tuple[int, ...] | None = None
    parts: tuple[str, ...] = PARTS
    steps_per_canvas: int = 12
    effort: Effort = field(default_factory=Effort)

    def check(self, config: ModelConfig) -> None:
        """Raise UsageError for unknown parts, ContextLengthError for what does not fit."""
        for part in self.parts:
            if part not in PARTS:
                raise UsageError(
                    f"there is no part {part[:40]!r}", hint=f"known are {', '.join(PARTS)}"
                )
        limit = config.text.max_position_embeddings
        longest = max(self.contexts) + config.canvas_length
        if longest > limit:
            raise ContextLengthError(
                f"a context of {max(self.contexts):,} and a canvas of {config.canvas_length} "
                f"pass this model's {limit:,} positions",
                hint=f"--context may be up to {max(0, limit - config.canvas_length):,}",
            )
        if self.prompts is not None and max(self.prompts) > limit:
            raise ContextLengthError(
                f"a prompt of {max(self.prompts):,} passes this model's {limit:,} positions"
            )

    def prompts_of(self, config: ModelConfig) -> tuple[int, ...]:
        """The lengths of prompts to encode."""
        limit = config.text.max_position_embeddings
        return self.prompts or tuple(one for one in PROMPTS if one <= limit) or (limit,)


@dataclass(frozen=True)
class Result:
    """One pass at one setting. `tokens` are the new positions in each row.

    `operations` are those that must be done, `weight_bytes` those that must be read; shares are of
    the measured ceilings, None where there is none.
    """

    part: str
    threads: int
    batch: int
    context: int
    tokens: int
    timing: Timing
    operations: float
    weight_bytes: float
    operations_share: float | None
    read_share: float | None

    @property
    def rate(self) -> float:
        """Operations a second, at the median time."""
        return self.operations / self.timing.seconds.median

    @property
    def read(self) -> float:
        """Bytes of weights a second, at the median time."""
        return self.weight_bytes / self.timing.seconds.median


OnFound = Callable[[Ceilings | Comparison | Result], None]


@dataclass(frozen=True)
class Benchmark:
    """Everything a run has measured."""

    plan: Plan
    config: ModelConfig
    weight_bytes: int
    kernels: str | None  # what computes; None for torch alone
    ceilings: tuple[Ceilings, ...]
    results: tuple[Result, ...]
    comparisons: tuple[Comparison, ...]


@torch.inference_mode()
def run(
    network: DiffusionGemma,
    plan: Plan,
    on_part: OnPart | None = None,
    on_found: OnFound | None = None,
) -> Benchmark:
    """Measure `network` as `plan` says.

    `on_part` hears what is measured next, `on_found` what was found as soon as it is. Torch's
    number of threads is what it was afterwards. Raises as `Plan.check`.
    """
    plan.check(network.config)
    meter = _Meter(network, plan, on_part or (lambda part: None), on_found or (lambda found: None))
    before = torch.get_num_threads()
    try:
        for threads in plan.threads:
            torch.set_num_threads(threads)
            meter.measure_all()
    finally:
        torch.set_num_threads(before)
    return Benchmark(
        plan,
        network.config,
        sum(meter.stored.values()),
        kernels_of(network),
        tuple(meter.ceilings),
        tuple(meter.results),
        tuple(meter.comparisons),
    )


def kernels_of(network: DiffusionGemma) -> str | None:
    """What computes; None for torch alone."""
    return None if network.kernels is None else network.kernels.label


class _Meter:
    """The state of a run: what has been measured so far."""

    def __init__(
        self, network: DiffusionGemma, plan: Plan, on_part: OnPart, on_found: OnFound
    ) -> None:
        self.network, self.plan, self.on_part, self.on_found = network, plan, on_part, on_found
        self.config = network.config
        self.stored = stored_bytes(network)
        self.value_bytes = bytes_a_value(self.config, self.stored)
        self.ceilings: list[Ceilings] = []
        self.results: list[Result] = []
        self.comparisons: list[Comparison] = []

    def measure_all(self) -> None:
        """Everything at torch's present number of threads."""
        plan, config = self.plan, self.config
        if CEILINGS in plan.parts:
            self.on_part("ceilings of the machine")
            self.ceilings.append(measure_ceilings(self.network.device, plan.effort))
            self.on_found(self.ceilings[-1])
        for batch, (index, context) in itertools.product(plan.batches, enumerate(plan.contexts)):
            self.on_part(f"filling a context of {context:,}, {batch} rows")
            passes = Passes.make(self.network, batch, context)
            if ENCODE in plan.parts and index == 0:  # prompts know nothing of the context
                for tokens in plan.prompts_of(config):
                    work = counting.encode_work(config, batch, tokens)
                    self._time(f"encode {tokens:,}", batch, 0, tokens, passes.encode(tokens), work)
            self._measure_canvas(passes, batch, context)

    def _measure_canvas(self, passes: Passes, batch: int, context: int) -> None:
        """The passes over a canvas, and what they come to."""
        parts, config = self.plan.parts, self.config
        length = config.canvas_length
        comparing = AUTOREGRESSIVE in parts
        bare = counting.denoise_work(config, batch, context, self_conditioning=False)
        full = counting.denoise_work(config, batch, context)
        where = (batch, context, length)
        if DENOISE in parts:
            layers = {name: work for name, work in bare.items() if name != counting.HEAD}
            self._time(_LAYERS, *where, passes.layers(), layers)
            self._time(_BARE, *where, passes.denoise(self_conditioning=False), bare)
            self._time(_DENOISE, *where, passes.denoise(self_conditioning=True), full)
        if HEAD in parts:
            work = {counting.HEAD: counting.head_work(config, batch * length)}
            self._time("head", *where, passes.head(), work)
        if STEP in parts or comparing:
            first = self._time(_FIRST, *where, passes.first_step(), bare)
            self._told(_WHOLE, batch, context)
            step = self._keep(_WHOLE, *where, passes.whole_steps(self.plan.effort), full)
        if comparing:
            encode = counting.encode_work(config, batch, length, context)
            commit = self._time(_COMMIT, *where, passes.commit(), encode)
            one = counting.autoregressive_work(config, batch, context)
            token = self._time(_TOKEN, batch, context, 1, passes.token(), one)
            costs = Costs(batch, length, first, step, commit, token)
            steps = self.plan.steps_per_canvas
            self.comparisons.append(compare(costs, steps, torch.get_num_threads(), context))
            self.on_found(self.comparisons[-1])

    def _time(
        self,
        part: str,
        batch: int,
        context: int,
        tokens: int,
        work: Callable[[], object],
        counted: Parts,
    ) -> float:
        """Measure one pass, keep the result, and return its median seconds."""
        self._told(part, batch, context)
        timing = measure(work, self.plan.effort, self.network.device)
        return self._keep(part, batch, context, tokens, timing, counted)

    def _told(self, part: str, batch: int, context: int) -> None:
        self.on_part(f"{part}: {torch.get_num_threads()} threads, {batch} rows, {context:,} cached")

    def _keep(
        self, part: str, batch: int, context: int, tokens: int, timing: Timing, counted: Parts
    ) -> float:
        seconds = timing.seconds.median
        operations = total(counted).operations
        read = sum(work.weights * self.value_bytes.get(name, 0.0) for name, work in counted.items())
        ceilings = self.ceilings[-1] if self.ceilings else None
        best = ceilings.best_for(self.network.dtype) if ceilings else None
        result = Result(
            part=part,
            threads=torch.get_num_threads(),
            batch=batch,
            context=context,
            tokens=tokens,
            timing=timing,
            operations=operations,
            weight_bytes=read,
            operations_share=operations / seconds / best if best else None,
            read_share=read / seconds / ceilings.read if ceilings else None,
        )
        self.results.append(result)
        self.on_found(result)
        return seconds


def stored_bytes(network: DiffusionGemma) -> dict[str, int]:
    """Bytes that are read of what `network` holds, by part of the inventory.

    Where kernels took a packed copy, in bf16, they are the copy's; of what stays quantised the
    parameters are on the meta device, and the bytes are those of codes and scales.
    """
    sizes: dict[str, int] = {}
    copied = _packed(network)
    for name, weight in network.packed.items():
        sizes[part_of(name)] = sizes.get(part_of(name), 0) + weight.bytes
    if network.int8_table is not None:
        sizes[part_of(EMBEDDING)] = network.table.bytes
    for name, tensor in _tensors(network):
        if not tensor.is_meta:
            size = 2 if copied and name.startswith(copied) else tensor.element_size()
            sizes[part_of(name)] = sizes.get(part_of(name), 0) + tensor.numel() * size
    return sizes


def _packed(network: DiffusionGemma) -> tuple[str, ...]:
    """How the names of parameters begin of which kernels hold a packed copy."""
    return tuple(
        f"model.decoder.{name}."
        for name, module in network.model.decoder.named_modules()
        if any(weight.layout == "bf16_panels" for weight in kernel_weights(module))
    )


def bytes_a_value(config: ModelConfig, stored: dict[str, int]) -> dict[str, float]:
    """Bytes of one value of the weights, scales included, by part of `counting`."""
    inventory = take_inventory(config)
    return {name: stored.get(part, 0) / getattr(inventory, part) for name, part in _STORED.items()}


def _tensors(network: DiffusionGemma) -> Iterator[tuple[str, torch.Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()
