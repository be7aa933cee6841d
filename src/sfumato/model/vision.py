"""The Gemma 4 vision tower and the projector into the text model.

An image comes as square patches of pixels in [0, 1], each with its (x, y) place in the grid;
(-1, -1) marks padding. Patches of one image attend to each other in both directions, then each
square of `pooling_kernel_size` x `pooling_kernel_size` patches is averaged into one soft token.
Shapes: n images, P patches, D hidden, N heads, H head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfumato.config.model import VisionConfig
from sfumato.errors import ConfigError, InputError
from sfumato.model.norm import RMSNorm, rms_norm

Tables = tuple[Tensor, Tensor]


class ClippedLinear(nn.Module):
    """A linear map without bias whose inputs and outputs may be held within learned bounds.

    The bounds are saved scalars, infinite until loaded; they exist only if `clipped`.
    """

    input_min: Tensor
    input_max: Tensor
    output_min: Tensor
    output_max: Tensor

    def __init__(self, inputs: int, outputs: int, clipped: bool) -> None:
        super().__init__()
        self.clipped = clipped
        self.linear = nn.Linear(inputs, outputs, bias=False)
        if clipped:
            for name, bound in (("min", -torch.inf), ("max", torch.inf)):
                self.register_buffer(f"input_{name}", torch.tensor(bound))
                self.register_buffer(f"output_{name}", torch.tensor(bound))

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [..., inputs] to [..., outputs]."""
        if not self.clipped:
            out: Tensor = self.linear(x)
            return out
        out = self.linear(torch.clamp(x, self.input_min, self.input_max))
        return torch.clamp(out, self.output_min, self.output_max)


def axial_tables(position_ids: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Tables:
    """Cosine and sine [n, P, 1, 2, H / 2] in `dtype` for (x, y) positions [n, P, 2].

    The first half of a head turns with x, the second with y, at the same frequencies
    theta^(-2i / (H / 2)). Angles are fp32.
    """
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, dtype=torch.float, device=position_ids.device) / half
    angles = position_ids[..., None].float() * (1.0 / (theta**exponents))
    angles = torch.cat([angles, angles], dim=-1)[:, :, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_axial(x: Tensor, tables: Tables) -> Tensor:
    """Rotate `x` [n, P, N, H]: within each half of a head, dimension i is paired with i + H / 4."""
    cos, sin = tables
    halves = x.reshape(*x.shape[:-1], 2, -1)
    first, second = halves.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (halves * cos + turned * sin).flatten(-2)


class PatchEmbedder(nn.Module):
    """Patches and their places as hidden states."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.input_proj = nn.Linear(3 * config.patch_size**2, config.hidden_size, bias=False)
        self.position_embedding_table = nn.Parameter(
            torch.ones(2, config.position_embedding_size, config.hidden_size)
        )

    def forward(self, pixel_values: Tensor, position_ids: Tensor, valid: Tensor) -> Tensor:
        """Hidden states [n, P, D] of pixels [n, P, 3 * patch^2], valid [n, P] where not padding.

        Pixels are centred to [-1, 1] in their own dtype, before the cast to that of the weights.
        """
        centred = (2 * (pixel_values - 0.5)).to(self.input_proj.weight.dtype)
        column, row = position_ids.clamp(min=0).unbind(-1)
        across, down = self.position_embedding_table
        places = functional.embedding(column, across) + functional.embedding(row, down)
        patches: Tensor = self.input_proj(centred)
        return patches + places.masked_fill(~valid[..., None], 0.0)


class VisionAttention(nn.Module):
    """Attention of all patches of an image to each other; scale 1, q, k and v normalised."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.eps = config.rms_norm_eps
        hidden, clipped = config.hidden_size, config.use_clipped_linears
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = ClippedLinear(hidden, queries, clipped)
        self.k_proj = ClippedLinear(hidden, keys, clipped)
        self.v_proj = ClippedLinear(hidden, keys, clipped)
        self.o_proj = ClippedLinear(queries, hidden, clipped)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, tables: Tables, mask: Tensor | None) -> Tensor:
        """Attend over `x` [n, P, D] with a boolean key mask [n, 1, 1, P], None if all are real."""
        split = (*x.shape[:-1], -1, self.head_dim)
        queries = rotate_axial(self.q_norm(self.q_proj(x).view(split)), tables)
        keys = rotate_axial(self.k_norm(self.k_proj(x).view(split)), tables)
        values = rms_norm(self.v_proj(x).view(split), None, self.eps)
        if self.groups > 1:
            keys = keys.repeat_interleave(self.groups, dim=2)
            values = values.repeat_interleave(self.groups, dim=2)
        out = functional.scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=mask,
            scale=1.0,
        )
        joined: Tensor = self.o_proj(out.transpose(1, 2).flatten(-2))
        return joined


class VisionMLP(nn.Module):
    """Gated MLP with tanh-approximated GELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        hidden, wide = config.hidden_size, config.intermediate_size
        self.gate_proj = ClippedLinear(hidden, wide, config.use_clipped_linears)
        self.up_proj = ClippedLinear(hidden, wide, config.use_clipped_linears)
        self.down_proj = ClippedLinear(wide, hidden, config.use_clipped_linears)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [..., D] to [..., D]."""
        gate = functional.gelu(self.gate_proj(x), approximate="tanh")
        out: Tensor = self.down_proj(gate * self.up_proj(x))
        return out


