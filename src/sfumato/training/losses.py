"""The two losses of a micro-batch, from one joint pass over [encode stream | canvases]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.model.joint import LayerRun, joint_states, run_layer

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """A micro-batch before noise. Encode rows are padded on the right.

    `encode_ids` and `encode_real` [B, T]: prompts, with their clean answers behind them when the
    encoder's loss is wanted. `starts` [B]: length of each prompt. `targets` [B, L]: clean canvases.
    `places` and `labels` [B, Q]: encode positions whose next token is supervised, and that token
    (IGNORED for padding); both None without the encoder's loss.
    """

    encode_ids: Tensor
    encode_real: Tensor
    starts: Tensor
    targets: Tensor
    prompt_width: int
    places: Tensor | None = None
    labels: Tensor | None = None

    @property
    def rows(self) -> int:
        """B, the number of prompts."""
        return self.encode_ids.shape[0]


@dataclass(frozen=True)
class Beliefs:
    """Temperature-scaled logits [R * M, L, V] for the first M canvases of the first R rows."""

    rows: int
    canvases: int
    logits: Tensor


CrossEntropy = Callable[[DiffusionGemma, Tensor, Tensor, Tensor], Tensor]


def cross_entropy(net: DiffusionGemma, hidden: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum of `weights` [R] times the cross entropy, in fp32, of the head on `hidden` [R, D].

    Rows whose label is IGNORED count nothing.
    """
    losses = functional.cross_entropy(
        net.head(hidden), labels, reduction="none", ignore_index=IGNORED
    )
    return (losses * weights).sum()


@dataclass(frozen=True)
class Passes:
    """The parts of the network that a step calls, plain or compiled, and how they compute."""

    layer: LayerRun = run_layer
    loss: CrossEntropy = cross_entropy
    bfloat16: bool = False

    @classmethod
    def of(cls, *, compiled: bool, bfloat16: bool) -> Passes:
        """Compiling a layer at a time gives what compiling the whole pass gives, in an eighth."""
        if not compiled:
            return cls(bfloat16=bfloat16)
        # Each family has shapes of its own; past the limit torch would fall back without a word.
        torch._dynamo.config.recompile_limit = 256
        return cls(
            torch.compile(run_layer, dynamic=False),
            torch.compile(cross_entropy, dynamic=False),
            bfloat16,
        )

    def autocast(self) -> torch.autocast:
        """bf16 products over fp32 master weights, or nothing at all."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16)


@dataclass(frozen=True)
class Losses:
    """Mean cross entropies, differentiable; `encoder` is None if the batch has no such loss."""

    diffusion: Tensor
    encoder: Tensor | None


def joint_losses(
    net: DiffusionGemma,
    passes: Passes,
    batch: Batch,
    noisy: Tensor,
    weights: Tensor,
    beliefs: Beliefs | None,
) -> Losses:
    """Losses of canvases `noisy` [B * C, L], row b * C + c belonging to prompt b.

    `weights` [B * C, L] come from `Supervision`. The encoder's loss is the mean over its labels.
    """
    canvases = noisy.shape[0] // batch.rows
    with passes.autocast():
        inputs = canvas_inputs(net, noisy.view(batch.rows, canvases, -1), beliefs)
        encoded, refined = joint_states(
            net,
            batch.encode_ids,
            batch.encode_real,
            inputs,
            batch.starts.repeat_interleave(canvases),
            passes.layer,
        )
        labels = batch.targets.repeat_interleave(canvases, 0).flatten()
        diffusion = passes.loss(net, refined.flatten(0, 1), labels, weights.flatten())
        if batch.places is None or batch.labels is None:
            return Losses(diffusion, None)
        picked = encoded.gather(1, batch.places[:, :, None].expand(-1, -1, encoded.shape[-1]))
        wanted = (batch.labels != IGNORED).float()
        share = wanted / wanted.sum().clamp(min=1.0)
        encoder = passes.loss(net, picked.flatten(0, 1), batch.labels.flatten(), share.flatten())
    return Losses(diffusion, encoder)


def canvas_inputs(net: DiffusionGemma, noisy: Tensor, beliefs: Beliefs | None) -> Tensor:
    """Denoiser inputs [B * C, L, D] for `noisy` [B, C, L]; only believed canvases pay for beliefs.

    The others get a zero signal, as at a decoder's first step.
    """
    plain = net.embed_canvas(noisy.flatten(0, 1), None)
    if beliefs is None:
        return plain
    rows, canvases = beliefs.rows, beliefs.canvases
    informed = net.embed_canvas(noisy[:rows, :canvases].flatten(0, 1), beliefs.logits)
    shape = (*noisy.shape, plain.shape[-1])
    grid = plain.view(shape)
    informed = informed.view(rows, canvases, *shape[2:])
    top = torch.cat([informed, grid[:rows, canvases:]], dim=1)
    return torch.cat([top, grid[rows:]], dim=0).flatten(0, 1)


@torch.no_grad()
def first_pass(
    net: DiffusionGemma,
    passes: Passes,
    batch: Batch,
    noisy: Tensor,
    grid: tuple[int, int],
    beliefs: Beliefs | None = None,
) -> Tensor:
    """Logits [R * M, L, V] for `noisy` [R * M, L]: M canvases of each of the first R prompts.

    `grid` is (R, M). Clean answers behind the prompts are left out of the encode stream.
    """
    rows, canvases = grid
    width = batch.prompt_width
    places = torch.arange(width)
    with passes.autocast():
        encoded_ids = batch.encode_ids[:rows, :width].contiguous()
        real = places < batch.starts[:rows, None]
        inputs = canvas_inputs(net, noisy.view(rows, canvases, -1), beliefs)
        starts = batch.starts[:rows].repeat_interleave(canvases)
        _, refined = joint_states(net, encoded_ids, real, inputs, starts, passes.layer)
        logits = net.head(refined)
    return logits.reshape(*noisy.shape, -1)
