"""One line a request of a job and of all jobs that run some of them again: each with its newest outcome."""

from collections.abc import Iterator, Sequence

from db import outcomes, queries
from db.database import Database
from db.outcomes import Outcome
from db.queries import Job
from db.states import ResultStatus
from jobs.forms.params import params_adder


def merged_outcomes(
    database: Database, job: Job, descendants: Sequence[Job], *, with_params: bool = False
) -> Iterator[Outcome]:
    """What came of each request of `job` that has an outcome there, in input order: of the job that was submitted last
    and in which it succeeded, else of the last one. `job_id` says which; the index is that in `job`.

    Each job is read once, page by page: memory grows with their number, and not with their requests. NotFoundError when
    one is deleted meanwhile.
    """
    own = _outcomes_of(database, job, with_params=with_params)
    newer = [_Requests(_outcomes_of(database, one, with_params=with_params)) for one in reversed(descendants)]
    for outcome in own:
        index, root_index = outcome.index, _root_index(outcome)
        found = [one for requests in newer if (one := requests.take(root_index))] + [outcome]
        best = next((one for one in found if one.status is ResultStatus.SUCCEEDED), found[0])
        best.index = index
        yield best
    for child in descendants:
        queries.get_job(database, child.id)  # deleted meanwhile, it lacks rows


def _outcomes_of(database: Database, job: Job, *, with_params: bool) -> Iterator[Outcome]:
    # here, since they follow from the index in the job itself
    add_params = params_adder(database, job) if with_params else None
    for outcome in outcomes.iterate_outcomes(database, job.id, with_bodies=True):
        outcome.job_id = job.id
        yield outcome if add_params is None else add_params(outcome)


def _root_index(outcome: Outcome) -> int:
    return outcome.index if outcome.root_index is None else outcome.root_index


class _Requests:
    """The outcomes of a job, asked for in their order."""

    def __init__(self, found: Iterator[Outcome]) -> None:
        self._found = found
        self._next = next(found, None)

    def take(self, root_index: int) -> Outcome | None:
        """That of the request with this index in the family's first job; call with growing ones."""
        while self._next is not None and _root_index(self._next) < root_index:
            self._next = next(self._found, None)
        return self._next if self._next is not None and _root_index(self._next) == root_index else None
