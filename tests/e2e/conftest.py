"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.checkpoints import write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with a canvas that holds a Sudoku; never written to."""
    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny", canvas=84)
