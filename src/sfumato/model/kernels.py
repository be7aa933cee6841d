"""Which parts of a network compiled kernels compute.

Weights stay where the checkpoint's files are mapped: kernels read them in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from sfumato.errors import InputError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.model.experts import Experts
from sfumato.model.fast_layer import FastLayer
from sfumato.model.linear import Linear
from sfumato.model.mlp import GatedMLP
from sfumato.ops import attention as attention_op
from sfumato.ops import experts as experts_op
from sfumato.ops import head as head_op
from sfumato.ops import linear as linear_op
from sfumato.ops.kernels import Kernels
from sfumato.ops.weight import Weight, rows


def use_kernels(network: DiffusionGemma, kernels: Kernels | None) -> dict[str, str]:
    """Let `kernels` serve what they can of the text layers, or with None nothing.

    Returns the modules that stay with torch and why, by name. The vision tower always does.
    """
    refused: dict[str, str] = {}
    unserved = None if kernels is None else _vocabulary_unserved(network)
    if unserved is not None:
        kernels, refused["embed_tokens"] = None, unserved
    for name, module in _parts(network):
        module.kernel = None
        if kernels is None:
            continue
        try:
            module.kernel = _kernel_for(module, kernels)
        except InputError as reason:
            refused[name] = str(reason)
    for index, layer in enumerate(network.layers):
        layer.fast = None if kernels is None else FastLayer(layer, kernels)
        layer.self_attn.kernel = None
        if layer.fast is not None:
            declined = attention_op.declines(network.dtype, layer.self_attn.head_dim)
            if declined is None:
                layer.self_attn.kernel = layer.fast.mix
            else:
                refused[f"layers.{index}.self_attn"] = declined
    network.kernels = kernels
    network.__dict__.pop("table", None)  # of weights that may have been replaced
    return refused


def _vocabulary_unserved(network: DiffusionGemma) -> str | None:
    """Why no kernel serves the vocabulary, None if one does: without it, the rest would not pay."""
    try:
        table = rows(network.model.decoder.embed_tokens.weight)
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


def _kernel_for(module: nn.Module, kernels: Kernels) -> partial[Tensor]:
    """The function that replaces a module's arithmetic. Raises InputError with the reason."""
    if isinstance(module, Linear):
        weight = rows(module.weight)
        _check(linear_op.declines(module.weight.dtype, weight))
        return partial(linear_op.linear, weight=weight, kernels=kernels)
    if isinstance(module, GatedMLP):
        gate_up = rows(module.gate_proj.weight, module.up_proj.weight)
        down = rows(module.down_proj.weight)
        _check(linear_op.declines(gate_up.data.dtype, gate_up))
        return partial(_gated_mlp, gate_up=gate_up, down=down, kernels=kernels)
    assert isinstance(module, Experts)
    gate, values = module.gate_up_proj.chunk(2, dim=1)
    gate_up, down = rows(gate, values), rows(module.down_proj)
    _check(experts_op.declines(gate.dtype, gate_up, down))
    return partial(experts_op.experts, gate_up=gate_up, down=down, kernels=kernels)


def _check(reason: str | None) -> None:
    if reason is not None:
        raise InputError(reason)


def _gated_mlp(x: Tensor, *, gate_up: Weight, down: Weight, kernels: Kernels) -> Tensor:
    return linear_op.linear(linear_op.linear(x, gate_up, kernels), down, kernels)
