"""Many rows at once are stored as they are or not at all, and an error tells the rule and no value."""

import traceback

import pytest
from database.rows import PROMPT
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DataError, IntegrityError

from db.bulk import insert_rows
from db.database import Database
from db.errors import DatabaseUnavailableError
from db.states import ResultStatus
from db.tables import requests, results

_COLUMNS = ("job_id", "index", "custom_id", "body")
_RESULT_COLUMNS = (
    "job_id",
    "index",
    "status",
    "result",
    "prompt_tokens",
    "attempt",
    "finished_at",
    "position",
)


def _stored(database: Database) -> list[tuple[object, ...]]:
    with database.read() as tx:
        statement = select(*(requests.c[name] for name in _COLUMNS)).order_by(requests.c.index)
        return [tuple(row) for row in tx.execute(statement)]


def _row(index: int, custom_id: str | None = None, body: str | None = PROMPT) -> tuple[object, ...]:
    return ("job_a", index, custom_id, body)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 64, 65, 2_047, 2_048, 2_049, 10_000])
def test_any_number_of_rows_is_stored_in_one_go(database: Database, num_rows: int) -> None:
    rows = [_row(index, f"id-{index}") for index in range(num_rows)]
    with database.write() as tx:
        insert_rows(tx, requests, _COLUMNS, rows)
    assert _stored(database) == rows


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "\\",
        "\\N",
        "\\.",
        "\\n \\t \\x41",
        "a\tb",
        "a\nb\r\nc\rd",
        "\n",
        "'\"`;--",
        "{1,2}",
        "%s ? $1 :name",
        "Grüße, 你好, 👩‍🚀, \u2028\u0001\u007f\ufeff",
        "x" * 300_000,
        None,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_text_comes_back_as_it_was(database: Database, value: str | None) -> None:
    rows = [_row(0, None, value), _row(1, "id", value), _row(2, None, value)]
    with database.write() as tx:
        insert_rows(tx, requests, _COLUMNS, rows)
    assert _stored(database) == rows


def test_numbers_and_states_come_back_as_they_were(database: Database) -> None:
    rows = [
        ("job_a", 2**62, ResultStatus.SUCCEEDED, "{}", None, 1, 1_700_000_000.123456, 2**62),
        ("job_a", 2**62 + 1, "succeeded", "{}", 2**31 - 1, 0, 0.1, 1),
    ]
    with database.write() as tx:
        insert_rows(tx, results, _RESULT_COLUMNS, rows)
    with database.read() as tx:
        found = tx.execute(select(*(results.c[name] for name in _RESULT_COLUMNS)).order_by(results.c.index))
        assert [tuple(row) for row in found] == rows


def test_columns_that_are_not_named_have_their_defaults(database: Database) -> None:
    with database.write() as tx:
        insert_rows(tx, requests, ("job_id", "index"), [("job_a", 0)])
    assert _stored(database) == [_row(0, None, None)]


def test_rows_belong_to_the_transaction(database: Database) -> None:
    def insert_and_fail() -> None:
        with database.write() as tx:
            tx.execute(insert(requests).values(job_id="job_a", index=0))
            insert_rows(tx, requests, _COLUMNS, [_row(1), _row(2)])
            # whoever writes sees them
            assert tx.execute(text("SELECT count(*) FROM requests")).scalar_one() == 3
            raise LookupError

    with pytest.raises(LookupError):
        insert_and_fail()
    assert _stored(database) == []


def _assert_tells_nothing(error: BaseException) -> None:
    whole = "".join(traceback.format_exception(error))
    assert PROMPT not in whole
    assert len(whole) < 20_000


@pytest.mark.parametrize("at", [0, 500, 999])
def test_a_key_that_is_taken_stores_none_of_the_rows(database: Database, at: int) -> None:
    """By a row of before, or by one of the same rows."""
    rows = [_row(index, PROMPT if index in (at, 998) else f"id-{index}") for index in range(1_000)]
    with database.write() as tx:
        insert_rows(tx, requests, _COLUMNS, [_row(5_000, PROMPT)])
    with pytest.raises(IntegrityError, match=r"(?i)unique") as caught, database.write() as tx:
        insert_rows(tx, requests, _COLUMNS, rows)
    _assert_tells_nothing(caught.value)
    assert _stored(database) == [_row(5_000, PROMPT)]