class VisionLayer(nn.Module):
    """Attention and MLP, each between two norms and added to the residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = VisionAttention(config)
        self.mlp = VisionMLP(config)
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.pre_feedforward_layernorm = RMSNorm(hidden, eps)
        self.post_feedforward_layernorm = RMSNorm(hidden, eps)

    def forward(self, x: Tensor, tables: Tables, mask: Tensor | None) -> Tensor:
        """One layer over `x` [n, P, D]."""
        attended = self.self_attn(self.input_layernorm(x), tables, mask)
        x = x + self.post_attention_layernorm(attended)
        widened = self.mlp(self.pre_feedforward_layernorm(x))
        out: Tensor = x + self.post_feedforward_layernorm(widened)
        return out


class VisionEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.theta = config.rope_theta
        self.layers = nn.ModuleList([VisionLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: Tensor, position_ids: Tensor, valid: Tensor) -> Tensor:
        """Hidden states [n, P, D] after all layers; nothing attends to padding."""
        tables = axial_tables(position_ids, self.head_dim, self.theta, x.dtype)
        mask = None if bool(valid.all()) else valid[:, None, None, :]
        for layer in self.layers:
            x = layer(x, tables, mask)
        return x


def pool_patches(hidden: Tensor, position_ids: Tensor, kernel: int) -> Tensor:
    """Average each kernel x kernel square of one image's patches.

    `hidden` [P, D] are real patches only, at (x, y) `position_ids` [P, 2], in any order. The result
    [P / kernel^2, D] goes by rows of squares. Sums are fp32, the result has `hidden`'s dtype.
    """
    squares = position_ids.div(kernel, rounding_mode="floor")
    across = int(position_ids[:, 0].max() + 1) // kernel
    cell = squares[:, 0] + across * squares[:, 1]
    count = hidden.shape[0] // kernel**2
    sizes = torch.bincount(cell)
    if sizes.shape[0] != count or bool((sizes != kernel**2).any()):
        raise InputError(
            f"an image's {hidden.shape[0]} patch positions do not fill a grid of whole "
            f"{kernel} x {kernel} squares",
            hint="give every patch its own (x, y), both sides a multiple of the pooling size",
        )
    # A product with the one-hot matrix: unlike a scatter it is deterministic on every device.
    weights = functional.one_hot(cell, count).float() / kernel**2
    return (weights.T @ hidden.float()).to(hidden.dtype)


class VisionTower(nn.Module):
    """Patches in, soft tokens of the tower's own width out."""

    std_bias: Tensor
    std_scale: Tensor

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        check_vision_config(config)
        self.config = config
        self.patch_embedder = PatchEmbedder(config)
        self.encoder = VisionEncoder(config)
        if config.standardize:
            self.register_buffer("std_bias", torch.zeros(config.hidden_size))
            self.register_buffer("std_scale", torch.ones(config.hidden_size))

    def forward(self, pixel_values: Tensor, position_ids: Tensor) -> Tensor:
        """Soft tokens [sum over images, D] of pixels [n, P, 3 * patch^2] at (x, y) [n, P, 2].

        Pixels are in [0, 1], best in fp32 whatever the weights' dtype. An image of p real patches
        makes p / pooling^2 soft tokens. Raises InputError for shapes or positions that make no
        image.
        """
        valid = self._checked(pixel_values, position_ids)
        x = self.patch_embedder(pixel_values, position_ids, valid)
        hidden = self.encoder(x, position_ids, valid)
        kernel = self.config.pooling_kernel_size
        pooled = torch.cat(
            [
                pool_patches(image[real], places[real], kernel)
                for image, places, real in zip(hidden, position_ids, valid, strict=True)
            ]
        )
        # fp32 until standardised: the scale is large and the bias cancels most of it.
        tokens = pooled.float() * self.config.hidden_size**0.5
        if self.config.standardize:
            tokens = (tokens - self.std_bias.float()) * self.std_scale.float()
        out: Tensor = tokens.to(x.dtype)
        return out

    def _checked(self, pixel_values: Tensor, position_ids: Tensor) -> Tensor:
        """Which patches [n, P] are real, after the checks that need the values."""
        width = 3 * self.config.patch_size**2
        shape = pixel_values.shape
        if pixel_values.dim() != 3 or shape[0] == 0 or shape[-1] != width:
            raise InputError(f"pixel_values must be [images, patches, {width}], not {list(shape)}")
        if position_ids.shape != (*shape[:2], 2):
            raise InputError(
                f"position_ids must be {[*shape[:2], 2]}, not {list(position_ids.shape)}"
            )
        valid = (position_ids != -1).any(dim=-1)
        if not bool(valid.any(dim=-1).all()):
            raise InputError("an image has no patches, only padding")
        real = position_ids[valid]
        if bool((real < 0).any()) or bool((real >= self.config.position_embedding_size).any()):
            raise InputError(
                f"patch positions must lie in 0..{self.config.position_embedding_size - 1}"
            )
        return valid


class VisionProjector(nn.Module):
    """From the tower's soft tokens to embeddings of the text model."""

    def __init__(self, vision_hidden: int, text_hidden: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.embedding_projection = nn.Linear(vision_hidden, text_hidden, bias=False)

    def forward(self, soft_tokens: Tensor) -> Tensor:
        """Map `soft_tokens` [n, vision hidden] to [n, text hidden], after an unweighted norm."""
        out: Tensor = self.embedding_projection(rms_norm(soft_tokens, None, self.eps))
        return out


def check_vision_config(config: VisionConfig) -> None:
    """Refuse shapes that the tower cannot be built from."""
    sizes = {
        name: getattr(config, name)
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "patch_size",
            "pooling_kernel_size",
            "position_embedding_size",
        )
    }
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"vision_config.{name} must be at least 1, not {value}")
    if config.head_dim % 4:
        raise ConfigError(
            f"vision_config.head_dim must be a multiple of 4, not {config.head_dim}: "
            "each half turns with one axis"
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise ConfigError(
            f"vision_config: {config.num_attention_heads} attention heads cannot share "
            f"{config.num_key_value_heads} key-value heads"
        )
