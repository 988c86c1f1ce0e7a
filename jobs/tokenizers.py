"""A model's tokenizer without the transformers library, whose import takes seconds.

That library builds it, once, the way vLLM has it; what it built is kept in the home folder as a snapshot (the
tokenizers library's own JSON, the chat template, the special tokens), and from then on loaded in a tenth of a second.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jobs.chat_template import ChatTemplate

# of the home folder, for the snapshots
TOKENIZERS_FOLDER = "tokenizers"
_FORMAT = 1
# All that a tokenizer is built from has such a name.
_SOURCES = re.compile(
    r".*(token|vocab|merges|template|spiece|tekken|config).*\.(json|jinja|txt|model)|.*\.model"
)
# A part that came twice is likely to come again: a system prompt, what the template puts between messages.
_MAX_KEPT_PARTS = 1_000
_MAX_KEPT_CHARS = 4_096


class SnapshotTokenizer:
    """Answers the two calls that `jobs.rendering` makes, with the ids of the tokenizer that the snapshot is of."""

    def __init__(self, snapshot: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self.chat_template: str | dict[str, str] | None = snapshot["chat_template"]
        self._template = (
            ChatTemplate(self.chat_template, snapshot["special_tokens"]) if self.chat_template else None
        )
        self._tokenizer = Tokenizer.from_str(snapshot["tokenizer"])
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = snapshot["split_special_tokens"]
        parts = json.loads(snapshot["tokenizer"])
        self.max_token_chars = _longest(parts) or None
        self._max_tokens_per_byte = _max_tokens_per_byte(parts)
        special = None if snapshot["split_special_tokens"] else _splitting(parts)
        self._special_ids = special or {}
        self._splitter = _splitter(self._special_ids)
        self._kept: dict[str, list[int]] = {}

    def apply_chat_template(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        *,
        tokenize: bool = False,  # noqa: ARG002  as transformers has it
        **others: Any,
    ) -> list[str]:
        if self._template is None:
            raise ValueError("the model has no chat template")
        return [self._template.render(conversation, **others) for conversation in conversations]

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        if add_special_tokens or self._splitter is None:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return {"input_ids": [encoding.ids for encoding in encoded]}
        return {"input_ids": self._encode_by_parts([self._splitter.split(text) for text in texts])}

    def max_tokens(self, text: str, *, add_special_tokens: bool) -> int | None:
        """The tokens of a text at most, by its length alone; None where that says nothing."""
        if not self._max_tokens_per_byte:
            return None
        num_added = self._tokenizer.num_special_tokens_to_add(is_pair=False) if add_special_tokens else 0
        size_bytes = len(text.encode("utf-8", "surrogatepass"))
        return self._max_tokens_per_byte * (size_bytes + 1) + int(num_added)

    def as_json(self) -> str:
        """The tokenizers library's own form of it."""
        return str(self._tokenizer.to_str())

    def _encode_by_parts(self, texts: Sequence[Sequence[str]]) -> list[list[int]]:
        """Each text as its parts: between two special tokens, which are every other part, no text sees the other."""
        ids = {**self._special_ids, **self._kept, "": []}
        new: dict[str, int] = {}
        for parts in texts:
            for part in parts:
                if part not in ids:
                    new[part] = new.get(part, 0) + 1
        encoded = self._tokenizer.encode_batch_fast(list(new), add_special_tokens=False)
        ids.update((part, encoding.ids) for part, encoding in zip(new, encoded, strict=True))
        self._keep(
            {part: ids[part] for part, count in new.items() if count > 1 and len(part) <= _MAX_KEPT_CHARS}
        )
        return [[id_ for part in parts for id_ in ids[part]] for parts in texts]

    def _keep(self, parts: Mapping[str, list[int]]) -> None:
        if len(self._kept) + len(parts) > _MAX_KEPT_PARTS:
            self._kept.clear()
        if len(parts) <= _MAX_KEPT_PARTS:
            self._kept.update(parts)


def _splitter(special_ids: Mapping[str, Any]) -> re.Pattern[str] | None:
    # the longest first, as the tokenizers library has it for those that begin at one place
    names = sorted(special_ids, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, names))})") if names else None


def _splitting(tokenizer: Mapping[str, Any]) -> dict[str, list[int]] | None:
    """The special tokens at which a text may be cut and its parts be encoded alone; None where that would not be the
    same: a token that takes the spaces beside it with it, a word's first mark only at the text's start, chance."""
    tokens = [token for token in tokenizer["added_tokens"] if not token["normalized"]]
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in tokens):
        return None
    if tokenizer["model"].get("dropout") or '"first"' in json.dumps(tokenizer.get("pre_tokenizer")):
        return None
    return {token["content"]: [token["id"]] for token in tokens if token["content"]}


