"""Checkpoints on the Hugging Face hub, through huggingface_hub and its standard cache.

Only data is ever fetched: JSON, safetensors, templates and tokenizer files; no Python, no pickle.
HF_HUB_OFFLINE, HF_HOME and the token are huggingface_hub's to read.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.config.checkpoint_file import expanded, is_there
from sfumato.config.json_file import read_json
from sfumato.errors import ConfigError, HubError, InputError

WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "LICENSE*", "NOTICE*", "README.md")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_NAME}/{_NAME}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_SPARE_BYTES = 200_000_000  # left free on the disk beside a download


@dataclass(frozen=True)
class CachedModel:
    """A DiffusionGemma repository in the cache. `size` is bytes on disk, `last_used` Unix time."""

    repo: str
    revisions: tuple[str, ...]
    size: int
    last_used: float
    folder: Path


def resolve(
    path_or_repo: str | Path,
    revision: str | None = None,
    *,
    offline: bool = False,
    progress: bool = True,
) -> Path:
    """The local folder of a checkpoint: `path_or_repo` itself, or a hub repository's.

    A folder wins over a repository of that name. What the cache holds complete is used without
    asking the hub (`pull` asks); `offline`, or HF_HUB_OFFLINE, forbids asking at all. `revision`
    is a branch, tag or commit. Raises HubError, or InputError for a name that cannot be one.
    """
    path = expanded(path_or_repo)
    if is_there(path):
        if revision is not None:
            raise InputError(f"{path} is a folder, and a folder has no revisions")
        if not path.is_dir():
            raise InputError(f"{path} is a file", hint="give the folder it is in")
        return path
    repo = _checked_repo(str(path_or_repo))
    _check_revision(revision)
    if (found := _cached(repo, revision)) is not None:
        return found
    if offline or _hub_is_offline():
        raise HubError(
            f"{repo} is not (completely) in the cache and the hub may not be asked",
            hint=f"run `sfumato pull {repo}` with a network",
        )
    return pull(repo, revision, progress=progress)


def pull(repo: str, revision: str | None = None, *, progress: bool = True) -> Path:
    """Fetch a repository, or what is new in it, into the cache and return its folder.

    Before anything is fetched: it must hold safetensors, and fit on the disk. Raises HubError, or
    InputError for a name that cannot be one.
    """
    import huggingface_hub

    repo = _checked_repo(repo)
    _check_revision(revision)
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(WANTED)}
    with _hub_errors(repo, revision), _progress(progress):
        plan = huggingface_hub.snapshot_download(repo, dry_run=True, **wanted)
        _check_plan(repo, plan)
        return Path(huggingface_hub.snapshot_download(repo, **wanted))


def resolve_config(path_or_repo: str | Path, *, offline: bool = False) -> Path:
    """A folder with the checkpoint's config.json; of a repository not in the cache, that alone.

    Raises as `resolve` does.
    """
    try:
        return resolve(path_or_repo, offline=True)
    except HubError:
        if offline or _hub_is_offline() or not _REPO.fullmatch(str(path_or_repo)):
            raise
    return fetch_config(str(path_or_repo))


def fetch_config(repo: str, revision: str | None = None) -> Path:
    """The folder with a repository's config.json, fetched now; nothing large is touched.

    Raises HubError, or InputError for a name that cannot be one.
    """
    import huggingface_hub

    repo = _checked_repo(repo)
    _check_revision(revision)
    with _hub_errors(repo, revision):
        config = huggingface_hub.hf_hub_download(repo, "config.json", revision=revision)
    return Path(config).parent


def check_name(repo: str, revision: str | None = None) -> None:
    """Raise HubError or InputError for what cannot name a repository or its revision.

    No network is needed to say so.
    """
    _checked_repo(repo)
    _check_revision(revision)


def cached_models() -> list[CachedModel]:
    """The DiffusionGemma repositories in the cache, by name."""
    found = []
    for repo in _scan():
        folders = [revision.snapshot_path for revision in repo.revisions]
        ours = [folder for folder in folders if _is_ours(Path(folder))]
        if repo.repo_type == "model" and ours:
            revisions = tuple(sorted(revision.commit_hash for revision in repo.revisions))
            found.append(
                CachedModel(
                    repo.repo_id,
                    revisions,
                    repo.size_on_disk,
                    float(repo.last_accessed),
                    Path(min(ours)),
                )
            )
    return sorted(found, key=lambda model: model.repo)


def remove(repo: str) -> int:
    """Delete a repository from the cache; the bytes freed. HubError if it is not there."""
    import huggingface_hub

    repo = _checked_repo(repo)
    for known in _scan():
        if known.repo_type == "model" and known.repo_id == repo:
            commits = [revision.commit_hash for revision in known.revisions]
            with _hub_errors(repo, None):
                # Narrowed to this repository: another one (a fork, or the same under an older
                # name) may hold the same commit, and the hub's library would pick either.
                alone = dataclasses.replace(
                    huggingface_hub.scan_cache_dir(), repos=frozenset({known})
                )
                strategy = alone.delete_revisions(*commits)
                strategy.execute()
            return int(strategy.expected_freed_size)
    raise HubError(f"{repo} is not in the cache", hint="`sfumato list` shows what is")


def _checked_repo(name: str) -> str:
    if _REPO.fullmatch(name) and ".." not in name and "--" not in name:
        return name
    if "/" not in name or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise HubError(
            f"{name}: there is no such folder",
            hint="a hub repository is named owner/name, as google/diffusiongemma-26B-A4B-it",
        )
    raise InputError(f"{name!r} is neither a folder nor a possible name of a hub repository")


def _check_revision(revision: str | None) -> None:
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError(f"{revision!r} cannot be a branch, tag or commit")


def _hub_is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def _cached(repo: str, revision: str | None) -> Path | None:
    """The repository's folder in the cache, if all files of the checkpoint are there."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _hub_errors(repo, revision):
        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    repo, revision=revision, allow_patterns=list(WANTED), local_files_only=True
                )
            )
        except LocalEntryNotFoundError:
            return None
    return folder if _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    """Whether config.json and every weight file an index names are in `folder`."""
    if not is_there(folder / "config.json"):
        return False
    index = folder / "model.safetensors.index.json"
    if not is_there(index):
        return is_there(folder / "model.safetensors")
    try:
        weight_map = read_json(index, limit=64 * 1024 * 1024).get("weight_map")
    except ConfigError:
        return True  # complete and damaged: reading it will say how
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    return all(is_there(folder / str(name)) for name in set(map(str, names)))


