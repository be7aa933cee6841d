"""The hub and its cache, with a cache built by hand and no network anywhere."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from sfumato.errors import HubError, InputError
from sfumato.weights import hub
from sfumato.weights.loader import load_network
from tests.unit.checkpoint_files import write_checkpoint

REPO = "someone/some-model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(folder))
    return folder


def put(cache: Path, repo: str = REPO, **how: Any) -> Path:
    """A checkpoint in the cache as huggingface_hub lays it out: links into blobs."""
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    write_checkpoint(snapshot, **how)
    (home / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(home / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return snapshot


def refusal(*arguments: Any, **how: Any) -> str:
    with pytest.raises(HubError) as caught:
        hub.resolve(*arguments, **how)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("a/b") == Path("a/b")
    assert hub.resolve(tmp_path) == tmp_path
    with pytest.raises(InputError, match="has no revisions"):
        hub.resolve("a/b", "main")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        hub.resolve("file")


@pytest.mark.parametrize("name", ["nothing", "./x/y", "/x/y", "~/x", "a/b/c", "../x"])
def test_a_path_that_is_not_there(name: str) -> None:
    assert "there is no such folder" in refusal(name)


@pytest.mark.parametrize("name", ["a/b c", "a/..b", "a--b/c", "a/-b", "a/b\n", "a/" + "b" * 200])
def test_names_that_cannot_be_repositories(name: str) -> None:
    with pytest.raises(InputError, match="neither a folder nor a possible name"):
        hub.resolve(name)
    with pytest.raises(InputError, match="neither a folder nor a possible name"):
        hub.pull(name)


@pytest.mark.parametrize("revision", ["", "../x", "-x", "a b", "x" * 300])
def test_names_that_cannot_be_revisions(revision: str) -> None:
    with pytest.raises(InputError, match="cannot be a branch"):
        hub.resolve(REPO, revision)


@pytest.mark.usefixtures("cache")
def test_offline_and_not_in_the_cache() -> None:
    assert "not (completely) in the cache" in refusal(REPO)
    assert f"sfumato pull {REPO}" in refusal(REPO, offline=True)
    assert hub.cached_models() == []


def test_what_the_cache_holds_is_used_and_loads(cache: Path) -> None:
    snapshot = put(cache)
    assert hub.resolve(REPO, offline=True) == snapshot
    assert hub.resolve(REPO, COMMIT) == snapshot
    load_network(hub.resolve(REPO))
    assert "not (completely) in the cache" in refusal(REPO, "other-branch")


@pytest.mark.parametrize("missing", ["config.json", "model-00001*", "model.safetensors.index.json"])
def test_an_incomplete_snapshot_does_not_count(cache: Path, missing: str) -> None:
    snapshot = put(cache, max_shard_bytes=16_000)
    assert hub.resolve(REPO) == snapshot
    next(snapshot.glob(missing)).unlink()
    assert "not (completely) in the cache" in refusal(REPO)


def test_a_damaged_index_is_left_to_the_reader_to_name(cache: Path) -> None:
    snapshot = put(cache, max_shard_bytes=16_000)
    (snapshot / "model.safetensors.index.json").resolve().write_text("{")
    assert hub.resolve(REPO) == snapshot


def test_listing_and_removing(cache: Path) -> None:
    put(cache)
    other = put(cache, "someone/other-kind")
    (other / "config.json").resolve().write_text('{"model_type": "llama"}')
    broken = put(cache, "someone/broken")
    (broken / "config.json").unlink()
    models = hub.cached_models()
    assert [model.repo for model in models] == [REPO]
    assert models[0].revisions == (COMMIT,)
    assert models[0].size > 0
    assert hub.remove(REPO) == models[0].size
    assert hub.cached_models() == []
    assert not (cache / "models--someone--some-model").exists()
    with pytest.raises(HubError, match="is not in the cache"):
        hub.remove(REPO)


def test_removing_leaves_other_repositories_with_the_same_commit(cache: Path) -> None:
    names = [f"someone/copy-{number}" for number in range(6)]
    for name in names:
        put(cache, name)
    for number, name in enumerate(names, start=1):
        hub.remove(name)
        assert [model.repo for model in hub.cached_models()] == names[number:]


class FakeHub:
    """Stands in for `snapshot_download`: a plan, then a folder or an error."""

    def __init__(self, folder: Path, names: list[str], size: int = 10) -> None:
        self.folder = folder
        self.plan = [SimpleNamespace(filename=n, file_size=size, will_download=True) for n in names]
        self.calls: list[dict[str, Any]] = []
        self.problem: Exception | None = None

    def __call__(self, repo: str, **how: Any) -> Any:
        if how.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("nothing there")
        self.calls.append(how)
        if how.get("dry_run"):
            return self.plan
        if self.problem is not None:
            raise self.problem
        return str(self.folder)


@pytest.fixture
def fake(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeHub]:
    def make(*names: str, size: int = 10) -> FakeHub:
        stand_in = FakeHub(tmp_path / "fetched", list(names), size)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
        monkeypatch.setattr(hub, "_hub_is_offline", lambda: False)
        return stand_in

    return make


def test_fetching_asks_for_data_only(tmp_path: Path, fake: Callable[..., FakeHub]) -> None:
    stand_in = fake("config.json", "model.safetensors")
    assert hub.resolve(REPO, "main", progress=False) == tmp_path / "fetched"
    assert [bool(call.get("dry_run")) for call in stand_in.calls] == [True, False]
    for call in stand_in.calls:
        assert call["revision"] == "main"
        patterns = call["allow_patterns"]
        assert not any(p.endswith((".py", ".bin", ".pt", "*")) for p in patterns[:4])
        assert "*.safetensors" in patterns


@pytest.mark.parametrize(
    ("names", "size", "words"),
    [
        (["config.json", "pytorch_model.bin"], 10, "has no safetensors files"),
        (["model.safetensors"], 10, "has no config.json"),
        (["config.json", "model.safetensors"], 10**15, "needs 2000000.0 GB and the disk"),
    ],
)
def test_a_repository_is_looked_at_before_it_is_fetched(
    fake: Callable[..., FakeHub], names: list[str], size: int, words: str
) -> None:
    stand_in = fake(*names, size=size)
    assert words in refusal(REPO)
    assert len(stand_in.calls) == 1


def response_error(kind: type[Exception]) -> Exception:
    """An error of the hub's, made without the HTTP response it was born with."""
    problem = kind.__new__(kind)
    problem.args = ("401 Client Error.\n\nRepository Not Found",)
    return problem


