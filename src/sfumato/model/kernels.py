"""Which parts of a network compiled kernels compute.

Weights stay where the checkpoint's files are mapped: kernels read them in place, in fp32, bf16 or
NVFP4. Of a small model they take a packed copy, which saves turning a matrix over in every product;
not in bf16 where registers of matrices take it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.model.experts import Experts
from sfumato.model.fast_layer import FastLayer, Gain
from sfumato.model.linear import Linear
from sfumato.model.mlp import GatedMLP
from sfumato.ops import attention as attention_op
from sfumato.ops import experts as experts_op
from sfumato.ops import head as head_op
from sfumato.ops import linear as linear_op
from sfumato.ops import norm as norm_op
from sfumato.ops.kernels import Kernels
from sfumato.ops.weight import PANEL, Weight, nvfp4, panels, rows
from sfumato.quant.int8 import decode as decode_rows
from sfumato.quant.nvfp4 import decode

_DECODER = "model.decoder."
PACKED_BYTES = 256 << 20  # of a packed copy at most, in bf16


def use_kernels(network: DiffusionGemma, kernels: Kernels | None) -> dict[str, str]:
    """Let `kernels` serve what they can of the text layers, or with None nothing.

    Returns the modules that stay with torch and why, by name. The vision tower always does. What is
    stored in NVFP4 (`network.quantised`) becomes the kernels' (`network.packed`), or is decoded
    where none serves it; so does an embedding in 8 bits. A small model's weights are packed where
    that is faster: what is changed in place later is not seen then, but by another call of this.
    Raises InputError if kernels are to be given up that alone can read weights; what is returned
    stays in `network.refused`.
    """
    refused: dict[str, str] = {}
    unserved = None if kernels is None else _vocabulary_unserved(network)
    if kernels is None or unserved is not None:
        network.need_unpacked("give its kernels up")
        _decode_table(network)
    if unserved is not None:
        kernels, refused["embed_tokens"] = None, unserved
    values = sum(one.numel() for one in network.model.decoder.parameters())
    in_place = kernels is not None and kernels.matrix_registers and network.dtype == torch.bfloat16
    copies = 2 * values <= PACKED_BYTES and not in_place
    for name, module in _parts(network):
        module.kernel = None
        try:
            if kernels is not None:
                module.kernel = _kernel_for(network, name, module, kernels, copies=copies)
        except InputError as reason:
            refused[name] = str(reason)
        _give_up_stored(network, name, decoded=module.kernel is None)
    for index, layer in enumerate(network.layers):
        layer.fast = None if kernels is None else FastLayer(layer, kernels)
        layer.self_attn.kernel, layer.self_attn.derive_kernel = None, None
        layer.self_attn.parts_kernel = None
        if layer.fast is not None:
            layer.self_attn.derive_kernel = layer.fast.derive
            declined = attention_op.declines(network.dtype, layer.self_attn.head_dim)
            if declined is None:
                layer.self_attn.kernel = layer.fast.mix
                layer.self_attn.parts_kernel = layer.fast.mix_parts
            else:
                refused[f"layers.{index}.self_attn"] = declined
    _use_norms(network, kernels)
    network.kernels, network.refused = kernels, refused
    return refused


def _use_norms(network: DiffusionGemma, kernels: Kernels | None) -> None:
    """The norms outside of the layers."""
    decoder = network.model.decoder
    before = decoder.self_conditioning
    for module in (decoder.norm, before.pre_norm):
        module.kernel = None if kernels is None else _norm_kernel(Gain.of(module), kernels)
    closing = Gain(None, before.eps)
    before.closing_kernel = None if kernels is None else _norm_kernel(closing, kernels)


def _norm_kernel(gain: Gain, kernels: Kernels) -> partial[Tensor]:
    return partial(norm_op.norm, weight=gain.weight, eps=gain.eps, kernels=kernels)


def narrowed(network: DiffusionGemma) -> bool:
    """Whether kernels round activations to 8 bits for any of the network's weights."""
    kernels = network.kernels
    if kernels is None:
        return False
    weights = [*network.packed.values(), *(() if network.int8_table is None else (network.table,))]
    return any(kernels.narrows(weight.layout, weight.k) for weight in weights)


def _give_up_stored(network: DiffusionGemma, name: str, *, decoded: bool) -> None:
    """Forget what is stored of a module, once `decoded` into its parameters or taken by kernels."""
    stem = f"{_DECODER}{name}."
    for key in [key for key in network.packed if decoded and key.startswith(stem)]:
        del network.packed[key]
    for key in [key for key in network.quantised if key.startswith(stem)]:
        pieces = network.quantised.pop(key)
        if decoded:
            old = network.get_parameter(key)
            whole = torch.cat([decode(piece, network.dtype) for piece in pieces]).view(old.shape)
            parent, _, part = key.rpartition(".")
            setattr(network.get_submodule(parent), part, nn.Parameter(whole, requires_grad=False))


