"""A layer of the text stack made of `sfumato.ops`: the same sums, fused and rounded less often.

Without gradients only. `Layer` is its plain twin.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sfumato.kv.cache import Fresh
from sfumato.model.attention import Attention
from sfumato.model.layer import Layer
from sfumato.model.norm import RMSNorm
from sfumato.ops.attention import attention
from sfumato.ops.kernels import Kernels
from sfumato.ops.norm import heads, norm
from sfumato.ops.route import route


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

    Its weights are copies or views of the layer's: it must be made anew when those are replaced.
    """

    def __init__(self, layer: Layer, kernels: Kernels | None) -> None:
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

    def _norm(
        self, x: Tensor, gain: Gain, residual: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        return norm(x, gain.weight, gain.eps, self.kernels, residual=residual, scale=scale)

    def _heads(self, raw: Tensor, gain: Gain, tables: tuple[Tensor, Tensor] | None) -> Tensor:
        return heads(raw, gain.weight, gain.eps, tables, self.kernels)

    def project(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Fresh]:
        """Queries, and keys and values, of the normalised input `x` [B, S, D]."""
        own = self._layer.self_attn
        x = self._norm(x, self._input)
        turned = _wide(tables, x.shape[0])
        shape = (*x.shape[:-1], -1, own.head_dim)
        queries = self._heads(own.q_proj(x).view(shape), self._queries, turned)
        raw = own.k_proj(x).view(shape)
        raw_values = raw if own.v_proj is None else own.v_proj(x).view(shape)
        keys = self._heads(raw, self._keys, turned)
        values = self._heads(raw_values, Gain(None, own.eps), None)
        return queries, Fresh(keys, values, raw.transpose(1, 2) if own.v_proj is None else None)

    def derive(self, raw: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values [B, N, S, H] of `raw` keys of that shape, with the bits of `project`."""
        own = raw.transpose(1, 2).contiguous()
        keys = self._heads(own, self._keys, _wide(tables, raw.shape[0]))
        return keys, self._heads(own, Gain(None, self._layer.self_attn.eps), None)

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Weighted values [B, N, S, H]; `mask` [B or 1, 1, S or 1, T]."""
        own = None if mask is None else mask[:, 0]
        return attention(queries, keys, values, own, self.kernels).transpose(1, 2)

    def finish(self, x: Tensor, mixed: Tensor, scalar: Tensor) -> Tensor:
        """The layer's output [B, S, D]; `scalar` has one element."""
        layer = self._layer
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


def _wide(tables: tuple[Tensor, Tensor], rows: int) -> tuple[Tensor, Tensor]:
    """Rotary tables [rows or 1, S, 1, H] as kernels take them: fp32 [rows, S, H]."""
    cosines, sines = (table.squeeze(2).float().expand(rows, -1, -1) for table in tables)
    return cosines.contiguous(), sines.contiguous()
