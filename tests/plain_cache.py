"""The plain twin of the cache: keys and values of every layer, joined anew in each pass.

It is the cache as it was before it grew in place and derived what it can, kept to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from sfumato.config.model import LayerKind
from sfumato.kv.cache import KVCache
from sfumato.model.attention import Attention
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.ops.visibility import Canvas, Causal, image_groups


@dataclass
class PlainCache:
    """Keys and values by layer, and where each cached slot stands in its row.

    Full layers hold every slot; sliding layers drop the leading slots that no later position can
    see. Tensors are replaced, never written in place, so `fork` is cheap and safe.
    """

    sliding: tuple[bool, ...]
    window: int
    keys: list[Tensor] = field(default_factory=list)  # per layer [B, N_kv, T, H]
    values: list[Tensor] = field(default_factory=list)
    positions: Tensor | None = None  # [B, T], -1 for padding
    next_position: Tensor | None = None  # [B], where the next token goes
    length: int = 0  # slots encoded so far, padding included
    dropped: int = 0  # leading slots that sliding layers no longer hold
    padded: bool = False  # whether any slot of any row is padding

    @property
    def batch_size(self) -> int:
        """Rows held; 0 before the first encode."""
        return 0 if self.positions is None else self.positions.shape[0]

    def fork(self) -> PlainCache:
        """An independent cache over the same prefix: appending to one leaves the other alone."""
        return PlainCache(
            self.sliding,
            self.window,
            list(self.keys),
            list(self.values),
            self.positions,
            self.next_position,
            self.length,
            self.dropped,
            self.padded,
        )

    def take(self, other: PlainCache) -> None:
        """Become what `other`, a fork of this cache that has been appended to, is now."""
        for name in other.__dataclass_fields__:
            setattr(self, name, getattr(other, name))

    def select(self, rows: Tensor) -> PlainCache:
        """A cache over the same prefixes of the `rows` (a mask [B]) alone."""
        chosen = self.fork()
        chosen.keys = [keys[rows] for keys in self.keys]
        chosen.values = [values[rows] for values in self.values]
        if self.positions is not None and self.next_position is not None:
            chosen.positions = self.positions[rows]
            chosen.next_position = self.next_position[rows]
        return chosen

    def place(self, attention_mask: Tensor) -> Tensor:
        """Positions [B, S] for new slots, -1 where `attention_mask` [B, S] is false."""
        start = 0 if self.next_position is None else self.next_position[:, None]
        return torch.where(attention_mask, attention_mask.cumsum(1) - 1 + start, -1)

    def slots(self, layer: int, new_positions: Tensor) -> Tensor:
        """Positions [B, T + S] of what `joined` gives for this layer."""
        if self.positions is None:
            return new_positions
        old = self.positions[:, self.dropped :] if self.sliding[layer] else self.positions
        return torch.cat([old, new_positions], dim=1)

    def joined(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """This layer's cached keys and values with new ones [B, N_kv, S, H] after them."""
        if not self.keys:
            return keys, values
        return (
            torch.cat([self.keys[layer], keys], dim=2),
            torch.cat([self.values[layer], values], dim=2),
        )

    def append(self, keys: list[Tensor], values: list[Tensor], new_positions: Tensor) -> None:
        """Take over every layer's joined keys and values, and drop what has left the window."""
        held = self.dropped
        self.positions = (
            new_positions
            if self.positions is None
            else torch.cat([self.positions, new_positions], dim=1)
        )
        self.length = self.positions.shape[1]
        last = self.positions.amax(1)
        self.next_position = last + 1
        self.padded = self.padded or bool((new_positions < 0).any())
        self.dropped = self._droppable()
        cut = self.dropped - held
        for layer, sliding in enumerate(self.sliding):
            if sliding and cut:
                keys[layer] = keys[layer][:, :, cut:].contiguous()
                values[layer] = values[layer][:, :, cut:].contiguous()
        self.keys, self.values = keys, values

    def _droppable(self) -> int:
        """Leading slots that are, in every row, padding or too far back to be seen again."""
        assert self.positions is not None
        assert self.next_position is not None
        if not self.padded:
            return max(0, self.length - (self.window - 1))
        first_seen = (self.next_position - (self.window - 1))[:, None]
        needed = ((self.positions >= 0) & (self.positions >= first_seen)).any(0)
        return int(needed.int().argmax()) if bool(needed.any()) else self.length


