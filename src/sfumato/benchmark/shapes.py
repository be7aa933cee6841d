"""Shapes by name, with random weights: what can be timed without a checkpoint."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.api import SMALL_FOLDER, Model
from sfumato.config.generation import GenerationConfig
from sfumato.config.model import LayerConfig, ModelConfig, TextConfig
from sfumato.config.parse import load_config
from sfumato.errors import UsageError
from sfumato.model.diffusion_gemma import with_experts
from sfumato.model.experts import form_for
from sfumato.model.kernels import use_kernels
from sfumato.ops.kernels import Kernels
from sfumato.weights.loader import DTYPES, build_on_meta

RELEASED_LAYERS = 30
_PERIOD = 6  # five sliding layers, then a full one
_SLIDING = LayerConfig("sliding_attention", head_dim=256, num_key_value_heads=8)
_FULL = LayerConfig("full_attention", head_dim=512, num_key_value_heads=2)
_NAME = re.compile(r"released(?::([0-9]{1,4}))?")
_POOL = 16_777_259  # a prime: rows of a matrix cut from a pool of this length never repeat
# The spread of the logits before the softcap. With it some hundred of 262,144 ids lie within e^-10
# of the likeliest, as after training; evenly spread ones would cost a gathering of the probable
# ids more than it ever costs in use.
_LOGIT_SPREAD = 8.0
_UNEVENNESS = 1 / 16  # of norms and scalars: none is mistaken for another


def named_shape(name: str) -> ModelConfig:
    """The configuration called `small`, `released`, or `released:N` for N of its layers.

    A cut released shape ends in a full layer, as every checkpoint does, so 4 layers are S S S F.
    The vision tower is left out. Raises UsageError for another name.
    """
    if name == "small":
        return replace(load_config(SMALL_FOLDER), vision=None)
    found = _NAME.fullmatch(name)
    count = int(found[1] or RELEASED_LAYERS) if found else 0
    if not 1 <= count <= RELEASED_LAYERS:
        raise UsageError(
            f"there is no shape {name[:60]!r}",
            hint=f"small, released, or released:N with 1 to {RELEASED_LAYERS} layers",
        )
    last = count - 1
    layers = tuple(
        _FULL if index == last or (index + 1) % _PERIOD == 0 else _SLIDING for index in range(count)
    )
    return ModelConfig(
        text=TextConfig(
            vocab_size=262_144,
            hidden_size=2816,
            intermediate_size=2112,
            num_attention_heads=16,
            layers=layers,
            sliding_window=1024,
            num_experts=128,
            top_k_experts=8,
            moe_intermediate_size=704,
        )
    )


def default_dtype(name: str) -> str:
    """What a named shape is held in unless told otherwise, as `load` holds the real one."""
    return "float32" if name == "small" else "bfloat16"


def random_model(
    config: ModelConfig,
    dtype: str,
    device: str = "cpu",
    seed: int = 0,
    kernels: Kernels | None = None,
) -> Model:
    """A model of `config` with random weights: as fast as a real one, and as wise as noise.

    `kernels` serve what they can of it, as after `load`. Peak memory is the weights and a pool.
    """
    network = build_on_meta(config)
    weights = RandomWeights(config, dtype, seed)
    tensors = {name: weights.tensor(name).to(device) for name in weights.shapes}
    network.load_state_dict(tensors, strict=True, assign=True)
    use_kernels(network, kernels)
    with_experts(network, form_for(config.text, network.device, may_be_dense=True))
    return Model(network.eval(), GenerationConfig(eos_token_id=()))


class RandomWeights:
    """Random weights of `config`, each tensor made when it is asked for, and the same each time.

    The time of a product does not depend on the values, so all are cut from one pool of normal
    draws, each where the one before it ends. `shapes` are the tensors' on the meta device.
    """

    def __init__(self, config: ModelConfig, dtype: str, seed: int = 0) -> None:
        self.dtype = DTYPES[dtype]
        self.shapes: dict[str, Tensor] = build_on_meta(config).state_dict()
        generator = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(_pool_size(config), generator=generator).to(self.dtype)
        sizes = [tensor.numel() for tensor in self.shapes.values()]
        starts = itertools.accumulate(sizes, initial=0)
        self._starts = dict(zip(self.shapes, starts, strict=False))  # and where the last ends

    def tensor(self, name: str) -> Tensor:
        """The tensor of this name, on the CPU."""
        values = torch.empty(tuple(self.shapes[name].shape), dtype=self.dtype)
        _fill(values.view(-1), self._pool, self._starts[name] % self._pool.numel())
        if values.dim() < 2:
            return values.mul_(_UNEVENNESS).add_(1.0).mul_(_level(name, values))
        return values.mul_(_spread(name, values))


def _pool_size(config: ModelConfig) -> int:
    """A pool no longer than the largest matrix needs, so that small shapes come at once."""
    text = config.text
    largest = text.hidden_size * max(
        text.vocab_size, 2 * text.num_experts * text.moe_intermediate_size
    )
    return min(_POOL, largest + 1)


def _fill(target: Tensor, pool: Tensor, offset: int) -> None:
    """Fill `target` [n] from the pool, taken as a ring from `offset` on."""
    done = 0
    while done < target.numel():
        count = min(target.numel() - done, pool.numel() - offset)
        target[done : done + count] = pool[offset : offset + count]
        done, offset = done + count, (offset + count) % pool.numel()


def _level(name: str, values: Tensor) -> float:
    """About one; by the norms of queries and keys, scores do not drown all positions but one."""
    return values.numel() ** -0.5 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0


def _spread(name: str, values: Tensor) -> float:
    fan_in = math.sqrt(values.shape[-1])
    return (_LOGIT_SPREAD if "embed_tokens" in name else 1.0) / fan_in
