"""One file of a checkpoint's folder: inside it, regular, and not longer than it may be."""

from __future__ import annotations

from pathlib import Path

from sfumato.errors import ConfigError, SfumatoError

# Files beside the weights: what turns words and pictures into ids and back, and how to decode.
SPEAKING = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
)
DECODING = ("generation_config.json", "sfumato.json")


def is_there(path: Path) -> bool:
    """Whether something is at `path`; what may not be looked at counts as not there."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def check_inside(path: Path, *, error: type[SfumatoError] = ConfigError) -> None:
    """Raise `error` if the file at `path` is a link that leads out of its folder.

    Links into the hub cache's own stores are allowed. It keeps files as
    `models--owner--name/snapshots/REVISION/FILE`, links to `../../blobs/HASH`, which since
    huggingface_hub 2.4 may be links in their turn, to `blobs/HA/HASH` beside all repositories.
    """
    try:
        real = path.resolve(strict=True)
        home = path.parent.resolve(strict=True)
    except (OSError, RuntimeError) as problem:  # before Python 3.13 a loop is a RuntimeError
        reason = getattr(problem, "strerror", None) or str(problem)
        raise error(f"{path}: {reason}", hint="fetch the checkpoint again") from None
    if real.parent == home:
        return
    repo = home.parent.parent
    if home.parent.name == "snapshots" and repo.name.startswith("models--"):
        if real.parent == repo / "blobs":
            return
        if real.parent.parent == repo.parent / "blobs" and real.name.startswith(real.parent.name):
            return
    raise error(f"{path}: is a link that leads out of the checkpoint's folder")


def expanded(path: str | Path) -> Path:
    """`path` with `~` as the user's folder; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def read_bounded(path: Path, limit: int, *, error: type[SfumatoError] = ConfigError) -> bytes:
    """The bytes of the file at `path`, at most `limit` of them. Raises `error`, naming the file."""
    if is_there(path):
        check_inside(path, error=error)
        if not path.is_file():  # opening a pipe would wait for its writer
            raise error(f"{path}: is not a regular file")
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise error(f"{path}: there is no such file") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from None
    if len(data) > limit:
        raise error(f"{path}: longer than {limit:,} bytes, which no such file needs")
    return data
