"""The optimiser: Muon for the matrices inside the layers, AdamW for everything else.

Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest semi-orthogonal one,
found by a few Newton-Schulz steps; matrices of one shape, experts included, are done as one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.errors import TrainingError

# The quintic of Jordan et al.: steep at zero, and within [0.68, 1.13] after five steps.
_QUINTIC = (3.4445, -4.7750, 2.0315)
MUON_RMS = 0.2


def orthogonalise(matrices: Tensor, steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The nearly semi-orthogonal matrices nearest to `matrices` [n, R, C], computed in `dtype`.

    All singular values end near 1 (0.7 to 1.2 after five steps); the result is fp32.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.transpose(-2, -1) if tall else matrices
    norm = x.float().flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
    x = (x / norm).to(dtype)
    a, b, c = _QUINTIC
    for _ in range(steps):
        gram = x @ x.transpose(-2, -1)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    out: Tensor = (x.transpose(-2, -1) if tall else x).float()
    return out


@dataclass(frozen=True)
class Rates:
    """Optimiser settings; decay is decoupled: weights shrink by rate * decay a step."""

    muon_lr: float = 5e-3
    adam_lr: float = 2e-3
    momentum: float = 0.95
    newton_schulz_steps: int = 5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    muon_dtype: torch.dtype = torch.bfloat16  # of its iteration; processors without it crawl


def is_muon(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix, or a stack of them, between two hidden representations."""
    return parameter.dim() >= 2 and not name.endswith(("embed_tokens.weight", "router.proj.weight"))


class Optimiser:
    """Muon with Nesterov momentum and AdamW over one network's trainable parameters.

    A Muon update is scaled by 0.2 * sqrt(max(R, C)), which gives its entries the root mean square
    0.2 that Adam's updates have in practice, whatever the shape (Liu et al. 2025, arXiv
    2502.16982): one learning rate then fits every matrix. Its fp32 momenta are the state.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], rates: Rates) -> None:
        named = [(name, p) for name, p in parameters if p.requires_grad]
        self.rates = rates
        self.parameters = [p for _, p in named]
        self._muon = {name: p for name, p in named if is_muon(name, p)}
        self._adam = {name: p for name, p in named if name not in self._muon}
        self._shapes: dict[tuple[int, int], list[str]] = {}
        for name, p in self._muon.items():
            self._shapes.setdefault((p.shape[-2], p.shape[-1]), []).append(name)
        self._momentum = {name: torch.zeros_like(p) for name, p in self._muon.items()}
        self._first = {name: torch.zeros_like(p) for name, p in self._adam.items()}
        self._second = {name: torch.zeros_like(p) for name, p in self._adam.items()}
        self._steps = 0

    @torch.no_grad()
    def clip(self, limit: float) -> float:
        """Scale all gradients so that their joint norm is at most `limit` (0: do not); the norm."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        if limit > 0:
            torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
        return float(norm)

    def take(self, parts: Sequence[Sequence[Tensor | None]]) -> None:
        """Make the sum of `parts` the gradient; each has a tensor or None for every parameter."""
        for parameter, *own in zip(self.parameters, *parts, strict=True):
            parameter.grad = None
            for gradient in own:
                if gradient is not None:
                    parameter.grad = (
                        gradient if parameter.grad is None else parameter.grad + gradient
                    )

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update with both learning rates times `factor`."""
        self._steps += 1
        for names in self._shapes.values():
            self._muon_step(names, self.rates.muon_lr * factor)
        self._adam_step(self.rates.adam_lr * factor)

    def _muon_step(self, names: Sequence[str], lr: float) -> None:
        weights: list[Tensor] = [self._muon[name] for name in names]
        momenta = [self._momentum[name] for name in names]
        gradients = [_gradient(p) for p in weights]
        torch._foreach_lerp_(momenta, gradients, 1.0 - self.rates.momentum)
        ahead = torch._foreach_lerp(gradients, momenta, self.rates.momentum)
        rows, columns = weights[0].shape[-2:]
        stacked = torch.cat([update.view(-1, rows, columns) for update in ahead])
        stacked = orthogonalise(stacked, self.rates.newton_schulz_steps, self.rates.muon_dtype)
        counts = [weight.numel() // (rows * columns) for weight in weights]
        updates = [
            update.view(weight.shape)
            for update, weight in zip(torch.split(stacked, counts), weights, strict=True)
        ]
        torch._foreach_mul_(weights, 1.0 - lr * self.rates.weight_decay)
        torch._foreach_add_(weights, updates, alpha=-lr * MUON_RMS * max(rows, columns) ** 0.5)

    def _adam_step(self, lr: float) -> None:
        names = list(self._adam)
        weights: list[Tensor] = [self._adam[name] for name in names]
        first = [self._first[name] for name in names]
        second = [self._second[name] for name in names]
        gradients = [_gradient(p) for p in weights]
        beta1, beta2 = self.rates.betas
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)
        divisor = torch._foreach_sqrt(second)
        torch._foreach_div_(divisor, (1.0 - beta2**self._steps) ** 0.5)
        torch._foreach_add_(divisor, self.rates.eps)
        matrices = [weight for weight in weights if weight.dim() >= 2]
        torch._foreach_mul_(matrices, 1.0 - lr * self.rates.weight_decay)
        torch._foreach_addcdiv_(weights, first, divisor, value=-lr / (1.0 - beta1**self._steps))

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name; tensors are shared, not copied."""
        state = {"steps": torch.tensor(self._steps)}
        for kind, tensors in self._states():
            state |= {f"{kind}.{name}": tensor for name, tensor in tensors.items()}
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned. Raises TrainingError if it is of another network."""
        own = self.state()
        if different := sorted(set(own) ^ set(state)):
            raise TrainingError(f"the optimiser's state does not fit: {different[0]}")
        self._steps = int(state["steps"])
        for kind, tensors in self._states():
            for name, tensor in tensors.items():
                tensor.copy_(state[f"{kind}.{name}"])

    def _states(self) -> Sequence[tuple[str, dict[str, Tensor]]]:
        return (
            ("momentum", self._momentum),
            ("first", self._first),
            ("second", self._second),
        )


def _gradient(parameter: Tensor) -> Tensor:
    """The gradient; zeros for a parameter that this step did not use."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


class Average:
    """An exponential moving average of weights, which is what gets evaluated and exported.

    The decay grows as (1 + n) / (10 + n) until it reaches `decay`, so that the first average is
    not mostly the initial weights.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Move towards `weights` after step number `steps` (1 for the first)."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        names = list(self.weights)
        torch._foreach_lerp_(
            [self.weights[name] for name in names],
            [weights[name].detach() for name in names],
            1.0 - decay,
        )
