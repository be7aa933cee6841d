"""The process that runs a checkpoint's chat template: jinja2's sandbox, inside hard limits.

Started by `sandbox.Worker` as a program of its own, with nothing but the standard library, jinja2
and `spellings` in it. It reads frames from standard input and writes one frame for each to
standard output; a frame is a line with the length in bytes, then that many bytes of JSON.

Memory, open files, new processes and file sizes are limited by the operating system, and each
request runs under an alarm that the kernel delivers even inside C code. So nothing a template
computes can take the machine or outlive its deadline, whatever jinja2's sandbox lets through.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, BinaryIO

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from sfumato.text.spellings import Spellings

_DROPPED = ("lipsum", "cycler", "joiner")
_MESSAGE_LENGTH = 500


class TemplateRefusedError(TemplateError):
    """The template itself said no, by `raise_exception`."""


class Generation(Extension):
    """`{% generation %}`, by which training templates mark the assistant's text: shown as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Keep the body, drop the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class PlainDict:
    """`dict` as templates may use it: it makes dicts, and is no type to climb up from."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A new dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """A new dict with the same value under every key."""
        return dict.fromkeys(keys, value)


class PlainNamespace(Namespace):
    """`namespace` without the attributes Python keeps for itself."""

    def __setitem__(self, name: str, value: Any) -> None:
        """Store `value`; a name that begins with an underscore is refused."""
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace takes no attribute called {name!r}")
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> PlainNamespace:
    made = PlainNamespace()
    for name, value in dict(*args, **kwargs).items():
        made[name] = value
    return made


def _refuse(message: str) -> None:
    raise TemplateRefusedError(str(message))


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as chat templates expect it: plain JSON, not escaped for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox. White space is treated as `transformers` does, or prompts would differ."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    for name in _DROPPED:
        del sandbox.globals[name]
    sandbox.globals |= {
        "raise_exception": _refuse,
        "strftime_now": _now,
        "dict": PlainDict(),
        "namespace": _namespace,
    }
    sandbox.filters["tojson"] = _to_json
    return sandbox


class Renderer:
    """One template's source, compiled for the mark in use."""

    def __init__(self, source: str, controls: Mapping[str, int]) -> None:
        self._source = source
        self._spellings = Spellings(controls)
        self._environment = environment()
        self._compiled: tuple[str, Template] | None = None

    def variables(self) -> list[str]:
        """The names the template reads from its caller."""
        return sorted(find_undeclared_variables(self._environment.parse(self._source)))

    def render(self, context: Mapping[str, Any], mark: str) -> str:
        """The prompt, with `mark` before each control token that the template's text spells."""
        if self._compiled is None or self._compiled[0] != mark:
            self._compiled = (mark, self._compile(mark))
        return self._compiled[1].render(context)

    def _compile(self, mark: str) -> Template:
        tree = self._environment.parse(self._source)
        for data in tree.find_all(nodes.TemplateData):
            data.data = self._spellings.mark(data.data, mark)
        for constant in tree.find_all(nodes.Const):
            if isinstance(constant.value, str):
                constant.value = self._spellings.mark(constant.value, mark)
        return self._environment.from_string(tree)


def answer(request: Mapping[str, Any], state: dict[str, Renderer]) -> dict[str, Any]:
    """Do one request: `load` a template's source, or `render` with a context and a mark."""
    try:
        if request["do"] == "load":
            state["renderer"] = Renderer(request["source"], request["controls"])
            return {"variables": state["renderer"].variables()}
        return {"text": state["renderer"].render(request["context"], request["mark"])}
    except TemplateRefusedError as problem:
        return _failure("refused", problem)
    except MemoryError:
        return {"kind": "memory", "error": "it used too much memory"}
    except Exception as problem:  # noqa: BLE001 - a template can raise anything; all is reported
        return _failure("failed", problem)


def _failure(kind: str, problem: Exception) -> dict[str, Any]:
    line = getattr(problem, "lineno", None)
    where = f"line {line}: " if line else ""
    name = "" if isinstance(problem, TemplateError) else f"{type(problem).__name__}: "
    message = " ".join(str(problem).split())[:_MESSAGE_LENGTH]
    return {"kind": kind, "error": f"{where}{name}{message}"}


def serve(
    reader: BinaryIO, writer: BinaryIO, seconds: float, alarm: Callable[[float], object]
) -> None:
    """Answer frames until the input ends; `alarm` is set around each and cleared after it."""
    state: dict[str, Renderer] = {}
    while line := reader.readline(32):
        request = json.loads(reader.read(int(line)))
        alarm(seconds)
        reply = json.dumps(answer(request, state), ensure_ascii=True).encode()
        alarm(0)
        writer.write(b"%d\n" % len(reply) + reply)
        writer.flush()


def confine(memory: int) -> None:
    """Take from this process, for good, what no template needs. `memory` is in bytes."""
    import resource

    # A deadline passed or a limit hit ends the process: no handler of Python's runs.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    if sys.platform == "linux":  # elsewhere these two are not kept or not accepted
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def main(arguments: list[str]) -> None:
    """Serve on standard input and output: `worker.py SECONDS MEMORY_BYTES`."""
    confine(int(arguments[1]))
    serve(
        sys.stdin.buffer,
        sys.stdout.buffer,
        float(arguments[0]),
        lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
