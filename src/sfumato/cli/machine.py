"""What this machine has: processor, memory, disk, torch and its devices."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

# The instruction sets that decide how fast matrix products are, as Linux spells them.
_WANTED = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)

# Those with which bf16 products are faster than fp32 ones, by `platform.machine()`.
_BFLOAT16: dict[str, set[str]] = {
    "x86_64": {"avx512_bf16", "amx_bf16"},
    "aarch64": {"bf16"},
}


@dataclass(frozen=True)
class Machine:
    """Processor and memory; sizes in bytes."""

    system: str
    processor: str
    cores: int
    instruction_sets: tuple[str, ...]
    bfloat16_is_slow: bool
    memory: int | None
    memory_available: int | None
    disk_free: int
    disk_folder: str


def look_at_machine(cache: Path) -> Machine:
    """Ask the system; `cache` is the folder whose disk downloads go to."""
    fields = _cpu_fields()
    memory, available = _memory()
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=fields.get("model name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        instruction_sets=tuple(name for name in _WANTED if name in _flags(fields)),
        bfloat16_is_slow=lacks_bfloat16(),
        memory=memory,
        memory_available=available,
        disk_free=shutil.disk_usage(place).free,
        disk_folder=str(place),
    )


def lacks_bfloat16() -> bool:
    """Whether this processor is known to multiply bf16 by way of fp32, many times slower.

    False where the system does not say: a warning that may be wrong is none.
    """
    wanted, flags = _BFLOAT16.get(platform.machine(), set()), _flags(_cpu_fields())
    return bool(wanted and flags) and not wanted & flags


def _flags(fields: dict[str, str]) -> set[str]:
    return set((fields.get("flags") or fields.get("Features") or "").split())


def usable_cores() -> int:
    """Cores this process may run on, which a container may hold below what the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _cpu_fields() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo; nothing on other systems."""
    text = _read("/proc/cpuinfo")
    first = text.split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _memory() -> tuple[int | None, int | None]:
    """Memory in all and available, under the limit of the control group if there is one."""
    lines = (line.split() for line in _read("/proc/meminfo").splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) >= 2}
    if "MemTotal" not in sizes:
        return _memory_by_sysconf(), None
    total, available = sizes["MemTotal"], sizes.get("MemAvailable")
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        left = max(0, total - int(used)) if used.isdigit() else total
        available = left if available is None else min(available, left)
    return total, available


def _memory_by_sysconf() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None  # a system that does not say


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # not Linux, or not allowed: the field stays unknown
