"""Check a built wheel: its size, that the small model is inside, and that nothing else strays in.

Usage: python scripts/check_wheel.py [--no-kernels] dist/sfumato-VERSION-TAGS.whl
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

LIMIT = 30_000_000
SMALL_MODEL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
    "README.md",
)


def faults(size: int, names: list[str], kernels: int = 1) -> list[str]:
    """What is wrong with a wheel of `size` bytes that holds files of these names.

    It should hold `kernels` compiled modules: one, or none where no compiler was.
    """
    found = [f"the wheel has {size / 1e6:.1f} MB, more than 30"] if size > LIMIT else []
    expected = {f"sfumato/small/{name}" for name in SMALL_MODEL}
    found += [f"the wheel lacks {name}" for name in sorted(expected - set(names))]
    compiled = [name for name in names if name.startswith("sfumato/_kernels")]
    if len(compiled) != kernels:
        found.append(f"the wheel has {len(compiled)} compiled modules, not {kernels}")
    for name in names:
        top = name.split("/")[0]
        known = name.startswith("sfumato/") or top.endswith(".dist-info")
        if not known or "__pycache__" in name:
            found.append(f"the wheel has no business with {name}")
    return found


def main(arguments: list[str]) -> int:
    """Check one wheel; 1 if something is wrong with it, 2 without exactly one to check."""
    kernels = 0 if arguments[:1] == ["--no-kernels"] else 1
    wheels = arguments[1 - kernels :]
    if len(wheels) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    wheel = Path(wheels[0])
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    size = wheel.stat().st_size
    found = faults(size, names, kernels)
    print("\n".join(found) or f"{wheel.name}: {size / 1e6:.1f} MB, {len(names)} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
