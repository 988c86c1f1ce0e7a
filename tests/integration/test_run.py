"""`promptmill run`: one command from a file to a file, that goes on where it stood after any end."""

import json
import signal
import time
from pathlib import Path

from samples import read_results, write_requests
from servers import Cli, MakeCli, wait_until
from soundness import assert_job_is_sound
from sqlalchemy import select

from db.database import Database
from db.states import WorkerState
from db.tables import results, workers


def _database(home: Path) -> Database:
    return Database(f"sqlite:///{home / 'promptmill.db'}")


def _only_job(cli: Cli) -> str:
    jobs = json.loads(cli.run("list", "--json").stdout)
    assert len(jobs) == 1, jobs
    return str(jobs[0]["id"])


def _num_results(home: Path) -> int:
    path = home / "promptmill.db"
    if not path.exists():
        return 0
    database = _database(home)
    try:
        if database.revision() is None:
            return 0
        with database.read() as tx:
            return len(tx.execute(select(results.c.index)).all())
    finally:
        database.close()


def _processes_of(home: Path) -> list[int]:
    """Processes whose command line or environment names this home: workers, supervisors, Redis."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(home).encode() in text:
            found.append(int(entry.name))
    return found


def test_a_file_goes_in_and_a_file_comes_out(make_cli: MakeCli, home: Path, tmp_path: Path) -> None:
    cli = make_cli()
    source = write_requests(tmp_path / "in.jsonl", 40)
    output = tmp_path / "new" / "out.jsonl"
    done = cli.run("run", str(source), "-o", str(output))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "completed" in done.stderr
    lines = read_results(output)
    assert [line["index"] for line in lines] == list(range(40))
    assert lines[5]["result"] == {"response": "say 5"}
    assert lines[3]["error"]["code"] == "max_total_tokens_exceeded"
    assert [line["status"] for line in lines].count("succeeded") == 39
    assert_job_is_sound(_database(home), _only_job(cli))
    assert output.stat().st_mode & 0o777 == 0o600
    (worker,) = json.loads(cli.run("manifest", _only_job(cli)).stdout)["workers"]
    assert worker["engine"]["name"] == "echo"
    assert worker["machine"]["num_cores"] >= 1


def test_the_last_line_is_for_programs(make_cli: MakeCli, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 40)
    done = make_cli().run("run", str(source), "-o", str(tmp_path / "out.jsonl"), "--max-failed", "0")
    assert done.returncode == 9
    name, *pairs = done.stderr.splitlines()[-1].split()
    said = dict(pair.split("=") for pair in pairs)
    assert name == "promptmill:"
    assert float(said.pop("elapsed_s")) >= 0
    assert said.pop("job").startswith("job_")
    assert int(said.pop("prompt_tokens")) > 0
    assert int(said.pop("completion_tokens")) > 0
    assert said == {
        "state": "completed",
        "total": "40",
        "succeeded": "39",
        "failed": "1",
        "cancelled": "0",
        "expired": "0",
        "reused": "0",
        "exit": "9",
    }


def test_a_run_that_takes_too_long_exits_with_8_and_goes_on_later(make_cli: MakeCli, tmp_path: Path) -> None:
    slow, quick = make_cli(echo_latency_s=30), make_cli()
    source, output = write_requests(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"
    command = ("run", str(source), "-o", str(output), "--once", "--timeout")
    done = slow.run(*command, "2s")
    assert done.returncode == 8, done.stderr
    assert "after 2 s; what is finished is kept. To go on: promptmill run" in done.stderr
    assert done.stderr.splitlines()[-1].endswith(" exit=8")
    assert not output.exists()
    done = quick.run(*command, "1h")
    assert done.returncode == 0, done.stderr
    assert len(read_results(output)) == 40
    _only_job(quick)


def test_two_runs_at_once_are_one_job(make_cli: MakeCli, home: Path, tmp_path: Path) -> None:
    """As a line of cron's that was started twice."""
    cli = make_cli(echo_latency_s=0.2)
    source, output = write_requests(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"
    both = [cli.start("run", str(source), "-o", str(output), "--once", "--name", "nightly") for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert len(read_results(output)) == 40
    assert_job_is_sound(_database(home), _only_job(cli))


def test_shards_of_files_by_a_pattern_are_jobs_without_overlap(make_cli: MakeCli, tmp_path: Path) -> None:
    cli = make_cli()
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / "evals").mkdir(exist_ok=True)
        lines = [{"prompt": "say it", "custom_id": f"{name} {number}"} for number in range(5)]
        (tmp_path / "evals" / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    pattern, seen = str(tmp_path / "evals" / "*.jsonl"), []
    for shard in ("1/2", "2/2"):
        output = tmp_path / "out.jsonl"
        options = ("--shard", shard, "--n", "2", "--temperature", "1", "--label", f"shard={shard}")
        done = cli.run("run", pattern, "-o", str(output), "--once", *options)
        assert done.returncode == 0, done.stderr
        results = read_results(output)
        assert [line["index"] for line in results] == list(range(5))
        assert all(len(line["result"]["choices"]) == 2 for line in results)
        seen += [line["custom_id"] for line in results]
        (job,) = json.loads(cli.run("list", "--label", f"shard={shard}", "--json").stdout)
        assert cli.run("verify", job["id"], "--input", pattern, "--output", str(output)).returncode == 0
    names = [f"{name} {number}" for name in ("a.jsonl", "b.jsonl") for number in range(5)]
    assert seen == names[::2] + names[1::2]


def test_results_go_to_stdout_and_nothing_else_does(make_cli: MakeCli) -> None:
    done = make_cli().run("run", "-", stdin='{"prompt": "one"}\n{"prompt": "two"}\n')
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["result"] for line in done.stdout.splitlines()] == [
        {"response": "one"},
        {"response": "two"},
    ]


def test_too_many_failed_requests_have_an_exit_code_of_their_own(make_cli: MakeCli, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 5)
    arguments = ["run", str(source), "-o", str(tmp_path / "out.jsonl"), "--max-failed"]
    assert make_cli().run(*arguments, "10%").returncode == 9
    assert make_cli().run(*arguments, "1").returncode == 0


def test_a_finished_file_runs_again_when_it_is_run_again(make_cli: MakeCli, tmp_path: Path) -> None:
    cli = make_cli()
    source = write_requests(tmp_path / "in.jsonl", 3)
    for _ in range(2):
        assert cli.run("run", str(source), "-o", str(tmp_path / "out.jsonl")).returncode == 0
    assert len(json.loads(cli.run("list", "--json").stdout)) == 2


def test_a_killed_run_goes_on_and_repeats_nothing(make_cli: MakeCli, home: Path, tmp_path: Path) -> None:
    cli = make_cli(echo_latency_s=0.5)
    source = write_requests(tmp_path / "in.jsonl", 60)
    output = tmp_path / "out.jsonl"
    killed = cli.start("run", str(source), "-o", str(output))
    wait_until(lambda: _num_results(home) >= 10, "ten results")
    killed.kill()
    killed.wait()
    wait_until(lambda: not _processes_of(home), "the worker and its Redis die with the run", 10)
    database = _database(home)
    with database.read() as tx:
        before = {
            row.index: row.finished_at for row in tx.execute(select(results.c.index, results.c.finished_at))
        }
    assert not output.exists()
    again = make_cli().run("run", str(source), "-o", str(output))
    assert again.returncode == 0, again.stderr
    assert "was submitted before" in again.stderr
    assert_job_is_sound(database, _only_job(cli))
    with database.read() as tx:
        after = {
            row.index: row.finished_at for row in tx.execute(select(results.c.index, results.c.finished_at))
        }
    assert {index: after[index] for index in before} == before, "a finished request ran again"
    assert len(read_results(output)) == 60


def test_ctrl_c_gives_back_the_shell_and_the_chunks(make_cli: MakeCli, home: Path, tmp_path: Path) -> None:
    cli = make_cli(echo_latency_s=1)
    source = write_requests(tmp_path / "in.jsonl", 60)
    output = tmp_path / "out.jsonl"
    running = cli.start("run", str(source), "-o", str(output))
    wait_until(lambda: _num_results(home) >= 5, "five results")
    pressed_at = time.monotonic()
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=20)
    assert time.monotonic() - pressed_at < 10
    assert running.returncode == 130
    assert f"promptmill run {source} -o {output}" in said
    assert "Traceback" not in said
    assert not _processes_of(home)
    job = json.loads(cli.run("list", "--json").stdout)[0]
    assert job["state"] == "in_progress"
    assert job["counts"]["running"] == 0, "every lease was given back"
    with _database(home).read() as tx:
        assert tx.execute(select(workers.c.state)).scalars().all() == [WorkerState.STOPPED]
    assert make_cli().run("run", str(source), "-o", str(output)).returncode == 0
    assert_job_is_sound(_database(home), job["id"])


