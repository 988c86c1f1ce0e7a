"""The example of each dialect runs end to end, all under one worker, and comes back in its own form."""

import csv
import io
import json
from pathlib import Path

from servers import MakeCli
from soundness import assert_job_is_sound

from db.database import Database

EXAMPLES = Path(__file__).parents[1] / "dialects"
MODEL = ("--model", "smollm2-135m-instruct")
NUM_REQUESTS = {
    "card.jsonl": ("card", 5),
    "openai.jsonl": ("openai", 2),
    "openai_parts.jsonl": ("openai", 5),
    "cloudflare.json": ("cloudflare", 2),
    "array.json": ("array", 5),
    "prompts.csv": ("csv", 5),
    "prompts.parquet": ("parquet", 5),
}


def test_each_example_runs_end_to_end(make_cli: MakeCli, home: Path) -> None:
    cli = make_cli(model="hermes-2-pro-mistral-7b")
    jobs = {name: cli.run("submit", str(EXAMPLES / name), *MODEL).stdout.strip() for name in NUM_REQUESTS}
    questions, template = str(EXAMPLES / "questions.csv"), ("--template", str(EXAMPLES / "template.jinja"))
    jobs["all"] = cli.run(
        "submit", questions, str(EXAMPLES / "array.json"), "--on-invalid", "skip", *template, *MODEL
    ).stdout.strip()
    assert all(jobs.values())
    cli.start("worker", *MODEL)
    database = Database(f"sqlite:///{home / 'promptmill.db'}")
    for name, job in jobs.items():
        assert cli.run("wait", job, "--timeout", "60").returncode == 0, name
        assert_job_is_sound(database, job)
    for name, (kind, num_requests) in NUM_REQUESTS.items():
        verified = cli.run("verify", jobs[name], "--input", str(EXAMPLES / name))
        assert verified.returncode == 0, verified.stderr
        with database.read() as tx:
            found = tx.exec_driver_sql(
                "SELECT input_format, num_requests, num_succeeded FROM jobs WHERE id = ?", (jobs[name],)
            ).one()
        assert tuple(found) == (kind, num_requests, num_requests), name
        assert _num_answers(cli.run("results", jobs[name]).stdout, kind) == num_requests, name


def _num_answers(text: str, kind: str) -> int:
    """Results in the form that is this dialect's own; on stdout Parquet's is JSONL."""
    if kind == "cloudflare":
        answers = json.loads(text)["result"]["responses"]
        assert [one["external_reference"] for one in answers] == ["reference2", "reference1"]
        return sum(one["success"] for one in answers)
    if kind == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        return sum(row["status"] == "succeeded" for row in rows)
    lines = [json.loads(line) for line in text.splitlines()]
    if kind == "openai":
        return sum(line["response"]["status_code"] == 200 for line in lines)
    return sum(line["status"] == "succeeded" for line in lines)
