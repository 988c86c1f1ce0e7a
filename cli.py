"""The command line: each command parses, calls one function, and prints. Data to stdout, the rest to stderr.

Whatever is slow to import is imported by the command that needs it, so that --help is instant.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import click

from db import errors

if TYPE_CHECKING:
    from db.database import Database
    from db.queries import Job
    from jobs.cards import Card
    from jobs.settings import Settings
    from jobs.validation import Report


class Exit(IntEnum):
    """Every exit code, with what it means."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    INPUT_REFUSED = 3
    NOT_FOUND = 4
    WRONG_STATE = 5
    UNAVAILABLE = 6
    NOT_COMPLETED = 7
    TIMED_OUT = 8
    TOO_MANY_FAILED = 9
    INTERRUPTED = 130


_MEANINGS = {
    Exit.DONE: "done",
    Exit.UNEXPECTED: "unexpected error",
    Exit.USAGE: "usage: a wrong option, setting or card",
    Exit.INPUT_REFUSED: "input refused",
    Exit.NOT_FOUND: "no such job or card",
    Exit.WRONG_STATE: "the job is in the wrong state for this, or verify found a fault",
    Exit.UNAVAILABLE: "database or broker unavailable",
    Exit.NOT_COMPLETED: "the job ended other than completed",
    Exit.TIMED_OUT: "timed out",
    Exit.TOO_MANY_FAILED: "completed, with more failed requests than --max-failed",
    Exit.INTERRUPTED: "interrupted by Ctrl-C or SIGTERM",
}

_CODES: list[tuple[type[errors.PromptmillError], Exit]] = [
    (errors.SettingsError, Exit.USAGE),
    (errors.CardError, Exit.USAGE),
    (errors.InputError, Exit.INPUT_REFUSED),
    (errors.NotFoundError, Exit.NOT_FOUND),
    (errors.WrongStateError, Exit.WRONG_STATE),
    (errors.UnsoundError, Exit.WRONG_STATE),
    (errors.LeaseLostError, Exit.WRONG_STATE),
    (errors.UnavailableError, Exit.UNAVAILABLE),
]