def _is_ours(folder: Path) -> bool:
    try:
        return read_json(folder / "config.json").get("model_type") == "diffusion_gemma"
    except ConfigError:
        return False


def _scan() -> list[Any]:
    import huggingface_hub
    from huggingface_hub.errors import CacheNotFound

    try:
        return list(huggingface_hub.scan_cache_dir().repos)
    except CacheNotFound:
        return []
    except ValueError as problem:  # the cache's folder is a file
        text = " ".join(str(problem).split())[:200]
        raise HubError(
            f"the hub's cache cannot be read: {text}", hint="HF_HOME or HF_HUB_CACHE names it"
        ) from None


def _check_plan(repo: str, plan: Any) -> None:
    names = [str(file.filename) for file in plan]
    if not any(name.endswith(".safetensors") for name in names):
        raise HubError(
            f"{repo} has no safetensors files",
            hint="pickle (.bin, .pt) is never read: choose a repository with safetensors",
        )
    if "config.json" not in names:
        raise HubError(
            f"{repo} has no config.json", hint="choose a checkpoint in the Transformers layout"
        )
    needed = sum(int(file.file_size) for file in plan if file.will_download)
    cache = _cache_folder()
    free = shutil.disk_usage(cache).free
    if needed + _SPARE_BYTES > free:
        raise HubError(
            f"{repo} needs {needed / 1e9:.1f} GB and the disk of {cache} has {free / 1e9:.1f} GB",
            hint="free some space, or point HF_HOME at another disk",
        )


def _cache_folder() -> Path:
    """The cache's folder, or the nearest one above it that exists already."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE).expanduser()
    return next(place for place in (folder, *folder.parents) if is_there(place))


@contextmanager
def _progress(wanted: bool) -> Iterator[None]:
    # The package re-exports these three under a lazy scheme that type checkers do not see.
    bars: Any = importlib.import_module("huggingface_hub.utils")
    if wanted or bars.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()


@contextmanager
def _hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Say in one line what went wrong with the hub, and what to do about it."""
    from huggingface_hub import errors

    # The bases of HfHubHTTPError: the HTTP client's own base error, whichever client it is in
    # this release, and OSError, which covers the disk.
    bases: Any = errors.HfHubHTTPError.__bases__
    # Errors of its newer releases that have neither base, and RuntimeError, hf_xet's only kind.
    newer = ("XetDownloadError", "RevisionResolutionError", "CachedRepoTreeNotFoundError")
    others = [getattr(errors, name) for name in newer if hasattr(errors, name)]
    caught: tuple[type[Exception], ...] = (
        *bases,
        *others,
        errors.EntryNotFoundError,
        ValueError,
        RuntimeError,
    )
    try:
        yield
    except caught as problem:
        # What was asked of the hub first fails as a "dry run"; the reason is its cause.
        cause = problem.__cause__ if isinstance(problem, errors.DryRunError) else problem
        raise _translated(repo, revision, cause or problem) from None


def _translated(repo: str, revision: str | None, problem: BaseException) -> HubError:
    from huggingface_hub import errors

    if isinstance(problem, errors.GatedRepoError):
        return HubError(
            f"{repo} asks for its terms to be accepted first",
            hint=f"accept them at https://huggingface.co/{repo}, then run `hf auth login`",
        )
    if isinstance(problem, errors.RepositoryNotFoundError):
        return HubError(
            f"the hub has no repository {repo}, or hides it",
            hint="check the name; for a private one run `hf auth login`",
        )
    if isinstance(problem, errors.RevisionNotFoundError):
        return HubError(f"{repo} has no revision {revision}", hint="leave it out for the newest")
    if isinstance(problem, errors.OfflineModeIsEnabled):
        return HubError(
            f"{repo}: HF_HUB_OFFLINE forbids asking the hub", hint="unset it, or use the cache"
        )
    if isinstance(problem, OSError) and problem.errno is not None and problem.filename:
        return HubError(f"{repo}: {problem.filename}: {problem.strerror}")
    text = " ".join(str(problem).split())[:200] or type(problem).__name__
    return HubError(
        f"{repo} could not be fetched: {text}",
        hint="check the network and run it again: what was fetched is kept",
    )