def test_a_second_ctrl_c_ends_it_at_once(make_cli: MakeCli, home: Path, tmp_path: Path) -> None:
    cli = make_cli(echo_latency_s=60)
    running = cli.start("run", str(write_requests(tmp_path / "in.jsonl", 20)), "-o", str(tmp_path / "out"))
    wait_until(lambda: _processes_of(home) and (home / "redis.sock").exists(), "the worker is there")
    running.send_signal(signal.SIGINT)
    time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=10)
    assert running.returncode == 130
    wait_until(lambda: not _processes_of(home), "nothing is left", 5)


def test_bad_lines_are_shown_and_nothing_is_run(make_cli: MakeCli, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "good"}\n{"prompt": 5}\nnot json\n')
    output = tmp_path / "out.jsonl"
    errors = tmp_path / "errors.jsonl"
    cli = make_cli()
    done = cli.run("run", str(source), "-o", str(output), "--errors", str(errors))
    assert done.returncode == 3
    assert "line 2: prompt:" in done.stderr
    assert "line 3:" in done.stderr
    assert [json.loads(line)["code"] for line in errors.read_text().splitlines()] == [
        "invalid_request",
        "invalid_json",
    ]
    assert not output.exists()
    assert json.loads(cli.run("list", "--json").stdout) == []
    skipped = cli.run("run", str(source), "-o", str(output), "--on-invalid", "skip")
    assert skipped.returncode == 0, skipped.stderr
    assert [line["status"] for line in read_results(output)] == ["succeeded", "failed", "failed"]


def test_a_worker_that_cannot_start_is_explained(make_cli: MakeCli, home: Path, tmp_path: Path) -> None:
    (home / "weights" / "smollm2-135m-instruct").mkdir(parents=True)
    cli = make_cli(engine="vllm")
    done = cli.run("run", "-", "-o", str(tmp_path / "out.jsonl"), stdin='{"prompt": "a"}\n')
    assert done.returncode == 1
    assert "error: the engine cannot be started: " in done.stderr
    assert "cannot load" in done.stderr
    assert "Traceback" not in done.stderr
