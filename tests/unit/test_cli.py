"""The command line: what each command promises to people and to programs: help, stdout, JSON, exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

import cli
from cli import Exit
from db import errors, queries
from db.database import Database
from db.errors import PromptmillError
from db.leases import NewResult
from jobs import control
from workers import local_run

GOOD = {"prompt": "x"}
BAD = {"prompt": 5}
COUNTS = ["total", "pending", "running", "succeeded", "failed", "cancelled", "expired"]
JOB_KEYS = [
    *(
        "id",
        "name",
        "model",
        "state",
        "priority",
        "labels",
        "selection",
        "parent",
        "counts",
        "num_reused",
        "usage",
        "created_at",
        "started_at",
        "finished_at",
    ),
    *("requests_per_s", "completion_tokens_per_s", "eta_s"),
]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

Run = Callable[..., Result]


@pytest.fixture
def job_id(run: Run, write: Any) -> str:
    """A queued job of three requests, one of them with a custom_id."""
    return str(
        run("submit", write(GOOD, {**GOOD, "custom_id": "b"}, GOOD), "--name", "nightly").stdout.strip()
    )


@pytest.fixture
def done_id(job_id: str, sqlite_database: Database, finish: Any) -> str:
    """The same job, completed, with one request failed."""
    finish(sqlite_database, job_id, NewResult(2, error_code="input_too_long", error_message="too long"))
    return job_id


def process(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """The command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


# help


def commands(
    group: click.Group = cli.main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands())
LEAVES = {path: command for path, command in COMMANDS.items() if not isinstance(command, click.Group)}


def test_the_commands_are_those_that_were_promised() -> None:
    promised = {"run", "submit", "status", "list", "wait", "results", "cancel", "validate", "worker", "check"}
    assert promised <= {path[0] for path in LEAVES}
    assert {("models", "list"), ("models", "show"), ("models", "add"), ("db", "upgrade")} <= set(LEAVES)
    assert {("schedule", name) for name in ("add", "list", "remove", "run")} <= set(LEAVES)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_s_help_ends_with_an_example(run: Run, path: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        text = run(*path, flag).stdout.rstrip()
        example = text.rpartition("Example:")[2].strip().splitlines()
        assert example
        assert all(f"promptmill {' '.join(path)}" in line for line in example)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_example_is_a_command_that_there_is(path: tuple[str, ...]) -> None:
    epilog = LEAVES[path].epilog
    assert epilog is not None
    for line in epilog.partition("Example:")[2].strip().splitlines():
        words = re.split(r"[|<>]", line.partition("promptmill ")[2])[0].split()
        command = LEAVES[path]
        if "--" in words:  # a command within the command
            dashes = words.index("--")
            inner = LEAVES[words[dashes + 1],]
            root = click.Context(cli.main, **cli.main.context_settings)
            inner.make_context("inner", words[dashes + 2 :], parent=root)
            del words[dashes:]
        context = command.make_context(" ".join(path), words[len(path) :], resilient_parsing=True)
        known = {option for parameter in command.params for option in parameter.opts}
        assert context is not None
        assert all(word in known for word in words if word.startswith("-") and len(word) > 1), line


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_every_option_says_what_it_does(path: tuple[str, ...]) -> None:
    assert COMMANDS[path].help
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts} of {' '.join(path)}"


def test_whatever_reads_can_print_json() -> None:
    for name in ("status", "list", "wait", "submit", "validate", "check", "workers", "stats"):
        assert any("--json" in parameter.opts for parameter in LEAVES[name,].params), name
    for name in ("list", "show"):
        assert any("--json" in parameter.opts for parameter in LEAVES["models", name].params), name
    assert any("--json" in parameter.opts for parameter in LEAVES["schedule", "list"].params)


def test_the_help_lists_every_exit_code_with_its_meaning(run: Run) -> None:
    text = run("--help").stdout
    for code, meaning in cli._MEANINGS.items():
        assert re.search(rf"^ +{code.value}  {re.escape(meaning)}$", text, re.MULTILINE), code
    assert set(cli._MEANINGS) == set(Exit)
    assert text.rstrip().endswith("promptmill run examples/requests.jsonl -o out/results.jsonl")


