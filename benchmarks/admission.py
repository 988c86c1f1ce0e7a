"""Checking short prompts token by token, on one core, against the tokenizers library on texts already rendered.

Ours is all of `promptmill validate`: read, schema, chat template, tokens, limits. The raw side has the texts and only
encodes them, in batches of the same size. Each side is a process of its own, held to one thread.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.installation import MODEL
from benchmarks.one_side import SIDES, alternating, main, measured
from benchmarks.row import Row

_BATCH = 500
_MAX_MB = 200
_LINES_PER_S = 20_000


def _write_lines(path: Path, num_lines: int) -> None:
    with path.open("w") as file:
        for number in range(num_lines):
            text = f"Say {number} in words and be brief about it."
            form: dict[str, Any] = (
                {"prompt": text}
                if number % 2
                else {"messages": [{"role": "user", "content": text}], "max_tokens": 64}
            )
            file.write(json.dumps({"custom_id": f"request-{number:09}", **form}) + "\n")


def _tokenizer() -> Any:
    from jobs.cards import find_card
    from jobs.settings import load_settings
    from jobs.tokenizers import load_tokenizer

    settings = load_settings()
    return load_tokenizer(
        find_card(settings.home, MODEL).weights(settings.home), settings.home / "tokenizers"
    )


def _ours(_: str, path: str) -> None:
    from jobs.admission import CheckTokens, open_admission
    from jobs.cards import find_card
    from jobs.reader import LineLimits
    from jobs.settings import load_settings
    from jobs.validation import validate

    settings = load_settings()
    card = find_card(settings.home, MODEL)
    admission, _note = open_admission(card, settings, CheckTokens.ALWAYS)
    if not validate(card, path, LineLimits.of(settings), admission=admission).is_valid:
        raise ValueError("a line is bad")


def _raw(tokenizer_json: str, path: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_json)
    with open(path) as file:
        while texts := [json.loads(line) for _, line in zip(range(_BATCH), file, strict=False)]:
            for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
                _ids = encoding.ids


def _render(source: Path, target: Path, tokenizer: Any) -> None:
    with source.open() as lines, target.open("w") as texts:
        for body in map(json.loads, lines):
            messages = body.get("messages") or [{"role": "user", "content": body["prompt"]}]
            (text,) = tokenizer.apply_chat_template([messages], tokenize=False, add_generation_prompt=True)
            texts.write(json.dumps(text) + "\n")


def measure(*, quick: bool) -> list[Row]:
    num_lines, num_pairs = (20_000, 1) if quick else (200_000, 3)
    # a thread each: the library takes all cores otherwise
    os.environ["RAYON_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        source, rendered = Path(folder) / "in.jsonl", Path(folder) / "rendered.jsonl"
        _write_lines(source, num_lines)
        tokenizer = _tokenizer()
        _render(source, rendered, tokenizer)
        tokenizer_json = Path(folder) / "tokenizer.json"
        tokenizer_json.write_text(tokenizer.as_json())
        paths = {"ours": source, "raw": rendered}
        lines_per_s: dict[str, list[float]] = {side: [] for side in SIDES}
        peaks: dict[str, list[float]] = {side: [] for side in SIDES}
        for _, side in alternating(num_pairs):
            took_s, peak_mb = measured("benchmarks.admission", side, str(tokenizer_json), str(paths[side]))
            lines_per_s[side].append(num_lines / took_s)
            peaks[side].append(peak_mb)
    os.environ.pop("RAYON_NUM_THREADS")
    subject, (ours, raws) = f"token check of {num_lines:,} short lines", lines_per_s.values()
    return [
        Row(f"{subject}, vs tokenizers", "lines/s", ours, raws, reach=0.8),
        Row(f"{subject}, one core", "lines/s", ours, reach=_LINES_PER_S),
        Row(f"{subject}, peak memory", "MB", peaks["ours"], reach=_MAX_MB, is_less_better=True),
    ]


if __name__ == "__main__":
    main({"ours": _ours, "raw": _raw})