class _Group(click.Group):
    """The one error boundary: a PromptmillError is one clear message and its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except (KeyboardInterrupt, click.Abort):
            _say("interrupted")
            code = Exit.INTERRUPTED
        except BrokenPipeError:
            # whoever read our output has seen enough, like head; nothing more may be written at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = Exit.DONE
        except errors.PromptmillError as error:
            if ctx.params.get("verbose"):
                traceback.print_exc()
            if (report := getattr(error, "report", None)) is not None:
                _print_report(report)
            _say(f"error: {error}")
            code = next(
                (code for kind, code in _CODES if isinstance(error, kind)),
                Exit.UNEXPECTED,
            )
        except Exception as error:
            if ctx.params.get("verbose"):
                traceback.print_exc()
            _say(
                f"unexpected error: {type(error).__name__}: {error}\nrun it again as promptmill -v … for the traceback"
            )
            code = Exit.UNEXPECTED
        return ctx.exit(code)


def _example(*lines: str) -> str:
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


_EXIT_CODES = "\b\nExit codes:\n" + "\n".join(
    f"  {code.value:>3}  {text}" for code, text in _MEANINGS.items()
)


@click.group(
    cls=_Group,
    epilog=_EXIT_CODES + "\n\n" + _example("promptmill run examples/requests.jsonl -o out/results.jsonl"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("-v", "--verbose", is_flag=True, help="Show a traceback with an error.")
@click.version_option(package_name="promptmill")
def main(verbose: bool) -> None:
    """A durable batch queue for LLM generation: JSONL of prompts in, JSONL of completions out."""


def _say(text: str) -> None:
    click.echo(text, err=True)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _open(engine_args: Sequence[str] = ()) -> tuple[Settings, Database]:
    """`engine_args` go before those of the settings, name by name."""
    from db.upgrade import open_database
    from jobs.settings import load_settings

    settings = load_settings()
    if engine_args:
        from jobs.engine_args import parse_engine_args

        merged = {**settings.engine_args, **parse_engine_args(engine_args)}
        settings = settings.model_copy(update={"engine_args": merged})
    return settings, open_database(settings.resolved_database_url)


def _card(settings: Settings, model: str | None) -> Card:
    from jobs.cards import find_card

    return find_card(settings.home, model or settings.model)


_Command = Callable[..., Any]
_model_option = click.option("--model", metavar="CARD", help="The model card; default: the setting `model`.")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
_strict_option = click.option(
    "--strict", is_flag=True, help="Refuse fields that the card's schema does not know."
)
_engine_arg_option = click.option(
    "--engine-arg",
    "engine_args",
    multiple=True,
    metavar="KEY=VALUE",
    help="An engine argument of vLLM, like max_num_seqs=128, before the card's and our own; may be given again.",
)
_errors_option = click.option(
    "--errors",
    "errors_path",
    metavar="FILE",
    type=click.Path(),
    help="Write every bad line's errors here, as JSONL.",
)
_max_failed_option = click.option(
    "--max-failed",
    metavar="N|N%",
    help="Exit with 9 if more requests than this failed.",
    callback=lambda *a: _max_failed(*a),
)


def _max_failed(ctx: click.Context, _: click.Parameter, text: str | None) -> Callable[[int], float] | None:
    """`5` or `1%` as a function from the number of requests to the most that may fail."""
    if text is None:
        return None
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise click.BadParameter("give a number of requests, like 5, or a share, like 1%", ctx)
    if text.endswith("%"):
        return lambda total: total * number / 100
    return lambda _total: number


_DURATION_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration(ctx: click.Context, _: click.Parameter, text: str | None) -> float | None:
    """`90s`, `45m`, `24h` or `30d` in seconds."""
    if text is None:
        return None
    number, unit = text[:-1], text[-1:]
    if unit not in _DURATION_UNITS_S or not number.isascii() or not number.isdigit() or len(number) > 6:
        raise click.BadParameter("give a whole number and a unit: 90s, 45m, 24h or 30d", ctx)
    return float(int(number) * _DURATION_UNITS_S[unit])


def _submit_options(command: _Command) -> _Command:
    for option in reversed(
        [
            _model_option,
            click.option("--name", help="A name for the job, for people."),
            click.option(
                "--priority",
                # well within what both databases store
                type=click.IntRange(-1_000_000, 1_000_000),
                default=0,
                show_default=True,
                help="Higher runs first.",
            ),
            click.option(
                "--deadline",
                "deadline_s",
                metavar="TIME",
                callback=_duration,
                help="Expire what has not run after so long, like 24h.",
            ),
            click.option(
                "--on-invalid",
                type=click.Choice(["reject", "skip"]),
                default="reject",
                show_default=True,
                help="With bad lines: refuse the file, or run the good ones and let the bad ones fail.",
            ),
            click.option(
                "--idempotency-key",
                metavar="KEY",
                help="A second submit with this key returns the first job.",
            ),
            click.option(
                "--once",
                is_flag=True,
                help="The same, with the file's content as the key.",
            ),
            _strict_option,
            _errors_option,
        ]
    ):
        command = option(command)
    return command


def _options(**values: Any) -> Any:
    from jobs.submit import OnInvalid, SubmitOptions

    if values["once"] and values["idempotency_key"]:
        raise click.UsageError("--once and --idempotency-key are two ways to say one thing; give one")
    return SubmitOptions(**{**values, "on_invalid": OnInvalid(values["on_invalid"])})


@main.command(
    epilog=_example(
        "promptmill run prompts.jsonl -o results.jsonl",
        "cat prompts.jsonl | promptmill run - > results.jsonl",
    )
)
@click.argument("file")
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=True,
    help="Where the results go; - is stdout.",
)
@_max_failed_option
@_engine_arg_option
@_submit_options
def run(
    file: str,
    output: str,
    max_failed: Callable[[int], float] | None,
    engine_args: Sequence[str],
    model: str | None,
    **values: Any,
) -> None:
    """Run FILE to its end: submit, a worker of its own, progress, results. No service is needed.

    After a crash or Ctrl-C the same command goes on where it stood.
    """
    from jobs.display import LiveView
    from jobs.export import check_output, export
    from workers.local_run import run_job, submit_or_resume
    from workers.supervisor import stop_on_signals

    stop_on_signals()
    check_output(output)
    settings, database = _open(engine_args)
    card = _card(settings, model)
    submitted = submit_or_resume(database, settings, card, file, _options(**values))
    job = submitted.job
    _print_submitted(submitted)
    try:
        with LiveView() as view:
            job = run_job(
                database, settings, card, job.id, lambda seen, ready: view.update(seen, is_ready=ready)
            )
    except KeyboardInterrupt:
        # with every option: without --model it would be another job
        again = shlex.join(["promptmill", *sys.argv[1:]])
        if file == "-":
            rest = shlex.join(["promptmill", "results", job.id, "-o", output])
            again = f"promptmill worker --model {card.name}, then {rest}"
        _say(
            f"stopped; what is finished is kept. To go on: {again}\nTo give it up: promptmill cancel {job.id}"
        )
        raise
    try:
        export(database, job.id, output)
    except (KeyboardInterrupt, errors.OutputError):
        rest = shlex.join(["promptmill", "results", job.id, "-o", output])
        _say(f"{job.id} is {job.state}, and its results are kept. To write them: {rest}")
        raise
    _say(_summary(job, output))
    _exit_for(job, max_failed)


@main.command(
    epilog=_example(
        "promptmill submit prompts.jsonl --name nightly --priority 5",
        "promptmill submit - --json < prompts.jsonl",
    )
)
@click.argument("file")
@_submit_options
@_json_option
def submit(file: str, model: str | None, as_json: bool, **values: Any) -> None:
    """Check FILE and store it as a job; a worker of its card runs it. Prints the job's id."""
    from jobs import submit as submits
    from workers.tickets import announce

    settings, database = _open()
    card = _card(settings, model)
    submitted = submits.submit(database, settings, card, file, _options(**values))
    if not submitted.job.state.is_final and not announce(settings, card.name, submitted.job.counts.total):
        _say(f"no broker answers, so the job waits; it is run by: promptmill worker --model {card.name}")
    _print_submitted(submitted)
    if as_json:
        _print_json(submits.submitted_as_dict(submitted))
    else:
        click.echo(submitted.job.id)


