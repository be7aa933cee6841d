"""Print a command of the README by its mark, so that CI runs what people are told to run.

Usage: python scripts/readme_command.py main|tests
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def readme_command(name: str, text: str) -> str:
    """The one-line shell command after `<!-- command: NAME -->` in `text`.

    Raises LookupError unless there is exactly one.
    """
    pattern = rf"<!-- command: {re.escape(name)} -->\n```sh\n(?P<command>[^\n]+)\n```"
    found = re.findall(pattern, text)
    if len(found) != 1:
        raise LookupError(f"README.md has {len(found)} commands marked {name!r}, not one")
    return str(found[0])


def main(arguments: list[str]) -> int:
    """Print one marked command; 2 without exactly one argument."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    print(readme_command(arguments[0], README.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
