"""Submitting a large file, checked and stored, against the plain parts one after the other in one process.

A line has about 320 bytes, half of them `prompt` and half `messages`, each with a custom_id. The raw chain is, for the
same lines: `orjson.loads`, the card's validator, and sqlite3's executemany or psycopg's COPY of the same rows into a
table of the same definition with the same indexes. Each side is a process of its own, which tells its peak memory.
Tokens are not counted here: benchmarks/admission.py measures that.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.installation import MODEL, postgres_in_a_folder
from benchmarks.one_side import SIDES, alternating, main, measured
from benchmarks.row import Row
from db.database import Database
from db.upgrade import upgrade

_BATCH = 10_000
_MAX_MB = 200
_LINES_PER_S = 100_000


def write_lines(path: Path, num_lines: int) -> None:
    with path.open("w") as file:
        for number in range(num_lines):
            text = f"Say {number} in words. " + "The quick brown fox jumps over the lazy dog. " * 5
            form = (
                {"prompt": text}
                if number % 2
                else {"messages": [{"role": "user", "content": text[:-30]}], "max_tokens": 64}
            )
            file.write(json.dumps({"custom_id": f"request-{number:09}", **form}) + "\n")


def _ours(url: str, path: str) -> int:
    from db.upgrade import open_database
    from jobs.admission import CheckTokens
    from jobs.cards import find_card
    from jobs.settings import load_settings
    from jobs.submit import SubmitOptions, submit

    settings = load_settings()
    database = open_database(url)
    return submit(
        database,
        settings,
        find_card(settings.home, MODEL),
        path,
        SubmitOptions(check_tokens=CheckTokens.NEVER),
    ).job.counts.total


def _raw(url: str, path: str) -> int:
    import jsonschema_rs
    import orjson

    from jobs.cards import find_card
    from jobs.settings import load_settings

    validator = jsonschema_rs.validator_for(find_card(load_settings().home, MODEL).input_schema)
    rows: list[tuple[str, int, str, str]] = []
    store = _RawStore(url)
    num_lines = 0
    with open(path, "rb") as file:
        for line in file:
            body = orjson.loads(line)
            if not validator.is_valid(body):
                raise ValueError("a line is bad")
            rows.append(("raw", num_lines, body["custom_id"], line.decode()))
            num_lines += 1
            if len(rows) == _BATCH:
                store.write(rows)
                rows = []
    store.write(rows)
    return num_lines


class _RawStore:
    """sqlite3 or psycopg as they come, one transaction a batch, as durable as ours."""

    def __init__(self, url: str) -> None:
        if url.startswith("sqlite"):
            import sqlite3

            self._sqlite: sqlite3.Connection | None = sqlite3.connect(url.removeprefix("sqlite:///"))
            self._sqlite.execute("PRAGMA journal_mode = WAL")
        else:
            import psycopg

            self._sqlite = None
            self._postgres = psycopg.connect(url.replace("postgresql+psycopg", "postgresql"))

    def write(self, rows: Sequence[tuple[str, int, str, str]]) -> None:
        if self._sqlite is not None:
            with self._sqlite:
                self._sqlite.executemany("INSERT INTO requests VALUES (?, ?, ?, ?)", rows)
            return
        with (
            self._postgres.cursor() as cursor,
            cursor.copy('COPY requests (job_id, "index", custom_id, body) FROM STDIN') as copy,
        ):
            for row in rows:
                copy.write_row(row)
        self._postgres.commit()


def measure(*, quick: bool) -> list[Row]:
    num_lines, num_pairs = (100_000, 1) if quick else (1_000_000, 3)
    rows: list[Row] = []
    with postgres_in_a_folder() as (root, postgres):
        path = root / "in.jsonl"
        write_lines(path, num_lines)
        for kind in ("SQLite", "Postgres"):
            lines_per_s: dict[str, list[float]] = {side: [] for side in SIDES}
            peaks: dict[str, list[float]] = {side: [] for side in SIDES}
            for number, side in alternating(num_pairs):
                name, file = f"{side}_{number}", root / f"{side}_{number}.db"
                url = f"sqlite:///{file}" if kind == "SQLite" else postgres.create_database(name)
                database = Database(url)
                upgrade(database)
                database.close()
                took_s, peak_mb = measured("benchmarks.ingest", side, url, str(path))
                lines_per_s[side].append(num_lines / took_s)
                peaks[side].append(peak_mb)
                file.unlink(missing_ok=True)
            subject, (ours, raws) = f"{kind}: submit of {num_lines:,} lines", lines_per_s.values()
            rows.append(Row(f"{subject}, vs raw chain", "lines/s", ours, raws, reach=0.5))
            rows.append(Row(f"{subject}, absolute", "lines/s", ours, reach=_LINES_PER_S))
            rows.append(
                Row(f"{subject}, peak memory", "MB", peaks["ours"], reach=_MAX_MB, is_less_better=True)
            )
    return rows


if __name__ == "__main__":
    main({"ours": _ours, "raw": _raw})