def _print_submitted(submitted: Any) -> None:
    job = submitted.job
    if submitted.report is not None:
        _print_report(submitted.report)
    if submitted.created:
        _say(f"{job.id}: {job.counts.total:,} requests for {job.card_name}")
    else:
        done = job.counts.num_closed
        _say(
            f"{job.id} was submitted before and is {job.state}: {done:,} of {job.counts.total:,} requests are done"
        )
    if submitted.is_same_input is False:
        _say(f"warning: this file is not the one that {job.id} was submitted with")


def _print_report(report: Report) -> None:
    for warning in report.warnings:
        _say(f"warning: {warning.message}")
    for error in report.errors:
        where = f"{error.path}: " if error.path else ""
        _say(f"line {error.line}: {where}{error.message} ({error.code})")
    if report.num_errors > len(report.errors):
        _say(f"… and {report.num_errors - len(report.errors):,} more; --errors FILE writes all of them")


@main.command(epilog=_example("promptmill status job_4k9x2m7tqa", "promptmill status job_4k9x2m7tqa --json"))
@click.argument("job_id", metavar="JOB")
@_json_option
def status(job_id: str, as_json: bool) -> None:
    """Show where JOB stands."""
    from db import queries
    from jobs.progress import job_as_dict

    _, database = _open()
    job = queries.get_job(database, job_id)
    if as_json:
        _print_json(job_as_dict(job))
    else:
        from jobs.display import describe

        click.echo(describe(job))


@main.command(
    "list",
    epilog=_example("promptmill list --limit 5", "promptmill list --state in_progress --json"),
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="How many jobs.",
)
@click.option(
    "--state",
    "states",
    multiple=True,
    help="Only jobs in this state; may be given again.",
)
@_json_option
def list_(limit: int, states: Sequence[str], as_json: bool) -> None:
    """List jobs, the newest first."""
    from db import queries
    from db.states import JobState
    from jobs.progress import job_as_dict

    known = [state.value for state in JobState if state is not JobState.VALIDATING]
    if unknown := [state for state in states if state not in known]:
        raise click.BadParameter(
            f"{unknown[0]} is not a state; there are: {', '.join(known)}",
            param_hint="--state",
        )
    _, database = _open()
    jobs = queries.list_jobs(database, limit, [JobState(state) for state in states])
    if as_json:
        _print_json([job_as_dict(job) for job in jobs])
    else:
        from jobs.display import print_jobs

        print_jobs(jobs)


@main.command(epilog=_example("promptmill wait job_4k9x2m7tqa --timeout 3600 --max-failed 1%"))
@click.argument("job_id", metavar="JOB")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Exit with 8 after so long.",
)
@_max_failed_option
@_json_option
def wait(
    job_id: str,
    timeout_s: float | None,
    max_failed: Callable[[int], float] | None,
    as_json: bool,
) -> None:
    """Wait until JOB is over; the exit code says how it ended."""
    from jobs.display import LiveView
    from jobs.progress import job_as_dict
    from jobs.progress import wait as wait_for

    _, database = _open()
    with LiveView() as view:
        job = wait_for(database, job_id, timeout_s, view.update)
    if as_json:
        _print_json(job_as_dict(job))
    if not job.state.is_final:
        _say(f"{job.id} is still {job.state} after {timeout_s:g} s")
        sys.exit(Exit.TIMED_OUT)
    _say(_summary(job))
    _exit_for(job, max_failed)


