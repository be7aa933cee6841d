"""Reads the package as text: what each module imports, defines and calls. Imports nothing of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "sfumato"

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Located = ast.stmt | ast.expr | ast.ExceptHandler


@dataclass(frozen=True)
class Import:
    """One import statement's target, as a dotted module name, and where it stands."""

    target: str
    line: int
    runtime: bool  # false under `if TYPE_CHECKING:`
    at_import: bool  # false inside a function


@dataclass(frozen=True)
class Module:
    """One Python file."""

    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.path))

    @property
    def layer(self) -> str:
        """The second part of the dotted name; the root package is the layer `sfumato`."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else parts[0]

    @property
    def where(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def functions(self) -> Iterator[tuple[FunctionNode, bool]]:
        """Every function with whether it is a method."""
        for node in ast.walk(self.tree):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, FunctionNode):
                    yield child, isinstance(node, ast.ClassDef)

    def located(self) -> Iterator[Located]:
        """Every node that has a line."""
        return (node for node in ast.walk(self.tree) if isinstance(node, Located))

    def imports(self) -> list[Import]:
        """Everything this module imports; `from a import b` is `a.b` when that is a module."""
        found: list[Import] = []
        _collect(self.tree, found, runtime=True, at_import=True)
        return found


def _collect(node: ast.AST, found: list[Import], *, runtime: bool, at_import: bool) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found += [Import(a.name, child.lineno, runtime, at_import) for a in child.names]
        elif isinstance(child, ast.ImportFrom):
            found += [
                Import(_resolve(child.module or "", a.name), child.lineno, runtime, at_import)
                for a in child.names
            ]
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            _collect(child, found, runtime=False, at_import=at_import)
        else:
            inside = isinstance(child, FunctionNode)
            _collect(child, found, runtime=runtime, at_import=at_import and not inside)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def _resolve(module: str, name: str) -> str:
    candidate = f"{module}.{name}"
    return candidate if candidate in _names() else module


def module_name(path: Path) -> str:
    """`src/sfumato/a/b.py` -> `sfumato.a.b`; a package's `__init__.py` is the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_modules() -> list[Module]:
    """Every module of the package, by name."""
    return [Module(module_name(path), path) for path in sorted(PACKAGE.rglob("*.py"))]


@cache
def _names() -> frozenset[str]:
    return frozenset(module_name(path) for path in PACKAGE.rglob("*.py"))


def python_files(*folders: str) -> list[Path]:
    """Every Python file under the named folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of the graph as a list that begins and ends with the same node, or nothing."""
    done: set[str] = set()
    path: list[str] = []

    def visit(node: str) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        for successor in sorted(graph.get(node, ())):
            if cycle := visit(successor):
                return cycle
        path.pop()
        done.add(node)
        return []

    for start in sorted(graph):
        if cycle := visit(start):
            return cycle
    return []
