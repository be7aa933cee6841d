"""`sfumato doctor`: the machine, what serves each operation, and what fits."""

from __future__ import annotations

import dataclasses
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato import __version__
from sfumato.cli.checkpoint import SMALL, small_folder
from sfumato.cli.fit import Fit, judge
from sfumato.cli.interrupts import leaving_at_once
from sfumato.cli.machine import Machine, look_at_machine
from sfumato.cli.terminal import human_bytes, print_json, print_pairs, print_table
from sfumato.settings import Settings

if TYPE_CHECKING:
    from types import ModuleType

    from sfumato.ops.kernels import Kernels

# Shown as the released model's sizes: its BF16 files, and a BF16 embedding with NVFP4 elsewhere.
RELEASED = "google/diffusiongemma-26B-A4B-it"
RELEASED_BF16 = 51_647_701_024
RELEASED_NVFP4 = 16_426_983_128
_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "jinja2", "pillow")
_PRODUCTS = ("projections", "experts", "head", "soft embeddings")
_BY_KERNELS = (*_PRODUCTS, "attention", "norms and router", "sampling", "accepting")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at this machine and say which models fit.

    Processor, memory, disk and torch; what serves each operation and why; what fits.
    """
    with leaving_at_once():
        import torch
        from huggingface_hub import constants

    settings = Settings.from_environment()
    kernels, why_none = _kernels(settings)
    machine = look_at_machine(Path(constants.HF_HUB_CACHE).expanduser())
    report = {
        "sfumato": __version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "machine": dataclasses.asdict(machine),
        "torch": _torch_report(torch, settings),
        "hub": {"cache": str(constants.HF_HUB_CACHE), "offline": settings.offline},
        "kernels": _kernels_report(kernels),
        "operations": _operations(torch, kernels, why_none, settings.kernels),
        "fits": [
            dataclasses.asdict(fit) for fit in what_fits(machine, kernels=kernels is not None)
        ],
    }
    if as_json:
        print_json(report)
    else:
        _print(report, machine)


def _kernels_report(chosen: Kernels | None) -> dict[str, Any]:
    from sfumato.ops.kernels import instruction_sets, reason_for_none

    return {
        "chosen": None if chosen is None else chosen.name,
        "compiled": [{"name": name, "usable": usable} for name, usable in instruction_sets()],
        "missing": reason_for_none(),
    }


def what_fits(machine: Machine, *, kernels: bool) -> list[Fit]:
    """The small model, and the released one in the forms people ask for.

    Without `kernels` NVFP4 is decoded, and takes what bfloat16 takes.
    """
    small = sum(path.stat().st_size for path in small_folder().glob("*.safetensors"))
    if kernels:
        nvfp4 = judge(RELEASED, "NVFP4", RELEASED_NVFP4, machine.memory)
    else:
        nvfp4 = judge(RELEASED, "NVFP4", RELEASED_BF16, machine.memory)
        decoded = f"its {human_bytes(RELEASED_NVFP4)} are decoded to bfloat16 as they load"
        nvfp4 = dataclasses.replace(nvfp4, reason=f"{nvfp4.reason}; {decoded}")
    return [
        judge(SMALL, "bfloat16", small, machine.memory),
        judge(RELEASED, "bfloat16", RELEASED_BF16, machine.memory),
        nvfp4,
    ]


def _torch_report(torch: ModuleType, settings: Settings) -> dict[str, Any]:
    devices = ["cpu"]
    devices += [
        f"cuda:{index} {torch.cuda.get_device_name(index)}"
        for index in range(torch.cuda.device_count())
    ]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return {
        "threads": settings.threads or torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": bool(torch.backends.mkldnn.is_available()),
        "onednn_bfloat16": onednn_bfloat16(torch),
        "devices": devices,
    }


def onednn_bfloat16(torch: ModuleType) -> bool:
    """Whether oneDNN multiplies bf16 matrices with this processor's own instructions."""
    if not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _operations(
    torch: ModuleType, kernels: Kernels | None, why: str, asked: str
) -> list[dict[str, str]]:
    """What serves each operation, and why that.

    `why` there are no `kernels`, if so; `asked` is the setting that chose them.
    """
    if kernels is not None:
        ours = (f"kernels, {kernels.name}", "the best this processor runs, unless told otherwise")
        rows = [(name, *ours) for name in _BY_KERNELS]
        if asked == "auto":
            rows.append(("all of float32 by name", "torch", "its bits are the reference's"))
        rows.append(("activations in 8 bits", *_narrow(kernels)))
    else:
        rows = [(name, *_products(torch)) for name in _PRODUCTS]
        rows += [(name, "torch", why) for name in _BY_KERNELS if name not in _PRODUCTS]
        rows.append(("activations in 8 bits", "none", why))
    rows.append(("vision tower", "torch", "no kernel is written for it"))
    return [{"operation": name, "kernel": kernel, "reason": why} for name, kernel, why in rows]


