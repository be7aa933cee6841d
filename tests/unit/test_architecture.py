"""The rules of the house that a machine can hold: who may import whom, sizes, types, and bans."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.source_tree import (
    PACKAGE,
    FunctionNode,
    Module,
    find_cycle,
    line_count,
    package_modules,
    python_files,
)

BASE = {"errors", "settings"}
CORE = {*BASE, "config", "kv", "ops", "model"}
TOP = {*CORE, "quant", "diffusion", "weights", "text", "media", "api"}

# What each layer may import beside itself. A new folder is a new line here, with its reason in
# docs/architecture.md; an arrow that points up is a design to talk about, not a line to add.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "settings": {"errors"},
    "config": BASE,
    "kv": {*BASE, "config"},
    "quant": {*BASE, "config"},
    "ops": {*BASE, "quant"},
    "model": {*BASE, "config", "kv", "ops", "quant"},
    "diffusion": CORE,
    "text": {*BASE, "config"},
    "media": {*BASE, "config"},
    "weights": {*BASE, "config", "model", "quant"},
    "api": TOP - {"api"},
    "tasks": {*BASE, "config", "text"},
    "training": {*TOP, "tasks"},
    "evaluation": {*TOP, "tasks"},
    "benchmark": TOP,
    "cli": {*TOP, "tasks", "training", "evaluation", "benchmark", "sfumato"},
    "sfumato": TOP,
}

FILE_LINES = 500
FUNCTION_LINES = 70
CONSTRUCTOR_ARGUMENTS = 8
TYPED_SHARE = 0.95
TEST_SHARE = 0.7
SHIPPED_BYTES = 30_000_000
# `import sfumato` loads none of these; the command line loads typer alone for --help.
HEAVY = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "huggingface_hub", "PIL")
TERMINAL = ("typer", "rich", "click")
NEVER_IN_PACKAGE = {"transformers", "pickle", "cPickle", "dill", "shelve", "marshal", "pytest"}

MODULES = package_modules()
ids = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


def _internal(module: Module) -> Iterator[tuple[str, int, bool]]:
    for item in module.imports():
        if item.target.split(".")[0] == "sfumato":
            yield item.target, item.line, item.runtime and item.at_import


def _layer(name: str) -> str:
    return name.split(".")[1] if "." in name else name


@ids
def test_imports_point_down(module: Module) -> None:
    assert module.layer in MAY_IMPORT, f"{module.where}: no layer for {module.layer!r} in the table"
    allowed = MAY_IMPORT[module.layer] | {module.layer}
    wrong = [f"{module.where}:{line} imports {target}" for target, line, _ in _internal(module)
             if _layer(target) not in allowed]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_no_import_cycles() -> None:
    graph = {
        module.name: {target for target, _, at_import in _internal(module) if at_import}
        - {module.name}
        for module in MODULES
    }
    assert not find_cycle(graph), " -> ".join(find_cycle(graph))


def test_find_cycle_finds_one() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@ids
def test_files_stay_readable(module: Module) -> None:
    assert line_count(module.path) <= FILE_LINES, f"{module.where} passes {FILE_LINES} lines"
    long = [
        f"{module.where}:{function.lineno} {function.name} has {_length(function)} lines"
        for function, _ in module.functions()
        if _length(function) > FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


@ids
def test_constructors_take_few_arguments(module: Module) -> None:
    wide = [
        f"{module.where}:{function.lineno}"
        for function, method in module.functions()
        if method and function.name == "__init__"
        if len(function.args.args) + len(function.args.kwonlyargs) - 1 > CONSTRUCTOR_ARGUMENTS
    ]
    assert wide == []


def _length(function: FunctionNode) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


@pytest.mark.parametrize("path", python_files("tests", "scripts"), ids=lambda path: path.name)
def test_test_and_script_files_stay_readable(path: Path) -> None:
    assert line_count(path) <= FILE_LINES


@ids
def test_module_says_what_it_is_for(module: Module) -> None:
    docstring = ast.get_docstring(module.tree)
    assert docstring, f"{module.where} has no docstring"
    assert docstring.splitlines()[0].rstrip()[-1] in ".:;?!,)", f"{module.where}: not a sentence"


@ids
def test_package_only_uses_what_it_may(module: Module) -> None:
    found = [
        f"{module.where}:{item.line} imports {item.target}"
        for item in module.imports()
        if item.target.split(".")[0] in NEVER_IN_PACKAGE
    ]
    for node in module.located():
        call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if call in {"eval", "exec", "__import__", "breakpoint"}:
            found.append(f"{module.where}:{node.lineno} calls {call}")
        if call == "print" and module.layer != "cli":
            found.append(f"{module.where}:{node.lineno} prints: only the command line may")
        if call == "torch.load" and "weights_only=True" not in ast.unparse(node):
            found.append(f"{module.where}:{node.lineno} torch.load without weights_only=True")
        if _reads_environment(node) and module.layer != "settings":
            found.append(f"{module.where}:{node.lineno} reads the environment: settings.py does")
    assert not found, "\n".join(found)


def _reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom) and node.module == "os":
        return any(alias.name in {"environ", "getenv", "putenv"} for alias in node.names)
    text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
    return text in {"os.environ", "os.getenv", "os.putenv", "os.environb"}


@ids
def test_nothing_is_left_undone(module: Module) -> None:
    for number, line in enumerate(module.text.splitlines(), 1):
        for mark in ("TODO", "FIXME", "XXX", "HACK", "NotImplementedError"):
            assert mark not in line, f"{module.where}:{number} {mark}"
    for node in module.located():
        swallowed = isinstance(node, ast.ExceptHandler) and [type(s) for s in node.body] == [
            ast.Pass
        ]
        assert not swallowed, f"{module.where}:{node.lineno} swallows an error"


@pytest.mark.parametrize("layer", ["config", "diffusion"])
def test_strategies_and_configurations_are_frozen(layer: str) -> None:
    thawed = [
        f"{module.where}:{node.lineno} {node.name} is not frozen"
        for module in MODULES
        if module.layer == layer
        for node in module.located()
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
        if "dataclass" in ast.unparse(decorator) and "frozen=True" not in ast.unparse(decorator)
    ]
    assert not thawed, "\n".join(thawed)


def test_functions_are_typed() -> None:
    functions = [(m, f, method) for m in MODULES for f, method in m.functions()]
    bare = [f"{m.where}:{f.lineno} {f.name}" for m, f, method in functions if not _typed(f, method)]
    assert len(bare) <= (1 - TYPED_SHARE) * len(functions), "\n".join(bare)


def _typed(function: FunctionNode, method: bool) -> bool:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    static = any(ast.unparse(d) == "staticmethod" for d in function.decorator_list)
    named = named[1:] if method and not static else named
    named += arguments.kwonlyargs + [a for a in (arguments.vararg, arguments.kwarg) if a]
    return function.returns is not None and all(a.annotation is not None for a in named)


def test_tests_keep_up_with_the_source() -> None:
    source = sum(line_count(path) for path in python_files("src"))
    tests = sum(line_count(path) for path in python_files("tests"))
    assert tests >= TEST_SHARE * source, f"{tests} lines of tests for {source} of source"


def test_what_ships_fits_the_wheel() -> None:
    files = [p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    total = sum(path.stat().st_size for path in files)
    assert total <= SHIPPED_BYTES, f"{total / 1e6:.1f} MB would ship"


@ids
def test_all_names_what_is_there(module: Module) -> None:
    declared = [
        node
        for node in module.tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and "__all__" in ast.unparse(node).split("=")[0]
    ]
    if not declared:
        return
    loaded = importlib.import_module(module.name)
    names = list(loaded.__all__)
    assert len(names) == len(set(names)), f"{module.where}: __all__ names something twice"
    assert [name for name in names if not hasattr(loaded, name)] == []


def test_public_api_is_listed() -> None:
    sfumato = importlib.import_module("sfumato")
    assert {"GenerationConfig", "Model", "load", "SfumatoError"} <= set(sfumato.__all__)
    own = {
        name
        for name, value in vars(sfumato).items()
        if getattr(value, "__module__", "").startswith("sfumato") and not name.startswith("_")
    }
    assert own <= set(sfumato.__all__)


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_importing_the_package_is_light() -> None:
    assert _loaded_by("import sfumato") & {*HEAVY, *TERMINAL} == set()


def test_importing_the_command_line_is_light() -> None:
    assert _loaded_by("import sfumato.cli") & set(HEAVY) == set()
