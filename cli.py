"""The command line: each command parses, calls one function, and prints. Data to stdout, the rest to stderr.

Whatever is slow to import is imported by the command that needs it, so that --help is instant.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from collections import namedtuple
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn

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
    SCORE_FELL = 10
    INTERRUPTED = 130


_MEANINGS = {
    Exit.DONE: "done",
    Exit.UNEXPECTED: "unexpected error, an output that cannot be written, or an engine that cannot be started",
    Exit.USAGE: "usage: a wrong option, setting or card",
    Exit.INPUT_REFUSED: "input refused",
    Exit.NOT_FOUND: "no such job, card or schedule",
    Exit.WRONG_STATE: "the job is in the wrong state for this, or verify found a fault",
    Exit.UNAVAILABLE: "database or broker unavailable",
    Exit.NOT_COMPLETED: "the job ended other than completed",
    Exit.TIMED_OUT: "timed out",
    Exit.TOO_MANY_FAILED: "completed, with more failed requests than --max-failed",
    Exit.SCORE_FELL: "compare: a score fell by more than --tolerance",
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
            # Python keeps in mind that text run as code was interrupted, as where a dataclass is made, and under -m
            # dies of SIGINT in the end, whatever the exit code; the next such text, which this is, makes it forget
            namedtuple("_Nothing", ())
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
    """To stderr. What was typed or read may be quoted there: nothing of it does anything to a terminal."""
    from jobs.shown.text import printable_lines

    click.echo("\n".join(printable_lines(text)), err=True)


def _print_json(value: object) -> None:
    from jobs.shown.text import safe_json

    click.echo(safe_json(json.dumps(value, indent=2, ensure_ascii=False)))


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


def _open_job(which: str) -> tuple[Database, str]:
    """The database, and the id of the job that is meant: by its id, the beginning of one, or `last`."""
    database, (job_id,) = _open_jobs([which])
    return database, job_id


def _open_jobs(which: Sequence[str]) -> tuple[Database, list[str]]:
    from db import queries

    _, database = _open()
    return database, [queries.find_job_id(database, one) for one in which]


def _card(settings: Settings, model: str | None) -> Card:
    from jobs.cards import find_card

    return find_card(settings.home, model or settings.model)


_Command = Callable[..., Any]
_Complete = Callable[[click.Context, click.Parameter, str], list[Any]]
# for a shell's completion; what is wrong with a file, our own errors say
_FILE = click.Path(readable=False)
_files_argument = click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=_FILE,
    callback=lambda *a: _expanded(*a),
)


def _completes(what: str) -> _Complete:
    """What a shell offers for a job, a card or a state: a name of jobs.completion."""

    def complete(_: click.Context, __: click.Parameter, beginning: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        from jobs import completion

        find = getattr(completion, f"complete_{what}")
        return [CompletionItem(value, help=words or None) for value, words in find(beginning)]

    return complete


# a context's `obj` under which patterns stay as they are given
_KEEPS_PATTERNS = object()


def _expanded(ctx: click.Context, _: click.Parameter, files: Sequence[str]) -> list[str]:
    from jobs.paths import expand

    return list(files) if ctx.obj is _KEEPS_PATTERNS else expand(files)


def _together(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Options that several commands share, in the order in which --help shows them."""

    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_mapping_options = _together(
    click.option(
        "--template",
        metavar="FILE|TEXT",
        type=_FILE,
        help="A Jinja template that makes each prompt of a row's columns, or of a line's fields.",
    ),
    click.option("--prompt-column", metavar="NAME", help="The column, or field, that is the prompt."),
    click.option("--messages-column", metavar="NAME", help="The column, or field, that holds messages."),
)


def _reading_options(*names: str) -> Callable[[_Command], _Command]:
    """`names` are what the option for the dialect is called."""
    dialect = click.option(
        *names,
        "input_format",
        type=click.Choice(["card", "openai", "cloudflare", "array", "csv", "parquet"]),
        help="What the files are; default: as each one begins.",
    )
    return _together(dialect, _mapping_options)


def _reading(model: str | None, values: dict[str, Any]) -> Any:
    """Taken out of a command's options."""
    from jobs.dialects.reading import reading_of

    names = ("input_format", "template", "prompt_column", "messages_column")
    return reading_of(**{name: values.pop(name, None) for name in names}, is_model_given=model is not None)


_selection_options = _together(
    click.option("--shard", metavar="I/N", help="Take every N-th request from the I-th on, like 1/4."),
    click.option(
        "--sample", metavar="K|K%", help="Of these take K at random, or a share; --seed says which."
    ),
    click.option("--limit", type=click.IntRange(1, 2**62), help="Of these take only the first ones."),
)


def _selection(values: dict[str, Any], seed: int | None) -> Any:
    """Taken out of a command's options."""
    from jobs.selection import selection_of

    return selection_of(**{name: values.pop(name) for name in ("shard", "sample", "limit")}, seed=seed)