def test_the_exit_codes_are_those_that_other_programs_know() -> None:
    assert {code.value: code.name for code in Exit} == {
        0: "DONE",
        1: "UNEXPECTED",
        2: "USAGE",
        3: "INPUT_REFUSED",
        4: "NOT_FOUND",
        5: "WRONG_STATE",
        6: "UNAVAILABLE",
        7: "NOT_COMPLETED",
        8: "TIMED_OUT",
        9: "TOO_MANY_FAILED",
        10: "SCORE_FELL",
        130: "INTERRUPTED",
    }


def test_the_version_is_the_package_s(run: Run) -> None:
    assert re.search(r"\d+\.\d+\.\d+", run("--version").stdout)


def test_the_help_is_instant_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, resource\n"
        "sys.argv = ['promptmill', '--help']\n"
        "from cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "tops = sorted({name.partition('.')[0] for name in sys.modules})\n"
        "print(used.ru_utime + used.ru_stime, *tops, file=sys.stderr)\n"
    )
    runs = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        assert "Exit codes:" in done.stdout
        seconds, *modules = done.stderr.split()
        runs.append(float(seconds))
        heavy = {
            "sqlalchemy",
            "alembic",
            "celery",
            "kombu",
            "vllm",
            "torch",
            "transformers",
            "rich",
            "pydantic",
        }
        assert not set(modules) & (heavy | {"orjson", "jsonschema_rs", "redis", "psycopg", "yaml"})
    assert min(runs) < 0.3, runs


# exit codes


KINDS: list[tuple[PromptmillError, Exit]] = [
    (errors.SettingsError("x"), Exit.USAGE),
    (errors.CardError("x"), Exit.USAGE),
    (errors.InputError("x"), Exit.INPUT_REFUSED),
    (errors.NotFoundError("x"), Exit.NOT_FOUND),
    (errors.WrongStateError("job x", "queued", frozenset({"completed"})), Exit.WRONG_STATE),
    (errors.LeaseLostError("x"), Exit.WRONG_STATE),
    (errors.UnsoundError("x"), Exit.WRONG_STATE),
    (errors.UnavailableError("x"), Exit.UNAVAILABLE),
    (errors.DatabaseUnavailableError("x"), Exit.UNAVAILABLE),
    (errors.BrokerUnavailableError("x"), Exit.UNAVAILABLE),
    (errors.OutputError("x"), Exit.UNEXPECTED),
    (errors.EngineError("x"), Exit.UNEXPECTED),
]


def test_every_kind_of_error_is_among_those_below() -> None:
    def kinds(kind: type[PromptmillError]) -> set[type[PromptmillError]]:
        return {kind}.union(
            *(kinds(child) for child in kind.__subclasses__() if child.__module__ == "db.errors")
        )

    assert {type(error) for error, _ in KINDS} | {PromptmillError} == kinds(PromptmillError)


@pytest.mark.parametrize(("error", "code"), KINDS, ids=lambda value: type(value).__name__)
def test_each_kind_of_error_has_its_exit_code_and_one_clear_message(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: PromptmillError, code: Exit
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "_open", fail)
    result = run("status", "job_x", code=code)
    assert result.stdout == ""
    assert result.stderr == f"error: {error}\n"


def test_a_bug_is_an_unexpected_error_and_says_how_to_see_more(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(cli, "_open", fail)
    result = run("status", "job_x", code=Exit.UNEXPECTED)
    assert result.stderr.startswith("unexpected error: ZeroDivisionError: division by zero\n")
    assert "promptmill -v" in result.stderr


@pytest.mark.parametrize("error", [errors.NotFoundError("x"), ZeroDivisionError("x")])
def test_verbose_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "_open", fail)
    assert "Traceback" in CliRunner().invoke(cli.main, ["-v", "status", "job_x"]).stderr


