"""Running some requests of a job again, changed or not, as a new job that is linked to it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from db import outcomes, queries
from db.database import Database
from db.errors import InputError, SettingsError, WrongStateError
from db.outcomes import Outcome
from db.queries import Job
from db.states import FINAL_STATES, InputFormat
from jobs.admission import CheckTokens, open_admission
from jobs.cards import Card, parse_card
from jobs.generation import SAMPLING_FIELDS
from jobs.progress import counts_as_dict
from jobs.reader import LineLimits, LinesHash, NativeLine, Place
from jobs.schema import RequestSchema
from jobs.settings import Settings
from jobs.submit import Lineage, OnInvalid, Staging, SubmitOptions
from jobs.validation import LineChecker, Report
from jobs.where import Where, parse_where

_BLOCK_REQUESTS = 500


@dataclass(frozen=True)
class RerunOptions:
    """`where` and `changes` are as on the command line, FIELD=VALUE; without a priority it is the parent's."""

    where: Sequence[str] = ()
    changes: Sequence[str] = ()
    name: str | None = None
    priority: int | None = None
    on_invalid: OnInvalid = OnInvalid.REJECT
    check_tokens: CheckTokens = CheckTokens.IF_LOCAL


@dataclass(frozen=True)
class Rerun:
    """`num_bad_lines`: requests that were chosen and cannot run, since their lines were bad and were not kept."""

    job: Job
    report: Report
    num_bad_lines: int


def rerun(database: Database, settings: Settings, parent_id: str, options: RerunOptions) -> Rerun:
    """Store the chosen requests of a job that is over as a new job, with its card as it was then, its sampling
    defaults, its labels and its form of input; each keeps its custom_id. Memory is bounded whatever their number.

    Raises InputError when none fits, InputRefusedError when a changed one is bad, WrongStateError while the parent is
    not over. On any error nothing stays stored.
    """
    parent = queries.get_job(database, parent_id)
    where = parse_where(options.where)
    recipe = queries.get_recipe(database, parent_id)
    card = parse_card(recipe.card, f"the card of {parent_id}")
    selection = Selection(database, parent, where, parse_changes(options.changes, card))
    if not selection.has_any():
        raise InputError(_nothing(parent, where, selection.num_bad_lines))
    sampling = json.loads(recipe.sampling) if recipe.sampling else {}
    admission, note = open_admission(card, settings, options.check_tokens, sampling)
    checker = LineChecker(card, LineLimits.of(settings), sampling=sampling, admission=admission)
    checker.report.notes += [note] if note else []
    submit_options = SubmitOptions(
        name=options.name,
        priority=parent.priority if options.priority is None else options.priority,
        on_invalid=options.on_invalid,
        sampling=sampling,
        labels=parent.labels,
    )
    lineage = Lineage((*parent.ancestors, parent.id), selection.root_index)
    job_id, _ = Staging(database, settings, card, submit_options, lineage).store(selection, checker)
    checker.report.warnings = []  # of the fields that have no effect the first submit has warned
    return Rerun(queries.get_job(database, job_id), checker.report, selection.num_bad_lines)


def parse_changes(texts: Sequence[str], card: Card) -> dict[str, Any]:
    """KEY=VALUE by key; a value that is JSON is what it says, any other a text. SettingsError for a field that neither
    the card nor our sampling parameters know."""
    schema = RequestSchema(card.input_schema)
    known = schema.known_fields | SAMPLING_FIELDS
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise SettingsError(f"--set {text}: give FIELD=VALUE, of the fields {', '.join(sorted(known))}")
        try:
            changes[name] = json.loads(value, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            changes[name] = value
    return changes


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def change(body: str, changes: Mapping[str, Any]) -> str:
    """A request's JSON with other values; null takes a field away. As it was, where nothing is to be changed."""
    if not changes:
        return body
    # not orjson, which has no whole numbers beyond 64 bits
    changed = {**json.loads(body), **changes}
    kept = {name: value for name, value in changed.items() if name not in changes or value is not None}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))


def _nothing(parent: Job, where: Where, num_bad_lines: int) -> str:
    counts = ", ".join(
        f"{number:,} {name}"
        for name, number in counts_as_dict(parent.counts).items()
        if number and name != "total"
    )
    if num_bad_lines:
        return (
            f"what fits {where} of {parent.id} are {num_bad_lines:,} bad lines, which have no request to run;"
            " mend them in the file, and submit it"
        )
    return f"no request of {parent.id} fits {where}: it has {counts}; nothing was stored"


class Selection:
    """Requests of a job that is over, as the lines of another; their numbers are their indexes in the first."""

    def __init__(self, database: Database, parent: Job, where: Where, changes: Mapping[str, Any]) -> None:
        self.num_bad_lines = 0
        self._database = database
        self._parent = parent
        self._where = where
        self._changes = changes
        self._hash = LinesHash()
        self._root_indexes: dict[int, int] = {}

    @property
    def name(self) -> str:
        return self._parent.id

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def input_format(self) -> InputFormat:
        return self._parent.input_format

    def place(self, number: int) -> Place:
        return Place(None, f"request of {self._parent.id} with index", number)

    def explain_path(self, _: int, path: str) -> str:
        return path

    def root_index(self, number: int) -> int:
        """Of a line in the latest block."""
        return self._root_indexes[number]

    def has_any(self) -> bool:
        return next(self._fitting(), None) is not None

    def blocks(self, max_line_bytes: int) -> Iterator[Sequence[NativeLine]]:
        fitting = self._fitting()
        while block := list(islice(fitting, _BLOCK_REQUESTS)):
            self._root_indexes = {
                one.index: one.index if one.root_index is None else one.root_index for one in block
            }
            yield [(one.index, self._line(one.body or "", max_line_bytes)) for one in block]

    def _line(self, body: str, max_line_bytes: int) -> bytes | None:
        line = change(body, self._changes).encode()
        self._hash.add(line)
        return line if len(line) <= max_line_bytes else None

    def _fitting(self) -> Iterator[Outcome]:
        self.num_bad_lines = 0
        self._expect_over()
        for outcome in outcomes.iterate_outcomes(self._database, self._parent.id, with_bodies=True):
            if not self._where.fits(outcome):
                continue
            if outcome.body is None:
                self.num_bad_lines += 1
            else:
                yield outcome
        # deleted or retried meanwhile, it had less to give than it should have
        self._expect_over()

    def _expect_over(self) -> None:
        state = queries.get_job(self._database, self._parent.id).state
        if not state.is_final:
            raise WrongStateError(f"job {self._parent.id}", state, FINAL_STATES)


def rerun_as_dict(made: Rerun) -> dict[str, Any]:
    """What `rerun --json` prints."""
    return {
        "id": made.job.id,
        "parent": made.job.parent_id,
        "state": made.job.state,
        "counts": counts_as_dict(made.job.counts),
        "bad_lines": made.num_bad_lines,
    }
