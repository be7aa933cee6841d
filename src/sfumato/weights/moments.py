"""Second moments of what a network's matrices are multiplied with, in files.

Of the released shape they are 14 GB: files that are mapped give their pages back where memory is
short. A finished set says so in a file of its own, so that a killed run need not begin anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO, TypeGuard

import torch
from torch import Tensor

from sfumato.config.json_file import read_json
from sfumato.config.model import ModelConfig
from sfumato.errors import CheckpointError, ConfigError
from sfumato.quant.compensated import Feedback, feedback_of
from sfumato.weights.disk import settle_folder, write_json

_DONE = "rows.json"
_OWN_BYTES = 64 << 20  # a layer's experts have moments of their own inputs if these are no more
_KEPT = 2  # factors of inverse moments in memory
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj")


def place_of(module: str) -> tuple[str, int]:
    """Under which name and number the inputs of a matrix are noted, by the matrix's own name.

    q, k and v meet the same inputs, and so do gate and up: they are noted as q's and as gate's.
    """
    if found := _EXPERT.fullmatch(module):
        return f"{found[1]}.{'down' if found[3] == 'down' else 'gate_up'}_proj", int(found[2])
    stem, _, own = module.rpartition(".")
    first = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    return f"{stem}.{first.get(own, own)}", 0


def _other_of_experts(name: str) -> str:
    """`experts` for `experts.gate_up_proj`, and the other way round."""
    suffix = ".gate_up_proj"
    return name.removesuffix(suffix) if name.endswith(suffix) else name + suffix


def _are_counts(rows: object) -> TypeGuard[list[int]]:
    return isinstance(rows, list) and all(type(one) is int and one >= 0 for one in rows)


class Moments:
    """Sums of x x^T over the inputs x of each matrix, fp32, and how many inputs there were.

    Experts of a large model share the moments of all rows of their layer: 128 of 32 MB each, for
    30 layers, would be 122 GB, and most experts would see fewer rows than these have columns. So
    either `experts` or `experts.gate_up_proj` is kept of what is told of a layer.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self.folder = folder
        self._shapes = _shapes(config)
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, list[int]] = {}
        self._feedback: dict[tuple[str, int], Feedback | None] = {}

    @staticmethod
    def finished_in(folder: Path) -> bool:
        """Whether an earlier run noted everything there."""
        return (folder / _DONE).is_file()

    @property
    def nbytes(self) -> int:
        """What the files take, whether they are there or not."""
        return sum(4 * count * size * size for count, size in self._shapes.values())

    def begin(self) -> None:
        """Make empty files. Raises OSError where they do not fit: a mapping could not say it."""
        self.folder.mkdir(exist_ok=True)
        for name, (count, size) in self._shapes.items():
            with self._path(name).open("wb") as file:
                _reserve(file, 4 * count * size * size)
            self._rows[name] = [0] * count

    def resume(self) -> None:
        """Take what an earlier run noted. Raises CheckpointError if it is not of this network."""
        try:
            found = read_json(self.folder / _DONE)
        except ConfigError:
            found = {}
        for name, (count, size) in self._shapes.items():
            path, rows = self._path(name), found.get(name)
            whole = path.is_file() and path.stat().st_size == 4 * count * size * size
            if not whole or not _are_counts(rows) or len(rows) != count:
                raise CheckpointError(
                    f"{self.folder} does not hold what calibration noted",
                    hint="remove the folder around it to begin anew",
                )
            self._rows[name] = rows

    def finish(self) -> None:
        """See everything onto the disk, then say that it is whole."""
        self._sums.clear()
        for name in self._shapes:
            with self._path(name).open("rb") as file:
                os.fsync(file.fileno())
        begun = self.folder / f"{_DONE}.part"
        write_json(begun, self._rows)
        begun.rename(self.folder / _DONE)
        settle_folder(self.folder)

    def note(self, name: str, index: int, rows: Tensor) -> None:
        """Add `rows` [R, K] that the matrix `name`, number `index`, is multiplied with."""
        if name not in self._shapes and _other_of_experts(name) in self._shapes:
            return
        wide = rows.float()
        self._sum(name)[index].addmm_(wide.t(), wide)
        self._rows[name][index] += len(rows)

    def moments(self, module: str) -> tuple[Tensor, int]:
        """The sum [K, K] for a matrix, and over how many inputs it is."""
        name, own = self.key(module)
        return self._sum(name)[own], self._rows[name][own]

    def key(self, module: str) -> tuple[str, int]:
        """What matrices with the same inputs have in common."""
        name, index = place_of(module)
        return (name, index) if name in self._shapes else (_other_of_experts(name), 0)

    def feedback(self, module: str) -> Feedback | None:
        """How the errors of a matrix are passed on; None if it met no inputs.

        The last two that were asked for are kept for matrices with the same inputs: in the order of
        their names o lies between k and q. Raises QuantisationError for infinite ones.
        """
        key = self.key(module)
        if key in self._feedback:
            self._feedback[key] = self._feedback.pop(key)  # the last one now
            return self._feedback[key]
        while len(self._feedback) >= _KEPT:
            del self._feedback[next(iter(self._feedback))]
        self._feedback[key] = feedback_of(*self.moments(module))
        return self._feedback[key]

    def _sum(self, name: str) -> Tensor:
        if name not in self._sums:
            count, size = self._shapes[name]
            path = str(self._path(name))
            flat = torch.from_file(path, shared=True, size=count * size * size)
            self._sums[name] = flat.view(count, size, size)
        return self._sums[name]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.f32"


def _shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """How many sums each name has, and how many columns."""
    text = config.text
    hidden, inner = text.hidden_size, text.intermediate_size
    experts, narrow = text.num_experts, text.moe_intermediate_size
    apart = 4 * experts * hidden * hidden <= _OWN_BYTES
    shapes: dict[str, tuple[int, int]] = {}
    for index, layer in enumerate(text.layers):
        stem = f"model.decoder.layers.{index}"
        shapes[f"{stem}.self_attn.q_proj"] = (1, hidden)
        shapes[f"{stem}.self_attn.o_proj"] = (1, text.num_attention_heads * layer.head_dim)
        shapes[f"{stem}.mlp.gate_proj"] = (1, hidden)
        shapes[f"{stem}.mlp.down_proj"] = (1, inner)
        if apart:
            shapes[f"{stem}.experts.gate_up_proj"] = (experts, hidden)
        else:
            shapes[f"{stem}.experts"] = (1, hidden)
        shapes[f"{stem}.experts.down_proj"] = (experts, narrow)
    shapes["model.decoder.self_conditioning.gate_proj"] = (1, hidden)
    shapes["model.decoder.self_conditioning.down_proj"] = (1, inner)
    return shapes


def _reserve(file: BinaryIO, size: int) -> None:
    """Zeros on the disk, not promised ones: a full disk is an error now and not a crash later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = bytes(1 << 20)
    file.writelines(zeros[: size - start] for start in range(0, size, len(zeros)))