def test_ctrl_c_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_open", fail)
    assert run("status", "job_x", code=Exit.INTERRUPTED).stderr == "interrupted\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["status"],
        ["status", "job_x", "--no-such-option"],
        ["submit", "in.jsonl", "--priority", "high"],
        ["submit", "in.jsonl", "--priority", "99999999999999999999"],
        ["submit", "in.jsonl", "--on-invalid", "ignore"],
        ["submit", "in.jsonl", "--once", "--idempotency-key", "k"],
        ["list", "--limit", "0"],
        ["list", "--state", "running"],
        ["list", "--state", "validating"],
        ["wait", "job_x", "--timeout", "-1"],
        ["wait", "job_x", "--max-failed", "some"],
        ["models", "add", "none.yaml"],
    ],
    ids=" ".join,
)
def test_a_wrong_use_exits_with_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments, code=Exit.USAGE)
    assert result.stdout == ""
    assert result.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("PROMPTMILL_LEASES", "1"), ("PROMPTMILL_LEASE_S", "soon"), ("PROMPTMILL_DATABASE_URL", "x")],
)
def test_a_wrong_setting_exits_with_2(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert name in run("list", code=Exit.USAGE).stderr


def test_a_broken_card_exits_with_2_and_is_named(run: Run, home: Path, write: Any) -> None:
    (home / "cards").mkdir()
    (home / "cards" / "owl.yaml").write_text("model: {")
    assert "owl.yaml" in run("validate", write(GOOD), code=Exit.USAGE).stderr


@pytest.mark.parametrize("command", ["submit", "validate", "run"])
@pytest.mark.parametrize("what", ["none.jsonl", "empty.jsonl", "bad.jsonl", "folder"])
def test_a_file_that_is_refused_exits_with_3(
    run: Run, tmp_path: Path, write: Any, sqlite_database: Database, command: str, what: str
) -> None:
    (tmp_path / "folder").mkdir()
    write(name="empty.jsonl")
    write(GOOD, BAD, name="bad.jsonl")
    result = run(command, tmp_path / what, code=Exit.INPUT_REFUSED)
    assert result.stdout == ""
    assert result.stderr
    assert queries.list_jobs(sqlite_database, 10) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "job_nobody"],
        ["status", "job_nobody", "--json"],
        ["status", ""],
        ["wait", "job_nobody"],
        ["results", "job_nobody"],
        ["cancel", "job_nobody"],
        ["models", "show", "nobody"],
        ["validate", "in.jsonl", "--model", "nobody"],
        ["submit", "in.jsonl", "--model", "nobody"],
        ["run", "in.jsonl", "--model", "nobody"],
        ["worker", "--model", "nobody"],
    ],
    ids=" ".join,
)
def test_what_is_not_there_exits_with_4(run: Run, write: Any, arguments: list[str]) -> None:
    write(GOOD)
    result = run(*arguments, code=Exit.NOT_FOUND)
    assert result.stdout == ""
    assert re.search("there is no (job|model card)", result.stderr)


def test_the_results_of_a_job_that_is_not_over_exit_with_5_unless_a_part_will_do(
    run: Run, job_id: str, sqlite_database: Database, finish: Any, tmp_path: Path
) -> None:
    result = run("results", job_id, "-o", tmp_path / "out.jsonl", code=Exit.WRONG_STATE)
    assert "queued" in result.stderr
    assert f"promptmill wait {job_id}" in result.stderr
    assert "--partial" in result.stderr
    assert not (tmp_path / "out.jsonl").exists()
    assert run("results", job_id, "--partial").stdout == ""
    finish(sqlite_database, job_id)
    assert len(run("results", job_id, "--partial").stdout.splitlines()) == 3


def test_cancelling_a_completed_job_exits_with_5(run: Run, done_id: str) -> None:
    assert "completed" in run("cancel", done_id, code=Exit.WRONG_STATE).stderr


