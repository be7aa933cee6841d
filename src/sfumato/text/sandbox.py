"""The parent's side of the template worker: started when needed, killed when late."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from sfumato.errors import InputError, TemplateError

_CHUNK = 1 << 16
_GRACE_SECONDS = 2.0


@dataclass(frozen=True)
class Limits:
    """What one rendering may take. `start_seconds` is for the process to come up on a busy machine.

    Sizes are in bytes of JSON. The longest context, 262,144 tokens, is 1 to 2 MB of text.
    """

    seconds: float = 5.0
    start_seconds: float = 60.0
    memory: int = 512 * 1024 * 1024
    source: int = 1024 * 1024
    request: int = 32 * 1024 * 1024


class Worker:
    """A process that renders one template. Starts at the first request, and again after a kill.

    Requests of several threads take turns. A forked child starts a process of its own.
    """

    def __init__(self, load: Mapping[str, Any], limits: Limits) -> None:
        """`load` is the request every new process gets first."""
        self._load = dict(load)
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._finalizer: weakref.finalize[..., Any] | None = None
        self.loaded: dict[str, Any] = {}

    def start(self) -> dict[str, Any]:
        """Have a process with the template loaded; its answer to the load request."""
        with self._lock:
            return self._ready()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request and return the answer.

        Raises InputError for text that cannot be sent, TemplateError if the process fails, takes
        longer or uses more than its limits.
        """
        try:
            data = json.dumps(request, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (ValueError, TypeError, RecursionError) as problem:
            raise InputError(f"the conversation is not plain text and JSON: {problem}") from None
        if len(data) > self._limits.request:
            raise InputError(
                f"the conversation has {len(data):,} bytes, more than the "
                f"{self._limits.request:,} that are rendered",
                hint="shorten it; no context holds that much text",
            )
        with self._lock:
            self._ready()
            return self._exchange(data, self._limits.seconds)

    def close(self) -> None:
        """End the process, if one runs. A later request starts another."""
        with self._lock:
            self._stop()

    def _ready(self) -> dict[str, Any]:
        if self._process is not None and self._owner != os.getpid():
            # Forked: the process and its pipes are the parent's. Let go without touching them.
            if self._finalizer is not None:
                self._finalizer.detach()
            self._process = None
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._process = _spawn(self._limits)
            self._owner = os.getpid()
            self._finalizer = weakref.finalize(self, _end, self._process)
            load = json.dumps(self._load, ensure_ascii=False).encode("utf-8")
            self.loaded = self._exchange(load, self._limits.start_seconds)
        return self.loaded

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None

    def _exchange(self, data: bytes, seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            frame = b"%d\n" % len(data) + data
            deadline = time.monotonic() + seconds
            reply = _converse(process.stdin, process.stdout, frame, deadline)
            return cast("dict[str, Any]", json.loads(reply))
        except TimeoutError:
            self._stop()
            raise TemplateError(
                f"the chat template ran longer than {seconds:g} s and was stopped",
                hint="the checkpoint's chat_template.jinja loops; use another checkpoint",
            ) from None
        except (OSError, EOFError, ValueError) as problem:
            self._stop()
            raise TemplateError(
                f"the chat template's process ended ({problem}): it reached its limits of "
                f"{seconds:g} s and {self._limits.memory // 2**20} MB, or could not start",
                hint="the checkpoint's chat_template.jinja asks for too much",
            ) from None
        except BaseException:  # Ctrl-C between question and answer would leave them out of step
            self._stop()
            raise


def _spawn(limits: Limits) -> subprocess.Popen[bytes]:
    # The child gets no environment but the module path: nothing for a template to find there.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    program = str(Path(__file__).with_name("worker.py"))
    # Its own alarm is a little later than ours: it counts only if this process is gone by then.
    numbers = [str(limits.seconds + _GRACE_SECONDS), str(limits.memory)]
    try:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and file, no shell
            [sys.executable, "-P", "-B", program, *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": path, "PYTHONUTF8": "1"},
            cwd="/",
            bufsize=0,
        )
    except OSError as problem:
        raise TemplateError(
            f"the chat template's process cannot start: {problem.strerror or problem}",
            hint=f"it is run by {sys.executable}",
        ) from None
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and give back its pipes. Safe to call for one that has ended."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _converse(stdin: IO[bytes], stdout: IO[bytes], frame: bytes, deadline: float) -> bytearray:
    """Write `frame`, read the answer's frame, and return what is in it.

    Raises TimeoutError after `deadline` (of time.monotonic), EOFError if the process ends. Its
    limit of memory bounds the answer.
    """
    left = memoryview(frame)
    got = bytearray()
    size = -1
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        selector.register(stdin, selectors.EVENT_WRITE)
        while size < 0 or len(got) < size:
            events = selector.select(max(0.0, deadline - time.monotonic()))
            if not events and time.monotonic() >= deadline:
                raise TimeoutError
            for key, _ in events:
                if key.fileobj is stdin:
                    left = left[os.write(stdin.fileno(), left[:_CHUNK]) :]
                    if not left:
                        selector.unregister(stdin)
                    continue
                chunk = os.read(stdout.fileno(), _CHUNK)
                if not chunk:
                    raise EOFError("no answer came")
                got += chunk
                if size < 0 and (newline := got.find(b"\n", 0, 32)) >= 0:
                    size = int(got[:newline])
                    del got[: newline + 1]
    return got
