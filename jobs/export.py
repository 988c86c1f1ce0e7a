"""Writing a job's outcomes in one of the forms, streamed."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import IO

from db import outcomes, queries
from db.database import Database
from db.errors import OutputError, SettingsError
from db.outcomes import Outcome
from db.queries import Job
from db.states import ResultStatus
from jobs.forms import OURS, Form, choose_form
from jobs.forms.cloudflare import poll_response
from jobs.forms.columns import Column, field_columns, find_request_kinds, result_columns
from jobs.forms.commas import csv_formatter, header
from jobs.forms.fields import field_formatter, parse_fields, roots
from jobs.forms.native import format_line, line_formatter
from jobs.forms.openai import openai_formatter
from jobs.forms.params import params_adder
from jobs.forms.parquet import write_parquet
from jobs.merged import merged_outcomes
from jobs.output import check_output, is_stream, output, resolve


class Order(StrEnum):
    INPUT = "input"
    FINISHED = "finished"


@dataclass(frozen=True)
class ExportOptions:
    """What to write of a job, and how. `after`: only outcomes with a higher position, for Order.FINISHED; an empty
    `only` is everything, and empty `fields` are the form's own. `descendants`: the jobs that the outcomes are merged
    with; None for those of the job alone."""

    form: Form = Form.JSONL
    only: frozenset[ResultStatus] = frozenset()
    order: Order = Order.INPUT
    after: int = 0
    with_input: bool = False
    fields: tuple[str, ...] = ()
    errors_path: str | None = None
    with_params: bool = False
    descendants: tuple[Job, ...] | None = None

    def __post_init__(self) -> None:
        if self.form not in OURS and (self.fields or self.with_input or self.with_params):
            raise SettingsError(
                f"the format {self.form} has no room for --fields, --with-input or --with-params;"
                f" {', '.join(OURS)} have"
            )
        if self.form is not Form.OPENAI and self.errors_path is not None:
            raise SettingsError(f"only the format openai has a file for errors, not {self.form}; see --only")
        if self.with_params and self.fields:
            raise SettingsError("--fields says all; name params among them instead of --with-params")
        if "job" in roots(self.fields) and not self.is_merged:
            raise SettingsError("--fields: job is there with --merged alone")
        if self.with_input and self.fields:
            raise SettingsError("--fields says all; name request among them instead of --with-input")

    @property
    def is_plain(self) -> bool:
        return self == _PLAIN

    @property
    def with_bodies(self) -> bool:
        """Whether the requests are read too, or what else only they come with."""
        return (
            self.with_input
            or self.form is Form.OPENAI
            or self.needs_params
            or not roots(self.fields).isdisjoint({"request", "position", "finished_at"})
        )

    @property
    def is_merged(self) -> bool:
        return self.descendants is not None

    @property
    def needs_params(self) -> bool:
        return self.with_params or "params" in roots(self.fields)

    @property
    def with_position(self) -> bool:
        return self.order is Order.FINISHED


_PLAIN = ExportOptions()


def options_for(
    job: Job,
    path: str,
    *,
    form: str | None = None,
    only: Collection[str] = (),
    order: str | None = None,
    after: int | None = None,
    is_followed: bool = False,
    with_input: bool = False,
    fields: str | None = None,
    errors_path: str | None = None,
    with_params: bool = False,
    descendants: Sequence[Job] | None = None,
) -> ExportOptions:
    """What the options of the command line come to for this job; SettingsError where they contradict each other."""
    is_finished_order = is_followed or after is not None
    if order == Order.INPUT and is_finished_order:
        raise SettingsError(
            "--follow and --from give results in the order in which they finish, not --order input"
        )
    if descendants is not None and (is_finished_order or order == Order.FINISHED):
        raise SettingsError(
            "--merged gives requests in input order, without --follow, --from or --order finished"
        )
    paths = parse_fields(fields)
    return ExportOptions(
        choose_form(form, path, job.input_format),
        frozenset(map(ResultStatus, only)),
        Order.FINISHED if is_finished_order else Order(order or Order.INPUT),
        after or 0,
        with_input,
        paths,
        errors_path,
        with_params,
        None if descendants is None else tuple(descendants),
    )


def export(database: Database, job_id: str, path: str, options: ExportOptions = _PLAIN) -> int:
    """Write every outcome there is by now to `path` (`-` is stdout); how many there were.

    The file appears whole or not at all: it is written under a temporary name beside it, and renamed.
    OutputError when that cannot be done, NotFoundError when the job is deleted meanwhile; then the file that was
    there before is untouched.
    """
    job = queries.get_job(database, job_id)
    check_output(path)
    errors_path = errors_path_for(path, options)
    if errors_path is not None and not is_stream(path) and resolve(errors_path) == resolve(path):
        raise OutputError(f"{path} is where the results go; give the errors another file")
    with output(path) as file:
        if options.is_plain:
            num = 0
            for num, outcome in enumerate(outcomes.iterate_outcomes(database, job_id), 1):  # noqa: B007  the last one
                file.write(format_line(outcome))
        elif errors_path is not None:
            num = _write_two(database, job, file, errors_path, options)
        else:
            num = _write(database, job, file, options)
        # deleted meanwhile, it lacks rows: invisible comes first, so whoever is visible now was whole until now
        queries.get_job(database, job_id)
    return num


def errors_path_for(path: str, options: ExportOptions) -> str | None:
    """Where the error lines of OpenAI's form go: beside a file `out.jsonl` into `out.errors.jsonl`. None when they go
    the way of all others: to stdout or a pipe, or because no succeeded ones are wanted."""
    if options.form is not Form.OPENAI or (options.only and ResultStatus.SUCCEEDED not in options.only):
        return options.errors_path
    if options.errors_path is not None or is_stream(path):
        return options.errors_path
    target = Path(path)
    return str(target.with_name(f"{target.stem}.errors{target.suffix}"))


def line_form(
    database: Database, job: Job, options: ExportOptions
) -> tuple[bytes, Callable[[Outcome], bytes]]:
    """What a form of lines begins with, and its line for an outcome."""
    begin, format_one = _line_form(database, job, options)
    if not options.needs_params:
        return begin, format_one
    add_params = params_adder(database, job)
    return begin, lambda outcome: format_one(add_params(outcome))


def _line_form(
    database: Database, job: Job, options: ExportOptions
) -> tuple[bytes, Callable[[Outcome], bytes]]:
    if options.form is Form.OPENAI:
        return b"", openai_formatter(job)
    if options.form is Form.CSV:
        columns = _columns(database, job, options)
        return header(columns), csv_formatter(columns)
    if options.fields:
        return b"", field_formatter(options.fields)
    return b"", line_formatter(
        with_position=options.with_position,
        with_input=options.with_input,
        with_params=options.with_params,
        with_job=options.is_merged,
    )


def _columns(database: Database, job: Job, options: ExportOptions) -> list[Column]:
    kinds = None
    if options.with_input or "request" in roots(options.fields):
        all_jobs = (job, *(options.descendants or ()))
        bodies = (outcomes.iterate_bodies(database, one.id) for one in all_jobs)
        kinds = find_request_kinds(chain.from_iterable(bodies))
    if options.fields:
        return field_columns(options.fields, kinds or {})
    return result_columns(
        with_position=options.with_position,
        request_kinds=kinds,
        with_params=options.with_params,
        with_job=options.is_merged,
    )


def _selected(database: Database, job: Job, options: ExportOptions) -> Iterator[Outcome]:
    found: Iterable[Outcome]
    if options.descendants is not None:
        found = merged_outcomes(database, job, options.descendants, with_params=options.needs_params)
    elif options.order is Order.FINISHED:
        extent = outcomes.read_extent(database, job.id)
        found = outcomes.iterate_finished(database, extent, options.after, with_bodies=options.with_bodies)
    else:
        found = outcomes.iterate_outcomes(database, job.id, with_bodies=options.with_bodies)
    return (one for one in found if not options.only or one.status in options.only)


def _write(database: Database, job: Job, file: IO[bytes], options: ExportOptions) -> int:
    selected = _selected(database, job, options)
    if options.form is Form.PARQUET:
        if options.needs_params:
            selected = map(params_adder(database, job), selected)
        return write_parquet(selected, _columns(database, job, options), file)
    num = 0
    if options.form is Form.CLOUDFLARE:
        for num, piece in enumerate(poll_response(selected)):  # noqa: B007  the last piece is the end
            file.write(piece)
        return num
    begin, format_one = line_form(database, job, options)
    file.write(begin)
    for num, outcome in enumerate(selected, 1):  # noqa: B007  the last one
        file.write(format_one(outcome))
    return num


def _write_two(
    database: Database, job: Job, file: IO[bytes], errors_path: str, options: ExportOptions
) -> int:
    _, format_one = line_form(database, job, options)
    num = 0
    with _errors_output(errors_path) as errors:
        for num, outcome in enumerate(_selected(database, job, options), 1):  # noqa: B007  the last one
            to = file if outcome.status is ResultStatus.SUCCEEDED else errors
            to.write(format_one(outcome))
    return num


@contextmanager
def _errors_output(path: str) -> Iterator[IO[bytes]]:
    """The file of errors: without errors there is none, but one of an earlier export is emptied."""
    check_output(path)
    is_there = not is_stream(path) and resolve(path).exists()
    with output(path, is_wanted=lambda: is_there or file.tell() > 0) as file:
        yield file