def test_a_rule_that_is_broken_names_the_rule_and_no_value(database: Database) -> None:
    with pytest.raises(IntegrityError, match="ck_requests_index") as caught, database.write() as tx:
        insert_rows(tx, requests, _COLUMNS, [_row(0), _row(-1)])
    _assert_tells_nothing(caught.value)
    assert _stored(database) == []


def test_a_transaction_goes_on_after_an_error_that_a_savepoint_held(database: Database) -> None:
    with database.write() as tx:
        with pytest.raises(IntegrityError), tx.begin_nested():
            insert_rows(tx, requests, _COLUMNS, [_row(0), _row(0)])
        insert_rows(tx, requests, _COLUMNS, [_row(1)])
    assert _stored(database) == [_row(1)]


def test_a_text_that_postgres_does_not_store_is_refused_without_it(postgres_database: Database) -> None:
    with pytest.raises(DataError, match="NUL") as caught, postgres_database.write() as tx:
        insert_rows(tx, requests, _COLUMNS, [_row(0), _row(1, None, f"\0{PROMPT}")])
    _assert_tells_nothing(caught.value)
    assert _stored(postgres_database) == []


def test_a_value_that_has_no_form_in_a_database_is_refused(database: Database) -> None:
    def insert_object() -> None:
        with database.write() as tx:
            insert_rows(tx, requests, _COLUMNS, [_row(0), ("job_a", 1, None, object())])

    with pytest.raises(Exception, match=r"object|type"):
        insert_object()
    assert _stored(database) == []


def _kill(rival: Database) -> None:
    with rival.write() as tx:
        tx.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


class _Interrupted(list[tuple[object, ...]]):
    """Rows; before the last of them the server's side of the connection is killed."""

    def __init__(self, num_rows: int, rival: Database) -> None:
        super().__init__(_row(index) for index in range(num_rows))
        self._rival = rival

    def __iter__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204  the list's own
        for index, row in enumerate(super().__iter__()):
            if index == len(self) - 1:
                _kill(self._rival)
            yield row


@pytest.mark.parametrize("num_rows", [2, 200_000])
def test_a_server_that_goes_in_the_middle_is_told(postgres_database: Database, num_rows: int) -> None:
    rival = Database(postgres_database.url.render_as_string(hide_password=False))

    with pytest.raises(DatabaseUnavailableError) as caught, postgres_database.write() as tx:
        insert_rows(tx, requests, _COLUMNS, _Interrupted(num_rows, rival))
    assert postgres_database.label in str(caught.value)
    _assert_tells_nothing(caught.value)
    assert _stored(postgres_database) == []
    rival.close()


def test_a_server_that_is_gone_before_is_told(postgres_database: Database) -> None:
    rival = Database(postgres_database.url.render_as_string(hide_password=False))

    def insert_one() -> None:
        with postgres_database.write() as tx:
            tx.execute(text("SELECT 1"))
            _kill(rival)
            insert_rows(tx, requests, _COLUMNS, [_row(0)])

    with pytest.raises(DatabaseUnavailableError) as caught:
        insert_one()
    _assert_tells_nothing(caught.value)
    assert _stored(postgres_database) == []
    rival.close()


def test_a_disk_that_is_full_is_told_and_nothing_is_stored(sqlite_database: Database) -> None:
    def insert_too_much() -> None:
        with sqlite_database.write() as tx:
            num_pages = tx.execute(text("PRAGMA page_count")).scalar_one()
            tx.execute(text(f"PRAGMA max_page_count = {num_pages}"))
            insert_rows(tx, requests, _COLUMNS, [_row(index) for index in range(5_000)])

    with pytest.raises(DatabaseUnavailableError, match="no space is left") as caught:
        insert_too_much()
    _assert_tells_nothing(caught.value)
    assert _stored(sqlite_database) == []
