"""DiffusionGemma: one set of text weights, two passes.

`encode` reads tokens causally into a `KVCache`; `denoise` refines a canvas that looks at all of
itself and at the cached prefix. The module's `state_dict` has exactly the names of a Hugging Face
checkpoint, tied weights held once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfumato.config.model import LayerKind, ModelConfig, TextConfig
from sfumato.errors import InputError
from sfumato.kv.cache import DERIVED_BYTES, Fresh, KVCache
from sfumato.model.derived import mix_derived
from sfumato.model.experts import ExpertsMode
from sfumato.model.layer import Layer
from sfumato.model.norm import RMSNorm
from sfumato.model.rope import rotary_tables
from sfumato.model.self_conditioning import SelfConditioning
from sfumato.model.vision import VisionProjector, VisionTower
from sfumato.ops.head import gather, logits
from sfumato.ops.kernels import Kernels
from sfumato.ops.visibility import Canvas, Causal, Visibility, image_groups
from sfumato.ops.weight import Weight, int8, rows
from sfumato.quant.int8 import Int8Tensor
from sfumato.quant.nvfp4 import Nvfp4Tensor


@functools.cache
def _rounded_root(size: int, dtype: torch.dtype) -> float:
    return float(torch.tensor(size**0.5).to(dtype))


class Decoder(nn.Module):
    """All text weights; named after the pass that owns them in the files."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, layer) for layer in config.layers])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_conditioning = SelfConditioning(
            config.hidden_size, config.intermediate_size, config.rms_norm_eps
        )


class EncoderLayer(nn.Module):
    """What encode does not share with denoise: one factor a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_scalar = nn.Parameter(torch.ones(1))


class EncoderText(nn.Module):
    """The encoder's own layer scalars."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([EncoderLayer() for _ in config.layers])


class Encoder(nn.Module):
    """The encoder's layer scalars and, in checkpoints that see, the vision tower."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.language_model = EncoderText(config.text)
        if config.vision is not None:
            self.vision_tower = VisionTower(config.vision)
            self.embed_vision = VisionProjector(
                config.vision.hidden_size, config.text.hidden_size, config.vision.rms_norm_eps
            )


class Body(nn.Module):
    """The two sides under the `model.` prefix of the files."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config.text)
        self.encoder = Encoder(config)


class _Turning(NamedTuple):
    """Rotary tables that the steps of a canvas share."""

    start: Tensor
    length: int
    dtype: torch.dtype
    tables: dict[LayerKind, tuple[Tensor, Tensor]]

    def serves(self, start: Tensor, length: int, dtype: torch.dtype) -> bool:
        """Whether they are those of canvases after the very same prefix."""
        return self.start is start and (self.length, self.dtype) == (length, dtype)


# Cells of one pass's attention mask, rows x new positions x all positions, where torch wants it
# written. Longer prompts are encoded in several passes: memory grows with their length and not with
# its square. Up to 8,192 positions a single prompt is one pass, and has the reference's bits.
ENCODE_CELLS = 1 << 26
# New positions of one pass, of all rows, where kernels write no mask. The results' bits do not hang
# on it: it bounds what is in memory beside the cache, of the released model 0.2 GB.
ENCODE_POSITIONS = 2048


