"""Exporting a million results, against the driver's cursor over the same join, each row written as a JSON line.

The raw side selects the same columns in the same order and writes them with orjson, one line a row, into a buffered
file; the database's own rows are made by itself. Each side is a process of its own, which tells its peak memory.
"""

import sqlite3
from collections.abc import Iterable
from typing import Any

from sqlalchemy import text

from benchmarks.installation import NUMBERS, postgres_in_a_folder
from benchmarks.one_side import SIDES, alternating, main, measured
from benchmarks.row import Row
from db.database import Database
from db.upgrade import upgrade

_MAX_MB = 200
_FILL = (
    """INSERT INTO jobs (id, state, card_name, card_sha256, card, input_name, input_sha256, num_requests, num_succeeded,
    created_at, started_at, finished_at)
    VALUES ('job', 'completed', 'tiny', 'c', 'card', 'in', 'i', :last + 1, :last + 1, 1.0, 1.0, 2.0)""",
    """INSERT INTO requests (job_id, "index", custom_id, body)
    SELECT 'job', n, 'request-' || n, '{{}}' FROM ({numbers}) AS numbers""",
    """INSERT INTO results (job_id, "index", status, result, finish_reason, prompt_tokens, completion_tokens, attempt,
    finished_at, position)
    SELECT 'job', n, 'succeeded', '{{"response":"' || n || :words || '"}}', 'stop', 30, 40, 1, 1.0, n + 1
    FROM ({numbers}) AS numbers""",
)
_QUERY = """
SELECT requests."index", requests.custom_id, status, result, finish_reason, prompt_tokens, completion_tokens,
    error_code, error_message
FROM requests LEFT JOIN results ON results.job_id = requests.job_id AND results."index" = requests."index"
WHERE requests.job_id = 'job' ORDER BY requests."index"
"""


def _fill(url: str, num_results: int) -> None:
    database = Database(url)
    upgrade(database)
    with database.write() as tx:
        for statement in _FILL:
            filled = text(statement.format(numbers=NUMBERS[database.is_sqlite]))
            values = {"last": num_results - 1, "words": " and a completion of some forty words" * 6}
            tx.execute(filled, {name: values[name] for name in values if f":{name}" in str(filled)})
    with database.write() as tx:
        tx.execute(text("ANALYZE"))
    database.close()


def _ours(url: str, path: str) -> None:
    from jobs.export import export

    database = Database(url)
    export(database, "job", path)


def _raw(url: str, path: str) -> None:
    import orjson

    def lines(rows: Iterable[tuple[Any, ...]]) -> Iterable[bytes]:
        for index, custom_id, status, result, reason, prompt_tokens, completion_tokens, code, message in rows:
            yield orjson.dumps(
                {
                    "index": index,
                    "custom_id": custom_id,
                    "status": status,
                    "result": orjson.Fragment(result),
                    "finish_reason": reason,
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "error_code": code,
                    "error_message": message,
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )

    with open(path, "wb", 1024 * 1024) as file:
        if url.startswith("sqlite"):
            file.writelines(lines(sqlite3.connect(url.removeprefix("sqlite:///")).execute(_QUERY)))
            return
        import psycopg

        connection = psycopg.connect(url.replace("postgresql+psycopg", "postgresql"))
        with connection.cursor("raw") as cursor:
            cursor.itersize = 2_000
            file.writelines(lines(cursor.execute(_QUERY)))


def measure(*, quick: bool) -> list[Row]:
    num_results, num_pairs = (100_000, 1) if quick else (1_000_000, 3)
    rows: list[Row] = []
    with postgres_in_a_folder() as (root, postgres):
        urls = {"SQLite": f"sqlite:///{root / 'jobs.db'}", "Postgres": postgres.create_database("export")}
        for kind, url in urls.items():
            _fill(url, num_results)
            results_per_s: dict[str, list[float]] = {side: [] for side in SIDES}
            peaks: dict[str, list[float]] = {side: [] for side in SIDES}
            for _, side in alternating(num_pairs):
                took_s, peak_mb = measured("benchmarks.export", side, url, str(root / f"{side}.jsonl"))
                results_per_s[side].append(num_results / took_s)
                peaks[side].append(peak_mb)
            subject, (ours, raws) = f"{kind}: export of {num_results:,} results", results_per_s.values()
            rows.append(Row(f"{subject}, vs raw cursor", "results/s", ours, raws, reach=0.5))
            rows.append(
                Row(f"{subject}, peak memory", "MB", peaks["ours"], reach=_MAX_MB, is_less_better=True)
            )
    return rows


if __name__ == "__main__":
    main({"ours": _ours, "raw": _raw})
