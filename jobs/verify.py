"""The invariants that a user would check by hand: `promptmill verify`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import orjson

from db import audit, queries
from db.database import Database
from db.errors import InputError, UnsoundError, WrongStateError
from db.queries import Outcome
from db.states import FINAL_STATES, ResultStatus
from db.transitions import Tally
from jobs.export import format_line
from jobs.reader import hash_file


def verify(
    database: Database, job_id: str, input_path: str | None = None, output_path: str | None = None
) -> list[str]:
    """Check a job that is over; what was found true, a sentence each. UnsoundError names the first thing that is not.

    `input_path` is the file it was made from, `output_path` one that its results were written to. WrongStateError
    while the job runs: its rows move.
    """
    try:
        return list(_checks(database, job_id, input_path, output_path))
    except UnsoundError:
        queries.get_job(database, job_id)  # deleted meanwhile, it is not found, and not unsound
        raise


def _checks(
    database: Database, job_id: str, input_path: str | None, output_path: str | None
) -> Iterator[str]:
    job = queries.get_job(database, job_id)
    if not job.state.is_final:
        raise WrongStateError(f"job {job_id}", job.state, FINAL_STATES)
    found = audit.audit(database, job_id)
    _expect(found.num_requests, found.num_declared, "requests stored", "requests submitted")
    _expect(found.num_tiled, found.num_declared, "requests covered by chunks", "requests submitted")
    yield f"{found.num_declared:,} requests, each in one chunk"
    _expect(found.num_results, job.counts.succeeded + job.counts.failed, "results stored", "results counted")
    _expect(found.num_stray_results, 0, "results outside a chunk's range or counts", "expected")
    by_job = Tally(job.counts.succeeded, job.counts.failed, job.prompt_tokens, job.completion_tokens)
    for name, num in vars(found.in_chunks).items():
        what = name.removeprefix("num_").replace("_", " ")
        _expect(num, getattr(by_job, name), f"{what} counted by chunks", "by the job")
    yield f"{found.num_results:,} results, as many as are counted"
    _expect(found.num_leases, 0, "chunks leased", "expected of a job that is over")
    yield "no chunk runs, no lease lives"
    seen = _compare(database, job_id, output_path)
    for status in ResultStatus:
        _expect(seen[status], getattr(job.counts, status), f"outcomes {status}", "counted")
    for status in (ResultStatus.CANCELLED, ResultStatus.EXPIRED):
        if status.value != job.state.value:
            _expect(seen[status], 0, f"outcomes {status}", f"expected of a job that is {job.state}")
    _expect(seen["prompt_tokens"], job.prompt_tokens, "prompt tokens of outcomes", "counted")
    _expect(seen["completion_tokens"], job.completion_tokens, "completion tokens of outcomes", "counted")
    _expect(job.counts.num_closed, found.num_declared, "outcomes", "requests submitted")
    yield f"{job.counts.num_closed:,} outcomes, each index once" + (
        f", as in {output_path}" if output_path else ""
    )
    if input_path is not None:
        sha256 = hash_file(input_path)
        if sha256 is None:
            raise InputError(f"cannot read {input_path}, or it is no regular file")
        _expect(sha256, job.input_sha256, f"is the SHA-256 of {input_path}", "of the job's input")
        yield f"{input_path} is the file that was submitted"


def _expect(found: object, expected: object, what: str, of_what: str) -> None:
    if found != expected:
        raise UnsoundError(f"{found} {what}, {expected} {of_what}")


def _compare(database: Database, job_id: str, output_path: str | None) -> Counter[str]:
    """The outcomes by status, and their tokens; each index once and in order, each line of the output the same."""
    lines = _lines_of(output_path) if output_path is not None else None
    seen: Counter[str] = Counter()
    num_lines = 0
    for outcome in queries.iterate_outcomes(database, job_id):
        if outcome.index != num_lines:
            raise UnsoundError(f"index {outcome.index} comes where index {num_lines} should")
        num_lines += 1
        if lines is not None:
            _expect_line(next(lines, None), outcome, f"{output_path}: line {num_lines}")
        seen[outcome.status] += 1
        seen["prompt_tokens"] += outcome.prompt_tokens or 0
        seen["completion_tokens"] += outcome.completion_tokens or 0
    if lines is not None and next(lines, None) is not None:
        raise UnsoundError(f"{output_path} has more than {num_lines} lines")
    return seen


def _expect_line(line: bytes | None, outcome: Outcome, where: str) -> None:
    if line is None:
        raise UnsoundError(f"{where} is missing, the outcome of index {outcome.index}")
    try:
        is_same = orjson.loads(line) == orjson.loads(format_line(outcome))
    except orjson.JSONDecodeError:
        is_same = False
    if not is_same:
        raise UnsoundError(f"{where} is not the outcome of index {outcome.index}")


def _lines_of(path: str) -> Iterator[bytes]:
    try:
        with Path(path).open("rb") as file:
            yield from file
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
