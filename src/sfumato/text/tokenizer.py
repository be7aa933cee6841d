"""Text to tokens and back, with one promise: untrusted text never becomes a control token.

Why and how: docs/decisions/0010-control-tokens.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.config.checkpoint_file import is_there, read_bounded
from sfumato.config.json_file import read_json
from sfumato.config.model import ModelConfig
from sfumato.errors import InputError, SfumatoError, TokenizerError
from sfumato.text.bounds import longest_token
from sfumato.text.pieces import StreamDecoder, piece_reader
from sfumato.text.spellings import Control, Segment, Spellings, looks_like_control

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

# Gemma's tokenizer.json has 33 MB and its tokenizer_config.json 1.2 MB.
MAX_TOKENIZER_BYTES = 128 * 1024 * 1024
MAX_CONFIG_BYTES = 16 * 1024 * 1024
_NO_ENTRY = "\ufffd".encode()


class Tokenizer:
    """A checkpoint's tokenizer. Made by `from_folder`; immutable afterwards; safe among threads.

    `control` maps the spelling of every control token to its id, `named` the names that chat
    templates use (`bos_token`, ...) to spellings.
    """

    def __init__(self, backend: Backend, named: Mapping[str, str], source: str) -> None:
        """Take over `backend`; `source` names it in errors."""
        self._backend = backend
        self._source = source
        self._reader = piece_reader(backend.decoder, source)
        self._pieces: dict[int, bytes] = {}
        backend.no_truncation()
        backend.no_padding()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.named = dict(named)
        self.control = _control_tokens(backend, self.named, source)
        self.spellings = Spellings(self.control)
        self.control_ids = frozenset(self.control.values())
        self._added = {key: added.content for key, added in _added_tokens(backend).items()}
        self._check_runs_stand_alone()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json, with tokenizer_config.json and special_tokens_map.json if there.

        Raises TokenizerError, naming the file, if one is missing, too large or damaged.
        """
        folder = Path(folder)
        named: dict[str, str] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            path = folder / name
            if is_there(path):
                fields = read_json(path, limit=MAX_CONFIG_BYTES, error=TokenizerError)
                named |= _named_tokens(fields, path)
        path = folder / "tokenizer.json"
        return cls(_read_backend(path), named, str(path))

    def encode_text(self, text: str) -> list[int]:
        """Ids of untrusted `text`, none of them a control token's, however the text is spelled.

        Raises InputError for text that is not valid Unicode.
        """
        try:
            encoding = self._backend.encode(text, add_special_tokens=False)
        except (UnicodeError, TypeError) as problem:
            raise InputError(f"the text cannot be tokenised: {problem}") from None
        ids: list[int] = encoding.ids
        if self.control_ids.isdisjoint(ids):
            return ids
        return self._encode_parted(text, encoding)

    def _encode_parted(self, text: str, encoding: Any) -> list[int]:
        """Cut `text` inside every piece that came out as a control token, and encode the parts.

        Reached only where the vocabulary itself merges plain characters into a control token.
        """
        cuts = []
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token not in self.control_ids:
                continue
            if end - start < 2:
                spelled = self._added.get(token, str(token))
                raise InputError(
                    f"the text has {text[start:end]!r} at character {start}, which this "
                    f"tokenizer knows only as the control token {spelled!r}",
                    hint="take that character out of the text",
                )
            cuts.append((start + end) // 2)
        edges = [0, *cuts, len(text)]
        return [
            token for start, end in pairwise(edges) for token in self.encode_text(text[start:end])
        ]

    def least_tokens(self, segments: Iterable[Segment]) -> int:
        """A number of tokens that the prompt is not below, found without tokenising it."""
        longest = self._longest_token
        if longest is None:
            return 0
        return sum(
            1 if isinstance(one, Control) else -(-len(one.encode("utf-8", "replace")) // longest)
            for one in segments
        )

    @cached_property
    def _longest_token(self) -> int | None:
        return longest_token(self._backend, self._reader)

    def encode_prompt(self, segments: Iterable[Segment]) -> list[int]:
        """Ids of a rendered prompt: each Control as its id, everything else as untrusted text."""
        ids: list[int] = []
        for segment in segments:
            if isinstance(segment, Control):
                ids.append(self.control_id(segment.spelling))
            else:
                ids += self.encode_text(segment)
        return ids

    def control_id(self, spelling: str) -> int:
        """The id of a control token. Raises TokenizerError if there is none of that spelling."""
        found = self.control.get(spelling)
        if found is None:
            raise TokenizerError(f"{self._source}: there is no control token {spelling!r}")
        return found

    def token_to_id(self, token: str) -> int | None:
        """The id of the vocabulary's entry `token`, written as in tokenizer.json."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes one token stands for; a single one may hold part of a character.

        Raises InputError for an id that the vocabulary does not have.
        """
        found = self._pieces.get(token_id)
        if found is not None:
            return found
        if token_id in self.control_ids:
            data = self._added[token_id].encode("utf-8")
        elif token_id in self._added:
            data = self._reader.added(self._added[token_id])
        else:
            piece = self._backend.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
            if piece is None:
                raise InputError(
                    f"token id {token_id} is not in the vocabulary",
                    hint=f"ids go from 0 to {self.vocab_size - 1}",
                )
            data = self._reader.piece(piece)
        self._pieces[token_id] = data
        return data

    def decode(self, ids: Iterable[int], *, skip_control: bool = True) -> str:
        """The text of `ids`; control tokens are left out, or spelled if `skip_control` is off.

        Bytes that make no character become U+FFFD. Raises InputError for an id out of range.
        """
        stream = self.stream(skip_control=skip_control)
        return stream.push(ids) + stream.flush()

    def stream(self, *, skip_control: bool = True, strict: bool = True) -> StreamDecoder:
        """A decoder for tokens as they arrive; see StreamDecoder.

        Unless `strict`, an id without an entry reads as U+FFFD: a model may have more embeddings
        than its tokenizer has entries, and its output must not fail for that.
        """

        def piece(token: int) -> bytes | None:
            if skip_control and token in self.control_ids:
                return None
            try:
                return self.token_bytes(token)
            except InputError:
                if strict:
                    raise
                return _NO_ENTRY

        return StreamDecoder(piece)

    def check_matches(self, config: ModelConfig) -> None:
        """Raise TokenizerError if these tokens cannot be those of a model with `config`."""
        if self.vocab_size > config.text.vocab_size:
            raise TokenizerError(
                f"{self._source}: token ids go up to {self.vocab_size - 1}, but the model has "
                f"only {config.text.vocab_size} embeddings",
                hint="tokenizer.json and config.json are of different checkpoints",
            )
        bos = self.control.get(self.named.get("bos_token", ""))
        if bos is not None and config.text.bos_token_id not in (None, bos):
            raise TokenizerError(
                f"{self._source}: bos_token is id {bos}, but the model's configuration says "
                f"{config.text.bos_token_id}",
                hint="tokenizer.json and config.json are of different checkpoints",
            )

    def _check_runs_stand_alone(self) -> None:
        """Refuse a tokenizer whose text depends on where in the prompt it stands.

        Prompts are tokenised run by run between control tokens. That is what the whole at once
        gives, unless the file puts a prefix before the first run only.
        """
        shown = sorted(self.control, key=self.control.__getitem__)[:16]
        text = "".join(f"{spelling}a{spelling} b \n\n" for spelling in shown) + "c"
        self._backend.encode_special_tokens = False
        whole = self._backend.encode(text, add_special_tokens=False).ids
        self._backend.encode_special_tokens = True
        marked = self.spellings.mark(text, "\0")
        if whole != self.encode_prompt(self.spellings.split(marked, "\0")):
            raise TokenizerError(
                f"{self._source}: text is tokenised differently beside control tokens",
                hint="sfumato reads tokenizers that put no prefix before the first text",
            )


def _read_backend(path: Path) -> Backend:
    from tokenizers import Tokenizer as BackendClass

    if not is_there(path):
        raise TokenizerError(
            f"{path}: there is no such file", hint="a checkpoint folder needs a tokenizer.json"
        )
    data = read_bounded(path, MAX_TOKENIZER_BYTES, error=TokenizerError)
    try:
        backend: Backend = BackendClass.from_buffer(data)
    except BaseException as problem:
        # A panic of the Rust library arrives as a BaseException of its own.
        if isinstance(problem, SfumatoError | KeyboardInterrupt | SystemExit):
            raise
        reason = " ".join(str(problem).split())[:200]
        raise TokenizerError(f"{path}: damaged, or not a tokenizer: {reason}") from None
    return backend


def _added_tokens(backend: Backend) -> dict[int, AddedToken]:
    found: dict[int, AddedToken] = backend.get_added_tokens_decoder()
    return found


def _control_tokens(backend: Backend, named: Mapping[str, str], source: str) -> dict[str, int]:
    """Find the control tokens and make `backend` treat all of them as special, ids unchanged."""
    names = set(named.values())
    control: dict[str, int] = {}
    found: list[AddedToken] = []
    for token_id, added in sorted(_added_tokens(backend).items()):
        if not added.content:
            raise TokenizerError(f"{source}: the added token {token_id} is empty")
        if added.special or added.content in names or looks_like_control(added.content):
            if added.lstrip or added.rstrip or added.single_word:
                raise TokenizerError(
                    f"{source}: the control token {added.content!r} takes text beside it with it",
                    hint="sfumato reads tokenizers without lstrip, rstrip and single_word there",
                )
            control[added.content] = token_id
            added.special = True
            found.append(added)
    # Special for the library too: it then leaves the spellings alone in plain text. All at once:
    # the library builds its matcher anew at every call, and Gemma reserves 6,242 entries.
    backend.add_special_tokens(found)
    for name, spelling in named.items():
        if spelling not in control:
            raise TokenizerError(
                f"{source}: {name} is {spelling!r}, which is not among the added tokens"
            )
    return control


def _named_tokens(fields: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The `bos_token`-like fields of a tokenizer's configuration, as spellings."""
    named: dict[str, str] = {}
    extra = fields.get("extra_special_tokens")
    sources = [fields, extra] if isinstance(extra, dict) else [fields]
    for source in sources:
        for name, value in source.items():
            if not name.endswith("_token") or isinstance(value, bool) or value is None:
                continue
            spelling = value.get("content") if isinstance(value, dict) else value
            if not isinstance(spelling, str) or not spelling:
                raise TokenizerError(f"{path}: {name} is not the spelling of a token")
            named[name] = spelling
    return named
