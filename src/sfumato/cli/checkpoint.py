"""From a model's name on the command line to the files it stands for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sfumato.errors import HubError
from sfumato.settings import Settings

SMALL = "small"  # what the model of no name is called in reports


def small_folder() -> Path:
    """The folder of the small model inside the package."""
    return Path(__file__).resolve().parents[1] / "small"


def display_name(model: str | None) -> str:
    """What reports call the model."""
    return SMALL if model is None else model


def config_folder(model: str | None) -> Path:
    """A folder with the model's config.json.

    Of a hub repository that is not in the cache, that file alone is fetched.
    Raises HubError or InputError as `weights.hub.resolve` does.
    """
    if model is None:
        return small_folder()
    from sfumato.weights import hub

    try:
        return hub.resolve(model, offline=True)
    except HubError:
        if Settings.from_environment().offline or not _may_be_repository(model):
            raise
    return fetch_config(model)


def _may_be_repository(model: str) -> bool:
    return model.count("/") == 1 and not model.startswith((".", "/", "~"))


def fetch_config(repo: str, revision: str | None = None) -> Path:
    """The folder with a hub repository's config.json, fetched now; nothing large is touched.

    Raises HubError if the hub does not give it.
    """
    import huggingface_hub
    from huggingface_hub import errors

    # HfHubHTTPError's bases are the HTTP client's own error and OSError, which covers the disk.
    caught: tuple[Any, ...] = (
        *errors.HfHubHTTPError.__bases__,
        errors.EntryNotFoundError,
        ValueError,
    )
    try:
        config = huggingface_hub.hf_hub_download(repo, "config.json", revision=revision)
    except caught as problem:
        reason = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise HubError(
            f"config.json of {repo} could not be fetched: {reason}",
            hint="check the name and the network; a private repository wants `hf auth login`",
        ) from None
    return Path(config).parent


def weights_folder(model: str | None) -> Path:
    """A folder with the model's weights, fetched if the hub's cache lacks them.

    Raises HubError or InputError as `weights.hub.resolve` does.
    """
    if model is None:
        return small_folder()
    from sfumato.weights import hub

    offline = Settings.from_environment().offline
    return hub.resolve(model, offline=offline, progress=sys.stderr.isatty())