_model_option = click.option(
    "--model",
    metavar="CARD",
    shell_complete=_completes("card"),
    help="The model card; default: the setting `model`.",
)
_job_argument = click.argument("which", metavar="JOB", shell_complete=_completes("job"))
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
    type=_FILE,
    help="Write every bad line's errors here, as JSONL.",
)
_check_tokens_option = click.option(
    "--check-tokens/--no-check-tokens",
    default=None,
    help="Hold lines against the card's token limits too; default: where the weights are in a folder here, and in run.",
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


# defaults for requests that do not say otherwise: their names are those of a request's fields
_SAMPLING: dict[str, tuple[Any, str]] = {
    "max_tokens": (click.IntRange(1), "The most tokens to generate for a request."),
    "n": (click.IntRange(1, 128), "How many completions to make for a request."),
    "temperature": (click.FloatRange(0, 2), "0 is greedy."),
    "top_p": (click.FLOAT, "Of the likeliest tokens, those that make up this share."),
    "top_k": (click.INT, "Only so many of the likeliest tokens."),
    "min_p": (click.FLOAT, "Only tokens at least this likely, against the likeliest."),
    "repetition_penalty": (click.FLOAT, "Above 1 against tokens of the prompt and the completion."),
    "frequency_penalty": (click.FLOAT, "Against tokens by how often they came."),
    "presence_penalty": (click.FLOAT, "Against tokens that came."),
    "seed": (
        click.INT,
        "What the seed of each request is derived from (default: from the job's id), and what --sample is drawn by.",
    ),
}
_sampling_options = _together(
    *(
        click.option(f"--{name.replace('_', '-')}", name, type=kind, help=text)
        for name, (kind, text) in _SAMPLING.items()
    )
)
_submit_options = _together(
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
        help="The same, with the file's content, the sampling options and --name as the key.",
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="KEY=VALUE",
        help="Put a label on the job, like team=eval, to find it by in list; may be given again.",
    ),
    click.option(
        "--reuse",
        is_flag=True,
        help="Take results that other jobs have for the same request, card, weights and seed (docs/reuse.md).",
    ),
    _strict_option,
    _check_tokens_option,
    _errors_option,
    _selection_options,
    _sampling_options,
)


def _check_tokens(given: bool | None, default: str) -> Any:
    """The mode that the option names; `default` is a CheckTokens."""
    from jobs.admission import CheckTokens

    return CheckTokens(default) if given is None else CheckTokens.ALWAYS if given else CheckTokens.NEVER


def _options(check_tokens: bool | None, default: str = "if local", **values: Any) -> Any:
    from jobs.labels import parse_labels
    from jobs.submit import OnInvalid, SubmitOptions

    values["selection"] = _selection(values, values["seed"])
    values["sampling"] = {name: value for name in _SAMPLING if (value := values.pop(name)) is not None}
    if values["once"] and values["idempotency_key"]:
        raise click.UsageError("--once and --idempotency-key are two ways to say one thing; give one")
    return SubmitOptions(
        **{**values, "on_invalid": OnInvalid(values["on_invalid"]), "labels": parse_labels(values["labels"])},
        check_tokens=_check_tokens(check_tokens, default),
    )


_form_options = _together(
    click.option(
        "--format",
        "form",
        type=click.Choice(["jsonl", "openai", "cloudflare", "csv", "parquet"]),
        help="The form of the results; default: as the output's ending says (.csv, .parquet), or the input's own.",
    ),
    click.option(
        "--errors-output",
        metavar="FILE",
        type=_FILE,
        help="Where openai's error lines go; default: beside FILE.jsonl into FILE.errors.jsonl, with - to stdout.",
    ),
)


def _given_form(form: str | None, errors_output: str | None) -> list[str]:
    given = ["--format", form] if form else []
    return [*given, "--errors-output", errors_output] if errors_output else given


