"""A layer of the text stack made of `sfumato.ops`: the same sums, fused and rounded less often.

Without gradients only. `Layer` is its plain twin. Where kernels serve every part, each half of a
layer is one call of compiled code (csrc/layer.cpp), which for a small model saves a quarter of a
step; what it chains is what is composed here, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.kv.cache import Fresh
from sfumato.model.attention import Attention
from sfumato.model.layer import Layer
from sfumato.model.norm import RMSNorm
from sfumato.ops.attention import attention, attention_in_parts
from sfumato.ops.kernels import Kernels, give
from sfumato.ops.norm import heads, norm
from sfumato.ops.route import route
from sfumato.ops.visibility import Visibility
from sfumato.ops.weight import Weight


@dataclass(frozen=True, eq=False)
class Gain:
    """An RMS norm's weight, fp32 [D] or None for ones, and its eps."""

    weight: Tensor | None
    eps: float

    @classmethod
    def of(cls, module: RMSNorm) -> Gain:
        """A copy of a norm's weight."""
        return cls(module.weight.detach().float().contiguous(), module.eps)


class FastLayer:
    """`Layer.project`, `Attention.mix` and `Layer.finish` by kernels. Shapes as there.

    Its weights are copies or views of the layer's: it must be made anew when those are replaced,
    and after the kernels of the layer's parts. With `composed` it stays with one call a part.
    """

    def __init__(self, layer: Layer, kernels: Kernels | None, *, composed: bool = False) -> None:
        self.kernels = kernels
        self._layer = layer
        own: Attention = layer.self_attn
        self._input = Gain.of(layer.input_layernorm)
        self._queries, self._keys = Gain.of(own.q_norm), Gain.of(own.k_norm)
        self._attended = Gain.of(layer.post_attention_layernorm)
        self._dense_in = Gain.of(layer.pre_feedforward_layernorm)
        self._dense_out = Gain.of(layer.post_feedforward_layernorm_1)
        self._experts_in = Gain.of(layer.pre_feedforward_layernorm_2)
        self._experts_out = Gain.of(layer.post_feedforward_layernorm_2)
        self._out = Gain.of(layer.post_feedforward_layernorm)
        router = layer.router
        scale = router.scale.detach().float() * router.root_size
        self._router = Gain(scale.contiguous(), router.eps)
        self._expert_scales = router.per_expert_scale.detach().float().contiguous()
        self._native = None if kernels is None or composed else self._compiled(kernels)

    def _compiled(self, kernels: Kernels) -> Any | None:
        """Both halves in compiled code, or None if a part has no kernel."""
        layer = self._layer
        own = layer.self_attn
        linears = (own.q_proj, own.k_proj, own.v_proj, own.o_proj)
        parts = [None if one is None else kernel_weights(one) for one in linears]
        parts += [
            kernel_weights(layer.mlp),
            kernel_weights(layer.router.proj),
            kernel_weights(layer.experts),
        ]
        if any(part == () for part in parts):
            return None
        weights = [one for part in parts for one in ((None,) if part is None else part)]
        gains = (
            *(self._input, self._queries, self._keys, self._attended),
            *(self._dense_in, self._dense_out, self._router),
            *(self._experts_in, self._experts_out, self._out),
        )
        return kernels.native.Layer(
            [give(gain.weight) for gain in gains if gain.weight is not None],
            [gain.eps for gain in gains],
            [None if one is None else one.native(kernels) for one in weights],
            give(self._expert_scales),
            own.head_dim,
            layer.router.top_k,
        )

    def _norm(
        self, x: Tensor, gain: Gain, residual: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        return norm(x, gain.weight, gain.eps, self.kernels, residual=residual, scale=scale)

    def _heads(self, raw: Tensor, gain: Gain, tables: tuple[Tensor, Tensor] | None) -> Tensor:
        return heads(raw, gain.weight, gain.eps, tables, self.kernels)

    def project(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Fresh]:
        """Queries, and keys and values, of the normalised input `x` [B, S, D]."""
        own = self._layer.self_attn
        turned = _wide(tables, x.shape[0])
        if self._native is not None and self.kernels is not None:
            return self._project_compiled(self._native, self.kernels, x, turned)
        x = self._norm(x, self._input)
        shape = (*x.shape[:-1], -1, own.head_dim)
        queries = self._heads(own.q_proj(x).view(shape), self._queries, turned)
        raw = own.k_proj(x).view(shape)
        raw_values = raw if own.v_proj is None else own.v_proj(x).view(shape)
        keys = self._heads(raw, self._keys, turned)
        values = self._heads(raw_values, Gain(None, own.eps), None)
        return queries, Fresh(keys, values, raw.transpose(1, 2) if own.v_proj is None else None)

    def _project_compiled(
        self, native: Any, kernels: Kernels, x: Tensor, turned: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Fresh]:
        own = self._layer.self_attn
        batch, length, hidden = x.shape
        dim, kv_heads = own.head_dim, own.k_proj.out_features // own.head_dim
        queries = x.new_empty(batch, kv_heads * own.group_size, length, dim)
        keys, values = (x.new_empty(batch, kv_heads, length, dim) for _ in range(2))
        raw = None if own.v_proj is not None else x.new_empty(batch, length, kv_heads, dim)
        rows = batch * length
        native.project(
            kernels.name,
            give(x.reshape(rows, hidden)),
            *(give(table.view(rows, dim)) for table in turned),
            *(give(one) for one in (queries, keys, values)),
            None if raw is None else give(raw.view(rows, -1)),
            kernels.threads,
        )
        return queries, Fresh(keys, values, None if raw is None else raw.transpose(1, 2))

    def derive(self, raw: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values [B, N, S, H] of `raw` keys of that shape, with the bits of `project`."""
        own = raw.transpose(1, 2).contiguous()
        keys = self._heads(own, self._keys, _wide(tables, raw.shape[0]))
        return keys, self._heads(own, Gain(None, self._layer.self_attn.eps), None)

    def mix(
        self, queries: Tensor, keys: Tensor, values: Tensor, sight: Visibility | None
    ) -> Tensor:
        """Weighted values [B, N, S, H], as `Attention.mix`."""
        return attention(queries, keys, values, sight, self.kernels).transpose(1, 2)

    def mix_parts(self, queries: Tensor, parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """`mix` where all see all, over keys and values that come in parts."""
        return attention_in_parts(queries, parts, self.kernels).transpose(1, 2)

    def finish(self, x: Tensor, mixed: Tensor, scalar: Tensor) -> Tensor:
        """The layer's output [B, S, D]; `scalar` has one element."""
        layer = self._layer
        if self._native is not None and self.kernels is not None:
            return self._finish_compiled(self._native, self.kernels, x, mixed, scalar.item())
        attended = layer.self_attn.output(mixed)
        x = self._norm(attended, self._attended, residual=x)
        dense = self._norm(layer.mlp(self._norm(x, self._dense_in)), self._dense_out)
        rows = x.flatten(0, -2)
        scores = layer.router.proj(self._norm(rows, self._router))
        chosen, shares = route(scores, self._expert_scales, layer.router.top_k, self.kernels)
        wide = self._norm(rows, self._experts_in)
        experts = layer.experts(wide, shares, chosen)
        both = self._norm(experts.view(x.shape), self._experts_out, residual=dense)
        return self._norm(both, self._out, residual=x, scale=scalar.item())

    def _finish_compiled(
        self, native: Any, kernels: Kernels, x: Tensor, mixed: Tensor, scale: float
    ) -> Tensor:
        rows, hidden = x.shape[0] * x.shape[1], x.shape[2]
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        native.finish(
            kernels.name,
            give(x.reshape(rows, hidden)),
            give(mixed.transpose(1, 2).reshape(rows, -1)),
            scale,
            give(out.view(rows, hidden)),
            kernels.threads,
        )
        return out


def kernel_weights(module: nn.Module) -> tuple[Weight, ...]:
    """The weights that a part's kernel was made with; none if it has no kernel."""
    kernel = getattr(module, "kernel", None)
    if not isinstance(kernel, partial):
        return ()
    return tuple(one for one in kernel.keywords.values() if isinstance(one, Weight))


def _wide(tables: tuple[Tensor, Tensor], rows: int) -> tuple[Tensor, Tensor]:
    """Rotary tables [rows or 1, S, 1, H] as kernels take them: fp32 [rows, S, 1, H], without gaps.

    Those of `DiffusionGemma.tables` are so already, and every layer of a pass is given the same.
    """
    cosines, sines = (
        table if table.dtype == torch.float32 and table.shape[0] == rows else _spread(table, rows)
        for table in tables
    )
    return cosines, sines


def _spread(table: Tensor, rows: int) -> Tensor:
    return table.float().expand(rows, -1, -1, -1).contiguous()
