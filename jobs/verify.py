"""The invariants that a user would check by hand: `promptmill verify`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from db import audit, outcomes, queries
from db.database import Database
from db.errors import InputError, UnsoundError, job_in_wrong_state, why
from db.outcomes import Outcome
from db.queries import Job
from db.states import FINAL_STATES, ResultStatus
from db.transitions import Tally
from jobs.dialects.reading import Reading
from jobs.forms.native import format_line
from jobs.reader import LinesHash, hash_inputs


def verify(
    database: Database,
    job_id: str,
    input_paths: str | Sequence[str] = (),
    output_path: str | None = None,
    reading: Reading | None = None,
) -> list[str]:
    """Check a job that is over; what was found true, a sentence each. UnsoundError names the first thing that is not.

    `input_paths` are the files it was made from, as `reading` says; `output_path` is one that its results were
    written to. WrongStateError while the job runs: its rows move.
    """
    try:
        paths = [input_paths] if isinstance(input_paths, str) else list(input_paths)
        return list(_checks(database, job_id, paths, output_path, reading or Reading()))
    except UnsoundError:
        queries.get_job(database, job_id)  # deleted meanwhile, it is not found, and not unsound
        raise


def _checks(
    database: Database, job_id: str, input_paths: Sequence[str], output_path: str | None, reading: Reading
) -> Iterator[str]:
    job = queries.get_job(database, job_id)
    if not job.state.is_final:
        raise job_in_wrong_state(job_id, job.state, FINAL_STATES)
    found = audit.audit(database, job_id)
    _expect(found.num_requests, found.num_declared, "requests stored", "requests submitted")
    _expect(found.num_tiled, found.num_declared, "requests covered by chunks", "requests submitted")
    yield f"{found.num_declared:,} requests, each in one chunk"
    _expect(found.num_results, job.counts.succeeded + job.counts.failed, "results stored", "results counted")
    _expect(found.num_stray_results, 0, "results outside a chunk's range or counts", "expected")
    by_job = Tally(
        job.counts.succeeded, job.counts.failed, job.prompt_tokens, job.completion_tokens, job.num_reused
    )
    for name, num in vars(found.in_chunks).items():
        what = name.removeprefix("num_").replace("_", " ")
        _expect(num, getattr(by_job, name), f"{what} counted by chunks", "by the job")
    # Unique and above 0 by the tables' rules, they are 1, 2, 3 and so on if the last one is their number. After a retry
    # as many are missing as results were taken back; the last one may be among them, if nothing ran since.
    num_given = found.num_results + found.num_retried
    if found.last_position > num_given or not found.num_retried:
        _expect(found.last_position, num_given, "is the last result's position", "results stored")
    yield f"{found.num_results:,} results, as many as are counted, in positions without a gap" + (
        f" but for the {found.num_retried:,} that were run again" if found.num_retried else ""
    )
    _expect(found.num_leases, 0, "chunks leased", "expected of a job that is over")
    yield "no chunk runs, no lease lives"
    seen = _compare(database, job_id, output_path)
    for status in ResultStatus:
        _expect(seen[status], getattr(job.counts, status), f"outcomes {status}", "counted")
    for status in (ResultStatus.CANCELLED, ResultStatus.EXPIRED):
        if status.value != job.state.value:
            _expect(seen[status], 0, f"outcomes {status}", f"expected of a job that is {job.state}")
    _expect(seen["reused"], job.num_reused, "outcomes reused", "counted")
    _expect(seen["prompt_tokens"], job.prompt_tokens, "prompt tokens of outcomes", "counted")
    _expect(seen["completion_tokens"], job.completion_tokens, "completion tokens of outcomes", "counted")
    _expect(job.counts.num_closed, found.num_declared, "outcomes", "requests submitted")
    yield f"{job.counts.num_closed:,} outcomes, each index once" + (
        f", as in {output_path}" if output_path else ""
    )
    yield from _check_input(database, job, input_paths, reading)


def _check_input(database: Database, job: Job, input_paths: Sequence[str], reading: Reading) -> Iterator[str]:
    if job.parent_id is not None and (taken := _hash_bodies(database, job.id)):
        _expect(taken, job.input_sha256, "is the SHA-256 of the requests", "of those that were taken")
        yield f"its requests are those that were taken from {job.parent_id}, as they were to run"
    if not input_paths:
        return
    names = ", ".join(input_paths)
    sha256 = hash_inputs(input_paths, reading.mapping)
    if sha256 is None:
        raise InputError(f"cannot read {names}, or it is no regular file; check the path")
    if job.parent_id is not None and sha256 != job.input_sha256:
        raise InputError(f"{job.id} was not made from {names}, but from requests of {job.parent_id}")
    if sha256 != job.input_sha256:
        raise UnsoundError(
            f"{names}: not what was submitted as {job.input_name}: its SHA-256 is {sha256[:12]}…, that of the"
            f" job's input {(job.input_sha256 or '')[:12]}…; give the files of that submit, in their order"
        )
    yield (
        f"{names} is the file that was submitted"
        if len(input_paths) == 1
        else f"{names} are the files that were submitted"
    )


def _hash_bodies(database: Database, job_id: str) -> str | None:
    """None when lines were bad, and are not kept."""
    lines = LinesHash()
    num_lines = 0
    for num_lines, body in enumerate(outcomes.iterate_bodies(database, job_id), 1):  # noqa: B007  the last one
        lines.add(body.encode())
    return lines.hexdigest() if num_lines == outcomes.read_extent(database, job_id).num_requests else None


def _expect(found: object, expected: object, what: str, of_what: str) -> None:
    if found != expected:
        raise UnsoundError(f"{found} {what}, {expected} {of_what}")


def _compare(database: Database, job_id: str, output_path: str | None) -> Counter[str]:
    """The outcomes by status, how many are copies, and the others' tokens; each index once and in order, each line of
    the output the same."""
    lines = _lines_of(output_path) if output_path is not None else None
    seen: Counter[str] = Counter()
    num_lines = 0
    for outcome in outcomes.iterate_outcomes(database, job_id):
        if outcome.index != num_lines:
            raise UnsoundError(f"index {outcome.index} comes where index {num_lines} should")
        num_lines += 1
        if lines is not None:
            _expect_line(next(lines, None), outcome, f"{output_path}: line {num_lines}")
        seen[outcome.status] += 1
        if outcome.reused_from is not None:
            seen["reused"] += 1
            continue
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
        raise InputError(f"cannot read {path}: {why(error)}") from error