@main.command(
    epilog=_example(
        "promptmill run prompts.jsonl -o results.jsonl",
        "promptmill run 'evals/**/*.jsonl' --sample 5% --label team=eval -o sample.jsonl",
        "cat prompts.jsonl | promptmill run - > results.jsonl",
    )
)
@_files_argument
@click.option(
    "-o",
    "--output",
    default="-",
    type=_FILE,
    show_default=True,
    help="Where the results go; - is stdout.",
)
@_form_options
@_max_failed_option
@click.option(
    "--timeout",
    "timeout_s",
    metavar="TIME",
    callback=_duration,
    help="Stop after so long, like 6h, and exit with 8; the same command goes on where it stood.",
)
@_engine_arg_option
@_reading_options("--input-format")
@_submit_options
def run(
    files: Sequence[str],
    output: str,
    form: str | None,
    errors_output: str | None,
    max_failed: Callable[[int], float] | None,
    timeout_s: float | None,
    engine_args: Sequence[str],
    model: str | None,
    **values: Any,
) -> None:
    """Run FILE, or several, to the end: submit, a worker of its own, progress, results. No service is needed.

    After a crash or Ctrl-C the same command goes on where it stood. Where stderr is no terminal, the last line is one
    of key=value for programs.
    """
    from jobs.export import export, options_for
    from jobs.forms import named_form
    from jobs.output import check_output
    from jobs.shown.live_view import LiveView
    from workers.local_run import run_job, submit_or_resume
    from workers.stop_signals import stop_on_signals

    stop_on_signals()
    check_output(output)
    named_form(form, output)
    settings, database = _open(engine_args)
    card = _card(settings, model)
    reading = _reading(model, values)
    submitted = submit_or_resume(
        database, settings, card, files, _options(**values, default="if possible", reading=reading)
    )
    job = submitted.job
    _print_submitted(submitted)
    options = options_for(job, output, form=form, errors_path=errors_output)
    rest = shlex.join(["promptmill", "results", job.id, "-o", output, *_given_form(form, errors_output)])
    # with every option: without --model it would be another job
    again = shlex.join(["promptmill", *sys.argv[1:]])
    if "-" in files:
        again = f"promptmill worker --model {card.name}, then {rest}"
    stopped = f"what is finished is kept. To go on: {again}\nTo give it up: promptmill cancel {job.id}"
    try:
        with LiveView(database) as view:
            job = run_job(
                database,
                settings,
                card,
                job.id,
                lambda seen, ready: view.update(seen, is_ready=ready),
                timeout_s,
            )
    except KeyboardInterrupt:
        _say(f"stopped; {stopped}")
        raise
    if not job.state.is_final:
        _say(f"{job.id} is still {job.state} after {timeout_s:g} s; {stopped}")
        _end(job, Exit.TIMED_OUT)
    try:
        export(database, job.id, output, options)
    except (KeyboardInterrupt, errors.OutputError):
        _say(f"{job.id} is {job.state}, and its results are kept. To write them: {rest}")
        raise
    _say(_summary(job, output))
    _end(job, _exit_code(job, max_failed))


@main.command(
    epilog=_example(
        "promptmill submit prompts.jsonl --name nightly --priority 5",
        "promptmill submit - --json < prompts.jsonl",
    )
)
@_files_argument
@_reading_options("--format", "--input-format")
@_submit_options
@_json_option
def submit(files: Sequence[str], model: str | None, as_json: bool, **values: Any) -> None:
    """Check FILE, or several, and store them as one job; a worker of its card runs it. Prints the job's id."""
    from jobs import submit as submits

    settings, database = _open()
    card = _card(settings, model)
    reading = _reading(model, values)
    submitted = submits.submit(database, settings, card, files, _options(**values, reading=reading))
    _announce(settings, submitted.job)
    _print_submitted(submitted)
    if as_json:
        _print_json(submits.submitted_as_dict(submitted))
    else:
        click.echo(submitted.job.id)


def _announce(settings: Settings, job: Job) -> None:
    from workers.tickets import announce

    if not job.state.is_final and not announce(settings, job.card_name, job.counts.total):
        _say(f"no broker answers, so the job waits; it is run by: promptmill worker --model {job.card_name}")


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
        _say(f"warning: this is not the input that {job.id} was submitted with")


def _print_report(report: Report) -> None:
    for note in report.notes:
        _say(f"warning: {note}")
    for warning in report.warnings:
        _say(f"warning: {warning.message}")
    for error in report.errors:
        where = f"{error.path}: " if error.path else ""
        _say(f"{error.place}: {where}{error.message} ({error.code})")
    if report.num_errors > len(report.errors):
        _say(f"… and {report.num_errors - len(report.errors):,} more; --errors FILE writes all of them")


@main.command(
    epilog=_example(
        "promptmill status job_4k9x2m7tqa --json",
        "promptmill status job_4k9x2m7tqa last",
        "promptmill status last --watch",
    )
)
@click.argument("which", metavar="JOB...", nargs=-1, required=True, shell_complete=_completes("job"))
@click.option("--watch", is_flag=True, help="Show it live, on stderr, until it is over or Ctrl-C.")
@_json_option
def status(which: Sequence[str], watch: bool, as_json: bool) -> None:
    """Show where JOB stands, or several in a table. With --json several are an array."""
    from db import queries
    from jobs.progress import job_as_dict

    if watch and len(which) > 1:
        raise click.UsageError("--watch shows one job; give one, or leave out --watch")
    database, job_ids = _open_jobs(which)
    jobs = [_watch(database, job_id) if watch else queries.get_job(database, job_id) for job_id in job_ids]
    if as_json:
        _print_json([job_as_dict(job) for job in jobs] if len(jobs) > 1 else job_as_dict(jobs[0]))
    elif len(jobs) == 1:
        from jobs.shown.one_job import describe

        click.echo(describe(jobs[0]))
    else:
        from jobs.shown.job_table import print_jobs

        print_jobs(jobs)


def _watch(database: Database, job_id: str) -> Job:
    from jobs.progress import wait
    from jobs.shown.live_view import LiveView

    with LiveView(database) as view:
        return wait(database, job_id, on_poll=view.update, poll_s=1.0)


