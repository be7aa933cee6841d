"""The compiled kernels (csrc/): whether they are here, and which instruction set serves.

An operation of `sfumato.ops` is a function of tensors and of `Kernels`; with None for the latter it
is the plain reference in torch. What a kernel cannot do it declines, with a reason.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import InputError, UsageError
from sfumato.quant.narrow import GROUP

REFERENCE = "reference"
AUTO = "auto"
INT8, EXACT = "int8", "exact"
_MOST_THREADS = 4096


def give(tensor: Tensor) -> Any:
    """A tensor as the compiled module takes it: a capsule, a fifth the price of `__dlpack__`.

    Raises InputError where gradients are recorded: kernels have none, and would cut them silently.
    """
    if tensor.requires_grad and torch.is_grad_enabled():
        raise InputError(
            "kernels compute no gradients",
            hint="use torch.inference_mode(), or load the model with kernels='reference'",
        )
    return torch.utils.dlpack.to_dlpack(tensor)  # type: ignore[attr-defined] # public all the same


@dataclass(frozen=True)
class Kernels:
    """One instruction set's kernels; `name` as `instruction_sets` lists it.

    With `narrow` they round activations to 8 bits (`sfumato.quant.narrow`) for weights whose layout
    `narrows`: faster, and no longer exact.
    """

    name: str
    narrow: bool = False

    @property
    def label(self) -> str:
        """What reports call them."""
        return f"{self.name}, activations in 8 bits" if self.narrow else self.name

    def narrows(self, layout: str, k: int) -> bool:
        """Whether activations are rounded to 8 bits for weights [.., k] of this layout."""
        if not self.narrow or k % GROUP:
            return False
        return layout == "nvfp4_rows" or (layout == "i8_rows" and self.multiplies_bytes)

    @property
    def multiplies_bytes(self) -> bool:
        """Whether they have products of bytes that serve weights in 8 bits as well as NVFP4."""
        return bool(self.native.multiplies_bytes(self.name))

    @property
    def matrix_registers(self) -> bool:
        """Whether registers of matrices multiply bf16: neither bytes nor panels are faster."""
        return bool(self.native.matrix_registers(self.name))

    @property
    def native(self) -> ModuleType:
        """The compiled module."""
        module, reason = _extension()
        assert module is not None, reason
        return module

    @property
    def threads(self) -> int:
        """Threads that a kernel works with: torch's, whose pool the kernels share.

        As with torch, a process forked after both have worked must not use more than one.
        """
        return min(torch.get_num_threads(), _MOST_THREADS)


@functools.cache
def _extension() -> tuple[ModuleType | None, str]:
    """The compiled module, or None and the reason why there is none.

    torch is imported before it, so that both use the one OpenMP runtime that torch brings.
    """
    try:
        return importlib.import_module("sfumato._kernels"), ""
    except ModuleNotFoundError:
        return None, "sfumato was installed without them: no C++ compiler, or one that failed"
    except ImportError as problem:
        text = (str(problem).splitlines() or [""])[0]
        return None, f"they do not load: {text[:200]}"


def instruction_sets() -> list[tuple[str, bool]]:
    """Names of the instruction sets compiled for, best first, and whether this processor has each.

    Empty without the compiled module.
    """
    module, _ = _extension()
    return [] if module is None else list(module.instruction_sets())


def reason_for_none() -> str | None:
    """Why there are no kernels here, or None if there are."""
    module, reason = _extension()
    return None if module is not None else reason


def check_activations(asked: str | None) -> bool:
    """Whether activations are to be in 8 bits: "int8", not so "exact" or None.

    Raises UsageError for another wish.
    """
    if asked not in (None, EXACT, INT8):
        raise UsageError(
            f"activations cannot be {asked[:40]!r}", hint=f"they are {INT8} or {EXACT}"
        )
    return asked == INT8


def choose(wanted: str = AUTO, *, narrow: bool = False) -> Kernels | None:
    """The kernels for a wish: "auto" the best that run here, "reference" none, or a set's name.

    None stands for the references in torch. `narrow` as `Kernels` has it. Raises UsageError for a
    set that does not exist or cannot run here.
    """
    if wanted == REFERENCE:
        return None
    sets = instruction_sets()
    usable = [name for name, runs in sets if runs]
    if wanted == AUTO:
        return Kernels(usable[0], narrow) if usable else None
    if wanted in usable:
        return Kernels(wanted, narrow)
    known = ", ".join((AUTO, REFERENCE, *usable))
    if wanted in [name for name, _ in sets]:
        raise UsageError(
            f"this processor cannot run the kernels for {wanted}", hint=f"it can run {known}"
        )
    missing = reason_for_none()
    raise UsageError(
        f"there are no kernels called {wanted[:40]!r}" + (f": {missing}" if missing else ""),
        hint=f"choose one of {known}",
    )
