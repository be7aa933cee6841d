"""Look on while a network computes: the inputs of each of its text matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sfumato.model.attention import Attention
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.model.experts import Experts
from sfumato.model.fast_layer import FastLayer
from sfumato.model.mlp import GatedMLP, gelu
from sfumato.ops.linear import linear
from sfumato.ops.weight import rows as in_place

# The name of a matrix, the number of the expert or 0, and rows [R, K] it is multiplied with.
OnInput = Callable[[str, int, Tensor], None]


@contextmanager
def watching(network: DiffusionGemma, on_input: OnInput) -> Iterator[None]:
    """Call `on_input` with what each text matrix is multiplied with, padding left out.

    What several matrices share is told once: under q's name for q, k and v, under gate's for gate
    and up, under `experts.gate_up_proj` with the expert's number for an expert's two, and under
    `experts` what the experts of a layer choose from, each row once. Results stay the same; layers
    are computed part by part meanwhile. The weights may not be quantised.
    """
    network.need_unpacked("be watched")
    watch = _Watch(on_input)
    with ExitStack() as stack:
        stack.enter_context(_parts_apart(network))
        stack.enter_context(watch.encoding(network))
        for name, module in network.model.decoder.named_modules():
            for hook in watch.hooks(f"model.decoder.{name}", module):
                stack.callback(hook.remove)
        yield


@contextmanager
def _parts_apart(network: DiffusionGemma) -> Iterator[None]:
    """Layers whose parts are called one by one, to the same bits."""
    before = [layer.fast for layer in network.layers]
    for layer in network.layers:
        if layer.fast is not None:
            layer.fast = FastLayer(layer, network.kernels, composed=True)
    try:
        yield
    finally:
        for layer, fast in zip(network.layers, before, strict=True):
            layer.fast = fast


class _Watch:
    def __init__(self, on_input: OnInput) -> None:
        self._tell = on_input
        self._real: Tensor | None = None  # [B * S], false on the padding of the pass under way

    @contextmanager
    def encoding(self, network: DiffusionGemma) -> Iterator[None]:
        """Know of the padding in what is encoded; a canvas has none."""
        encode = network.encode_pass

        def encode_pass(input_ids: Tensor, real: Tensor, *others: Any) -> Tensor:
            self._real = None if bool(real.all()) else real.flatten()
            try:
                return encode(input_ids, real, *others)
            finally:
                self._real = None

        network.encode_pass = encode_pass  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del network.encode_pass  # the class's own is there again

    def hooks(self, name: str, module: torch.nn.Module) -> Iterator[Any]:
        """Watch one module, if it holds matrices that are looked for."""
        if isinstance(module, Attention):
            for part in ("q_proj", "o_proj"):
                told = partial(self._linear, f"{name}.{part}")
                yield getattr(module, part).register_forward_pre_hook(told)
        elif isinstance(module, GatedMLP):
            yield module.register_forward_pre_hook(partial(self._mlp, name))
        elif isinstance(module, Experts):
            yield module.register_forward_pre_hook(partial(self._experts, name))

    def _rows(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        return flat if self._real is None else flat[self._real]

    def _linear(self, name: str, module: torch.nn.Module, inputs: tuple[Tensor]) -> None:  # noqa: ARG002
        self._tell(name, 0, self._rows(inputs[0]))

    def _mlp(self, name: str, module: GatedMLP, inputs: tuple[Tensor]) -> None:
        x = self._rows(inputs[0])
        self._tell(f"{name}.gate_proj", 0, x)
        if isinstance(module.kernel, partial):
            own = module.kernel.keywords
            active = linear(x, own["gate_up"], own["kernels"])
        else:
            active = gelu(module.gate_proj(x)) * module.up_proj(x)
        self._tell(f"{name}.down_proj", 0, active)

    def _experts(self, name: str, module: Experts, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        x, chosen = self._rows(inputs[0]), self._rows(inputs[2])
        self._tell(name, 0, x)
        for expert in torch.unique(chosen).tolist():
            own = x[(chosen == expert).any(dim=1)]
            self._tell(f"{name}.gate_up_proj", expert, own)
            gate, values = module.gate_up_proj[expert].detach().chunk(2)
            if isinstance(module.kernel, partial):
                kernels = module.kernel.keywords["kernels"]
                active = linear(own, in_place(gate, values), kernels)
            else:
                active = gelu(own @ gate.t()) * (own @ values.t())
            self._tell(f"{name}.down_proj", expert, active)
