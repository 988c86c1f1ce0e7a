"""Reruns and retries with real workers: what broke runs again, elsewhere or in place, and one output has it all."""

import json
from pathlib import Path
from typing import Any

from samples import read_results
from servers import Cli, MakeCli, Postgres, Redis
from soundness import assert_job_is_sound

from db.database import Database


def _write(path: Path, prompts: list[str]) -> Path:
    lines = [json.dumps({"custom_id": f"r{n}", "prompt": prompt}) for n, prompt in enumerate(prompts)]
    path.write_text("\n".join(lines))
    return path


def _done(cli: Cli, *arguments: object) -> str:
    done = cli.run(*map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _counts(cli: Cli, job_id: str) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(_done(cli, "status", job_id, "--json"))
    return dict(status["counts"])


def _play(cli: Cli, database: Database, folder: Path) -> None:
    # of 24 requests 4 are refused by the engine, and 4 are longer than 2 tokens
    prompts = ["!refuse" if n % 7 == 0 else "one two three" if n % 5 == 0 else f"say {n}" for n in range(24)]
    source, output = _write(folder / "in.jsonl", prompts), folder / "out.jsonl"
    cli.start("worker")
    first = _done(cli, "submit", source, "--max-tokens", 2)
    _done(cli, "wait", first, "--timeout", 60)
    assert _counts(cli, first)["failed"] == 4
    # in place: the engine refuses them again
    _done(cli, "retry", first)
    _done(cli, "wait", first, "--timeout", 60)
    assert_job_is_sound(database, first)
    assert _counts(cli, first)["failed"] == 4
    followed = [
        json.loads(line) for line in _done(cli, "results", first, "--follow", "--from", 24).splitlines()
    ]
    assert {(line["index"], line["status"]) for line in followed} == {(n, "failed") for n in (0, 7, 14, 21)}
    # what was cut off, with more room; and what broke, as other requests
    longer = _done(cli, "rerun", first, "--where", "finish_reason=length", "--set", "max_tokens=9")
    mended = _done(cli, "rerun", first, "--where", "code=engine_error", "--set", "prompt=hello")
    for job_id in (longer, mended):
        _done(cli, "wait", job_id, "--timeout", 60)
        assert_job_is_sound(database, job_id)
    _done(cli, "results", first, "--merged", "-o", output)
    lines = read_results(output)
    assert [line["custom_id"] for line in lines] == [f"r{n}" for n in range(24)]
    for n, line in enumerate(lines):
        source_id = mended if n % 7 == 0 else longer if n % 5 == 0 else first
        text = "hello" if n % 7 == 0 else prompts[n]
        assert (line["job"], line["result"], line["finish_reason"]) == (source_id, {"response": text}, "stop")
    for job_id in (first, longer, mended):
        _done(cli, "verify", job_id)


def test_on_sqlite(make_cli: MakeCli, home: Path, tmp_path: Path) -> None:
    cli = make_cli()
    _done(cli, "list")
    _play(cli, Database(f"sqlite:///{home / 'promptmill.db'}"), tmp_path)


def test_on_postgres(make_cli: MakeCli, postgres: Postgres, redis: Redis, tmp_path: Path) -> None:
    url = postgres.create_database("reruns", template="template_promptmill")
    database = Database(url)
    _play(make_cli(database_url=url, broker_url=redis.url), database, tmp_path)
    database.close()
