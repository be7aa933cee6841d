"""What a DiffusionGemma is made of: frozen, validated shapes. `config.parse` reads the files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfumato.errors import ConfigError

LayerKind = Literal["sliding_attention", "full_attention"]


@dataclass(frozen=True)
class LayerConfig:
    """The attention shape of one layer. In `full_attention` layers the keys double as values."""

    kind: LayerKind
    head_dim: int
    num_key_value_heads: int

    @property
    def is_sliding(self) -> bool:
        """Whether this layer sees only the last `sliding_window - 1` positions before its own."""
        return self.kind == "sliding_attention"


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of one layer kind.

    `default` spreads its frequencies over the rotated dimensions alone; `proportional` keeps the
    frequencies of the whole head and leaves the tail of the head unrotated.
    """

    theta: float
    partial_rotary_factor: float = 1.0
    kind: Literal["default", "proportional"] = "default"


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text stack shared by encode and denoise."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    layers: tuple[LayerConfig, ...]
    sliding_window: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    rope_sliding: RopeConfig = RopeConfig(theta=1e4)
    rope_full: RopeConfig = RopeConfig(theta=1e6, partial_rotary_factor=0.25, kind="proportional")
    max_position_embeddings: int = 262_144
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float = 30.0
    bidirectional_images: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        sizes = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": len(self.layers),
            "sliding_window": self.sliding_window,
            "num_experts": self.num_experts,
            "top_k_experts": self.top_k_experts,
            "moe_intermediate_size": self.moe_intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"text_config.{name} must be at least 1, not {value}")
        if self.top_k_experts > self.num_experts:
            raise ConfigError(
                f"text_config.top_k_experts is {self.top_k_experts}, more than the "
                f"{self.num_experts} experts there are"
            )
        for index, layer in enumerate(self.layers):
            self._check_layer(index, layer)

    def _check_layer(self, index: int, layer: LayerConfig) -> None:
        where = f"text_config: layer {index}"
        if layer.head_dim < 2 or layer.head_dim % 2:
            raise ConfigError(f"{where}: head_dim must be even, not {layer.head_dim}")
        if layer.num_key_value_heads < 1 or self.num_attention_heads % layer.num_key_value_heads:
            raise ConfigError(
                f"{where}: {self.num_attention_heads} attention heads cannot share "
                f"{layer.num_key_value_heads} key-value heads"
            )
        same_kind = next(other for other in self.layers if other.kind == layer.kind)
        if same_kind.head_dim != layer.head_dim:
            raise ConfigError(
                f"{where}: head_dim {layer.head_dim} differs from the {same_kind.head_dim} of "
                f"other {layer.kind} layers, which share one rotary embedding"
            )

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers, the same for encode and denoise."""
        return len(self.layers)

    def rope(self, kind: LayerKind) -> RopeConfig:
        """The rotary embedding of layers of `kind`."""
        return self.rope_sliding if kind == "sliding_attention" else self.rope_full


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The Gemma 4 vision tower."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    patch_size: int = 16
    pooling_kernel_size: int = 3
    position_embedding_size: int = 10_240
    rms_norm_eps: float = 1e-6
    rope_theta: float = 100.0
    standardize: bool = False
    use_clipped_linears: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole checkpoint: text stack, optional vision tower, canvas and image token ids."""

    text: TextConfig
    vision: VisionConfig | None = None
    canvas_length: int = 256
    image_token_id: int | None = 258_880
    boi_token_id: int | None = 255_999
    eoi_token_id: int | None = 258_882
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.canvas_length < 1:
            raise ConfigError(f"canvas_length must be at least 1, not {self.canvas_length}")
        if self.canvas_length > self.text.max_position_embeddings:
            raise ConfigError(
                f"canvas_length {self.canvas_length} is longer than the context of "
                f"{self.text.max_position_embeddings}"
            )