def _decode_table(network: DiffusionGemma) -> None:
    """Make a parameter of an embedding that is stored in 8 bits."""
    if network.int8_table is not None:
        whole = decode_rows(network.int8_table, network.dtype)
        network.int8_table = None
        network.model.decoder.embed_tokens.weight = nn.Parameter(whole, requires_grad=False)


def _vocabulary_unserved(network: DiffusionGemma) -> str | None:
    """Why no kernel serves the vocabulary, None if one does: without it, the rest would not pay."""
    try:
        table = network.table
    except InputError as reason:
        return str(reason)
    return head_op.declines(network.dtype, table)


def _parts(network: DiffusionGemma) -> Iterator[tuple[str, Linear | GatedMLP | Experts]]:
    for name, module in network.model.decoder.named_modules():
        inside_mlp = name.rpartition(".")[2] in ("gate_proj", "up_proj", "down_proj")
        if isinstance(module, GatedMLP | Experts) or (
            isinstance(module, Linear) and not inside_mlp
        ):
            yield name, module


class _Weights:
    """A module's weights as kernels read them: its parameters, or what is stored in NVFP4."""

    def __init__(self, network: DiffusionGemma, name: str, *, copies: bool) -> None:
        self._stored, self._packed = network.quantised, network.packed
        self._copies = copies
        self._stem = f"{_DECODER}{name}."

    def _take(self, part: str, make: Callable[..., Weight], *others: str) -> Weight | None:
        """`make` of what is stored of parameters, once; None for those that are not stored."""
        key = self._stem + part
        if key in self._stored:
            self._packed[key] = make(*(self._stored[self._stem + one] for one in (part, *others)))
        return self._packed.get(key)

    def linear(self, module: Linear, part: str = "weight") -> Weight:
        """The matrix of a linear map."""
        return self._take(part, nvfp4) or self._plain(module.weight)

    def gated(self, module: GatedMLP) -> tuple[Weight, Weight]:
        """The way up, gated, and the way down."""
        up = self._take("gate_proj.weight", nvfp4, "up_proj.weight")
        if up is None:
            up = self._plain(module.gate_proj.weight, module.up_proj.weight)
        return up, self.linear(module.down_proj, "down_proj.weight")

    def experts(self, module: Experts) -> tuple[Weight, Weight]:
        """The same of all experts; of each are stored its gate, then its values."""
        up = self._take("gate_up_proj", lambda halves: nvfp4(halves[0::2], halves[1::2]))
        down = self._take("down_proj", nvfp4)
        if up is None or down is None:
            gate, values = module.gate_up_proj.chunk(2, dim=1)
            plain = self._plain(gate, values), self._plain(module.down_proj)
            if any(one.layout == "f32_rows" for one in plain):  # one kernel takes both or neither
                return rows(gate, values), rows(module.down_proj)
            return plain
        return up, down

    def _plain(self, weight: Tensor, values: Tensor | None = None) -> Weight:
        """Parameters where they are, or packed: products have the same bits."""
        parts = [one.detach() for one in (weight, values) if one is not None]
        n, k = weight.shape[-2:]
        if not self._copies or k % 2 or (values is not None and n % PANEL):
            return rows(*parts)
        narrow = [one.bfloat16() for one in parts]
        same = all(
            torch.equal(one, own.to(one.dtype)) for one, own in zip(parts, narrow, strict=True)
        )
        return panels(torch.cat(narrow, dim=-2), gated=values is not None) if same else rows(*parts)


def _kernel_for(
    network: DiffusionGemma, name: str, module: nn.Module, kernels: Kernels, *, copies: bool
) -> partial[Tensor]:
    """The function that replaces a module's arithmetic. Raises InputError with the reason."""
    weights, dtype = _Weights(network, name, copies=copies), network.dtype
    if isinstance(module, Linear):
        weight = weights.linear(module)
        _check(linear_op.declines(dtype, weight))
        return partial(linear_op.linear, weight=weight, kernels=kernels)
    if isinstance(module, GatedMLP):
        gate_up, down = weights.gated(module)
        _check(linear_op.declines(dtype, gate_up))
        return partial(_gated_mlp, gate_up=gate_up, down=down, kernels=kernels)
    assert isinstance(module, Experts)
    gate_up, down = weights.experts(module)
    _check(experts_op.declines(dtype, gate_up, down))
    return partial(experts_op.experts, gate_up=gate_up, down=down, kernels=kernels)


def _check(reason: str | None) -> None:
    if reason is not None:
        raise InputError(reason)


def _gated_mlp(x: Tensor, *, gate_up: Weight, down: Weight, kernels: Kernels) -> Tensor:
    return linear_op.linear(linear_op.linear(x, gate_up, kernels), down, kernels)
