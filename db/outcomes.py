"""What came of a job's requests, read in pages: in input order, or in the order in which results became durable."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Row, Select, and_, bindparam, select

from db.database import Database
from db.errors import NotFoundError, no_such_job
from db.states import JobState, ResultStatus
from db.tables import jobs, requests, results

# Small enough to stay in the processor's caches: with 5,000 a row takes half as long again.
_PAGE_REQUESTS = 1_000


@dataclass(slots=True)  # not frozen, which takes four times as long to make: there are millions
class Outcome:
    """One request with what came of it; `result` and `body` are JSON text. `reused_from` is JOB:INDEX of the request
    that was generated, where this one was not.

    Whoever asks for more than input order gets the next four too. `position` counts from 1 in the order in which
    results became durable; requests that never ran come after all results, in input order. `body` is None for a bad
    line, `root_index` for a job that was made of no other. `params`, JSON text too, and `job_id` are put in by the
    export.
    """

    index: int
    custom_id: str | None
    status: ResultStatus
    result: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    error_code: str | None
    error_message: str | None
    reused_from: str | None = None
    position: int | None = None
    finished_at: float | None = None
    body: str | None = None
    root_index: int | None = None
    params: str | None = None
    job_id: str | None = None


@dataclass(frozen=True)
class Extent:
    """How far a job has come, at one moment; `last_position` is the highest that a result had or has."""

    job_id: str
    state: JobState
    num_requests: int
    num_results: int
    last_position: int


_PAGE: dict[str, BindParameter[Any]] = {
    "job_id": bindparam("job_id"),
    "first": bindparam("first"),
    "end": bindparam("end"),
}
_RESULT_COLUMNS = (
    results.c.status,
    results.c.result,
    results.c.finish_reason,
    results.c.prompt_tokens,
    results.c.completion_tokens,
    results.c.error_code,
    results.c.error_message,
    results.c.reused_from,
)
_MORE_COLUMNS = (results.c.position, results.c.finished_at)
_BODY_COLUMNS = (requests.c.body, requests.c.root_index)


def _within(column: ColumnElement[int], of_job: ColumnElement[str]) -> list[ColumnElement[bool]]:
    return [of_job == _PAGE["job_id"], column >= _PAGE["first"], column < _PAGE["end"]]


def _page_of_outcomes(*body: ColumnElement[Any], more: Sequence[ColumnElement[Any]] = ()) -> Select[Any]:
    """Both sides cut out before they are joined: with only one of them bounded, Postgres looks up each result for
    itself, while two pieces that lie in order are merged."""
    is_asked, is_here = (
        _within(requests.c.index, requests.c.job_id),
        _within(results.c.index, results.c.job_id),
    )
    asked = select(requests.c.index, requests.c.custom_id, *body).where(*is_asked).subquery("asked")
    came = select(results.c.index, *_RESULT_COLUMNS, *more).where(*is_here).subquery("came")
    (index, custom_id, *body_asked), (_, *columns) = asked.c, came.c
    page = select(index, custom_id, *columns, *body_asked)
    return page.outerjoin_from(asked, came, came.c.index == index).order_by(index)


_SAME_REQUEST = (results.c.job_id == requests.c.job_id) & (results.c.index == requests.c.index)


def _page_of_positions(*more: ColumnElement[Any]) -> Select[Any]:
    columns = (requests.c.index, requests.c.custom_id, *_RESULT_COLUMNS, *_MORE_COLUMNS, *more)
    page = select(*columns).join_from(results, requests, _SAME_REQUEST)
    return page.where(*_within(results.c.position, results.c.job_id)).order_by(results.c.position)


def page_without_result(*columns: ColumnElement[Any]) -> Select[Any]:
    """The requests of a job, from index :first to before :end, that have no result yet, in input order: index and
    `columns`. Bounds on both sides here too: with those of the requests alone Postgres may read all of the job's
    results for each page, once its statistics say that there are few."""
    is_asked = _within(requests.c.index, requests.c.job_id)
    answered = and_(_SAME_REQUEST, *_within(results.c.index, results.c.job_id))
    page = select(requests.c.index, *columns).outerjoin(results, answered)
    return page.where(*is_asked, results.c.index.is_(None)).order_by(requests.c.index)


# By whether the bodies are read:
_OUTCOMES = {False: _page_of_outcomes(), True: _page_of_outcomes(*_BODY_COLUMNS, more=_MORE_COLUMNS)}
_POSITIONS = {False: _page_of_positions(), True: _page_of_positions(*_BODY_COLUMNS)}
_WITHOUT_RESULT = {
    False: page_without_result(requests.c.custom_id),
    True: page_without_result(requests.c.custom_id, *_BODY_COLUMNS),
}
_BODIES = (
    select(requests.c.body).where(*_within(requests.c.index, requests.c.job_id)).order_by(requests.c.index)
)

# For single requests: each with its result looked up.
_EACH = (
    select(requests.c.index, requests.c.custom_id, *_RESULT_COLUMNS, *_MORE_COLUMNS, *_BODY_COLUMNS)
    .join_from(requests, results, _SAME_REQUEST, isouter=True)
    .where(requests.c.job_id == _PAGE["job_id"])
)
_NAMED = _EACH.where(
    requests.c.custom_id.is_not(None),
    requests.c.custom_id.in_(bindparam("custom_ids", expanding=True)),
)
_ONE = _EACH.where(requests.c.index == bindparam("at"))
_NAMELESS = (
    select(requests.c.index)
    .where(*_within(requests.c.index, requests.c.job_id))
    .where(requests.c.custom_id.is_(None), requests.c.body.is_not(None))
    .limit(1)
)
_NEWEST = (
    select(results.c.position)
    .where(results.c.job_id == _PAGE["job_id"], results.c.position < _PAGE["end"])
    .order_by(results.c.position.desc())
)

_STATUS_OF = {status.value: status for status in ResultStatus}
# What a request without a result comes to once its job is over: status, result's columns, error, reuse.
_NEVER_RAN = {
    state: (
        ResultStatus(state.value),
        None,
        None,
        None,
        None,
        state.value,
        f"the job {text} before this request ran",
        None,
    )
    for state, text in (
        (JobState.CANCELLED, "was cancelled"),
        (JobState.EXPIRED, "passed its deadline"),
    )
}


def read_extent(database: Database, job_id: str) -> Extent:
    """NotFoundError for a job that is not there, or that nobody sees."""
    num_results = jobs.c.num_succeeded + jobs.c.num_failed
    columns = (jobs.c.state, jobs.c.num_requests, num_results, num_results + jobs.c.num_retried)
    statement = select(*columns).where(jobs.c.id == job_id)
    with database.read() as tx:
        row = tx.execute(statement).one_or_none()
    if row is None or not JobState(row[0]).is_visible:
        raise no_such_job(job_id)
    return Extent(job_id, JobState(row[0]), *row[1:])


def iterate_outcomes(database: Database, job_id: str, *, with_bodies: bool = False) -> Iterator[Outcome]:
    """Every request that has an outcome by now, in input order, in bounded memory; nothing for a job that nobody
    sees. Only `with_bodies` has also the fields that come with more than input order.

    Each page is a transaction of its own, so that a long export holds up nobody.
    """
    try:
        extent = read_extent(database, job_id)
    except NotFoundError:
        return
    never_ran = _NEVER_RAN.get(extent.state)
    num_without = 0
    for page in _pages(job_id, 0, extent.num_requests):
        for row in _read_page(database, _OUTCOMES[with_bodies], page):
            index, custom_id, status = row[:3]
            if status is not None:
                yield Outcome(index, custom_id, _STATUS_OF[status], *row[3:])
            elif never_ran is not None:
                num_without += 1
                outcome = Outcome(index, custom_id, *never_ran)
                yield (
                    _completed(outcome, extent.last_position + num_without, row[-2:])
                    if with_bodies
                    else outcome
                )


def _read_page(
    database: Database, statement: Select[Any], page: dict[str, object]
) -> Sequence[Sequence[Any]]:
    """The driver's own rows: our columns need nothing done to them, and SQLAlchemy's rows cost as much again."""
    with database.read() as tx:
        rows: Sequence[Sequence[Any]] = tx.execute(statement, page).cursor.fetchall()
    return rows


def iterate_finished(
    database: Database,
    extent: Extent,
    after: int = 0,
    *,
    with_bodies: bool = False,
    ran_only: bool = False,
) -> Iterator[Outcome]:
    """The outcomes of `extent` with a position above `after`, in the order of their positions; of a job that runs
    perhaps some that came since. `ran_only`: without the requests that never ran."""
    for page in _pages(extent.job_id, after + 1, extent.last_position + 1):
        for row in _read_page(database, _POSITIONS[with_bodies], page):
            yield Outcome(row[0], row[1], _STATUS_OF[row[2]], *row[3:])
    never_ran = _NEVER_RAN.get(extent.state)
    position = extent.last_position
    if never_ran is None or ran_only or after >= position + extent.num_requests - extent.num_results:
        return
    for page in _pages(extent.job_id, 0, extent.num_requests):
        for index, custom_id, *body in _read_page(database, _WITHOUT_RESULT[with_bodies], page):
            position += 1
            if position > after:
                yield _completed(Outcome(index, custom_id, *never_ran), position, body)


def position_before(database: Database, extent: Extent, num_newest: int) -> int:
    """The position that the `num_newest` last results of `extent` come after; 0 if it has no more than those. Not to be
    had by counting back, since a retry leaves gaps."""
    page = {"job_id": extent.job_id, "end": extent.last_position + 1}
    with database.read() as tx:
        position = tx.execute(_NEWEST.offset(num_newest).limit(1), page).scalar_one_or_none()
    return position or 0


def find_outcomes(database: Database, extent: Extent, custom_ids: Sequence[str]) -> dict[str, Outcome]:
    """Those of these requests that have an outcome by now, with bodies; ask for a thousand at most. What never ran has
    no position here."""
    with database.read() as tx:
        rows = tx.execute(_NAMED, {"job_id": extent.job_id, "custom_ids": custom_ids}).all()
    found = (_looked_up(extent, row) for row in rows)
    return {outcome.custom_id: outcome for outcome in found if outcome and outcome.custom_id is not None}


def find_outcome(database: Database, extent: Extent, index: int) -> Outcome | None:
    """That of one request, as `find_outcomes` has it; None while there is none."""
    with database.read() as tx:
        row = tx.execute(_ONE, {"job_id": extent.job_id, "at": index}).one_or_none()
    return None if row is None else _looked_up(extent, row)


def _looked_up(extent: Extent, row: Row[Any]) -> Outcome | None:
    index, custom_id, status, *rest = row
    if status is not None:
        return Outcome(index, custom_id, _STATUS_OF[status], *rest)
    if (never_ran := _NEVER_RAN.get(extent.state)) is not None:
        body, root_index = rest[-2:]
        return Outcome(index, custom_id, *never_ran, body=body, root_index=root_index)
    return None


def has_custom_ids(database: Database, job_id: str) -> bool:
    """Whether every request has one; bad lines do not count."""
    extent = read_extent(database, job_id)
    for page in _pages(job_id, 0, extent.num_requests):
        with database.read() as tx:
            if tx.execute(_NAMELESS, page).first() is not None:
                return False
    return True


def iterate_bodies(database: Database, job_id: str) -> Iterator[str]:
    """The requests' JSON texts, in input order, without those of bad lines."""
    extent = read_extent(database, job_id)
    for page in _pages(job_id, 0, extent.num_requests):
        yield from (body for (body,) in _read_page(database, _BODIES, page) if body is not None)


def _completed(outcome: Outcome, position: int, body: Sequence[Any]) -> Outcome:
    outcome.position = position
    if body:
        outcome.body, outcome.root_index = body
    return outcome


def _pages(job_id: str, first: int, end: int) -> Iterator[dict[str, object]]:
    for start in range(first, end, _PAGE_REQUESTS):
        yield {"job_id": job_id, "first": start, "end": start + _PAGE_REQUESTS}
