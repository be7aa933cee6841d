"""Tokenizers and templates to test with: Gemma's construction in small, and awkward ones."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

SMALL = Path(__file__).resolve().parents[2] / "src" / "sfumato" / "small"

CONTROLS = [
    "<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|channel>", "<channel|>",
    "<|think|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
    "<tool_response|>", '<|"|>', "<|image>", "<image|>", "<|image|>",
]  # fmt: skip
NAMED = {
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "unk_token": "<unk>",
    "image_token": "<|image|>",
}

# In the released template's manner: macros, namespaces, range over earlier messages, thoughts kept
# only inside a tool loop, quotes as control tokens, white space trimmed.
GEMMA_LIKE = """\
{%- macro value(item, quoted=true) -%}
    {%- if item is string -%}<|"|>{{ item }}<|"|>
    {%- elif item is boolean -%}{{ 'true' if item else 'false' }}
    {%- elif item is mapping -%}
        {
        {%- for key, inner in item | dictsort -%}
            {%- if quoted -%}<|"|>{{ key }}<|"|>{%- else -%}{{ key }}{%- endif -%}
            :{{ value(inner, quoted) }}{{ ',' if not loop.last }}
        {%- endfor -%}
        }
    {%- elif item is sequence -%}
        [{%- for inner in item -%}{{ value(inner, quoted) }}{{ ',' if not loop.last }}{%- endfor -%}]
    {%- else -%}{{ item }}
    {%- endif -%}
{%- endmacro -%}
{%- macro answer_only(text) -%}
    {%- set kept = namespace(text='') -%}
    {%- for part in text.split('<channel|>') -%}
        {%- set kept.text = kept.text + part.split('<|channel>')[0] -%}
    {%- endfor -%}
    {{- kept.text | trim -}}
{%- endmacro -%}
{%- set thinking = enable_thinking is defined and enable_thinking -%}
{%- set state = namespace(last_user=-1, previous='') -%}
{{- bos_token -}}
{%- set turns = messages -%}
{%- if thinking or tools or messages[0]['role'] in ['system', 'developer'] -%}
    {{- '<|turn>system\\n' -}}
    {%- if thinking %}{{ '<|think|>\\n' }}{% endif -%}
    {%- if messages[0]['role'] in ['system', 'developer'] -%}
        {{- messages[0]['content'] | trim -}}
        {%- set turns = messages[1:] -%}
    {%- endif -%}
    {%- for tool in tools or [] -%}
        {{- '<|tool>declaration:' + tool['function']['name'] -}}
        {%- set rest = {'parameters': tool['function']['parameters']} -%}
        {{- value(rest, false) -}}
        {{- 'kind:' + tool['function']['parameters']['type'] | upper + '<tool|>' -}}
    {%- endfor -%}
    {{- '<turn|>\\n' -}}
{%- endif -%}
{%- for index in range(turns | length) -%}
    {%- if turns[index]['role'] == 'user' %}{% set state.last_user = index %}{% endif -%}
{%- endfor -%}
{%- for message in turns -%}
    {%- if message['role'] == 'tool' -%}
        {{- '<|tool_response>response:' + message['name'] + value({'value': message['content']}, false) -}}
        {{- '<tool_response|>' -}}
        {%- set state.previous = 'tool' -%}
        {%- continue -%}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {%- if not (role == 'model' and state.previous == 'tool') -%}
        {{- '<|turn>' + role + '\\n' -}}
    {%- endif -%}
    {%- set state.previous = role -%}
    {%- set thought = message.get('reasoning') or message.get('reasoning_content') -%}
    {%- if thought and loop.index0 > state.last_user and message.get('tool_calls') -%}
        {{- '<|channel>thought\\n' + thought + '\\n<channel|>' -}}
    {%- endif -%}
    {%- for call in message['tool_calls'] or [] -%}
        {{- '<|tool_call>call:' + call['function']['name'] -}}
        {{- value(call['function']['arguments'], false) + '<tool_call|>' -}}
        {%- set state.previous = 'tool' -%}
    {%- endfor -%}
    {%- if message['content'] is string -%}
        {{- answer_only(message['content']) if role == 'model' else message['content'] | trim -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {{- part['text'] | trim if part['type'] == 'text' else '\\n\\n<|image|>\\n\\n' -}}
        {%- endfor -%}
    {%- endif -%}
    {%- if not message['tool_calls'] %}{{ '<turn|>\\n' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt and state.previous != 'tool' -%}
    {{- '<|turn>model\\n' -}}
    {%- if not enable_thinking | default(false) %}{{ '<|channel>thought\\n<channel|>' }}{% endif -%}
{%- endif -%}
"""  # noqa: E501 - lines as a template author writes them


def gemma_like(*, forgotten: tuple[str, ...] = ("<|tool>", '<|"|>')) -> Backend:
    """Pieces with `▁` and byte fallback; `forgotten` control tokens are not flagged special."""
    letters = [chr(code) for code in range(0x21, 0x7F)] + ["▁", "\n", "é"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("u", "s"), ("e", "r"), ("us", "er"),
              ("t", "u"), ("r", "n"), ("tu", "rn"), ("<", "|"), ("|", ">")]  # fmt: skip
    pieces = [*CONTROLS, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "\n\n", "▁▁", "<b>"]
    pieces += ["".join(merge) for merge in merges]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Backend(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [token for token in CONTROLS if token not in forgotten]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    plain = [*forgotten, "\n\n", "▁▁", "<b>"]
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in plain])
    return backend


def merging() -> Backend:
    """A vocabulary whose own merges build `<|turn>` out of plain characters."""
    backend = gemma_like()
    state = json.loads(backend.to_str())
    state["model"]["vocab"]["<|turn"] = len(state["model"]["vocab"])
    state["model"]["merges"] += [["<|", "turn"], ["<|turn", ">"]]
    return Backend.from_str(json.dumps(state))


def folding() -> Backend:
    """A normaliser that folds full-width characters, and control tokens matched after it."""
    state = json.loads(gemma_like().to_str())
    state["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "NFKC"}, state["normalizer"]],
    }
    for added in state["added_tokens"]:
        added["normalized"] = True
    return Backend.from_str(json.dumps(state))


def unigram() -> Backend:
    """A unigram model, which takes the whole spelling as one piece wherever it stands."""
    pieces = [(token, -1.0) for token in CONTROLS]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    pieces += [(piece, -5.0) for piece in ["▁", *map(chr, range(0x21, 0x7F))]]
    backend = Backend(models.Unigram(pieces, unk_id=3, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in CONTROLS])
    return backend


def byte_level() -> Backend:
    """The small model's construction: byte-level BPE with single digits."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*CONTROLS, *alphabet, "th", "Ġth"])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[("t", "h"), ("Ġ", "th")]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in CONTROLS])
    return backend


def write_folder(folder: Path, backend: Backend | None = None, template: str = GEMMA_LIKE) -> Path:
    """A checkpoint folder's text files."""
    folder.mkdir(parents=True, exist_ok=True)
    (backend or gemma_like()).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        **NAMED,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


_FRAGMENTS = [
    *CONTROLS,
    *(token[:cut] for token in CONTROLS for cut in (1, 2, -1)),
    *(token[cut:] for token in CONTROLS for cut in (1, 2, -1)),
    *(token.upper() for token in CONTROLS),
    "＜｜turn＞", "＜turn｜＞", "<｜turn>", "<|tu\u200brn>", "<\u200d|turn>", "<|turn\ufeff>",
    "\u2060", "\ufdd0", "\ufdd1", "\ufdd0<|turn>", "\\ufdd0<|turn>", "\ue000", "\uf8ff",
    "▁", " ", "\n", "\n\n", "\t", "<b>", "<0x3C>", "<0x7C>",
    "the", "user", "7", "é", "水", "🙂", "\0",
]  # fmt: skip


def hostile_text() -> st.SearchStrategy[str]:
    """Mixtures of control tokens, parts of them, look-alikes, private marks and anything else."""
    anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    return st.lists(st.sampled_from(_FRAGMENTS) | anything, max_size=12).map("".join)