def _longest(tokenizer: Mapping[str, Any]) -> int:
    """The most characters of a text that one token stands for; 0 where that may be any number of them, since texts
    are changed before, or what no token stands for is taken together."""
    if not _takes_every_byte(tokenizer):
        return 0
    added = (token["content"] for token in tokenizer["added_tokens"])
    return max(map(len, [*tokenizer["model"]["vocab"], *added]))


# A word's mark, which stands for a space or before a word, may come to three bytes, each a token.
_MARK_BYTES = 3


def _max_tokens_per_byte(tokenizer: Mapping[str, Any]) -> int:
    """In UTF-8, and with one byte more for the text's own mark; 0 where it may be any number. A token is at least a
    byte, and between two tokens of more than one a mark may be put for each."""
    if not _takes_every_byte(tokenizer):
        return 0
    pre_tokenizer = json.dumps(tokenizer.get("pre_tokenizer"))
    is_marked = tokenizer.get("normalizer") or '"Metaspace"' in pre_tokenizer
    if is_marked or '"add_prefix_space": true' in pre_tokenizer:
        return 2 * _MARK_BYTES
    return 1


def _takes_every_byte(tokenizer: Mapping[str, Any]) -> bool:
    """Whether each byte of a text comes to tokens of its own, and nothing is changed before but a mark put in the place
    of a character, or before a part."""
    model, pre_tokenizer = tokenizer["model"], json.dumps(tokenizer.get("pre_tokenizer"))
    is_whole = model.get("byte_fallback") or '"ByteLevel"' in pre_tokenizer
    normalizer = tokenizer.get("normalizer") or {}
    parts = [part for part in normalizer.get("normalizers", [normalizer]) if part]
    return bool(model["type"] == "BPE" and is_whole and all(map(_only_marks, parts)))


def _only_marks(normalizer: Mapping[str, Any]) -> bool:
    match normalizer:
        case {"type": "Prepend", "prepend": mark}:
            return len(mark) == 1
        case {"type": "Replace", "pattern": {"String": replaced}, "content": mark}:
            return len(replaced) == len(mark) == 1
        case _:
            return False


def load_tokenizer(weights: str, snapshots: Path) -> Any:
    """The tokenizer of a model, in a folder or on the hub: from its snapshot where there is one, else as the
    transformers library loads it. Raises whatever that does."""
    folder = Path(weights)
    if not folder.is_dir():
        return _load_whole(weights)
    path = snapshots / f"{folder.name}-{_fingerprint(folder)}.json"
    try:
        return SnapshotTokenizer(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or not a whole one
    tokenizer = _load_whole(weights)
    if not tokenizer.is_fast:
        return tokenizer
    snapshot = {
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "chat_template": tokenizer.chat_template,
        "special_tokens": tokenizer.special_tokens_map,
        "split_special_tokens": tokenizer.split_special_tokens,
    }
    text = json.dumps(snapshot)
    _keep_snapshot(path, folder.name, text)
    return SnapshotTokenizer(json.loads(text))


def _load_whole(weights: str) -> Any:
    from transformers import AutoTokenizer

    # False: without it a model with code of its own would have it run, or ask at the terminal
    return AutoTokenizer.from_pretrained(
        weights, local_files_only=Path(weights).is_dir(), trust_remote_code=False
    )


def _fingerprint(folder: Path) -> str:
    """Of what the tokenizer is built from and by; another one as soon as a file of it was written again."""
    parts: list[object] = [_FORMAT, str(folder.resolve())]
    for package in ("tokenizers", "transformers"):
        try:
            parts.append(version(package))
        except PackageNotFoundError:
            parts.append(None)
    for file in sorted(folder.iterdir()):
        if _SOURCES.fullmatch(file.name):
            seen = file.stat()
            parts.append((file.name, seen.st_size, seen.st_mtime_ns))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _keep_snapshot(path: Path, name: str, text: str) -> None:
    """Write it, and take away those that it replaces; without room or rights the next submit only takes longer."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.write_text(text)
        temporary.chmod(0o600)
        temporary.replace(path)
        for other in path.parent.glob("*.json"):
            if other != path and re.fullmatch(re.escape(name) + "-[0-9a-f]{16}.json", other.name):
                other.unlink()
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
