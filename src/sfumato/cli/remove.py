"""`sfumato rm`: delete a hub checkpoint from the cache."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sfumato.cli.checkpoint import SMALL
from sfumato.cli.terminal import human_bytes, note
from sfumato.errors import HubError, UsageError


def remove(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="As `sfumato list` names it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a hub checkpoint from the cache.

    All its revisions go.
    """
    from sfumato.weights import hub

    if not repo.strip():
        raise UsageError("the repository's name is empty")
    if repo == SMALL:
        raise UsageError("the small model is part of the package and stays")
    known = {model.repo: model for model in hub.cached_models()}
    if repo not in known:
        raise HubError(f"{repo} is not in the cache", hint="`sfumato list` shows what is")
    if not yes:
        _ask(repo, known[repo].size)
    freed = hub.remove(repo)
    note(f"removed {repo}: {human_bytes(freed)} freed")


def _ask(repo: str, size: int) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"rm {repo} needs --yes where nobody can be asked")
    if not typer.confirm(f"Delete {repo} ({human_bytes(size)}) from the cache?", err=True):
        raise typer.Abort
