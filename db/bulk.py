"""Many rows at once into one table, by the fastest way of each database: COPY on Postgres, one INSERT on SQLite.

Measured on two cores (`benchmarks/ingest.py` holds the chain): 64 results COPY in 0.7 ms, by SQLAlchemy's insert in
2.1; 8,000 requests in 50 ms and 145. On SQLite 0.19 ms and 0.50, 12 ms and 36. And the driver's executemany retakes
the interpreter's lock at each row: beside a busy thread 64 rows take it 0.15 s, one statement 6 ms.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Engine, Table, event
from sqlalchemy.engine import ExecutionContext
from sqlalchemy.exc import DBAPIError

# SQLite takes four times as many in one statement, but no faster, and prepares it in 90 ms and 20 MB, not in 20 and 5.
_SQLITE_MAX_PARAMETERS = 8_192
_COPIED_ROWS = "promptmill_copied_rows"


def insert_rows(
    tx: Connection, table: Table, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Insert `rows`, each with one plain value (no SQL expression) for each of `columns`, in the order given.

    All of them in the transaction that is open, or an error as from any statement. The first column holds no None.
    Postgres stores rows while the next ones are made.
    """
    names = ", ".join(tx.dialect.identifier_preparer.quote(table.c[name].name) for name in columns)
    target = f"{table.name} ({names})"
    if tx.dialect.name == "postgresql":
        tx.exec_driver_sql(f"COPY {target} FROM STDIN", execution_options={_COPIED_ROWS: rows})
        return
    max_rows = _SQLITE_MAX_PARAMETERS // len(columns)
    remaining = iter(rows)
    while part := list(islice(remaining, max_rows)):
        _insert(tx, target, len(columns), part, max_rows)


def _insert(
    tx: Connection, target: str, num_columns: int, rows: Sequence[Sequence[object]], max_rows: int
) -> None:
    # The driver keeps its last 128 statements, and a long one takes megabytes there: so there are only a few
    # lengths, and rows of NULLs fill one up.
    num_rows = min(max_rows, 1 << (len(rows) - 1).bit_length())
    padding = (None,) * (num_columns * (num_rows - len(rows)))
    try:
        tx.exec_driver_sql(
            _insert_text(target, num_columns, num_rows), (*[value for row in rows for value in row], *padding)
        )
    except DBAPIError as error:
        error.statement = f"INSERT INTO {target}"  # without its ten thousand question marks
        raise


@cache
def _insert_text(target: str, num_columns: int, num_rows: int) -> str:
    row = f"({', '.join('?' * num_columns)})"
    return (
        f"INSERT INTO {target}"  # noqa: S608  names of our own tables
        f" SELECT * FROM (VALUES {', '.join([row] * num_rows)}) WHERE column1 IS NOT NULL"
    )


@event.listens_for(Engine, "do_execute")
def _copy(cursor: Any, statement: str, _: object, context: ExecutionContext) -> bool:
    """Executes a COPY in SQLAlchemy's own way, so that an error of the driver's becomes what it becomes elsewhere."""
    rows = context.execution_options.get(_COPIED_ROWS)
    if rows is None:
        return False
    with cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)
    return True
