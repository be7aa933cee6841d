"""`sfumato pull`: fetch a hub checkpoint, after a look at memory and disk."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sfumato.cli.checkpoint import SMALL
from sfumato.cli.fit import Fit, judge
from sfumato.cli.machine import look_at_machine
from sfumato.cli.terminal import note, say
from sfumato.config.checkpoint_file import expanded
from sfumato.errors import HubError, UsageError
from sfumato.settings import Settings


def pull(
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="As google/diffusiongemma-26B-A4B-it.")
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="A branch, tag or commit.")
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Fetch it even if it will not fit in memory.")
    ] = False,
) -> None:
    """Fetch a hub checkpoint, if it fits this machine.

    It goes into the standard cache. Its configuration comes first, and memory and disk are held
    against it before the weights are touched. Run again, it fetches what is new. Prints the
    checkpoint's folder.
    """
    if not repo.strip():
        raise UsageError("the repository's name is empty")
    if repo == SMALL:
        raise UsageError("the small model is in the package already")
    if expanded(repo).is_dir():
        raise UsageError(f"{repo} is a folder on this machine", hint="there is nothing to fetch")
    from sfumato.weights import hub

    hub.check_name(repo, revision)  # a name that cannot be is no matter of the network
    if Settings.from_environment().offline:
        raise HubError(f"{repo}: HF_HUB_OFFLINE forbids asking the hub", hint="unset it")
    fit = memory_fit(repo, revision)
    if fit.fits is False and not anyway:
        raise HubError(
            f"{repo} does not fit this machine: {fit.reason}",
            hint="--anyway fetches it nevertheless; `sfumato doctor` says what fits",
        )
    note(f"{repo}: {fit.reason}")
    say(str(hub.pull(repo, revision, progress=sys.stderr.isatty())))


def memory_fit(repo: str, revision: str | None) -> Fit:
    """Whether the repository's model fits in memory as stored, judged by its config.json alone."""
    from sfumato.config.parse import load_config
    from sfumato.weights import hub
    from sfumato.weights.inventory import take_inventory

    folder = hub.fetch_config(repo, revision)
    config = load_config(folder)
    inventory = take_inventory(config)
    wide = config.dtype == "float32"
    weights = inventory.bytes_float32 if wide else inventory.bytes_bfloat16
    return judge(repo, config.dtype, weights, look_at_machine(folder).memory)
