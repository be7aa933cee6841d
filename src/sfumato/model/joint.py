"""Encode and denoise in one pass over [encode stream | canvases], as training wants it.

The one pass computes what the two passes do, in one large matrix product a layer instead of several
smaller ones, and lets several noisy canvases share the encoding of their prompt. Attention is
written out here rather than called: at the lengths a small model trains on, the fused CPU kernel's
backward pass takes longer (benchmarks/joint_attention.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.config.model import LayerKind
from sfumato.kv.cache import Fresh
from sfumato.model.attention import Attention
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.model.layer import Layer
from sfumato.ops.visibility import Causal


@dataclass(frozen=True)
class Plan:
    """How one layer kind looks: T encode positions, C canvases of L; additive masks, 0 or -inf."""

    split: int
    canvases: int
    causal: Tensor  # [B, 1, T, T]
    prefix: Tensor  # [B, 1, C, 1, T]


LayerRun = Callable[[Layer, Tensor, tuple[Tensor, Tensor], Plan, Tensor], Tensor]


def joint_states(
    net: DiffusionGemma,
    encode_ids: Tensor,
    encode_real: Tensor,
    canvas_inputs: Tensor,
    canvas_start: Tensor | None,
    run: LayerRun | None = None,
) -> tuple[Tensor, Tensor]:
    """One pass for `encode_ids` [B, T] (`encode_real` false on padding) and canvases [B * C, L, D].

    Returns the final states of the encode stream [B, T, D] and of the canvases [B, C * L, D]. A
    canvas sees all of itself and the encode positions before its start, `canvas_start` [B * C]
    (by default after every real token), so a clean answer may follow the prompt without being read
    by the canvas that must find it. With `net.checkpoint_layers` set, layers are recomputed in the
    backward pass instead of stored. `run` takes the place of `run_layer`, compiled for instance.
    """
    run = run_layer if run is None else run
    text = net.config.text
    batch, split = encode_ids.shape
    canvases, length = canvas_inputs.shape[0] // batch, canvas_inputs.shape[1]
    positions = torch.where(encode_real, encode_real.cumsum(1) - 1, -1)
    if canvas_start is None:
        canvas_start = encode_real.sum(1).repeat_interleave(canvases)
    starts = canvas_start.view(batch, canvases)
    steps = torch.arange(length, device=starts.device)
    canvas_positions = (starts[:, :, None] + steps).flatten(1)
    everywhere = torch.cat([positions.clamp(min=0), canvas_positions], dim=1)
    x = torch.cat([net.embed(encode_ids), canvas_inputs.reshape(batch, canvases * length, -1)], 1)
    tables = net.tables(everywhere, x.dtype)
    kinds: set[LayerKind] = {layer.kind for layer in text.layers}
    plans = {
        kind: _plan(positions, starts, text.sliding_window if kind == "sliding_attention" else None)
        for kind in kinds
    }
    encoder_scalars = net.encoder_scalars
    for index, layer in enumerate(net.layers):
        parts = [
            encoder_scalars[index].expand(split),
            layer.layer_scalar.expand(canvases * length),
        ]
        arguments = (layer, x, tables[layer.kind], plans[layer.kind], torch.cat(parts)[:, None])
        if net.checkpoint_layers:
            x = checkpoint(run, *arguments, use_reentrant=False)
        else:
            x = run(*arguments)
    x = net.model.decoder.norm(x)
    return x[:, :split], x[:, split:]


def _plan(positions: Tensor, starts: Tensor, window: int | None) -> Plan:
    """Additive masks for encode `positions` [B, T] and canvas `starts` [B, C]."""
    keys, first = positions[:, None], starts[:, :, None]
    seen = (keys >= 0) & (keys < first)
    if window is not None:
        seen &= keys > first - window
    causal = Causal(positions, positions, window).mask
    return Plan(
        positions.shape[1], starts.shape[1], _additive(causal), _additive(seen)[:, None, :, None]
    )


def _additive(mask: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=torch.float).masked_fill(~mask, -torch.inf)


def run_layer(
    layer: Layer, x: Tensor, tables: tuple[Tensor, Tensor], plan: Plan, scalar: Tensor
) -> Tensor:
    """One layer over the joint sequence `x` [B, T + C * L, D]; the unit worth compiling."""
    queries, fresh = layer.project(x, tables)
    mixed = _mix(layer.self_attn, queries, fresh, plan)
    return layer.finish(x, mixed, scalar)


def _mix(attention: Attention, queries: Tensor, fresh: Fresh, plan: Plan) -> Tensor:
    """Attention [B, N, T + C * L, H], the encode stream and the canvases apart.

    What a canvas never sees (later text, other canvases) is not computed rather than masked.
    """
    keys, values = attention.share(fresh.keys), attention.share(fresh.values)
    split = plan.split
    prefix_keys, prefix_values = keys[:, :, :split], values[:, :, :split]
    causal = torch.matmul(queries[:, :, :split], prefix_keys.transpose(2, 3))
    weights = torch.softmax(causal + plan.causal.to(causal.dtype), dim=-1)
    encoded = torch.matmul(weights, prefix_values)

    shape = (*queries.shape[:2], plan.canvases, -1, queries.shape[-1])
    own_queries = queries[:, :, split:].reshape(shape)
    own_keys, own_values = keys[:, :, split:].reshape(shape), values[:, :, split:].reshape(shape)
    back = torch.matmul(own_queries, prefix_keys[:, :, None].transpose(3, 4))
    own = torch.matmul(own_queries, own_keys.transpose(3, 4))
    scores = torch.cat([back + plan.prefix.to(back.dtype), own], dim=-1)
    weights = torch.softmax(scores, dim=-1)
    refined = torch.matmul(weights[..., :split], prefix_values[:, :, None])
    refined = refined + torch.matmul(weights[..., split:], own_values)
    return torch.cat([encoded, refined.flatten(2, 3)], dim=2)
