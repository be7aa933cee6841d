"""What a checkpoint consists of, counted from its configuration alone: nothing is loaded.

The released model is described as "25.2 B parameters, 3.8 B active". Those numbers count the
language model without its two attachments, the self-conditioning MLP (0.02 B) and the vision
tower with its projector (0.57 B), and count the embedding, which is also the head, once:

- `total` is everything in the decoder but self-conditioning, and the encoder's layer scalars;
- `active` replaces all experts by the top-k that one token passes through (8 of 128).

`all` is what the files hold: 25.8 B. (https://huggingface.co/google/diffusiongemma-26B-A4B-it)
"""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.config.model import ModelConfig
from sfumato.weights.loader import build_on_meta

# NVFP4: four bits a value and an 8-bit scale for every 16 of them.
_NVFP4_BYTES = (4 + 8 / 16) / 8
_QUANTISABLE = (".self_attn.", ".mlp.", ".experts.", ".self_conditioning.")
_VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")

PARTS = (
    "embedding",
    "attention",
    "dense_mlp",
    "experts",
    "router",
    "norms_and_scalars",
    "self_conditioning",
    "vision",
)
_MARKS = {
    "embed_tokens.": "embedding",
    ".self_conditioning.": "self_conditioning",
    ".experts.": "experts",
    ".router.": "router",
}


@dataclass(frozen=True)
class Inventory:
    """Parameters by part, number of tensors, and bytes of the weights by format.

    The parts sum to `all`; `total` and `active` are defined above. `bytes_nvfp4` estimates a file
    whose text matrices are NVFP4 and whose embedding, norms, router and vision stay BF16.
    """

    tensors: int
    embedding: int
    attention: int
    dense_mlp: int
    experts: int
    router: int
    norms_and_scalars: int
    self_conditioning: int
    vision: int
    total: int
    active: int
    bytes_nvfp4: int

    @property
    def all(self) -> int:
        """Every parameter in the files."""
        return self.total + self.self_conditioning + self.vision

    @property
    def bytes_float32(self) -> int:
        """Bytes of the weights in fp32."""
        return 4 * self.all

    @property
    def bytes_bfloat16(self) -> int:
        """Bytes of the weights in bf16."""
        return 2 * self.all


def take_inventory(config: ModelConfig) -> Inventory:
    """Count what a network of `config` holds, on the meta device."""
    parts = dict.fromkeys(PARTS, 0)
    tensors = build_on_meta(config).state_dict()
    quantised = 0
    for name, tensor in tensors.items():
        parts[part_of(name)] += tensor.numel()
        text_matrix = not name.startswith(_VISION) and tensor.dim() >= 2
        if text_matrix and any(mark in name for mark in _QUANTISABLE):
            quantised += tensor.numel()
    text = config.text
    total = sum(parts.values()) - parts["self_conditioning"] - parts["vision"]
    idle = parts["experts"] * (text.num_experts - text.top_k_experts) // text.num_experts
    return Inventory(
        tensors=len(tensors),
        **parts,
        total=total,
        active=total - idle,
        bytes_nvfp4=round(quantised * _NVFP4_BYTES) + 2 * (sum(parts.values()) - quantised),
    )


def part_of(name: str) -> str:
    """The part of the inventory that a tensor of the network counts to."""
    if name.startswith(_VISION):
        return "vision"
    for mark, part in _MARKS.items():
        if mark in name:
            return part
    if ".self_attn." in name and "_proj." in name:
        return "attention"
    return "dense_mlp" if ".mlp." in name else "norms_and_scalars"
