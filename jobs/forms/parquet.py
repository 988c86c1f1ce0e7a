"""Results as Parquet: typed columns, written a row group at a time."""

from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

from db.outcomes import Outcome
from jobs.forms.columns import Column, Kind, cell
from jobs.forms.fields import view

# Rows become a batch of Arrow's, which takes a fraction of their room, and batches a row group; both end when they
# hold so many rows, or texts of so many characters.
_BATCH = (1_000, 4 * 1024 * 1024)
_GROUP = (5_000, 4 * 1024 * 1024)


def write_parquet(outcomes: Iterable[Outcome], columns: Sequence[Column], file: IO[bytes]) -> int:
    """The number of rows."""
    import pyarrow as pa  # 0.1 s, and only whoever wants this form has it
    from pyarrow import parquet

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    types = {
        Kind.TEXT: pa.string(),
        Kind.INTEGER: pa.int64(),
        Kind.NUMBER: pa.float64(),
        Kind.BOOLEAN: pa.bool_(),
        Kind.MESSAGES: pa.list_(message),
    }
    schema = pa.schema([(column.name, types[column.kind]) for column in columns])
    num_rows = 0
    group: list[Any] = []
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:

        def write_group() -> None:
            if group:
                writer.write_table(pa.Table.from_batches(group))
                group.clear()

        for rows in _batches(outcomes, columns):
            arrays = [pa.array(values, field.type) for values, field in zip(rows, schema, strict=True)]
            group.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
            num_rows += len(rows[0])
            if sum(map(len, group)) >= _GROUP[0] or sum(batch.nbytes for batch in group) >= _GROUP[1]:
                write_group()
        write_group()
    return num_rows


def _batches(outcomes: Iterable[Outcome], columns: Sequence[Column]) -> Iterator[list[list[Any]]]:
    """Rows, column by column."""
    rows: list[list[Any]] = [[] for _ in columns]
    num_chars = 0
    for outcome in outcomes:
        line = view(outcome)
        for values, column in zip(rows, columns, strict=True):
            values.append(cell(column.kind, column.get(line)))
        num_chars += len(outcome.result or "") + len(outcome.body or "")
        if len(rows[0]) >= _BATCH[0] or num_chars >= _BATCH[1]:
            yield rows
            rows = [[] for _ in columns]
            num_chars = 0
    if rows[0]:
        yield rows
