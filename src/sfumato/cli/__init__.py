"""The command line: one file a command, and the live canvas."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from sfumato.cli.interrupts import INTERRUPTED, leave_at_once, leaving_at_once

if TYPE_CHECKING:
    from sfumato.cli.program import app

__all__ = ["app", "main"]


def __getattr__(name: str) -> Any:
    """`app`, loaded when it is first asked for, so that `main` is there before Ctrl-C can come."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sfumato.cli.program import app

    return app


def main(arguments: list[str] | None = None) -> None:
    """Run `sfumato` with `arguments` (the process's own if None) and leave with its exit code."""
    with leaving_at_once():
        from sfumato.cli.failures import run
        from sfumato.cli.program import app
        from sfumato.settings import prepare_for_torch

    prepare_for_torch()
    try:
        code = run(app, sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # a second one, while the first was told
        code = INTERRUPTED
    leave_at_once()
    sys.exit(code)
