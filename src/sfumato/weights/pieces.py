"""An NVFP4 checkpoint: which of its tensors make up each of the network's, and reading them.

A matrix `X.weight` [N, K] is in the files as it is, or in NVFP4 under its dialect's names:

| part | ModelOpt | compressed-tensors |
| --- | --- | --- |
| codes, U8 [N, K / 2] | `X.weight` | `X.weight_packed` |
| group scales, F8_E4M3 [N, K / 16] | `X.weight_scale` | `X.weight_scale` |
| tensor scale, F32 | `X.weight_scale_2` | `X.weight_global_scale`, which divides |
| activations' scale, F32, not used here | `X.input_scale` | `X.input_global_scale` |

Experts are in the files fused, as the network has them, or one by one as
`experts.N.{gate,up,down}_proj`, each in NVFP4 or not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.config.fields import short
from sfumato.config.quantisation import Dialect, Quantisation
from sfumato.errors import CheckpointError, QuantisationError
from sfumato.quant.int8 import Int8Tensor
from sfumato.quant.int8 import check_scales as check_row_scales
from sfumato.quant.int8 import decode as decode_rows
from sfumato.quant.nvfp4 import GROUP, Nvfp4Tensor, check_scales, decode
from sfumato.weights.names import EMBEDDING, Findings, by_canonical_name, check_plain
from sfumato.weights.safetensors_reader import TensorEntry

_PARTS: dict[Dialect, tuple[str, str, str, str]] = {
    "modelopt": ("weight", "weight_scale", "weight_scale_2", "input_scale"),
    "compressed-tensors": (
        "weight_packed",
        "weight_scale",
        "weight_global_scale",
        "input_global_scale",
    ),
}
_GATE_UP, _DOWN, _WEIGHT = ".experts.gate_up_proj", ".experts.down_proj", ".weight"
_TEXT = "model.decoder."
_PROJECTION = re.compile(r"model\.decoder\.layers\.\d+\.self_attn\.[qkvo]_proj\.weight")
_CACHE_SCALE = re.compile(r"model\.decoder\.layers\.\d+\.self_attn\.([kv]_proj\.)?[kv]_scale")


@dataclass(frozen=True)
class Piece:
    """A tensor of the files by its name there, or a quantised matrix by the names of its parts.

    One in 8 bits has a scale; one in NVFP4 a tensor scale too.
    """

    weight: str
    scale: str = ""
    tensor_scale: str = ""

    @property
    def quantised(self) -> bool:
        """Whether it is in NVFP4."""
        return bool(self.tensor_scale)

    @property
    def int8(self) -> bool:
        """Whether it is in 8 bits with a scale for each row."""
        return bool(self.scale) and not self.tensor_scale


def assign_pieces(
    entries: Mapping[str, TensorEntry],
    expected: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    where: str,
    quantisation: Quantisation,
) -> dict[str, tuple[Piece, ...]]:
    """For each name of the network in `expected` (name to shape), the pieces it consists of.

    In order they are the rows of the tensor: one piece, or E of `down_proj`, or 2 E of
    `gate_up_proj` (each expert's gate, then its up). Raises CheckpointError, naming what is
    missing, unknown, misshapen, mistyped, there twice and different, or quantised against the
    configuration's word; also if nothing is quantised.
    """
    findings = Findings()
    found = by_canonical_name(entries, read, findings)
    gatherer = _Gatherer(entries, found, quantisation, findings)
    pieces = {name: gatherer.gather(name, shape) for name, shape in expected.items()}
    for name in found.keys() - gatherer.used:
        if not (quantisation.kv_cache and _CACHE_SCALE.fullmatch(name)):
            findings.extra += map(short, found[name])
    findings.extra.sort()
    findings.complain(where)
    if not any(piece.quantised for parts in pieces.values() for piece in parts):
        raise CheckpointError(
            f"{where}: config.json says NVFP4 of {quantisation.dialect}, and no tensor is in it",
            hint="is config.json another checkpoint's?",
        )
    return pieces


class _Gatherer:
    """Finds and checks the pieces of one tensor after the other, and notes which names it used."""

    def __init__(
        self,
        entries: Mapping[str, TensorEntry],
        found: Mapping[str, list[str]],
        quantisation: Quantisation,
        findings: Findings,
    ) -> None:
        self.used: set[str] = set()
        self._entries = entries
        self._found = found
        self._findings = findings
        self._dialect = quantisation.dialect
        self._keeps = quantisation.keeps()
        self._int8_embedding = quantisation.int8_embedding

    def gather(self, name: str, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        if name == EMBEDDING and self._int8_embedding:
            module = name.removesuffix(_WEIGHT)
            codes = self._part(name, "I8", shape, refuse_kept=True)
            return (Piece(codes, self._part(f"{module}.weight_scale", "F32", (shape[0], 1))),)
        if name in self._found and not self._is_codes(name):
            return (self._plain(name, shape),)
        matrices = list(matrices_of(name, shape))
        if not any(self._is_there(module) for module, _ in matrices):
            self._findings.missing.append(name)
            return ()
        return tuple(self._matrix(module, rows) for module, rows in matrices)

    def _is_codes(self, name: str) -> bool:
        """Whether the tensor is ModelOpt's codes under the weight's own name."""
        entry = self._entries[self._found[name][0]]
        return self._dialect == "modelopt" and entry.dtype == "U8" and name.endswith(_WEIGHT)

    def _is_there(self, module: str) -> bool:
        parts = (_WEIGHT[1:], *_PARTS[self._dialect])
        return any(f"{module}.{part}" in self._found for part in parts)

    def _matrix(self, module: str, shape: tuple[int, int]) -> Piece:
        weight = module + _WEIGHT
        if weight in self._found and not self._is_codes(weight):
            return self._plain(weight, shape)
        N, K = shape
        codes, scale, tensor_scale, activations = (
            f"{module}.{part}" for part in _PARTS[self._dialect]
        )
        if f"{module}.{_PARTS[self._dialect][3]}" in self._found:
            self._part(activations, "F32", ())
        return Piece(
            self._part(codes, "U8", (N, K // 2), refuse_kept=True),
            self._part(scale, "F8_E4M3", (N, K // GROUP)),
            self._part(tensor_scale, "F32", ()),
        )

    def _plain(self, name: str, shape: tuple[int, ...]) -> Piece:
        self.used.add(name)
        for source in self._found[name]:
            check_plain(self._entries[source], shape, self._findings)
        return Piece(self._found[name][0])

    def _part(
        self, name: str, dtype: str, shape: tuple[int, ...], *, refuse_kept: bool = False
    ) -> str:
        """The files' name of a part of an NVFP4 matrix, checked; a scalar may be [1] as well."""
        self.used.add(name)
        sources = self._found.get(name)
        if not sources:
            self._findings.missing.append(name)
            return name
        for source in sources:
            entry = self._entries[source]
            if entry.shape != shape and not (shape == () and entry.shape == (1,)):
                self._findings.misshapen.append(
                    f"{source} is {list(entry.shape)}, should be {list(shape)}"
                )
            if entry.dtype != dtype:
                self._findings.mistyped.append(f"{source} is {entry.dtype}, should be {dtype}")
            if refuse_kept and self._keeps(source.rpartition(".")[0]):
                self._findings.contradicted.append(source)
        return sources[0]


def matrices_of(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, int]]]:
    """The modules, with the shapes of their weights, that can make up a tensor in NVFP4."""
    if len(shape) == 3 and name.endswith(_GATE_UP):
        experts = name.removesuffix("gate_up_proj")
        for expert in range(shape[0]):
            for part in ("gate_proj", "up_proj"):
                yield f"{experts}{expert}.{part}", (shape[1] // 2, shape[2])
    elif len(shape) == 3 and name.endswith(_DOWN):
        experts = name.removesuffix("down_proj")
        for expert in range(shape[0]):
            yield f"{experts}{expert}.down_proj", (shape[1], shape[2])
    elif len(shape) == 2 and name.endswith(_WEIGHT) and shape[1] % GROUP == 0:
        yield name.removesuffix(_WEIGHT), (shape[0], shape[1])


def read_pieces(
    pieces: tuple[Piece, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    read: Callable[[str], Tensor],
    where: str,
    reciprocal: bool,
) -> Tensor:
    """The network's tensor of `shape`, in `dtype` on the CPU, from its pieces.

    What is plain and of that dtype already stays in the files' pages. Beside the result, one
    piece is held at most. `reciprocal` says that tensor scales divide. Raises CheckpointError for
    scales that cannot be.
    """
    if len(pieces) == 1 and pieces[0].int8:
        return decode_rows(read_int8(pieces[0], read, where), dtype)
    if len(pieces) == 1 and not pieces[0].quantised:
        return read(pieces[0].weight).to(dtype)
    whole = torch.empty(shape, dtype=dtype)
    rows = whole.view(len(pieces), -1, shape[-1])
    for part, piece in zip(rows, pieces, strict=True):
        if piece.quantised:
            part.copy_(_decode(piece, dtype, read, where, reciprocal))
        else:
            part.copy_(read(piece.weight))
    return whole


def read_nvfp4(piece: Piece, read: Callable[[str], Tensor], reciprocal: bool) -> Nvfp4Tensor:
    """A piece that is in NVFP4, in place."""
    tensor_scale = read(piece.tensor_scale).reshape(())
    return Nvfp4Tensor(read(piece.weight), read(piece.scale), tensor_scale, reciprocal)


def read_int8(piece: Piece, read: Callable[[str], Tensor], where: str) -> Int8Tensor:
    """A piece that is in 8 bits, in place. Raises CheckpointError for bad scales."""
    stored = Int8Tensor(read(piece.weight), read(piece.scale))
    try:
        check_row_scales(stored)
    except QuantisationError as problem:
        raise _damaged(piece, where, problem) from None
    return stored


def served_in_nvfp4(pieces: Mapping[str, tuple[Piece, ...]]) -> frozenset[str]:
    """The tensors of the network that kernels can take as they are stored.

    Projections, MLPs and experts of the text layers, if all their pieces are in NVFP4; the two
    halves of a gate, and an expert's way up and down, both or neither.
    """

    def quantised(name: str) -> bool:
        return name in pieces and all(piece.quantised for piece in pieces[name])

    groups: list[tuple[str, ...]] = []
    for name in pieces:
        module, _, part = name.rpartition(".")
        if _PROJECTION.fullmatch(name):
            groups.append((name,))
        elif name.startswith(_TEXT) and name.endswith(".gate_proj.weight"):
            stem = name.removesuffix("gate_proj.weight")
            groups.append(tuple(f"{stem}{one}_proj.weight" for one in ("gate", "up", "down")))
        elif name.startswith(_TEXT) and part == "gate_up_proj":
            groups.append((name, f"{module}.down_proj"))
    return frozenset(name for group in groups if all(map(quantised, group)) for name in group)


def kept_piece(
    piece: Piece, read: Callable[[str], Tensor], where: str, reciprocal: bool
) -> Nvfp4Tensor:
    """A piece that is in NVFP4, in the files' pages. Raises CheckpointError for bad scales."""
    stored = read_nvfp4(piece, read, reciprocal)
    try:
        check_scales(stored)
    except QuantisationError as problem:
        raise _damaged(piece, where, problem) from None
    return stored


def _damaged(piece: Piece, where: str, problem: QuantisationError) -> CheckpointError:
    return CheckpointError(
        f"{where}: {short(piece.weight)} {problem.message}",
        hint="the file is damaged: fetch it again",
    )


def _decode(
    piece: Piece, dtype: torch.dtype, read: Callable[[str], Tensor], where: str, reciprocal: bool
) -> Tensor:
    try:
        return decode(read_nvfp4(piece, read, reciprocal), dtype)
    except QuantisationError as problem:
        raise _damaged(piece, where, problem) from None
