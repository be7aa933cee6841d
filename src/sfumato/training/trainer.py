"""The loop: one optimiser step is one micro-batch of every family.

Everything random is drawn from generators seeded by (seed, step, family), so a run's whole state is
its weights, its optimiser and its step: killed at any moment and resumed, it ends with the very
bits of a run that was left alone (same threads, workers, precision,
experts and compilation).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from sfumato.errors import TrainingError
from sfumato.model.diffusion_gemma import with_experts
from sfumato.training.conditioning import SelfConditioning
from sfumato.training.config import TrainConfig
from sfumato.training.corruption import Supervision, UniformNoise
from sfumato.training.data import Data
from sfumato.training.evaluate import evaluate
from sfumato.training.export import export_weights, network_with
from sfumato.training.init import new_network, start_from
from sfumato.training.losses import Batch, Passes, joint_losses
from sfumato.training.optim import Average, Optimiser, Rates
from sfumato.training.progress import Meter, Progress, clock
from sfumato.training.run_dir import RunDir, handled
from sfumato.training.schedule import Schedule

EXPORT = "export"
# What a resumed run may not change: the rest (steps, rates, mixture, ...) is logged when it does.
_FIXED = ("seed", "model")
Ended = Literal["finished", "stopped", "out of time"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `export` is the folder of the exported weights, None if there are none."""

    ended: Ended
    step: int
    seconds: float
    export: Path | None


def train(
    config: TrainConfig, *, resume: bool = False, progress: Progress | None = None
) -> Outcome:
    """Run `config` to its end, or until its time is over, or SIGINT or SIGTERM asks it to stop.

    The weights are exported into `run_dir/export` at every checkpoint. With `resume` the run goes
    on from its newest checkpoint; without, its folder must not hold one. Raises TrainingError for
    a run that cannot start or go on, a loss that is not finite included.
    """
    run = RunDir(config.run_dir)
    if not resume and run.states():
        raise TrainingError(
            f"{run.path}: holds a run already",
            hint="give --resume to go on with it, or another run_dir",
        )
    if resume and not run.states():
        raise TrainingError(
            f"{run.path}: no checkpoint to resume from", hint="start without --resume"
        )
    run.create()
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    deterministic: Any = torch.utils.deterministic
    filling = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False  # nothing here reads it unwritten
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        trainer = Trainer(config, run, progress or Progress())
        if resume:
            trainer.load(run.newest())
        elif config.init_from:
            trainer.start_from(config.init_from)
        return trainer.run()
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        deterministic.fill_uninitialized_memory = filling