class PlainNetwork(DiffusionGemma):
    """A network over `PlainCache`, with repeated heads and a written mask for every row."""

    def new_cache(self) -> KVCache:
        text = self.config.text
        sliding = tuple(layer.is_sliding for layer in text.layers)
        return cast(KVCache, PlainCache(sliding, text.sliding_window))

    def encode_pass(
        self, input_ids: Tensor, real: Tensor, cache: KVCache, soft_tokens: Tensor | None
    ) -> Tensor:
        plain = cast(PlainCache, cache)
        positions = plain.place(real)
        x = self.embed(input_ids)
        if soft_tokens is not None:
            image_id = self.config.image_token_id
            places = torch.eq(input_ids, -1 if image_id is None else image_id)
            x = x.masked_scatter(places[..., None], soft_tokens.to(x.dtype))
        bidirectional = self.config.text.bidirectional_images and soft_tokens is not None
        groups = image_groups(input_ids, self.config.image_token_id) if bidirectional else None
        tables = self.tables(positions.clamp(min=0), x.dtype)
        all_keys, all_values = [], []
        for index, layer in enumerate(self.layers):
            queries, fresh = layer.project(x, tables[layer.kind])
            keys, values = plain.joined(index, fresh.keys, fresh.values)
            window = plain.window if plain.sliding[index] else None
            mask = Causal(positions, plain.slots(index, positions), window, groups).mask
            mixed = mix(layer.self_attn, queries, keys, values, mask)
            x = layer.finish(x, mixed, self.encoder_scalars[index])
            all_keys.append(keys)
            all_values.append(values)
        plain.append(all_keys, all_values, positions)
        return self.model.decoder.norm(x)

    def denoise(
        self, canvas: Tensor, cache: KVCache, self_conditioning_logits: Tensor | None = None
    ) -> Tensor:
        plain = cast(PlainCache, cache)
        assert plain.next_position is not None
        x = self.embed_canvas(canvas, self_conditioning_logits)
        length = canvas.shape[1]
        positions = plain.next_position[:, None] + torch.arange(length)
        tables = self.tables(positions, x.dtype)
        masks: dict[LayerKind, Tensor] = {}
        for index, layer in enumerate(self.layers):
            queries, fresh = layer.project(x, tables[layer.kind])
            keys, values = plain.joined(index, fresh.keys, fresh.values)
            if plain.padded:
                window = plain.window if plain.sliding[index] else None
                slots = plain.slots(index, positions)[:, :-length]
                mask = Canvas(plain.next_position, slots, window, length).mask
                masks[layer.kind] = mask.expand(-1, 1, length, -1)
            mixed = mix(layer.self_attn, queries, keys, values, masks.get(layer.kind))
            x = layer.finish(x, mixed, layer.layer_scalar)
        return self.head(self.model.decoder.norm(x))


def mix(
    attention: Attention, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention over heads that are repeated for their group."""
    return functional.scaled_dot_product_attention(
        queries, attention.share(keys), attention.share(values), attn_mask=mask, scale=1.0
    )


def plain_twin(net: DiffusionGemma) -> PlainNetwork:
    """A plain network over the weights of `net`."""
    twin = PlainNetwork(net.config)
    twin.load_state_dict(net.state_dict(), assign=True)
    twin.requires_grad_(False)
    twin.encode_cells = net.encode_cells
    return twin.to(net.dtype).eval()