@main.command(epilog=_example("promptmill manifest job_4k9x2m7tqa > manifest.json"))
@_job_argument
def manifest(which: str) -> None:
    """Print what JOB's answers came from, as JSON: card, input, weights, engine, parameters, machines."""
    from jobs.manifest import manifest as manifest_of

    database, job_id = _open_job(which)
    _print_json(manifest_of(database, job_id))


@main.command(
    "list",
    epilog=_example(
        "promptmill list --limit 5", "promptmill list --label team=eval --state in_progress --json"
    ),
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
    shell_complete=_completes("state"),
    help="Only jobs in this state; may be given again.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Only jobs with this label; given again, with all of them.",
)
@_json_option
def list_(limit: int, states: Sequence[str], labels: Sequence[str], as_json: bool) -> None:
    """List jobs, the newest first.

    A terminal gets a table with bars, as wide as it is. Anything else gets the same plain columns always, whole.
    """
    from db import queries
    from db.states import JobState
    from jobs.labels import parse_label_filters
    from jobs.progress import job_as_dict

    known = [state.value for state in JobState if state.is_visible]
    if unknown := [state for state in states if state not in known]:
        raise click.BadParameter(
            f"{unknown[0]} is not a state; there are: {', '.join(known)}",
            param_hint="--state",
        )
    _, database = _open()
    jobs = queries.list_jobs(
        database, limit, [JobState(state) for state in states], parse_label_filters(labels)
    )
    if as_json:
        _print_json([job_as_dict(job) for job in jobs])
    else:
        from jobs.shown.job_table import print_jobs

        print_jobs(jobs)


@main.command(epilog=_example("promptmill wait job_4k9x2m7tqa --timeout 3600 --max-failed 1%"))
@_job_argument
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
    which: str,
    timeout_s: float | None,
    max_failed: Callable[[int], float] | None,
    as_json: bool,
) -> None:
    """Wait until JOB is over; the exit code says how it ended."""
    from jobs.progress import job_as_dict
    from jobs.progress import wait as wait_for
    from jobs.shown.live_view import LiveView

    database, job_id = _open_job(which)
    with LiveView(database) as view:
        job = wait_for(database, job_id, timeout_s, view.update)
    if as_json:
        _print_json(job_as_dict(job))
    if not job.state.is_final:
        _say(f"{job.id} is still {job.state} after {timeout_s:g} s")
        sys.exit(Exit.TIMED_OUT)
    _say(_summary(job))
    sys.exit(_exit_code(job, max_failed))


@main.command(
    epilog=_example(
        "promptmill results job_4k9x2m7tqa -o results.jsonl",
        "promptmill results job_4k9x2m7tqa | jq .result",
        "promptmill results job_4k9x2m7tqa -o results.parquet --with-input",
        "promptmill results job_4k9x2m7tqa --follow --from 1200",
        "promptmill results job_4k9x2m7tqa --merged",
    )
)
@_job_argument
@click.option(
    "-o",
    "--output",
    default="-",
    type=_FILE,
    show_default=True,
    help="Where the results go; - is stdout.",
)
@_form_options
@click.option("--partial", is_flag=True, help="Take what is finished of a job that is not over.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["succeeded", "failed", "cancelled", "expired"]),
    help="Only results of this status; may be given again.",
)
@click.option(
    "--order",
    type=click.Choice(["input", "finished"]),
    help="As in the input (the default), or as they finished; then each line has its position.",
)
@click.option("--with-input", is_flag=True, help="With the request's own fields.")
@click.option(
    "--with-params", is_flag=True, help="With the seed and the parameters that each request ran with."
)
@click.option("--fields", metavar="A,B.C", help="Only these, like custom_id,result.response,request.prompt.")
@click.option("--follow", is_flag=True, help="Write results as they finish, until the job is over.")
@click.option(
    "--from",
    "after",
    type=click.IntRange(0, 2**62),
    metavar="POSITION",
    help="Only what finished after this position.",
)
@click.option(
    "--merged",
    is_flag=True,
    help="Of each request the newest outcome that succeeded, also in jobs that ran it again (rerun), else the newest.",
)
def results(
    which: str,
    output: str,
    errors_output: str | None,
    partial: bool,
    follow: bool,
    merged: bool,
    **values: Any,
) -> None:
    """Write JOB's results: as JSONL, one line a request, in input order, or as the options say."""
    from db import queries
    from db.states import FINAL_STATES
    from jobs.export import errors_path_for, export, options_for

    database, job_id = _open_job(which)
    job = queries.get_job(database, job_id)
    reruns = queries.list_descendants(database, job) if merged else None
    options = options_for(
        job, output, is_followed=follow, errors_path=errors_output, descendants=reruns, **values
    )
    if follow:
        _follow(database, job, output, options)
        return
    if not partial and (open_jobs := [one for one in (job, *(reruns or ())) if not one.state.is_final]):
        first = open_jobs[0]
        step = f"promptmill wait {first.id} waits for it, --partial takes what is finished by now"
        raise errors.WrongStateError(f"job {first.id}", first.state, FINAL_STATES, step)
    num_lines = export(database, job_id, output, options)
    if output != "-":
        errors_path = errors_path_for(output, options)
        beside = f", those that did not succeed in {errors_path}" if errors_path else ""
        _say(f"{num_lines:,} of {job.counts.total:,} results in {output}{beside}")