class Trainer:
    """A run in memory. `step` counts finished optimiser steps."""

    def __init__(self, config: TrainConfig, run: RunDir, progress: Progress) -> None:
        self.config = config
        self.run_dir = run
        self.progress = progress
        self.step = 0
        self.seconds = 0.0  # spent training, over all resumed parts
        model = config.model.build()
        self.net = new_network(model, config.seed)
        with_experts(self.net, cast(Any, config.experts))
        self.net.checkpoint_layers = config.checkpoint_layers
        self.data = Data(config, model, run.path)
        self.strategies = Strategies.of(config)
        for name, parameter in self.net.named_parameters():
            frozen = name.endswith("layer_scalar") and not config.optimiser.train_layer_scalars
            parameter.requires_grad_(not frozen)
        self.optimiser = Optimiser(self.net.named_parameters(), self.strategies.rates)
        decay = config.optimiser.ema_decay
        self.average = Average(self.net.state_dict(), decay) if decay else None
        self._stop = False
        self._pool: ThreadPoolExecutor | None = None

    def start_from(self, folder: str) -> None:
        """Begin with the weights of the checkpoint in `folder` instead of fresh ones."""
        start_from(self.net, folder)
        if self.average is not None:
            self.average = Average(self.net.state_dict(), self.average.decay)

    @property
    def weights(self) -> dict[str, Tensor]:
        """What is evaluated and exported: the averaged weights, if there is an average."""
        return self.net.state_dict() if self.average is None else self.average.weights

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and plain values."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "config": _plain(self.config),
            "weights": self.net.state_dict(),
            "optimiser": self.optimiser.state(),
            "average": {} if self.average is None else self.average.weights,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises TrainingError if it is of another kind of run."""
        new, old = _plain(self.config), state["config"]
        for name in _FIXED:
            if new[name] != old[name]:
                raise TrainingError(
                    f"{self.run_dir.path}: the run was begun with another {name}",
                    hint="resume with the recipe it was begun with, or choose another run_dir",
                )
        self.step, self.seconds = state["step"], state["seconds"]
        self.net.load_state_dict(state["weights"])
        self.optimiser.load(state["optimiser"])
        if self.average is not None:
            self.average.weights = dict(state["average"] or self.net.state_dict())
            self.average.weights = {n: t.clone() for n, t in self.average.weights.items()}
        self.run_dir.rewind_log(self.step)
        changed = sorted(name for name in new if new[name] != old.get(name))
        self._log("resume", {"changed": {name: new[name] for name in changed}})

    def run(self) -> Outcome:
        """Train until the end; see `train`."""
        if self.step == 0:
            count = sum(p.numel() for p in self.net.parameters())
            self._log("start", {"parameters": count, "config": _plain(self.config)})
        with handled((signal.SIGINT, signal.SIGTERM), self._ask_to_stop):
            ended = self._loop()
        self._checkpoint()
        folder = export_weights(self.net, self.data, self.weights, self.run_dir.path / EXPORT)
        self._log("end", {"ended": ended})
        self.progress.say(f"{ended} at step {self.step} after {clock(self.seconds)}: {folder}")
        return Outcome(ended, self.step, self.seconds, folder)

    def _ask_to_stop(self, number: int) -> None:
        if self._stop and number == signal.SIGINT:  # Ctrl-C again: at once, without a checkpoint
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._stop = True

    def _loop(self) -> Ended:
        config, meter = self.config, Meter()
        while self.step < config.max_steps:
            if self._stop:
                return "stopped"
            if config.max_minutes and self.seconds >= config.max_minutes * 60:
                return "out of time"
            started = time.monotonic()
            losses, canvases, tokens = self.train_step()
            meter.add(losses, canvases, tokens)
            self.seconds += time.monotonic() - started
            if self.step % config.log_every == 0 or self.step == config.max_steps:
                self._report(meter)
            if config.eval_every and self.step % config.eval_every == 0:
                self._evaluate()
            if self.step % config.checkpoint_every == 0 and self.step < config.max_steps:
                self._checkpoint()
        return "finished"

    def train_step(self) -> tuple[dict[str, float], int, int]:
        """One optimiser step: its losses by name, and how many canvases and tokens it saw."""
        families = self.config.families
        parts = list(self._side_by_side(self._micro_batch, range(len(families))))
        losses: dict[str, float] = {}
        canvases = tokens = 0
        for family, part in zip(families, parts, strict=True):
            losses |= part.losses
            canvases += part.batch.rows * family.canvases
            tokens += part.batch.encode_ids.numel() + family.canvases * part.batch.targets.numel()
        # In the order of the families, whichever was done first: sums of floats keep their bits.
        self.optimiser.take([part.gradients for part in parts])
        norm = self.optimiser.clip(self.config.optimiser.clip)
        self._check_finite("the gradient", norm)
        self.optimiser.step(self.strategies.schedule.at(self.step))
        self.step += 1
        if self.average is not None:
            self.average.update(self.net.state_dict(), self.step)
        return {**losses, "gradient": norm}, canvases, tokens

    def _side_by_side(
        self, work: Callable[[int], MicroBatch], numbers: Sequence[int]
    ) -> Iterable[MicroBatch]:
        """`work` for each number, on the recipe's workers; results come in order."""
        if self.config.workers == 1:
            return map(work, numbers)
        if self._pool is None:
            self.data.prepare()
            share = max(1, torch.get_num_threads() // self.config.workers)
            self._pool = ThreadPoolExecutor(
                self.config.workers, initializer=torch.set_num_threads, initargs=(share,)
            )
        return self._pool.map(work, numbers)

    def _micro_batch(self, index: int) -> MicroBatch:
        """Forward and backward of one family at this step."""
        family, parts = self.config.families[index], self.strategies
        batch = self.data.batch(self.step, index)
        generator = generator_for(self.config.seed, self.step, index)
        clean = batch.targets.repeat_interleave(family.canvases, 0)
        levels = parts.noise.levels(len(clean), generator)
        vocab_size = self.net.config.text.vocab_size
        noisy = parts.noise.corrupt(clean, levels, vocab_size, generator)
        noisy, beliefs = parts.conditioning.beliefs(self.net, parts.passes, batch, noisy, generator)
        weights = parts.supervision.weights(noisy, clean, levels)
        found = joint_losses(self.net, parts.passes, batch, noisy, weights, beliefs)
        total = found.diffusion
        if found.encoder is not None:
            total = total + family.encoder_weight * found.encoder
        name = f"{index}.{Path(family.source).stem}"
        self._check_finite(f"the loss of family {name}", total.item())
        gradients = torch.autograd.grad(
            total * family.weight, self.optimiser.parameters, allow_unused=True
        )
        losses = {f"{name}.diffusion": found.diffusion.item()}
        if found.encoder is not None:
            losses[f"{name}.encoder"] = found.encoder.item()
        return MicroBatch(batch, losses, gradients)

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"{what} is {value} at step {self.step + 1}",
                hint="lower the learning rates and resume from the last checkpoint",
            )

    def _report(self, meter: Meter) -> None:
        losses, rates = meter.read()
        record = {**{k: round(v, 5) for k, v in {**losses, **rates}.items()}}
        record["rate"] = self.strategies.schedule.at(self.step - 1)
        self._log("train", record)
        left = (self.config.max_steps - self.step) * rates["seconds_a_step"]
        shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.progress.step(
            f"step {self.step}/{self.config.max_steps}  {shown}  "
            f"{rates['canvases_a_second']:.1f} canvases/s  "
            f"{rates['tokens_a_second']:.0f} tokens/s  {clock(self.seconds)}  eta {clock(left)}"
        )

    def _evaluate(self) -> None:
        started = time.monotonic()
        copy = network_with(self.net, self.weights)
        scores = evaluate(copy, self.data, self.config.evaluation)
        took = time.monotonic() - started
        self._log(
            "eval",
            {
                **{score.task: {"accuracy": score.accuracy, "steps": score.steps}
                   for score in scores},
                "took": round(took, 1),
            },
        )  # fmt: skip
        self.seconds += took
        shown = "  ".join(f"{s.task} {s.accuracy:.1%} ({s.steps:.1f} steps)" for s in scores)
        self.progress.say(f"held out at step {self.step}: {shown}")

    def _checkpoint(self) -> None:
        started = time.monotonic()
        self.run_dir.save(self.step, self.state())
        self.seconds += time.monotonic() - started

    def _log(self, kind: str, fields: dict[str, Any]) -> None:
        head = {"kind": kind, "step": self.step, "seconds": round(self.seconds, 2)}
        self.run_dir.append({**head, **fields})