class DiffusionGemma(nn.Module):
    """The network. Shapes: B rows, T tokens, L canvas positions, D hidden, V vocabulary."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_layers = False  # training: recompute layers instead of storing them
        self.encode_cells = ENCODE_CELLS
        self.encode_positions = ENCODE_POSITIONS
        self.cache_dtype: str | None = None  # of new caches: "int8", or None for the weights' own
        self.derived_bytes = DERIVED_BYTES  # of new caches: derived keys and values kept at most
        self.kernels: Kernels | None = None  # set by `use_kernels`
        # Parameters on the meta device whose numbers are here by name, as stored in NVFP4: those of
        # files just read, and those that kernels have taken.
        self.quantised: dict[str, tuple[Nvfp4Tensor, ...]] = {}
        self.packed: dict[str, Weight] = {}
        self.int8_table: Int8Tensor | None = None  # the embedding, if it is stored so
        self.refused: dict[str, str] = {}  # modules that no kernel serves, and why
        self._table: tuple[Tensor, Weight] | None = None
        self._turning: _Turning | None = None
        self.model = Body(config)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.model.decoder.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.decoder.norm.weight.device

    @property
    def layers(self) -> list[Layer]:
        """The text layers, in order."""
        return cast("list[Layer]", list(self.model.decoder.layers))

    @property
    def encoder_scalars(self) -> list[Tensor]:
        """The encoder's factor on each layer's output."""
        layers = cast("list[EncoderLayer]", list(self.model.encoder.language_model.layers))
        return [layer.layer_scalar for layer in layers]

    def new_cache(self) -> KVCache:
        """An empty cache for this model's layers. InputError if `cache_dtype` is unknown."""
        text = self.config.text
        return KVCache(
            tuple(layer.is_sliding for layer in text.layers),
            text.sliding_window,
            text.max_position_embeddings,
            self.cache_dtype,
            self.derived_bytes,
        )

    @property
    def table(self) -> Weight:
        """The embedding table as kernels read it. Raises InputError for a dtype they cannot."""
        stored = self.int8_table
        weight = self.model.decoder.embed_tokens.weight if stored is None else stored.codes
        if self._table is None or self._table[0].data_ptr() != weight.data_ptr():
            self._table = (weight.detach(), rows(weight) if stored is None else int8(stored))
        return self._table[1]

    def need_unpacked(self, what: str) -> None:
        """Raise InputError if kernels alone can read weights, so that these cannot do `what`."""
        if self.packed or (self.int8_table is not None and self.kernels is not None):
            raise InputError(
                "this model's weights stay quantised, which only kernels can read: "
                f"it cannot {what}",
                hint="load it with kernels='reference' to have them decoded",
            )

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """As `nn.Module` has it; what kernels hold of the old weights is made anew."""
        self.need_unpacked("take other weights")
        out = super().load_state_dict(*arguments, **options)
        self._refresh_kernels()
        return out

    def _apply(self, *arguments: Any, **options: Any) -> DiffusionGemma:
        self.need_unpacked("be moved or converted")
        super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]
        self._refresh_kernels()
        return self

    def _refresh_kernels(self) -> None:
        if self.kernels is not None:
            from sfumato.model.kernels import use_kernels

            use_kernels(self, self.kernels)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings [..., D] of `ids`, times sqrt(D) rounded to the weights' dtype."""
        if self.int8_table is not None:
            return self.int8_table.rows(ids, self.dtype) * self.embed_factor
        out: Tensor = self.model.decoder.embed_tokens(ids)
        return out * self.embed_factor

    @property
    def embed_factor(self) -> float:
        """sqrt(D) rounded to the weights' dtype: what embeddings are multiplied by."""
        return _rounded_root(self.config.text.hidden_size, self.dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V], fp32 and softcapped, of final hidden states [..., D]."""
        cap = self.config.text.final_logit_softcapping
        if self.kernels is not None:
            flat = hidden.reshape(-1, hidden.shape[-1])
            written = logits(flat, self.table, cap, self.kernels)
            return written.view(*hidden.shape[:-1], self.table.n)
        plain = functional.linear(hidden, self.model.decoder.embed_tokens.weight).float()
        return torch.tanh(plain / cap) * cap

    def soft_tokens(self, pixel_values: Tensor, position_ids: Tensor) -> Tensor:
        """Soft tokens [sum over images, D] of patches [n, P, 3 * patch^2] at (x, y) [n, P, 2]."""
        encoder = self.model.encoder
        if self.config.vision is None:
            raise InputError(
                "this checkpoint has no vision tower",
                hint="send text only, or load a checkpoint that takes images",
            )
        features = encoder.vision_tower(pixel_values, position_ids)
        out: Tensor = encoder.embed_vision(features)
        return out

    def encode(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        soft_tokens: Tensor | None = None,
    ) -> KVCache:
        """Append `input_ids` [B, T] to `cache` (a new one if None) and return it."""
        return self.encode_hidden(
            input_ids, cache, attention_mask=attention_mask, soft_tokens=soft_tokens
        )[1]

    def encode_hidden(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        *,
        attention_mask: Tensor | None = None,
        soft_tokens: Tensor | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Encode and also return the final hidden states [B, T, D].

        `attention_mask` [B, T] is false on padding, left or right; a row's positions count its real
        tokens alone. `soft_tokens` [n, D] replace the image tokens of `input_ids` in order.
        """
        cache = self.new_cache() if cache is None else cache
        real = torch.ones_like(input_ids, dtype=torch.bool)
        real = real if attention_mask is None else attention_mask.bool()
        images = torch.zeros_like(real)
        if soft_tokens is not None:
            images = self._image_places(input_ids, soft_tokens)
        numbers = images.flatten().cumsum(0).view_as(images) - 1  # of the soft tokens, row by row
        hidden, start = [], 0
        grown = cache.fork()  # a pass that fails leaves the caller's cache as it was
        for end in self._cuts(images, cache.length):
            part = slice(start, end)
            soft = None
            if soft_tokens is not None:
                soft = soft_tokens[numbers[:, part][images[:, part]]]
            hidden.append(self.encode_pass(input_ids[:, part], real[:, part], grown, soft))
            start = end
        cache.take(grown)
        if self.kernels is not None:
            self.kernels.native.give_back_scratch()  # of long prompts, up to 0.1 GB
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=1), cache

    def _cuts(self, images: Tensor, held: int) -> list[int]:
        """Where passes over new positions end, the last one included; no image is cut in two.

        `images` [B, T] is true on image tokens, `held` positions are cached already. What bounds a
        pass is its written mask, which holds its positions times all before them, or without one
        the number of its positions.
        """
        batch, total = images.shape
        written = any(layer.self_attn.kernel is None for layer in self.layers)
        most = self.encode_cells // (held + total) if written else self.encode_positions
        length = max(1, most // batch)
        if length >= total:
            return [total]
        inside = (images[:, 1:] & images[:, :-1]).any(0).tolist()  # cutting before place i + 1
        cuts, end = [], 0
        while end < total:
            start, end = end, min(end + length, total)
            while start + 1 < end < total and inside[end - 1]:
                end -= 1
            while end < total and inside[end - 1]:  # an image longer than a pass stays whole
                end += 1
            cuts.append(end)
        return cuts

    def encode_pass(
        self, input_ids: Tensor, real: Tensor, cache: KVCache, soft_tokens: Tensor | None
    ) -> Tensor:
        """The final hidden states [B, S, D] of `input_ids` [B, S], which join `cache`."""
        positions = cache.place(real)
        x = self.embed(input_ids)
        if soft_tokens is not None:
            image_id = self.config.image_token_id
            places = torch.eq(input_ids, -1 if image_id is None else image_id)
            x = x.masked_scatter(places[..., None], soft_tokens.to(x.dtype))
        bidirectional = self.config.text.bidirectional_images and soft_tokens is not None
        groups = image_groups(input_ids, self.config.image_token_id) if bidirectional else None
        tables = self.tables(positions.clamp(min=0), x.dtype)
        scalars = self.encoder_scalars
        sights: dict[LayerKind, Visibility] = {}
        for index, layer in enumerate(self.layers):
            queries, fresh = layer.project(x, tables[layer.kind])
            pair = cache.extend(index, fresh)
            if layer.kind not in sights:
                window = cache.window if cache.sliding[index] else None
                slots = cache.slots(index, positions)
                sights[layer.kind] = Causal(positions, slots, window, groups)
            mixed = self._mix(layer, cache, index, queries, fresh, pair, sights[layer.kind])
            x = layer.finish(x, mixed, scalars[index])
        cache.append(positions)
        final: Tensor = self.model.decoder.norm(x)
        return final

    def denoise(
        self, canvas: Tensor, cache: KVCache, self_conditioning_logits: Tensor | None = None
    ) -> Tensor:
        """Logits [B, L, V], fp32 and softcapped, for `canvas` ids [B, L]; the cache is only read.

        `self_conditioning_logits` [B, L, V] are the temperature-scaled logits of the step before.
        """
        soft = None
        if self_conditioning_logits is not None:
            soft = self.soft_embeddings(self_conditioning_logits)
        return self.head(self.denoise_hidden(canvas, cache, soft))

    def denoise_hidden(
        self, canvas: Tensor, cache: KVCache, soft_embeddings: Tensor | None = None
    ) -> Tensor:
        """The final hidden states [B, L, D] of `denoise`, for `soft_embeddings` [B, L, D]."""
        if cache.next_position is None:
            raise InputError("the cache is empty", hint="encode a prompt before denoising")
        x = self.model.decoder.self_conditioning.combine(self.embed(canvas), soft_embeddings)
        length = canvas.shape[1]
        tables = self._canvas_tables(cache.next_position, length, x.dtype)
        sights: dict[LayerKind, Visibility] = {}
        for index, layer in enumerate(self.layers):
            queries, fresh = layer.project(x, tables[layer.kind])
            pair = cache.joined(index, fresh)
            if cache.padded and layer.kind not in sights:
                # Without padding a sliding layer's slots are just the window: nothing to hide.
                window = cache.window if cache.sliding[index] else None
                slots = cache.slots(index, cache.next_position[:, None][:, :0])
                sights[layer.kind] = Canvas(cache.next_position, slots, window, length)
            mixed = self._mix(layer, cache, index, queries, fresh, pair, sights.get(layer.kind))
            x = layer.finish(x, mixed, layer.layer_scalar)
        final: Tensor = self.model.decoder.norm(x)
        return final

    def soft_embeddings(self, written: Tensor) -> Tensor:
        """What a step believed, [B, L, D], from its temperature-scaled logits [B, L, V].

        Kernels leave out what is improbable (`sfumato.ops.head.gather`).
        """
        if self.kernels is not None:
            flat = written.reshape(-1, written.shape[-1])
            soft = gather(flat, self.table, self.embed_factor, self.dtype, self.kernels)
            return soft.view(*written.shape[:-1], self.table.k)
        weight = self.model.decoder.embed_tokens.weight
        beliefs = torch.softmax(written, dim=-1, dtype=torch.float32)
        return torch.matmul(beliefs.to(weight.dtype), weight) * self.embed_factor

    def _mix(
        self,
        layer: Layer,
        cache: KVCache,
        index: int,
        queries: Tensor,
        fresh: Fresh,
        pair: tuple[Tensor, Tensor] | None,
        sight: Visibility | None,
    ) -> Tensor:
        """Attention [B, N, S, H] of `layer`, number `index`, over the cached prefix and `fresh`.

        `pair` are its keys and values if the cache could give them; else they are derived here.
        """
        if pair is not None:
            return layer.self_attn.mix(queries, *pair, sight)
        rope = self.config.text.rope(layer.kind)
        return mix_derived(layer.self_attn, queries, fresh, cache, index, rope, sight)

    def embed_canvas(
        self,
        canvas: Tensor,
        self_conditioning_logits: Tensor | None,
    ) -> Tensor:
        """The denoiser's input [B, L, D]: canvas embeddings joined with the soft embeddings."""
        soft = None
        if self_conditioning_logits is not None:
            soft = self.soft_embeddings(self_conditioning_logits)
        return self.model.decoder.self_conditioning.combine(self.embed(canvas), soft)

    def tables(
        self, positions: Tensor, dtype: torch.dtype
    ) -> dict[LayerKind, tuple[Tensor, Tensor]]:
        """Rotary tables [B, S, 1, H] by layer kind for `positions` [B, S].

        They are in `dtype`, and for kernels in fp32, with the values that `dtype` can hold.
        """
        text = self.config.text
        dims = {layer.kind: layer.head_dim for layer in text.layers}
        found = {
            kind: rotary_tables(positions, text.rope(kind), dim, dtype)
            for kind, dim in dims.items()
        }
        if self.kernels is None:
            return found
        return {kind: (cosines.float(), sines.float()) for kind, (cosines, sines) in found.items()}

    def _canvas_tables(
        self, start: Tensor, length: int, dtype: torch.dtype
    ) -> dict[LayerKind, tuple[Tensor, Tensor]]:
        """`tables` of canvases of `length` from positions `start` [B] on.

        Kernels, which record no gradients, have those of the step before if the canvases are its.
        """
        held = self._turning
        if self.kernels is not None and held is not None and held.serves(start, length, dtype):
            return held.tables
        positions = start[:, None] + torch.arange(length, device=start.device)
        found = self.tables(positions, dtype)
        if self.kernels is not None:
            self._turning = _Turning(start, length, dtype, found)
        return found

    def _image_places(self, input_ids: Tensor, soft_tokens: Tensor) -> Tensor:
        """Where the image tokens are [B, T]. InputError unless there is one for each soft token."""
        image_id = self.config.image_token_id
        places = torch.eq(input_ids, -1 if image_id is None else image_id)
        count = int(places.sum())
        if count != soft_tokens.shape[0]:
            raise InputError(
                f"the prompt has {count} image tokens but the images make {soft_tokens.shape[0]}",
                hint="write one image token for each soft token of each image, in order",
            )
        return places


def with_experts(net: DiffusionGemma, mode: ExpertsMode) -> DiffusionGemma:
    """`net` itself, its experts computed in the form `mode` (see `Experts`)."""
    for layer in net.layers:
        layer.experts.mode = mode
    return net
