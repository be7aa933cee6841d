"""The files of a run: checkpoints that appear whole or not at all, and the log as JSON lines."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sfumato.errors import TrainingError
from sfumato.weights.export import settle_folder

LOG = "log.jsonl"
KEPT = 2
_NAME = re.compile(r"state-(\d{9})\.pt")


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that gets the name `path` when it is complete and on the disk."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    settle_folder(path.parent)


class RunDir:
    """One run's folder. Raises TrainingError for what cannot be read, written or resumed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.log_path = self.path / LOG

    def create(self) -> None:
        """Make the folder, with what a killed run left half-written cleared away."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for left in self.path.glob(".state-*.part"):
                left.unlink()
        except OSError as problem:
            raise self._failed("be made", problem) from None

    def states(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        if not self.path.is_dir():
            return []
        return sorted(path for path in self.path.iterdir() if _NAME.fullmatch(path.name))

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `step` and remove all but the newest two."""
        path = self.path / f"state-{step:09d}.pt"
        try:
            with written_aside(path) as file:
                torch.save(dict(state), file)
        except (OSError, RuntimeError) as problem:  # torch reports a full disk as a RuntimeError
            raise self._failed(f"take the checkpoint of step {step}", problem) from None
        for old in self.states()[:-KEPT]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> dict[str, Any]:
        """The newest checkpoint's state."""
        states = self.states()
        if not states:
            raise TrainingError(
                f"{self.path}: no checkpoint to resume from", hint="start without --resume"
            )
        try:
            state: dict[str, Any] = torch.load(states[-1], map_location="cpu", weights_only=True)
        except Exception as problem:
            raise TrainingError(
                f"{states[-1]}: is no checkpoint of a run: {type(problem).__name__}",
                hint="delete it to resume from the one before",
            ) from problem
        return state

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to the log."""
        try:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as problem:
            raise self._failed("take its log", problem) from None

    def rewind_log(self, step: int) -> None:
        """Drop the log's lines about steps after `step`: the resumed run writes them again."""
        if not self.log_path.exists():
            return
        lines = self.log_path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
        with written_aside(self.log_path) as file:
            file.write("".join(kept).encode())

    def _failed(self, what: str, problem: Exception) -> TrainingError:
        text = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
        return TrainingError(f"{self.path}: the run's folder cannot {what}: {text}")


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line).get("step", 0))
    except (ValueError, AttributeError, TypeError):
        return 0


@contextmanager
def handled(signals: tuple[int, ...], handler: Callable[[int], None]) -> Iterator[None]:
    """Send `signals` to `handler` while the block runs; outside the main thread, do nothing."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda got, _: handler(got)) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