@dataclass(frozen=True)
class MicroBatch:
    """What one family adds to a step. `gradients` in the order of the optimiser's parameters."""

    batch: Batch
    losses: dict[str, float]
    gradients: Sequence[Tensor | None]


@dataclass(frozen=True)
class Strategies:
    """The frozen parts a run is made of."""

    noise: UniformNoise
    supervision: Supervision
    conditioning: SelfConditioning
    schedule: Schedule
    rates: Rates
    passes: Passes

    @classmethod
    def of(cls, config: TrainConfig) -> Strategies:
        """The strategies that `config` names."""
        noise, optimiser = config.noise, config.optimiser
        return cls(
            UniformNoise(noise.t_min, noise.t_max, noise.power, noise.stratified),
            Supervision(cast(Any, noise.supervised), cast(Any, noise.weight)),
            SelfConditioning(**dataclasses.asdict(config.conditioning)),
            Schedule(
                cast(Any, optimiser.schedule),
                config.max_steps,
                optimiser.warmup_steps,
                optimiser.decay_share,
                optimiser.final_lr_share,
            ),
            Rates(
                optimiser.muon_lr,
                optimiser.adam_lr,
                optimiser.momentum,
                optimiser.newton_schulz_steps,
                (optimiser.beta1, optimiser.beta2),
                optimiser.eps,
                optimiser.weight_decay,
                torch.bfloat16 if config.precision == "bfloat16" else torch.float32,
            ),
            Passes.of(compiled=config.compile, bfloat16=config.precision == "bfloat16"),
        )


def generator_for(seed: int, step: int, index: int) -> torch.Generator:
    """The random numbers of one micro-batch: a pure function of (seed, step, family number)."""
    digest = hashlib.sha256(f"sfumato train {seed} {step} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _plain(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values, tuples as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value

    return cast(dict[str, Any], plain(dataclasses.asdict(config)))
