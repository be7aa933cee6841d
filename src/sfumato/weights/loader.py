"""A checkpoint folder to a network: built without memory, checked, then given the files' pages."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sfumato.config.model import ModelConfig
from sfumato.config.parse import load_config
from sfumato.config.quantisation import Quantisation, load_quantisation
from sfumato.errors import CheckpointError, InputError
from sfumato.model.diffusion_gemma import DiffusionGemma
from sfumato.weights.files import WeightFiles
from sfumato.weights.heap import LARGE, give_back_freed
from sfumato.weights.names import EMBEDDING, assign_names
from sfumato.weights.pieces import (
    Piece,
    assign_pieces,
    kept_piece,
    read_int8,
    read_pieces,
    served_in_nvfp4,
)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_network(
    folder: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    *,
    keep_quantised: bool = False,
) -> tuple[DiffusionGemma, ModelConfig]:
    """The network in `folder`, in evaluation mode, and its configuration.

    `dtype` is float32, bfloat16 or float16, by default the one config.json names. Tensors already
    of that dtype stay in the files' pages on the CPU; others are converted, and NVFP4 decoded,
    one at a time, so the peak is the size of the result. With `keep_quantised`, for a network that
    will be given kernels, matrices of the text layers that are wholly in NVFP4 and an embedding in
    8 bits are not decoded: they stay in the files' pages, in `network.quantised` and
    `network.int8_table`, and their parameters on the meta device.

    For files of 1 GB and more, glibc is told to give freed memory back (see `heap`).

    Raises ConfigError, CheckpointError, or InputError for a dtype or device that cannot be.
    """
    with _collector_off():
        return _load(folder, dtype, device, keep_quantised=keep_quantised)


def _load(
    folder: str | Path,
    dtype: torch.dtype | str | None,
    device: torch.device | str,
    *,
    keep_quantised: bool,
) -> tuple[DiffusionGemma, ModelConfig]:
    config = load_config(folder)
    wanted = _dtype(dtype, config)
    target = _device(device)
    files = WeightFiles(folder)
    if sum(entry.stop - entry.start for entry in files.entries.values()) >= LARGE:
        give_back_freed()
    network = build_on_meta(config)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    quantisation = load_quantisation(folder)
    pieces = find_pieces(files, expected, quantisation)
    divides = quantisation is not None and quantisation.dialect == "compressed-tensors"
    tensors: dict[str, Tensor] = {}
    kept = served_in_nvfp4(pieces) if keep_quantised else frozenset()
    table = pieces[EMBEDDING][0] if keep_quantised and pieces[EMBEDDING][0].int8 else None
    try:
        for name, shape in expected.items():
            if name in kept or (name == EMBEDDING and table is not None):
                tensors[name] = torch.empty(shape, dtype=wanted, device="meta")
                continue
            tensor = read_pieces(
                pieces[name], shape, wanted, files.tensor, str(folder), reciprocal=divides
            )
            tensors[name] = tensor.to(target)
    except (MemoryError, RuntimeError) as problem:  # torch says RuntimeError when memory is out
        reason = (str(problem).splitlines() or ["out of memory"])[0][:200]
        name = next(name for name, known in DTYPES.items() if known == wanted)
        raise CheckpointError(
            f"{folder}: cannot be held as {name} on {target}: {reason}",
            hint="`sfumato doctor` says what fits this machine",
        ) from None
    network.load_state_dict(tensors, strict=True, assign=True)
    network.quantised = {
        name: tuple(kept_piece(piece, files.tensor, str(folder), divides) for piece in pieces[name])
        for name in kept
    }
    if table is not None:
        network.int8_table = read_int8(table, files.tensor, str(folder))
    return network.eval(), config


@contextmanager
def _collector_off() -> Iterator[None]:
    """Python's search for cycles stopped: all that is made stays, and there is a lot of it.

    Of a released model in NVFP4, 35,000 tensors are looked at; the search takes a third of that.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def find_pieces(
    files: WeightFiles, expected: Mapping[str, tuple[int, ...]], quantisation: Quantisation | None
) -> dict[str, tuple[Piece, ...]]:
    """What in `files` makes up each tensor of the network. Raises CheckpointError."""
    where = str(files.folder)
    if quantisation is not None:
        return assign_pieces(files.entries, expected, files.tensor, where, quantisation)
    names = assign_names(files.entries, expected, files.tensor, where)
    return {target: (Piece(source),) for target, source in names.items()}


def build_on_meta(config: ModelConfig) -> DiffusionGemma:
    """The network's shapes without its memory."""
    with torch.device("meta"), _NoInitialisation():
        return DiffusionGemma(config)


class _NoInitialisation(TorchFunctionMode):
    """Leaves out `torch.nn.init`: on the meta device it draws nothing, and costs a second.

    Its functions there import torch's compiler to find that out.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if getattr(func, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


def _dtype(dtype: torch.dtype | str | None, config: ModelConfig) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    name = config.dtype if dtype is None else dtype
    if not isinstance(name, str) or name not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {str(name)!r}")
    return DTYPES[name]


def _device(device: torch.device | str) -> torch.device:
    """The device, tried out: a machine without it says so only when it is used."""
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
        if target.type == "meta":
            raise RuntimeError("it holds shapes and no numbers")
    except (RuntimeError, AssertionError) as problem:
        # Of a backend that is not built in, torch lists every operator it has.
        reason = str(problem).splitlines()[0].split(". ")[0][:160]
        raise InputError(f"device {str(device)!r} cannot be used: {reason}") from None
    return target
