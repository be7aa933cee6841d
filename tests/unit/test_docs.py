"""The documents hold together: links resolve, commands and names exist, tables tell the truth."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from scripts import cli_reference
from sfumato.tasks import registry
from tests.unit.source_tree import PACKAGE, ROOT
from tests.unit.test_architecture import MAY_IMPORT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBERED = re.compile(r"(\d{4})-[a-z0-9-]+\.md")
documents = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def _prose(path: Path) -> str:
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def _blocks(path: Path, *languages: str) -> Iterator[str]:
    for block in FENCE.finditer(path.read_text(encoding="utf-8")):
        if block["language"] in languages:
            yield block["code"]


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _prose(path), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def _cells(path: Path, heading: str) -> list[list[str]]:
    """The rows of the first table whose first column is headed so."""
    lines = _prose(path).splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@documents
def test_links_resolve(path: Path) -> None:
    broken = []
    for match in LINK.finditer(_prose(path)):
        target, _, anchor = match["target"].partition("#")
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(match["target"])
    assert broken == []


@documents
def test_every_fence_is_closed_and_named(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w*)", text, re.MULTILINE)
    assert len(fences) % 2 == 0
    assert all(fences[::2]), "a block without a language"


@documents
def test_python_in_documents_uses_what_exists(path: Path) -> None:
    for code in _blocks(path, "python", "py"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "sfumato":
                sfumato = importlib.import_module("sfumato")
                assert hasattr(sfumato, node.attr), f"sfumato has no {node.attr}"


def _shell_lines(path: Path) -> Iterator[str]:
    for code in _blocks(path, "sh", "bash", "console"):
        for line in re.split(r"\n|&&|;|\|", code):
            yield line.strip().removeprefix("$ ")
    for span in re.findall(r"`([^`\n]+)`", _prose(path)):
        if span.startswith(("sfumato ", "python scripts/", "bash .ci/")):
            yield span


@documents
def test_commands_in_documents_exist(path: Path) -> None:
    for line in _shell_lines(path):
        words = line.split()
        if words[:1] == ["sfumato"] and len(words) > 1 and not words[1].startswith("-"):
            options = _commands().get(words[1], set() if words[1].isupper() else None)
            assert options is not None, f"no command {words[1]!r}: {line}"
            given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert given <= options | {"--help"}, f"no such option: {line}"
        for task_name in re.findall(r"--task (\S+)", line):
            registry.task(task_name)  # raises where there is none
        for word in words:
            if word.startswith(("scripts/", "tests/", "recipes/", ".ci/")):
                assert (ROOT / word).exists(), f"no file {word}: {line}"


@cache
def _commands() -> dict[str, set[str]]:
    root: Any = get_command(importlib.import_module("sfumato.cli").app)
    return {
        name: {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        for name, command in root.commands.items()
    }


def test_the_command_reference_is_what_the_commands_say() -> None:
    assert cli_reference.main(["--check"]) == 0


def test_decisions_are_numbered_listed_and_complete() -> None:
    folder = ROOT / "docs" / "decisions"
    found = sorted(path.name for path in folder.glob("0*.md"))
    assert [name for name in found if not NUMBERED.fullmatch(name)] == []
    assert len({name[:4] for name in found}) == len(found), "two decisions with one number"
    index = (folder / "README.md").read_text(encoding="utf-8")
    for name in found:
        text = (folder / name).read_text(encoding="utf-8")
        title = text.splitlines()[0].partition(": ")[2]
        assert text.startswith(f"# {name[:4]}: "), name
        assert f"[{name[:4]}]({name}) | {title} |" in index, f"not in the index: {name} {title!r}"
        assert re.findall(r"^## (\w+)", text, re.MULTILINE)[:2] == ["Context", "Decision"], name


def test_source_points_at_documents_that_exist() -> None:
    for path in PACKAGE.rglob("*.py"):
        for target in re.findall(r"\bdocs/[\w/.-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{path.relative_to(ROOT)} names {target}"


def test_the_module_table_is_the_package() -> None:
    rows = _cells(ROOT / "docs" / "architecture.md", "module")
    named = [row[0].strip("`") for row in rows]
    there = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" and path.stem != "__init__"
    } | {path.name for path in PACKAGE.iterdir() if any(path.glob("**/*.py"))}
    assert set(named) == there == set(MAY_IMPORT) - {"sfumato"}
    for name in named:
        below = set(named[named.index(name) + 1 :])
        assert MAY_IMPORT[name] - {"sfumato"} <= below, f"{name} imports from above its row"


def test_the_glossary_is_in_order() -> None:
    glossary = ROOT / "docs" / "glossary.md"
    words = [row[0] for row in _cells(glossary, "word")]
    letters = [row[0] for row in _cells(glossary, "letter")]
    assert words == sorted(set(words))
    assert letters == sorted(set(letters))


def test_the_version_is_told_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {project['version']}" in changes
    assert importlib.import_module("sfumato").__version__ == project["version"]


def test_dependencies_and_their_decision_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "docs" / "decisions" / "0002-dependencies.md").read_text(encoding="utf-8")
    core = re.search(r"^- Core: ([^.]+)\.", text, re.MULTILINE)
    assert core
    assert {name.strip() for name in core[1].split(",")} == {
        re.split(r"[<>=!~]", requirement)[0] for requirement in project["dependencies"]
    }
    assert set(project["optional-dependencies"]) == {"media", "serve", "train", "dev"}
