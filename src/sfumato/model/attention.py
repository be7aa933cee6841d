"""Grouped-query attention with normalised queries, keys and values.

Scores are not divided by sqrt(H): the norms' weights set their scale. Full-attention layers have no
value projection; their values are the normalised outputs of the key projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.nn import functional

from sfumato.config.model import LayerConfig, TextConfig
from sfumato.kv.cache import Fresh
from sfumato.model.linear import Linear
from sfumato.model.norm import RMSNorm, rms_norm
from sfumato.model.rope import rotate
from sfumato.ops.visibility import Visibility

# Queries, keys, values and who sees whom to mixed values, as `Attention.mix`.
MixKernel = Callable[[Tensor, Tensor, Tensor, Visibility | None], Tensor]
PartsKernel = Callable[[Tensor, Iterable[tuple[Tensor, Tensor]]], Tensor]
# Raw keys [B, N, S, H] and rotary tables to keys and values of that shape.
DeriveKernel = Callable[[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]


class Attention(nn.Module):
    """The attention weights of one layer, used by encode and denoise alike.

    `kernel`, if set, computes `mix`, and `parts_kernel` the same where all see all and slots come
    in parts; `derive_kernel` keys and values from cached raw keys.
    """

    kernel: MixKernel | None = None
    parts_kernel: PartsKernel | None = None
    derive_kernel: DeriveKernel | None = None

    def __init__(self, config: TextConfig, layer: LayerConfig) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.eps = config.rms_norm_eps
        self.head_dim = layer.head_dim
        self.group_size = heads // layer.num_key_value_heads
        kv_width = layer.num_key_value_heads * layer.head_dim
        self.q_proj = Linear(hidden, heads * layer.head_dim)
        self.k_proj = Linear(hidden, kv_width)
        self.v_proj = Linear(hidden, kv_width) if layer.is_sliding else None
        self.o_proj = Linear(heads * layer.head_dim, hidden)
        self.q_norm = RMSNorm(layer.head_dim, self.eps)
        self.k_norm = RMSNorm(layer.head_dim, self.eps)

    def project(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Fresh]:
        """Queries [B, N, S, H], and keys, values and raw keys [B, N_kv, S, H], of `x` [B, S, D]."""
        shape = (*x.shape[:-1], -1, self.head_dim)
        queries = rotate(self.q_norm(self.q_proj(x).view(shape)), tables)
        raw_keys = self.k_proj(x).view(shape)
        raw_values = raw_keys if self.v_proj is None else self.v_proj(x).view(shape)
        keys = rotate(self.k_norm(raw_keys), tables)
        values = rms_norm(raw_values, None, self.eps)
        raw = raw_keys.transpose(1, 2) if self.v_proj is None else None
        return queries.transpose(1, 2), Fresh(keys.transpose(1, 2), values.transpose(1, 2), raw)

    def mix(
        self, queries: Tensor, keys: Tensor, values: Tensor, sight: Visibility | None
    ) -> Tensor:
        """Weighted values [B, N, S, H].

        `keys` and `values` [B, N_kv, T, H]; `sight` says where a query may look, None everywhere.
        Torch's kernel reads each of the N_kv heads for its group of query heads, with the bits that
        repeated heads would give.
        """
        if self.kernel is not None:
            return self.kernel(queries, keys, values, sight)
        mask = None if sight is None else sight.mask
        return functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=1.0, enable_gqa=self.group_size > 1
        )

    def output(self, mixed: Tensor) -> Tensor:
        """Project `mixed` [B, N, S, H] back to [B, S, D]."""
        merged: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return merged

    def share(self, kv: Tensor) -> Tensor:
        """Repeat each of the N_kv heads for the query heads of its group."""
        if self.group_size == 1:
            return kv
        batch, heads, length, dim = kv.shape
        wide = kv[:, :, None].expand(batch, heads, self.group_size, length, dim)
        return wide.reshape(batch, heads * self.group_size, length, dim)
