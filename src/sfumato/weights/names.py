"""The names of tensors: what files call them, what the network calls them, and what must be there.

Text weights are shared by encode and decode; files hold them once, on the decoder's side, or (as
older tools save them) once more under each name they are tied to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato.config.fields import short
from sfumato.errors import CheckpointError
from sfumato.weights.safetensors_reader import TensorEntry

LOADABLE = ("F32", "BF16", "F16")
_SHOWN = 3
EMBEDDING = "model.decoder.embed_tokens.weight"
_ENCODER_TEXT = "model.encoder.language_model."
_OWN_SCALAR = re.compile(r"layers\.\d+\.layer_scalar")


def canonical(name: str) -> str:
    """The network's name of the tensor that a file calls `name`.

    `lm_head.weight` is the embedding; the encoder's text weights are the decoder's, except its
    layer scalars; a checkpoint of the bare model has no `model.` in front.
    """
    if name == "lm_head.weight":
        return EMBEDDING
    if name.startswith(("decoder.", "encoder.")):
        name = f"model.{name}"
    if name.startswith(_ENCODER_TEXT):
        rest = name.removeprefix(_ENCODER_TEXT)
        if not _OWN_SCALAR.fullmatch(rest):
            return f"model.decoder.{rest}"
    return name


@dataclass
class Findings:
    """What is wrong, by kind, each kind in the words of the report."""

    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    mistyped: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    contradicted: list[str] = field(default_factory=list)

    def report(self) -> str:
        """The first few of each kind in one line, "" if nothing is wrong."""
        kinds = {
            "missing": self.missing,
            "not part of the model": self.extra,
            "of the wrong shape": self.misshapen,
            "of an unsupported dtype": self.mistyped,
            "there twice and different": self.duplicated,
            "in NVFP4, though the configuration keeps them": self.contradicted,
        }
        return "; ".join(_count(words, found) for words, found in kinds.items() if found)

    def complain(self, where: str) -> None:
        """Raise the CheckpointError that says all of it, if anything is wrong."""
        if problems := self.report():
            raise CheckpointError(
                f"{where}: the weights do not fit config.json: {problems}", hint=_hint(self)
            )


def assign_names(
    entries: Mapping[str, TensorEntry],
    expected: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    where: str,
) -> dict[str, str]:
    """For each name of the network in `expected` (name to shape), the name in the files.

    `read` gets a tensor by its file's name, and is used only to compare tied copies. One
    CheckpointError, naming the first few of each kind and counting the rest, if any tensor is
    missing, unknown, misshapen, of a dtype other than F32, BF16 and F16, or there under two tied
    names with different content.
    """
    findings = Findings()
    found = by_canonical_name(entries, read, findings)
    findings.extra = [short(one) for name in found if name not in expected for one in found[name]]
    for target, shape in expected.items():
        for name in found.get(target, ()):
            check_plain(entries[name], shape, findings)
    findings.missing = [name for name in expected if name not in found]
    findings.complain(where)
    return {target: names[0] for target, names in found.items()}


def by_canonical_name(
    entries: Mapping[str, TensorEntry], read: Callable[[str], Tensor], findings: Findings
) -> dict[str, list[str]]:
    """The files' names of each canonical name, the network's own first; copies must be equal."""
    found: dict[str, list[str]] = {}
    for name in entries:
        found.setdefault(canonical(name), []).append(name)
    for target, names in found.items():
        if target in names:  # the copy under the network's own name comes first
            names.sort()
            names.insert(0, names.pop(names.index(target)))
        findings.duplicated += [
            f"{names[0]} and {other}"
            for other in names[1:]
            if not _same(entries[names[0]], entries[other], read)
        ]
    return found


def check_plain(entry: TensorEntry, shape: tuple[int, ...], findings: Findings) -> None:
    """Note what is wrong with a tensor that is to be read as it is."""
    if entry.shape != shape:
        findings.misshapen.append(f"{entry.name} is {list(entry.shape)}, should be {list(shape)}")
    if entry.dtype not in LOADABLE:
        findings.mistyped.append(f"{entry.name} is {entry.dtype}")


def _same(first: TensorEntry, second: TensorEntry, read: Callable[[str], Tensor]) -> bool:
    """Whether two copies of a tied tensor are equal byte for byte (so that NaN equals itself)."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    if first.start == first.stop:
        return True
    ours, theirs = (read(entry.name).reshape(-1) for entry in (first, second))
    return bool(torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)))


def _count(words: str, found: Iterable[str]) -> str:
    listed = list(found)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"{len(listed)} {words} ({', '.join(listed[:_SHOWN])}{more})"


def _hint(findings: Findings) -> str:
    if findings.mistyped:
        return "F32, BF16 and F16 tensors are read, and NVFP4 where the configuration says so"
    if findings.missing and not findings.extra:
        return "is a shard missing, or config.json another model's?"
    return ""
