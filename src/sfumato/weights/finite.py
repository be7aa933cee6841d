"""Weights must be numbers: one NaN or infinity makes every answer noise, far from where it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.errors import CheckpointError

# Bounds of clipped projections, which are infinite where nothing is clipped.
_BOUNDS = (".input_min", ".input_max", ".output_min", ".output_max")


def check_finite(name: str, tensor: Tensor, where: str, stored: Tensor | None = None) -> None:
    """Raise CheckpointError if a weight is an infinity or a NaN, or became one in `stored`.

    `stored` is the tensor in the dtype it is written in. One pass over it, without temporaries.
    """
    written = tensor if stored is None else stored
    if _is_fine(name, written):
        return
    if written is not tensor and _is_fine(name, tensor):
        kind = str(written.dtype).removeprefix("torch.")
        low, high = (float(one) for one in torch.aminmax(tensor))
        raise CheckpointError(
            f"{where}: {name} holds {low if -low > high else high:g}, more than {kind} can hold",
            hint="write it with --dtype bfloat16 or float32",
        )
    raise CheckpointError(
        f"{where}: {name} holds an infinity or a NaN",
        hint="the model cannot answer with it: fetch it again, or go back to an earlier step of "
        "its training",
    )


def _is_fine(name: str, tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    low, high = (float(one) for one in torch.aminmax(tensor))  # NaN if any value is
    if name.endswith(_BOUNDS):
        return not math.isnan(low)
    return math.isfinite(low) and math.isfinite(high)
