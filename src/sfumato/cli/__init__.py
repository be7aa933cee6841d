"""The command line: one file a command, and the live canvas."""

from __future__ import annotations

import sys

from sfumato.cli.program import app

__all__ = ["app", "main"]


def main(arguments: list[str] | None = None) -> None:
    """Run `sfumato` with `arguments` (the process's own if None) and leave with its exit code."""
    from sfumato.cli.failures import run

    sys.exit(run(app, sys.argv[1:] if arguments is None else arguments))
