"""From a model's name on the command line to the files it stands for."""

from __future__ import annotations

import sys
from pathlib import Path

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

    return hub.resolve_config(model, offline=Settings.from_environment().offline)


def weights_folder(model: str | None) -> Path:
    """A folder with the model's weights, fetched if the hub's cache lacks them.

    Raises HubError or InputError as `weights.hub.resolve` does.
    """
    if model is None:
        return small_folder()
    from sfumato.weights import hub

    offline = Settings.from_environment().offline
    return hub.resolve(model, offline=offline, progress=sys.stderr.isatty())