def test_a_database_that_is_away_exits_with_6(run: Run, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    monkeypatch.setenv("PROMPTMILL_DATABASE_URL", "postgresql://ada:hunter2@127.0.0.1:1/mill")
    for arguments in (["list"], ["submit", str(write(GOOD))]):
        result = run(*arguments, code=Exit.UNAVAILABLE)
        assert result.stdout == ""
        assert "is not available" in result.stderr
        assert "hunter2" not in result.output


def test_a_job_that_was_cancelled_exits_with_7(run: Run, job_id: str) -> None:
    run("cancel", job_id)
    run("wait", job_id, code=Exit.NOT_COMPLETED)


def test_a_wait_that_is_over_before_the_job_exits_with_8(run: Run, job_id: str) -> None:
    result = run("wait", job_id, "--timeout", "0", code=Exit.TIMED_OUT)
    assert f"{job_id} is still queued after 0 s" in result.stderr
    shown = run("wait", job_id, "--timeout", "0", "--json", code=Exit.TIMED_OUT)
    assert json.loads(shown.stdout)["state"] == "queued"


@pytest.mark.parametrize(
    ("most", "code"),
    [
        ("0", Exit.TOO_MANY_FAILED),
        ("0%", Exit.TOO_MANY_FAILED),
        ("33%", Exit.TOO_MANY_FAILED),
        ("34%", Exit.DONE),
        ("1", Exit.DONE),
        ("100%", Exit.DONE),
    ],
)
def test_more_failed_requests_than_allowed_exit_with_9(run: Run, done_id: str, most: str, code: Exit) -> None:
    run("wait", done_id, "--max-failed", most, code=code)


def test_failed_requests_are_no_error_unless_they_are_counted(run: Run, done_id: str) -> None:
    assert "2 succeeded, 1 failed" in run("wait", done_id).stderr


@pytest.mark.parametrize(
    ("text", "total", "most"),
    [
        ("0", 1000, 0),
        ("5", 1000, 5),
        ("1e3", 10, 1000),
        ("0%", 1000, 0),
        ("1%", 200, 2),
        ("12.5%", 200, 25),
        ("100%", 7, 7),
    ],
)
def test_max_failed_is_a_number_or_a_share(text: str, total: int, most: float) -> None:
    limit = cli._max_failed(click.Context(cli.main), click.Option(["--max-failed"]), text)
    assert limit is not None
    assert limit(total) == most


def test_without_max_failed_there_is_no_limit() -> None:
    assert cli._max_failed(click.Context(cli.main), click.Option(["--max-failed"]), None) is None


@pytest.mark.parametrize("text", ["", "%", "x", "-1", "-1%", "nan", "inf", "inf%", "1%%", "5 of 7"])
def test_max_failed_is_nothing_else(text: str) -> None:
    with pytest.raises(click.BadParameter):
        cli._max_failed(click.Context(cli.main), click.Option(["--max-failed"]), text)


# what is on stdout


def test_submit_prints_the_id_and_nothing_else(run: Run, write: Any, sqlite_database: Database) -> None:
    result = run("submit", write(GOOD, {**GOOD, "temprature": 1}))
    (job,) = queries.list_jobs(sqlite_database, 10)
    assert result.stdout == f"{job.id}\n"
    assert "2 requests for hermes-2-pro-mistral-7b" in result.stderr
    assert "warning: unknown field temprature in 1 line" in result.stderr
    assert "promptmill worker --model hermes-2-pro-mistral-7b" in result.stderr, "nothing runs it yet"


def test_results_prints_result_lines_and_nothing_else(run: Run, done_id: str) -> None:
    result = run("results", done_id)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["index"], line["custom_id"], line["status"]) for line in lines] == [
        (0, None, "succeeded"),
        (1, "b", "succeeded"),
        (2, None, "failed"),
    ]
    assert result.stderr == ""


