"""Identical requests on real workers: each is generated once, whoever runs it; and `--reuse` from a second shell."""

import json
from collections import Counter
from pathlib import Path

from samples import read_results
from servers import Cli, MakeCli, Postgres, Redis, wait_until
from soundness import assert_job_is_sound
from sqlalchemy import select

from db.database import Database
from db.outcomes import Outcome
from db.tables import workers


def _write(path: Path, num_requests: int, num_distinct: int) -> Path:
    lines = [json.dumps({"prompt": f"say {number % num_distinct}"}) for number in range(num_requests)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _submit(cli: Cli, path: Path, *options: str) -> str:
    done = cli.run("submit", str(path), "--json", *options)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["id"])


def _generated(outcomes: list[Outcome]) -> Counter[str]:
    """How often each answer was generated."""
    return Counter(str(one.result) for one in outcomes if one.reused_from is None)


def test_two_workers_generate_ten_of_two_hundred(
    make_cli: MakeCli, postgres: Postgres, redis: Redis, tmp_path: Path
) -> None:
    url = postgres.create_database("generated_once", template="template_promptmill")
    cli = make_cli(database_url=url, broker_url=redis.url, echo_latency_s=0.5)
    for _ in range(2):
        cli.start("worker")
    database = Database(url)

    def both_ready() -> bool:
        with database.read() as tx:
            return tx.execute(select(workers.c.state)).scalars().all() == ["ready", "ready"]

    wait_until(both_ready, "two workers")
    job_id = _submit(cli, _write(tmp_path / "in.jsonl", 200, 10))
    waited = cli.run("wait", job_id, "--timeout", "60", "--json")
    assert waited.returncode == 0, waited.stderr
    outcomes = assert_job_is_sound(database, job_id)
    assert _generated(outcomes) == Counter({f'{{"response":"say {number}"}}': 1 for number in range(10)})
    assert [one.result for one in outcomes] == [
        f'{{"response":"say {number % 10}"}}' for number in range(200)
    ]
    status = json.loads(waited.stdout)
    assert (status["num_reused"], status["usage"]["completion_tokens"]) == (190, 20)
    database.close()


def test_a_second_run_with_reuse_generates_only_what_is_new(
    make_cli: MakeCli, home: Path, tmp_path: Path
) -> None:
    cli = make_cli()
    first = cli.run("run", str(_write(tmp_path / "a.jsonl", 30, 30)), "-o", str(tmp_path / "a.out"))
    assert first.returncode == 0, first.stderr
    assert "reused=0 " in first.stderr
    before = read_results(tmp_path / "a.out")
    assert all("reused_from" not in line for line in before)
    again = cli.run(
        "run", str(_write(tmp_path / "b.jsonl", 33, 33)), "--reuse", "-o", str(tmp_path / "b.out")
    )
    assert again.returncode == 0, again.stderr
    assert "30 took the result of another request; the others:" in again.stderr
    assert "reused=30 " in again.stderr
    after = read_results(tmp_path / "b.out")
    origin = json.loads(cli.run("list", "--json").stdout)[1]["id"]
    assert [line.pop("reused_from", None) for line in after] == [
        *(f"{origin}:{number}" for number in range(30)),
        *[None] * 3,
    ]
    assert after[:30] == before, "tokens included"
    status = cli.run("status", "last")
    assert "reused    30 took the result of another request" in status.stdout
    job_id = json.loads(cli.run("status", "last", "--json").stdout)["id"]
    assert cli.run("verify", job_id, "--output", str(tmp_path / "b.out")).returncode == 0
    database = Database(f"sqlite:///{home / 'promptmill.db'}")
    assert_job_is_sound(database, job_id)
    database.close()
