"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.cli.checkpoints import Program, write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint; never written to."""
    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a vision tower."""
    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "seeing", vision=True)


@pytest.fixture
def sfumato(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """The program, with no model named by the environment."""
    monkeypatch.delenv("SFUMATO_MODEL", raising=False)
    monkeypatch.delenv("SFUMATO_ACTIVATIONS", raising=False)
    monkeypatch.setenv("SFUMATO_THREADS", "1")
    monkeypatch.setenv("SFUMATO_KERNELS", "reference")  # the same numbers on every processor
    return Program(monkeypatch, capsys)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub in place of the user's."""
    folder = tmp_path / "hub"
    folder.mkdir()
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(folder))
    return folder