def _follow(database: Database, job: Job, output: str, options: Any) -> None:
    from jobs.follow import Follower

    follower = Follower(database, job, output, options)
    try:
        num_lines = follower.run()
    except KeyboardInterrupt:
        given = [word for word in sys.argv[1:] if not word.startswith("--from=")]
        if "--from" in given:
            at = given.index("--from")
            del given[at : at + 2]
        again = shlex.join(["promptmill", *given, "--from", str(follower.position)])
        _say(f"stopped after position {follower.position}. To go on: {again}")
        raise
    _say(f"{job.id} is over: {num_lines:,} results, the last at position {follower.position}")


@main.command(epilog=_example("promptmill tail last", "promptmill tail job_4k9x2m7tqa -n 100 --json"))
@_job_argument
@click.option(
    "-n",
    "num_last",
    type=click.IntRange(0, 1_000_000),
    default=10,
    show_default=True,
    help="How many results to begin with.",
)
@click.option("--json", "as_json", is_flag=True, help="Print result lines, as results does.")
def tail(which: str, num_last: int, as_json: bool) -> None:
    """Show JOB's last results and then each as it finishes, a line each, until it is over."""
    from db import queries
    from jobs import tail as tails
    from jobs.shown.result_lines import print_results

    database, job_id = _open_job(which)
    job = queries.get_job(database, job_id)
    print_results(tails.tail(database, job_id, num_last), job.counts.total, as_json=as_json)
    _say(_summary(queries.get_job(database, job_id)))


@main.command(
    epilog=_example("promptmill show job_4k9x2m7tqa 17", "promptmill show last --custom-id question-3 --json")
)
@_job_argument
@click.argument("index", type=click.IntRange(0, 2**62), required=False)
@click.option("--custom-id", metavar="ID", help="The request with this custom_id, in the place of its INDEX.")
@_json_option
def show(which: str, index: int | None, custom_id: str | None, as_json: bool) -> None:
    """Show one request of JOB: messages, parameters, response or error, times. INDEX counts from 0, as in results."""
    from db.one_request import find_index
    from jobs.show import show as show_request
    from jobs.show import shown_as_dict
    from jobs.shown.one_request import request_lines
    from jobs.shown.screen import Screen

    if (index is None) == (custom_id is None):
        raise click.UsageError("give either INDEX or --custom-id")
    database, job_id = _open_job(which)
    shown = show_request(
        database, job_id, find_index(database, job_id, custom_id) if custom_id is not None else index or 0
    )
    if as_json:
        _print_json(shown_as_dict(shown))
    else:
        screen = Screen()
        screen.write(request_lines(shown, screen.width))


@main.command(
    "errors",
    epilog=_example("promptmill errors last", "promptmill errors job_4k9x2m7tqa --examples 0 --json"),
)
@_job_argument
@click.option(
    "--examples",
    "num_examples",
    type=click.IntRange(0, 1_000),
    default=3,
    show_default=True,
    help="How many requests to show of each code.",
)
@_json_option
def errors_(which: str, num_examples: int, as_json: bool) -> None:
    """Show why requests of JOB failed: by code, with what it means, what to do, and examples."""
    from db import queries
    from db.activity import find_failures
    from jobs.failures import failures_as_dict
    from jobs.shown.failures import failure_lines
    from jobs.shown.screen import Screen

    database, job_id = _open_job(which)
    job = queries.get_job(database, job_id)
    groups = find_failures(database, job_id, num_examples)
    if as_json:
        _print_json(failures_as_dict(job, groups))
    else:
        screen = Screen()
        screen.write(failure_lines(job, groups, screen.width))


@main.command(epilog=_example("promptmill cancel job_4k9x2m7tqa"))
@_job_argument
def cancel(which: str) -> None:
    """Stop JOB: what is finished stays, the rest is cancelled. A second call does no harm."""
    from jobs.control import cancel as cancel_job

    database, job_id = _open_job(which)
    job = cancel_job(database, job_id)
    _say(f"{job.id} is {job.state}: {job.counts.succeeded + job.counts.failed:,} results stay")