def test_results_in_a_file_leave_stdout_empty(run: Run, done_id: str, tmp_path: Path) -> None:
    result = run("results", done_id, "-o", tmp_path / "new" / "out.jsonl")
    assert result.stdout == ""
    assert result.stderr == f"3 of 3 results in {tmp_path / 'new' / 'out.jsonl'}\n"
    assert len((tmp_path / "new" / "out.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("arguments", [["wait"], ["cancel"]])
def test_what_only_acts_leaves_stdout_empty(run: Run, job_id: str, arguments: list[str]) -> None:
    run("cancel", job_id)
    code = Exit.NOT_COMPLETED if arguments == ["wait"] else Exit.DONE
    assert run(*arguments, job_id, code=code).stdout == ""


def test_validate_reports_on_stderr(run: Run, write: Any) -> None:
    result = run("validate", write(GOOD, BAD, {**GOOD, "max_tokens": 0}), code=Exit.INPUT_REFUSED)
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        'line 2: prompt: the value is not of type "string" (invalid_request)',
        "line 3: max_tokens: max_tokens must be at least 1 (invalid_parameter)",
        "3 lines: 1 valid, 2 bad",
    ]


def test_validate_says_what_is_wrong_with_an_empty_file(run: Run, write: Any) -> None:
    assert "without requests is refused" in run("validate", write(), code=Exit.INPUT_REFUSED).stderr


def test_a_long_report_says_where_the_rest_is(run: Run, write: Any, tmp_path: Path) -> None:
    errors_path = tmp_path / "bad.jsonl"
    result = run("validate", write(*[BAD] * 25), "--errors", errors_path, code=Exit.INPUT_REFUSED)
    assert "… and 5 more; --errors FILE writes all of them" in result.stderr
    assert len(errors_path.read_text().splitlines()) == 25


def test_stdin_is_a_file_too(run: Run) -> None:
    assert json.loads(run("validate", "-", "--json", stdin='{"prompt":"x"}\n').stdout)["valid"] == 1
    assert run("submit", "-", stdin='{"prompt":"x"}\n').stdout.startswith("job_")


# JSON


def test_status_prints_the_contract_s_object(run: Run, job_id: str) -> None:
    shown = json.loads(run("status", job_id, "--json").stdout)
    assert list(shown) == JOB_KEYS
    assert TIME.fullmatch(shown.pop("created_at"))
    assert shown == {
        "id": job_id,
        "name": "nightly",
        "model": "hermes-2-pro-mistral-7b",
        "state": "queued",
        "priority": 0,
        "labels": {},
        "selection": None,
        "parent": None,
        "counts": {**dict.fromkeys(COUNTS, 0), "total": 3, "pending": 3},
        "num_reused": 0,
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        "started_at": None,
        "finished_at": None,
        "requests_per_s": None,
        "completion_tokens_per_s": None,
        "eta_s": None,
    }


def test_every_command_takes_the_last_job_and_the_beginning_of_an_id(run: Run, done_id: str) -> None:
    for which in ("last", done_id[:-2], done_id[4:8]):
        for command in (("status", "--json"), ("wait",), ("verify",), ("results",), ("manifest",)):
            run(command[0], which, *command[1:])
    assert done_id in run("delete", "last").stderr
    assert "no job yet" in run("status", "last", code=Exit.NOT_FOUND).stderr


def test_status_of_a_completed_job_has_times_rates_and_usage(run: Run, done_id: str) -> None:
    shown = json.loads(run("status", done_id, "--json").stdout)
    assert list(shown) == JOB_KEYS
    assert shown["counts"] == {**dict.fromkeys(COUNTS, 0), "total": 3, "succeeded": 2, "failed": 1}
    assert shown["usage"] == {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    assert all(TIME.fullmatch(shown[name]) for name in ("created_at", "started_at", "finished_at"))
    assert shown["requests_per_s"] > 0
    assert shown["completion_tokens_per_s"] > 0
    assert shown["eta_s"] is None


def test_status_for_people_has_the_same(run: Run, done_id: str) -> None:
    text = run("status", done_id).stdout
    for part in (done_id, "nightly", "hermes-2-pro-mistral-7b", "completed", "3: 2 succeeded, 1 failed"):
        assert part in text


def test_list_prints_the_same_objects_newest_first(run: Run, job_id: str, write: Any) -> None:
    second = run("submit", write(GOOD, name="second.jsonl")).stdout.strip()
    shown = json.loads(run("list", "--json").stdout)
    assert [job["id"] for job in shown] == [second, job_id]
    assert shown[1] == json.loads(run("status", job_id, "--json").stdout)
    assert [job["id"] for job in json.loads(run("list", "--json", "--limit", "1").stdout)] == [second]


def test_list_shows_the_states_asked_for(run: Run, job_id: str, write: Any) -> None:
    second = run("submit", write(GOOD)).stdout.strip()
    run("cancel", second)
    for states, expected in (
        (["queued"], [job_id]),
        (["cancelled"], [second]),
        (["queued", "cancelled"], [second, job_id]),
        (["completed"], []),
    ):
        options = [word for state in states for word in ("--state", state)]
        assert [job["id"] for job in json.loads(run("list", "--json", *options).stdout)] == expected


def test_list_of_nothing_is_an_empty_array(run: Run) -> None:
    assert json.loads(run("list", "--json").stdout) == []


def test_list_for_people_is_not_cut_off(run: Run, job_id: str) -> None:
    lines = run("list").stdout.splitlines()
    assert len(lines) == 2
    for part in (job_id, "nightly", "hermes-2-pro-mistral-7b", "queued"):
        assert part in lines[1]


def test_submit_prints_the_contract_s_object(run: Run, write: Any) -> None:
    path = write(GOOD, GOOD)
    first = json.loads(run("submit", path, "--json", "--once").stdout)
    assert list(first) == ["id", "state", "counts", "created"]
    assert list(first["counts"]) == COUNTS
    assert (first["state"], first["created"], first["counts"]["total"]) == ("queued", True, 2)
    result = run("submit", path, "--json", "--once")
    assert json.loads(result.stdout) == {**first, "created": False}
    assert f"{first['id']} was submitted before and is queued: 0 of 2 requests are done" in result.stderr


def test_another_file_under_a_known_key_is_warned_of(run: Run, write: Any) -> None:
    first = run("submit", write(GOOD), "--idempotency-key", "k").stdout.strip()
    result = run("submit", write(GOOD, GOOD, name="b.jsonl"), "--idempotency-key", "k")
    assert result.stdout.strip() == first
    assert f"warning: this is not the input that {first} was submitted with" in result.stderr


def test_validate_prints_the_contract_s_object(run: Run, write: Any) -> None:
    result = run("validate", write(GOOD, BAD, {**GOOD, "temprature": 1}), "--json", code=Exit.INPUT_REFUSED)
    shown = json.loads(result.stdout)
    assert list(shown) == ["lines", "valid", "invalid", "errors", "warnings", "tokens_checked"]
    assert (shown["lines"], shown["valid"], shown["invalid"]) == (3, 2, 1)
    assert [list(error) for error in shown["errors"]] == [["line", "code", "path", "message"]]
    assert shown["errors"][0]["code"] == "invalid_request"
    assert shown["warnings"][0]["field"] == "temprature"
    assert result.stderr == ""


def test_validate_stores_nothing_and_makes_nothing(
    monkeypatch: pytest.MonkeyPatch, write: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMPTMILL_HOME", str(tmp_path / "never-made"))
    path = write(GOOD)
    before = set(tmp_path.iterdir())
    result = CliRunner().invoke(cli.main, ["validate", str(path), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "lines": 1,
        "valid": 1,
        "invalid": 0,
        "errors": [],
        "warnings": [],
        "tokens_checked": False,
    }
    assert set(tmp_path.iterdir()) == before


def test_models_show_prints_the_contract_s_object(run: Run) -> None:
    for name in ("hermes-2-pro-mistral-7b", "@hf/nousresearch/hermes-2-pro-mistral-7b"):
        shown = json.loads(run("models", "show", name, "--json").stdout)
        assert shown["name"] == "hermes-2-pro-mistral-7b"
        assert re.fullmatch("[0-9a-f]{64}", shown["sha256"])
        assert shown["limits"] == {
            "max_input_length": 3072,
            "max_total_tokens": 4096,
            "max_batch_prefill_tokens": 8192,
        }
        assert shown["weights"] == "NousResearch/Hermes-2-Pro-Mistral-7B"
        assert len(shown["input_schema"]["oneOf"]) == len(shown["output_schema"]["oneOf"]) == 2


def test_models_are_listed_and_shown_to_people_too(run: Run) -> None:
    lines = run("models", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["hermes-2-pro-mistral-7b", "smollm2-135m-instruct"]
    assert [card["name"] for card in json.loads(run("models", "list", "--json").stdout)] == [
        line.split()[0] for line in lines
    ]
    assert "3072" in run("models", "show", "hermes-2-pro-mistral-7b").stdout


def test_a_card_is_added_and_then_used(run: Run, tmp_path: Path, write: Any) -> None:
    built_in = Path(cli.__file__).parent / "jobs/cards/smollm2-135m-instruct.yaml"
    fields = yaml.safe_load(built_in.read_text("utf-8"))
    fields["model_display_name"] = "owl"
    fields["model"].update(name="@lab/owl", id="0f0e")
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(fields))
    result = run("models", "add", tmp_path / "card.yaml")
    assert result.stdout == ""
    assert "added owl" in result.stderr
    job_id = run("submit", write(GOOD), "--model", "@lab/owl").stdout.strip()
    assert json.loads(run("status", job_id, "--json").stdout)["model"] == "owl"
    (tmp_path / "card.yaml").write_text(yaml.safe_dump({**fields, "weight": 1}))
    assert "--replace" in run("models", "add", tmp_path / "card.yaml", code=Exit.USAGE).stderr
    run("models", "add", tmp_path / "card.yaml", "--replace")


def test_the_default_card_is_a_setting(run: Run, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_MODEL", "smollm2-135m-instruct")
    job_id = run("submit", write(GOOD)).stdout.strip()
    assert json.loads(run("status", job_id, "--json").stdout)["model"] == "smollm2-135m-instruct"


# cancel, check, db


def test_a_second_cancel_does_no_harm(run: Run, job_id: str) -> None:
    for _ in range(2):
        assert f"{job_id} is cancelled: 0 results stay" in run("cancel", job_id).stderr


def test_check_says_of_each_part_whether_it_is_well(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_ENGINE", "echo")
    found = json.loads(run("check", "--json").stdout)
    assert all(list(finding) == ["part", "is_well", "detail", "mend"] for finding in found)
    parts = [finding["part"] for finding in found]
    assert [part for part in parts if part != "workers"] == [
        *("settings", "card", "weights", "database", "migrations", "broker", "engine"),
    ]
    assert all(finding["is_well"] for finding in found)
    assert len(run("check").stdout.splitlines()) == len(found)


def test_check_names_the_command_that_mends_what_is_not_well(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPTMILL_DATABASE_URL", "postgresql://ada:hunter2@127.0.0.1:1/mill")
    (home / "weights" / "hermes-2-pro-mistral-7b").mkdir(parents=True)
    result = run("check", code=Exit.UNAVAILABLE)
    assert re.search(r"NOT OK +database .*\n +mend it: ", result.stdout)
    assert re.search(r"NOT OK +weights .*\n +mend it: promptmill models show", result.stdout)
    assert "hunter2" not in result.output


def test_check_of_an_unknown_card_points_to_the_list(run: Run) -> None:
    result = run("check", "--model", "nobody", code=Exit.UNAVAILABLE)
    assert re.search(r"NOT OK +card .*\n +mend it: promptmill models list", result.stdout)


def test_a_database_is_made_for_its_owner_only(run: Run, home: Path) -> None:
    shutil.rmtree(home)
    for _ in range(2):
        result = run("db", "upgrade")
        assert result.stdout == ""
        assert "is at revision" in result.stderr
    assert (home / "promptmill.db").stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700


# run, as far as it needs no worker


def test_a_file_of_bad_lines_only_runs_to_its_end_without_a_worker(
    run: Run, write: Any, tmp_path: Path
) -> None:
    path = write(BAD, BAD)
    out = tmp_path / "out.jsonl"
    result = run("run", path, "-o", out, "--on-invalid", "skip")
    assert result.stdout == ""
    assert "completed" in result.stderr
    assert f"results: {out}" in result.stderr
    assert [json.loads(line)["status"] for line in out.read_text().splitlines()] == ["failed", "failed"]
    run("run", path, "-o", out, "--on-invalid", "skip", "--max-failed", "1", code=Exit.TOO_MANY_FAILED)


def test_results_of_run_go_to_stdout_unless_a_file_is_named(run: Run, write: Any) -> None:
    result = run("run", write(BAD, BAD), "--on-invalid", "skip")
    assert [json.loads(line)["index"] for line in result.stdout.splitlines()] == [0, 1]


def test_an_output_that_cannot_be_written_stops_run_before_anything_is_stored(
    run: Run, write: Any, tmp_path: Path, sqlite_database: Database
) -> None:
    assert "is a folder" in run("run", write(GOOD), "-o", tmp_path, code=Exit.UNEXPECTED).stderr
    assert queries.list_jobs(sqlite_database, 10) == []


def test_a_run_that_was_stopped_says_how_to_go_on_with_all_its_options(
    run: Run, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sqlite_database: Database
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(local_run, "run_job", interrupt)
    path = write(GOOD, name="my file.jsonl")
    words = ["run", path, "-o", tmp_path / "out.jsonl", "--model", "smollm2-135m-instruct"]
    result = run(*words, code=Exit.INTERRUPTED)
    (job,) = queries.list_jobs(sqlite_database, 10)
    assert (
        f"To go on: promptmill run '{path}' -o {tmp_path}/out.jsonl --model smollm2-135m-instruct\n"
        in result.stderr
    )
    assert f"To give it up: promptmill cancel {job.id}\n" in result.stderr
    again = run(*words, code=Exit.INTERRUPTED)
    assert f"{job.id} was submitted before" in again.stderr
    assert len(queries.list_jobs(sqlite_database, 10)) == 1, "the same command goes on with the same job"


def test_a_run_of_stdin_that_was_stopped_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(local_run, "run_job", interrupt)
    result = run("run", "-", "-o", "out.jsonl", stdin='{"prompt":"x"}', code=Exit.INTERRUPTED)
    assert re.search(
        r"promptmill worker --model hermes-2-pro-mistral-7b, then promptmill results job_\w+ -o out\.jsonl",
        result.stderr,
    )


def test_a_job_cancelled_elsewhere_ends_run_with_7(
    run: Run, write: Any, monkeypatch: pytest.MonkeyPatch, sqlite_database: Database
) -> None:
    monkeypatch.setattr(
        local_run, "run_job", lambda *arguments: control.cancel(sqlite_database, arguments[3])
    )
    result = run("run", write(GOOD), code=Exit.NOT_COMPLETED)
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["cancelled"]


# as a process


def test_a_reader_that_has_seen_enough_is_no_error(done_id: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for arguments in (["results", done_id], ["status", done_id, "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
    os.close(writing)


def test_a_full_disk_behind_stdout_is_an_error_with_a_reason(done_id: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cli", "results", done_id],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == Exit.UNEXPECTED
    assert "error: cannot write to stdout: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_of_a_process_is_one_line_without_a_traceback(home: Path) -> None:
    done = process("status", "job_nobody")
    assert (done.returncode, done.stdout) == (Exit.NOT_FOUND, "")
    assert done.stderr == "error: there is no job job_nobody; promptmill list shows the jobs there are\n"
    assert home.is_dir()


def test_ctrl_c_ends_a_waiting_process(job_id: str) -> None:
    waiting = subprocess.Popen(
        [sys.executable, "-m", "cli", "wait", job_id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stderr is not None
    assert "queued" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = waiting.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert (waiting.returncode, out, err) == (Exit.INTERRUPTED, "", "interrupted\n")
