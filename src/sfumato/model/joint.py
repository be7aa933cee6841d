"""Encode and denoise in one pass over [encode stream | canvas], as training wants it.

With a block mask the one pass computes what the two passes do, in one large matrix product a layer
instead of two smaller ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.config.model import LayerKind
from sfumato.model.masks import denoise_mask, encode_mask

if TYPE_CHECKING:
    from sfumato.model.diffusion_gemma import DiffusionGemma
    from sfumato.model.layer import Layer


@dataclass(frozen=True)
class JointOutput:
    """Canvas logits [B, L, V] (fp32, softcapped) and the encode stream's final states [B, T, D]."""

    canvas_logits: Tensor
    encoder_hidden: Tensor


def joint_mask(
    positions: Tensor, start: Tensor, window: int | None, canvas_length: int
) -> Tensor:
    """Block mask [B, 1, T + L, T + L] for encode `positions` [B, T] and canvases at `start` [B].

    The encode stream is causal and never sees a canvas; a canvas sees all of itself and the encode
    positions before its start, so a clean answer may follow the prompt without being read by it.
    """
    top = encode_mask(positions, positions, window)
    unseen = top.new_zeros(*top.shape[:3], canvas_length)
    bottom = denoise_mask(start, positions, window, canvas_length)
    return torch.cat([torch.cat([top, unseen], dim=3), bottom], dim=2)


def joint_pass(
    net: DiffusionGemma,
    encode_ids: Tensor,
    encode_real: Tensor,
    canvas_inputs: Tensor,
    canvas_start: Tensor | None,
) -> JointOutput:
    """One pass for `encode_ids` [B, T] (`encode_real` false on padding) and canvas inputs [B, L, D].

    `canvas_start` [B] is the position of each canvas, by default after every real token. With
    `net.checkpoint_layers` set, layers are recomputed in the backward pass instead of stored.
    """
    text = net.config.text
    length, split = canvas_inputs.shape[1], encode_ids.shape[1]
    positions = torch.where(encode_real, encode_real.cumsum(1) - 1, -1)
    start = encode_real.sum(1) if canvas_start is None else canvas_start
    steps = torch.arange(length, device=start.device)
    everywhere = torch.cat([positions.clamp(min=0), start[:, None] + steps], dim=1)
    x = torch.cat([net.embed(encode_ids), canvas_inputs], dim=1)
    tables = net.tables(everywhere, x.dtype)
    kinds: set[LayerKind] = {layer.kind for layer in text.layers}
    windows = {"sliding_attention": text.sliding_window, "full_attention": None}
    masks = {kind: joint_mask(positions, start, windows[kind], length) for kind in kinds}
    encoder_scalars = net.model.encoder.language_model.layers
    for index, layer in enumerate(net.model.decoder.layers):
        scalar = torch.cat(
            [
                encoder_scalars[index].layer_scalar.expand(split),
                layer.layer_scalar.expand(length),
            ]
        )[None, :, None]
        arguments = (layer, x, tables[layer.kind], masks[layer.kind], scalar)
        if net.checkpoint_layers:
            x = checkpoint(_run, *arguments, use_reentrant=False)
        else:
            x = _run(*arguments)
    x = net.model.decoder.norm(x)
    return JointOutput(net.head(x[:, split:]), x[:, :split])


def _run(
    layer: Layer, x: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor, scalar: Tensor
) -> Tensor:
    return layer.finish(x, layer.project(x, tables), mask, scalar)