@main.command(
    epilog=_example(
        "promptmill rerun job_4k9x2m7tqa",
        "promptmill rerun job_4k9x2m7tqa --where finish_reason=length --set max_tokens=512",
    )
)
@_job_argument
@click.option(
    "--where",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Only requests with this status, code, finish_reason, custom_id or index; default: what did not succeed."
    " May be given again: of one field either fits, of several all must.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of each request: a JSON value, or a text; null takes it away. May be given again.",
)
@click.option("--name", help="A name for the new job, for people.")
@click.option(
    "--priority", type=click.IntRange(-1_000_000, 1_000_000), help="Higher runs first; default: JOB's own."
)
@click.option(
    "--on-invalid",
    type=click.Choice(["reject", "skip"]),
    default="reject",
    show_default=True,
    help="With requests that --set makes bad: store nothing, or run the good ones and let the bad ones fail.",
)
@_check_tokens_option
@_json_option
def rerun(which: str, check_tokens: bool | None, on_invalid: str, as_json: bool, **values: Any) -> None:
    """Run some requests of JOB, which is over, again, as a new job. Prints its id. results JOB --merged has both."""
    from db import queries
    from jobs import rerun as reruns
    from jobs.submit import OnInvalid
    from workers.tickets import announce

    settings, database = _open()
    options = reruns.RerunOptions(
        **values, on_invalid=OnInvalid(on_invalid), check_tokens=_check_tokens(check_tokens, "if local")
    )
    made = reruns.rerun(database, settings, queries.find_job_id(database, which), options)
    job = made.job
    _print_report(made.report)
    _say(f"{job.id}: {job.counts.total:,} requests of {job.parent_id} for {job.card_name}")
    if made.num_bad_lines:
        _say(f"{made.num_bad_lines:,} bad lines that fit are left out: they have no request to run")
    if not job.state.is_final and not announce(settings, job.card_name, job.counts.total):
        _say(f"no broker answers, so the job waits; it is run by: promptmill worker --model {job.card_name}")
    if as_json:
        _print_json(reruns.rerun_as_dict(made))
    else:
        click.echo(job.id)


@main.command(
    epilog=_example("promptmill retry job_4k9x2m7tqa", "promptmill retry last --where code=engine_crash")
)
@_job_argument
@click.option(
    "--where",
    multiple=True,
    metavar="code=CODE",
    help="Only those that failed with engine_error, or with engine_crash; default: both.",
)
def retry(which: str, where: Sequence[str]) -> None:
    """Run failed requests of JOB, which is completed, again in place; what would fail again stays as it is."""
    from db import queries
    from jobs.retry import retry as retry_job
    from workers.tickets import announce

    settings, database = _open()
    done = retry_job(database, queries.find_job_id(database, which), where)
    job = done.job
    stay = f"; {job.counts.failed:,} stay failed" if job.counts.failed else ""
    if not done.num_retried:
        _say(f"{job.id} has nothing to retry{stay}")
        return
    _say(f"{job.id} is {job.state}: {done.num_retried:,} requests run again{stay}")
    if not announce(settings, job.card_name, done.num_retried):
        _say(f"no broker answers, so the job waits; it is run by: promptmill worker --model {job.card_name}")