def unreachable() -> Exception:
    """What a refused connection looks like: the planning fails, and its cause says why."""
    problem = errors.DryRunError("Dry run cannot be performed")
    problem.__cause__ = ConnectionError("Name or\nservice not known")
    return problem


PROBLEMS = pytest.mark.parametrize(
    ("problem", "words"),
    [
        (response_error(errors.RepositoryNotFoundError), "has no repository"),
        (response_error(errors.GatedRepoError), "terms to be accepted"),
        (response_error(errors.RevisionNotFoundError), "has no revision main"),
        (errors.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE forbids"),
        (unreachable(), "could not be fetched: Name or service not known"),
        (ConnectionError(""), "could not be fetched: ConnectionError"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x"), "No space left on device"),
        (RuntimeError("xet broke"), "could not be fetched: xet broke"),
        (errors.HFValidationError("bad name"), "could not be fetched: bad name"),
        (errors.LocalEntryNotFoundError("no\nnetwork"), "could not be fetched: no network"),
    ],
)


@PROBLEMS
def test_what_goes_wrong_is_said_in_one_line(
    fake: Callable[..., FakeHub], problem: Exception, words: str
) -> None:
    stand_in = fake("config.json", "model.safetensors")
    stand_in.problem = problem
    with pytest.raises(HubError) as caught:
        hub.pull(REPO, "main")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@PROBLEMS
def test_a_configuration_fails_in_the_same_words(
    monkeypatch: pytest.MonkeyPatch, problem: Exception, words: str
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise problem

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(HubError) as caught:
        hub.fetch_config(REPO, "main")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_is_fetched_alone(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def download(repo: str, file: str, revision: str | None = None) -> str:
        asked.append((repo, file, revision))
        return str(tmp_path / "fetched" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.fetch_config(REPO, "main") == tmp_path / "fetched"
    assert asked == [(REPO, "config.json", "main")]
    with pytest.raises(InputError, match="neither a folder nor a possible name"):
        hub.fetch_config("a/b c")
    with pytest.raises(InputError, match="cannot be a branch"):
        hub.fetch_config(REPO, "../x")
    assert len(asked) == 1

    with pytest.raises(HubError, match="in the cache"):
        hub.resolve_config(REPO)  # conftest sets HF_HUB_OFFLINE
    monkeypatch.setattr(hub, "_hub_is_offline", lambda: False)
    with pytest.raises(HubError, match="in the cache"):
        hub.resolve_config(REPO, offline=True)
    with pytest.raises(HubError, match="no such folder"):
        hub.resolve_config(tmp_path / "nothing")
    assert hub.resolve_config(REPO) == tmp_path / "fetched"
    assert hub.resolve_config(put(cache).parent) == next(cache.glob("*/snapshots"))


def test_the_hub_itself_is_never_asked_offline(cache: Path) -> None:
    """conftest sets HF_HUB_OFFLINE: huggingface_hub's own refusal comes out as ours."""
    assert hub._hub_is_offline()
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids asking the hub"):
        hub.pull(REPO, progress=False)