@main.command(
    epilog=_example(
        "promptmill results job_4k9x2m7tqa -o results.jsonl",
        "promptmill results job_4k9x2m7tqa | jq .result",
    )
)
@click.argument("job_id", metavar="JOB")
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=True,
    help="Where the results go; - is stdout.",
)
@click.option("--partial", is_flag=True, help="Take what is finished of a job that is not over.")
def results(job_id: str, output: str, partial: bool) -> None:
    """Write JOB's results as JSONL, one line a request, in input order."""
    from db import queries
    from db.states import FINAL_STATES
    from jobs.export import export

    _, database = _open()
    job = queries.get_job(database, job_id)
    if not job.state.is_final and not partial:
        _say(f"promptmill wait {job_id} waits for it; --partial takes what is finished by now")
        raise errors.WrongStateError(f"job {job_id}", job.state, FINAL_STATES)
    num_lines = export(database, job_id, output)
    if output != "-":
        _say(f"{num_lines:,} of {job.counts.total:,} results in {output}")


@main.command(epilog=_example("promptmill cancel job_4k9x2m7tqa"))
@click.argument("job_id", metavar="JOB")
def cancel(job_id: str) -> None:
    """Stop JOB: what is finished stays, the rest is cancelled. A second call does no harm."""
    from jobs.control import cancel as cancel_job

    _, database = _open()
    job = cancel_job(database, job_id)
    _say(f"{job.id} is {job.state}: {job.counts.succeeded + job.counts.failed:,} results stay")


@main.command(epilog=_example("promptmill validate prompts.jsonl --strict --errors bad.jsonl"))
@click.argument("file")
@_model_option
@_strict_option
@_errors_option
@_json_option
def validate(file: str, model: str | None, strict: bool, errors_path: str | None, as_json: bool) -> None:
    """Check every line of FILE against the card's schema, and store nothing."""
    from jobs.settings import load_settings
    from jobs.validation import validate as check_file

    settings = load_settings()
    card = _card(settings, model)
    report = check_file(card, file, settings.max_line_bytes, strict=strict, errors_path=errors_path)
    if as_json:
        _print_json(report.as_dict())
    else:
        _print_report(report)
        _say(f"{report.num_lines:,} lines: {report.num_valid:,} valid, {report.num_invalid:,} bad")
        if report.num_lines == 0:
            _say("a file without requests is refused: give one JSON object a line")
    if not report.is_valid:
        sys.exit(Exit.INPUT_REFUSED)


@main.group()
def models() -> None:
    """Model cards: what a request may hold, the limits, where the weights are."""


@models.command("list", epilog=_example("promptmill models list"))
@_json_option
def models_list(as_json: bool) -> None:
    """List the cards."""
    from jobs.cards import describe_card, list_cards
    from jobs.settings import load_settings

    settings = load_settings()
    cards = [describe_card(card, settings.home) for card in list_cards(settings.home)]
    if as_json:
        _print_json(cards)
        return
    for card in cards:
        click.echo(f"{card['name']:32} {card['limits']['max_total_tokens']:>7,} tokens  {card['weights']}")


@models.command("show", epilog=_example("promptmill models show hermes-2-pro-mistral-7b --json"))
@click.argument("name")
@_json_option
def models_show(name: str, as_json: bool) -> None:
    """Show one card, by its display name, full name or id."""
    from jobs.cards import describe_card
    from jobs.settings import load_settings

    settings = load_settings()
    shown = describe_card(_card(settings, name), settings.home)
    if as_json:
        _print_json(shown)
        return
    for key, value in shown.items():
        click.echo(f"{key:14} {value if isinstance(value, str) else json.dumps(value)}")


@models.command("add", epilog=_example("promptmill models add hermes-2-pro-mistral-7b.md"))
@click.argument("file", type=click.Path())
@click.option("--replace", is_flag=True, help="Put it in the place of another card of that name.")
def models_add(file: str, replace: bool) -> None:
    """Add the card in FILE, as the model page has it: YAML, or Markdown with YAML front matter."""
    from pathlib import Path

    from jobs.cards import add_card
    from jobs.settings import load_settings

    card = add_card(load_settings().home, Path(file), replace=replace)
    _say(
        f"added {card.name} ({card.sha256[:12]}); jobs that are stored keep the card they were submitted with"
    )