@main.command(epilog=_example("promptmill validate prompts.jsonl --strict --errors bad.jsonl"))
@_files_argument
@_reading_options("--format", "--input-format")
@_model_option
@_strict_option
@_check_tokens_option
@_errors_option
@_selection_options
@click.option("--seed", type=click.INT, help="The one that --sample is drawn by, as with submit.")
@_json_option
def validate(
    files: Sequence[str],
    model: str | None,
    strict: bool,
    check_tokens: bool | None,
    errors_path: str | None,
    seed: int | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Check every line of FILE, or of several, against the card's schema, and store nothing."""
    from jobs.admission import open_admission
    from jobs.reader import LineLimits
    from jobs.settings import load_settings
    from jobs.validation import validate as check_file

    settings = load_settings()
    card = _card(settings, model)
    admission, note = open_admission(card, settings, _check_tokens(check_tokens, "if local"))
    report = check_file(
        card,
        files,
        LineLimits.of(settings),
        strict=strict,
        errors_path=errors_path,
        admission=admission,
        reading=_reading(model, values),
        selection=_selection(values, seed),
    )
    report.notes += [note] if note else []
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
@click.argument("name", shell_complete=_completes("card"))
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
@click.argument("file", type=_FILE)
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


@main.group()
def schedule() -> None:
    """Schedules: what a worker submits at its time, once, however many workers run."""


@schedule.command(
    "add",
    epilog=_example(
        'promptmill schedule add nightly --cron "0 2 * * *" -- submit evals.jsonl --name nightly-%F',
        'promptmill schedule add nightly --cron "0 2 * * *" --timezone Europe/Berlin --replace -- submit evals.jsonl',
    ),
)
@click.argument("name")
@click.option(
    "--cron",
    required=True,
    metavar="LINE",
    help="Minute, hour, day of month, month and day of week, as in a crontab.",
)
@click.option(
    "--timezone",
    default="UTC",
    show_default=True,
    metavar="ZONE",
    help="That of the line, like Europe/Berlin.",
)
@click.option("--replace", is_flag=True, help="Put it in the place of another schedule of that name.")
@click.argument("arguments", metavar="-- submit FILE...", nargs=-1, required=True, type=click.UNPROCESSED)
def schedule_add(name: str, cron: str, timezone: str, replace: bool, arguments: Sequence[str]) -> None:
    """Have NAME submitted by a worker whenever LINE is due: what stands after -- is a submit with its options.

    The job's --name may hold the codes of strftime, as in nightly-%F.
    """
    from db import queries
    from jobs.schedule_list import describe_added
    from jobs.schedules import add

    settings, database = _open()
    scheduled = _scheduled_submit(settings, arguments)
    added = add(database, name, cron, timezone, arguments, scheduled, replace=replace)
    for path in scheduled.missing():
        _say(f"warning: {path} is not there yet")
    _say(describe_added(added))
    if not queries.list_workers(database):
        _say("no worker runs now; what is due is fired by any: promptmill worker")


def _scheduled_submit(settings: Settings, arguments: Sequence[str]) -> Any:
    """What the words after -- mean, by the options of `submit` itself."""
    from jobs.schedules import ScheduledSubmit

    command, *words = arguments
    if command != "submit":
        raise click.UsageError(f"what comes after -- begins with submit, and not with {command}")
    # under the root's context, as if it had been called
    root = click.get_current_context().find_root()
    values = submit.make_context("submit", words, parent=root, obj=_KEEPS_PATTERNS).params
    files, model, _ = (values.pop(name) for name in ("files", "model", "as_json"))
    reading = _reading(model, values)
    return ScheduledSubmit.of(files, _card(settings, model), _options(**values, reading=reading))


@schedule.command("list", epilog=_example("promptmill schedule list", "promptmill schedule list --json"))
@_json_option
def schedule_list(as_json: bool) -> None:
    """List the schedules: when each is due next, and what came of it last."""
    from db import schedules
    from jobs.schedule_list import print_schedules
    from jobs.schedules import schedule_as_dict

    _, database = _open()
    found = schedules.list_all(database)
    if as_json:
        _print_json([schedule_as_dict(one) for one in found])
    else:
        print_schedules(found)


@schedule.command("remove", epilog=_example("promptmill schedule remove nightly"))
@click.argument("name")
def schedule_remove(name: str) -> None:
    """Remove the schedule NAME; its jobs stay."""
    from db import schedules

    _, database = _open()
    schedules.remove(database, name)
    _say(f"schedule {name} is removed")


@schedule.command("run", epilog=_example("promptmill schedule run nightly"))
@click.argument("name")
def schedule_run(name: str) -> None:
    """Submit what the schedule NAME submits, now. Prints the job's id."""
    from jobs.schedules import run_now

    settings, database = _open()
    submitted = run_now(database, settings, name)
    _announce(settings, submitted.job)
    _print_submitted(submitted)
    click.echo(submitted.job.id)


@main.command(epilog=_example("promptmill workers", "promptmill workers --all --json"))
@click.option("--all", "is_all", is_flag=True, help="With those that are stopped or gone.")
@_json_option
def workers(is_all: bool, as_json: bool) -> None:
    """List the workers that are alive: card, engine, chunks they hold, tokens/s of the last minute, last heartbeat."""
    from db import queries
    from jobs.fleet import print_workers, worker_as_dict

    _, database = _open()
    found = queries.list_workers(database, alive_only=not is_all)
    if as_json:
        _print_json([worker_as_dict(one) for one in found])
    else:
        print_workers(found)


@main.command(
    epilog=_example(
        "promptmill stats", "promptmill stats --days 30 --by card --json", "promptmill stats --by label"
    )
)
@click.option(
    "--days",
    "num_days",
    type=click.IntRange(1, 366),
    default=14,
    show_default=True,
    help="How many days, today included.",
)
@click.option(
    "--by",
    type=click.Choice(["day", "card", "label"]),
    default="day",
    show_default=True,
    help="What a row is; a job with several labels counts for each, one without for none.",
)
@_json_option
def stats(num_days: int, by: str, as_json: bool) -> None:
    """Show requests and tokens of the last days. A request counts on the day, in this shell's time zone, on which its
    chunk finished; what was deleted does not count."""
    from db.usage import Group
    from jobs.statistics import print_statistics, statistics, statistics_as_dict

    _, database = _open()
    found = statistics(database, num_days, Group.LABEL if by == "label" else Group.CARD)
    if as_json:
        _print_json(statistics_as_dict(found, by_day=by == "day"))
    else:
        print_statistics(found, by_day=by == "day")


@main.command(epilog=_example("promptmill worker", "promptmill worker --model hermes-2-pro-mistral-7b"))
@_model_option
@_engine_arg_option
@click.option("--restart-engine", is_flag=True, help="Start another worker process when this one dies.")
def worker(model: str | None, engine_args: Sequence[str], restart_engine: bool) -> None:
    """Run jobs of one card until SIGTERM or Ctrl-C: then give back what is unfinished and exit.

    Exits with 70 when the engine died, and with 6 when the database was away at its start: start it again, or let
    --restart-engine do so. Exits with 2 when the engine refuses its arguments.
    """
    from workers.stop_signals import stop_on_signals
    from workers.supervisor import Supervisor

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
@_job_argument
@click.option(
    "--input",
    "input_paths",
    multiple=True,
    metavar="FILE",
    type=_FILE,
    callback=lambda *a: _expanded(*a),
    help="The file that was submitted; several in their order.",
)
@_mapping_options
@click.option(
    "--output", "output_path", metavar="FILE", type=_FILE, help="The file that the results were written to."
)
def verify(which: str, input_paths: Sequence[str], output_path: str | None, **values: Any) -> None:
    """Check what must hold of JOB, which is over: each request one outcome, all counts equal, no lease left."""
    from jobs.verify import verify as verify_job

    database, job_id = _open_job(which)
    for sentence in verify_job(database, job_id, input_paths, output_path, _reading(None, values)):
        click.echo(f"ok  {sentence}")


@main.command(
    epilog=_example(
        "promptmill compare job_4k9x2m7tqa last",
        "promptmill compare job_4k9x2m7tqa last --tolerance 1% --html nightly.html",
    )
)
@click.argument("which_a", metavar="JOB_A", shell_complete=_completes("job"))
@click.argument("which_b", metavar="JOB_B", shell_complete=_completes("job"))
@click.option(
    "--by",
    type=click.Choice(["custom_id", "index"]),
    help="How requests find each other; default: custom_id where all of both jobs have one, else index.",
)
@click.option(
    "--tolerance",
    default="0",
    show_default=True,
    metavar="SHARE",
    help="Exit with 10 if a score falls by more of the requests than this, like 1%.",
)
@click.option(
    "--markdown", "markdown_path", type=_FILE, metavar="FILE", help="Write a report as Markdown; - is stdout."
)
@click.option(
    "--html",
    "html_path",
    metavar="FILE",
    type=_FILE,
    help="Write a page with plots, in one file; - is stdout.",
)
@_json_option
def compare(
    which_a: str,
    which_b: str,
    by: str | None,
    tolerance: str,
    markdown_path: str | None,
    html_path: str | None,
    as_json: bool,
) -> None:
    """Show what changed from JOB_A to JOB_B: counts, tokens, responses, and scores by the requests' references."""
    from db import queries
    from jobs.comparison import compare as comparing
    from jobs.comparison.figures import as_dict
    from jobs.comparison.pairs import By
    from jobs.comparison.plain import as_text
    from jobs.comparison.report import Reports

    allowed = comparing.parse_tolerance(tolerance)
    reports = Reports(markdown_path, html_path, is_stdout_taken=as_json)
    database, id_a = _open_job(which_a)
    found = comparing.compare(
        database, id_a, queries.find_job_id(database, which_b), None if by is None else By(by)
    )
    for note in comparing.notes_of(found):
        _say(f"note: {note}")
    for path in reports.write(found, allowed):
        _say(f"report: {path}")
    if as_json:
        _print_json(as_dict(found, allowed))
    elif not reports.takes_stdout:
        click.echo(as_text(found, allowed))
    if found.fallen(allowed):
        sys.exit(Exit.SCORE_FELL)


@main.command(epilog=_example("promptmill delete job_4k9x2m7tqa"))
@_job_argument
def delete(which: str) -> None:
    """Delete JOB, which is over, with its requests and results."""
    from jobs.retention import delete as delete_job

    database, job_id = _open_job(which)
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


@main.command(epilog=_example("promptmill config", "promptmill config --json"))
@_json_option
def config(as_json: bool) -> None:
    """Show each setting, and which variable or file it comes from; passwords and tokens are hidden."""
    from jobs.configuration import as_table, configuration

    shown = configuration()
    if as_json:
        _print_json([vars(setting) for setting in shown])
    else:
        click.echo(as_table(shown))


@main.command(
    epilog=_example(
        "promptmill completion bash >> ~/.bashrc",
        "promptmill completion zsh >> ~/.zshrc",
        "promptmill completion fish > ~/.config/fish/completions/promptmill.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that has SHELL complete commands, options, job ids, card names and files.

    It goes into the shell's own start-up file, and works in the next shell. For zsh, after a line: autoload -Uz
    compinit; compinit.
    """
    from click.shell_completion import BashComplete, FishComplete, ZshComplete

    kind = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}[shell]
    click.echo(kind(main, {}, "promptmill", "_PROMPTMILL_COMPLETE").source(), nl=False)


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
    from jobs.shown.one_job import summarize

    return summarize(job, output)


def _exit_code(job: Job, max_failed: Callable[[int], float] | None) -> Exit:
    if job.state != "completed":
        return Exit.NOT_COMPLETED
    if max_failed is not None and job.counts.failed > max_failed(job.counts.total):
        return Exit.TOO_MANY_FAILED
    return Exit.DONE


def _end(job: Job, code: Exit) -> NoReturn:
    """Exit, with a last line that a log's reader can take apart."""
    if not sys.stderr.isatty():
        from jobs.shown.one_job import as_pairs

        _say(f"promptmill: {as_pairs(job)} exit={code.value}")
    sys.exit(code)


if __name__ == "__main__":
    main()