def _narrow(kernels: Kernels) -> tuple[str, str]:
    """What rounds activations to 8 bits, and for which weights."""
    both = kernels.multiplies_bytes
    kinds = "NVFP4 and 8 bits" if both else "NVFP4: weights in 8 bits need AVX-512 VNNI"
    asked = "asked for" if kernels.narrow else "on request: --activations int8"
    slower = "; slower here than bf16, which is exact" if kernels.matrix_registers else ""
    return f"kernels, {kernels.name}", f"{asked}; for weights in {kinds}{slower}"


def _products(torch: ModuleType) -> tuple[str, str]:
    if onednn_bfloat16(torch):
        return "torch, oneDNN", "bf16 and fp32 through oneDNN with this processor's bf16"
    if torch.backends.mkldnn.is_available():
        return "torch, oneDNN", "this processor has no bf16 instructions: fp32 is faster"
    return "torch", "this torch is built without oneDNN"


def _kernels(settings: Settings) -> tuple[Kernels | None, str]:
    """The kernels in use, and else why there are none."""
    from sfumato.ops.kernels import REFERENCE, check_activations, choose, reason_for_none

    chosen = choose(settings.kernels, narrow=check_activations(settings.activations))
    if settings.kernels == REFERENCE:
        return chosen, "SFUMATO_KERNELS asks for the reference"
    return chosen, f"no kernels: {reason_for_none() or 'none for this processor'}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _print(report: dict[str, Any], machine: Machine) -> None:
    torch, hub = report["torch"], report["hub"]
    available = machine.memory_available
    free = f", {human_bytes(available)} available" if available is not None else ""
    memory = f"{human_bytes(machine.memory)}{free}" if machine.memory else "unknown"
    print_pairs(
        [
            ("sfumato", report["sfumato"]),
            ("system", machine.system),
            ("processor", machine.processor),
            ("cores", f"{machine.cores}, torch uses {torch['threads']}"),
            ("instruction sets", " ".join(machine.instruction_sets) or "none of note"),
            ("memory", memory),
            ("disk", f"{human_bytes(machine.disk_free)} free in {machine.disk_folder}"),
            ("devices", ", ".join(torch["devices"])),
            ("hub cache", hub["cache"] + (", offline" if hub["offline"] else "")),
            *((name, version or "not installed") for name, version in report["packages"].items()),
        ]
    )
    print()
    rows = [(one["operation"], one["kernel"], one["reason"]) for one in report["operations"]]
    print_table(("OPERATION", "SERVED BY", "BECAUSE"), rows)
    if machine.bfloat16_is_slow and report["kernels"]["chosen"] is None:
        print("bfloat16 is slow here: run BF16 checkpoints with --dtype float32 where that fits")
    print()
    words = {True: "yes", False: "no", None: "unknown"}
    fits = [(f["model"], f["format"], words[f["fits"]], f["reason"]) for f in report["fits"]]
    print_table(("MODEL", "FORMAT", "FITS", ""), fits)
