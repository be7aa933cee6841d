"""What a figure is worth nothing without: model, machine, versions, date."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from sfumato.api import Model

UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Where, when and with what a report was made."""

    model: str
    checkpoint: str  # the folder, "" without one
    revision: str | None
    commit: str
    dtype: str
    kernels: str | None  # what computes; None for torch alone
    device: str
    system: str
    processor: str
    cores: int
    threads: int
    python: str
    torch: str
    sfumato: str
    date: str  # ISO 8601, UTC


def gather(model: Model, name: str, commit: str = UNKNOWN) -> Facts:
    """The facts of `model`, called `name`, on this machine now.

    `commit` is for a caller who knows which one the code is of; no version control is asked.
    """
    return Facts(
        model=name,
        checkpoint=str(model.folder) if model.folder is not None else "",
        revision=model.revision,
        commit=commit,
        dtype=str(model.network.dtype).removeprefix("torch."),
        kernels=None if model.network.kernels is None else model.network.kernels.label,
        device=_device(model.network.device),
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        sfumato=_version(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, which Linux keeps in a file and other systems tell themselves."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _device(device: torch.device) -> str:
    """The device and, of an accelerator that tells it, its name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return f"{device} {name}".rstrip()


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _version() -> str:
    try:
        return metadata.version("sfumato")
    except metadata.PackageNotFoundError:
        return UNKNOWN  # run from its source, without being installed
