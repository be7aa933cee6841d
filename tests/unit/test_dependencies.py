"""Everything that is imported is declared, where it is needed and no wider."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.unit.source_tree import ROOT, Import, Module, package_modules, python_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Where the name to import is not the name to install.
INSTALLED_AS = {"PIL": "pillow"}
HOME = {"sfumato", "tests", "scripts", "benchmarks"}


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~;\[ ]", text)[0].lower().replace("_", "-") for text in requirements}


CORE = _names(PROJECT["dependencies"])
NEEDS_EXTRA = {"media": "media", "cli": "media", "evaluation": "train"}
OPTIONAL = {layer: _names(EXTRAS[extra]) for layer, extra in NEEDS_EXTRA.items()}
DEV = _names(EXTRAS["dev"]).union(*OPTIONAL.values())


def _top(item: Import) -> str:
    return item.target.split(".")[0]


def _third_party(module: Module) -> set[str]:
    found = {_top(item) for item in module.imports()}
    outside = found - set(sys.stdlib_module_names) - HOME
    return {INSTALLED_AS.get(name, name).lower().replace("_", "-") for name in outside}


@pytest.mark.parametrize("module", package_modules(), ids=lambda module: module.name)
def test_the_package_imports_what_it_declares(module: Module) -> None:
    assert _third_party(module) <= CORE | OPTIONAL.get(module.layer, set())


def test_an_extra_is_imported_only_when_it_is_used() -> None:
    eager = [
        f"{module.where}:{item.line}"
        for module in package_modules()
        for item in module.imports()
        if item.runtime and item.at_import
        if INSTALLED_AS.get(_top(item), _top(item)) in set[str]().union(*OPTIONAL.values())
    ]
    assert eager == []


@pytest.mark.parametrize("path", python_files("tests", "scripts"), ids=lambda path: path.name)
def test_the_tests_import_what_is_declared(path: Path) -> None:
    assert _third_party(Module(path.stem, path)) <= CORE | DEV
