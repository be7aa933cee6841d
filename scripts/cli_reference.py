"""Write docs/cli.md from the commands themselves, or check that it is what they say.

Usage: python scripts/cli_reference.py [--check]
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """# Commands

What `sfumato --help` and `sfumato COMMAND --help` say, on one page. Written by
`python scripts/cli_reference.py`; edit the commands, not this file.
"""


def reference(app: Any) -> str:
    """The whole page for a typer application."""
    root = get_command(app)
    return "\n".join([HEAD, *_sections(root, "sfumato", None)])


def _sections(command: Any, name: str, parent: Any) -> Iterator[str]:
    # A width of its own, so that the page does not depend on the terminal it is written from.
    context = command.context_class(command, info_name=name, parent=parent, terminal_width=100)
    usage = context.get_usage().removeprefix("Usage: ").strip()
    text = inspect.cleandoc(command.help or "").replace("\f", "")
    parts = [f"## {context.command_path}", f"```text\n{usage}\n```", text, _table(context)]
    yield "\n\n".join(part for part in parts if part) + "\n"
    for child in getattr(command, "commands", {}).values():
        if not child.hidden:
            yield from _sections(child, child.name, context)


def _table(context: Any) -> str:
    records = [parameter.get_help_record(context) for parameter in context.command.params]
    rows = [
        f"| `{_cell(option)}` | {_cell(meaning)} |" for option, meaning in filter(None, records)
    ]
    return "\n".join(["| argument or option | meaning |", "| --- | --- |", *rows]) if rows else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the page, or with `--check` compare it; 1 where they differ, 2 for anything else."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    from sfumato.cli import app

    page = reference(app)
    if not arguments:
        REFERENCE.write_text(page, encoding="utf-8")
        return 0
    if REFERENCE.exists() and REFERENCE.read_text(encoding="utf-8") == page:
        return 0
    print(f"{REFERENCE} is out of date: run python scripts/cli_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