@main.command(epilog=_example("promptmill worker", "promptmill worker --model hermes-2-pro-mistral-7b"))
@_model_option
@_engine_arg_option
@click.option("--restart-engine", is_flag=True, help="Start another worker process when this one dies.")
def worker(model: str | None, engine_args: Sequence[str], restart_engine: bool) -> None:
    """Run jobs of one card until SIGTERM or Ctrl-C: then give back what is unfinished and exit.

    Exits with 70 when the engine died, and with 6 when the database was away at its start: start it again, or let
    --restart-engine do so. Exits with 2 when the engine refuses its arguments.
    """
    from workers.supervisor import Supervisor, stop_on_signals

    stop_on_signals()
    settings, database = _open(engine_args)
    supervisor = Supervisor(database, settings, _card(settings, model).name, restart=restart_engine)
    code: int | None = None
    try:
        supervisor.start()
        code = supervisor.wait()
    except KeyboardInterrupt:
        _say("stopping: giving back what is unfinished")
        code = supervisor.stop()
    finally:
        supervisor.stop()
    # a process killed by a signal has a negative code
    sys.exit(code if code is None or code >= 0 else 128 - code)


@main.command(
    epilog=_example("promptmill verify job_4k9x2m7tqa --input prompts.jsonl --output results.jsonl")
)
@click.argument("job_id", metavar="JOB")
@click.option("--input", "input_path", metavar="FILE", help="The file that was submitted.")
@click.option("--output", "output_path", metavar="FILE", help="The file that the results were written to.")
def verify(job_id: str, input_path: str | None, output_path: str | None) -> None:
    """Check what must hold of JOB, which is over: each request one outcome, all counts equal, no lease left."""
    from jobs.verify import verify as verify_job

    _, database = _open()
    for sentence in verify_job(database, job_id, input_path, output_path):
        click.echo(f"ok  {sentence}")


@main.command(epilog=_example("promptmill delete job_4k9x2m7tqa"))
@click.argument("job_id", metavar="JOB")
def delete(job_id: str) -> None:
    """Delete JOB, which is over, with its requests and results."""
    from jobs.retention import delete as delete_job

    _, database = _open()
    delete_job(database, job_id)
    _say(f"{job_id} is deleted")


@main.command(epilog=_example("promptmill prune --older-than 30d --dry-run"))
@click.option(
    "--older-than", "older_than_s", required=True, metavar="AGE", callback=_duration, help="Like 30d or 12h."
)
@click.option("--dry-run", is_flag=True, help="Only say which jobs would go.")
def prune(older_than_s: float, dry_run: bool) -> None:
    """Delete the jobs that ended longer ago than AGE. Prints their ids."""
    from jobs.retention import prune as prune_jobs

    _, database = _open()
    jobs = prune_jobs(database, older_than_s, is_dry_run=dry_run)
    for job in jobs:
        click.echo(job.id)
    _say(f"{len(jobs):,} jobs {'would be deleted' if dry_run else 'deleted'}")


@main.command(epilog=_example("promptmill check", "promptmill check --model smollm2-135m-instruct --json"))
@_model_option
@_json_option
def check(model: str | None, as_json: bool) -> None:
    """Say for each part whether it is well, and the command that mends it. Exits with 6 if one is not."""
    from jobs.settings import load_settings
    from workers.health import check as findings_of

    settings = load_settings()
    findings = list(findings_of(settings, model or settings.model))
    if as_json:
        _print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            mend = f"\n{'':16}mend it: {finding.mend}" if finding.mend and not finding.is_well else ""
            click.echo(f"{'ok' if finding.is_well else 'NOT OK':7}{finding.part:11}{finding.detail}{mend}")
    if not all(finding.is_well for finding in findings):
        sys.exit(Exit.UNAVAILABLE)


@main.group()
def db() -> None:
    """The database."""


@db.command("upgrade", epilog=_example("promptmill db upgrade"))
def db_upgrade() -> None:
    """Bring the database to the newest revision. A second call does nothing."""
    from db.database import HEAD_REVISION, Database
    from db.upgrade import upgrade
    from jobs.settings import load_settings

    database = Database(load_settings().resolved_database_url)
    upgrade(database)
    _say(f"{database.label} is at revision {HEAD_REVISION}")


def _summary(job: Job, output: str | None = None) -> str:
    from jobs.display import summarize

    return summarize(job, output)


def _exit_for(job: Job, max_failed: Callable[[int], float] | None) -> None:
    if job.state != "completed":
        sys.exit(Exit.NOT_COMPLETED)
    if max_failed is not None and job.counts.failed > max_failed(job.counts.total):
        sys.exit(Exit.TOO_MANY_FAILED)


if __name__ == "__main__":
    main()
