"""Lists the inputs of the command: files and folders, or tables with a column of paths.

A table is Parquet or CSV, on this machine or at an address; its other columns are
carried through to the results. Values of CSV are carried as text, so that a column has
the same type whatever its first values look like.
"""

import glob
import os
from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from fdftnet_jax.errors import UserError
from fdftnet_jax.files import Identity, printable
from fdftnet_jax.prediction import inputs
from fdftnet_jax.scale import shards, storage

_TABLES = (".parquet", ".csv")
# Rows of a table that are read at a time.
_ROWS = 1 << 16


def is_table(path: str) -> bool:
    """Whether a path names a table, by its suffix."""
    return path.lower().endswith(_TABLES)


def tables(
    paths: Sequence[str],
    listed: Sequence[str],
    *,
    size: int,
    path_column: str,
    own: Collection[Identity],
    skipped: inputs.Skipped,
) -> Iterator[pa.Table]:
    """Yields the list of inputs, `size` at a time.

    Args:
      paths: of the command.
      listed: the paths that '-' stands for.
      size: inputs of a shard.
      path_column: of the tables.
      own: folders that are left out.
      skipped: counts what is left out of folders.

    Raises:
      UserError: a table cannot be read, or has no such column; or there are tables and
        other paths.
    """
    with_tables = [name for path in paths if is_table(path) for name in _named(path)]
    if not with_tables:
        items = _items(paths, listed, own, skipped)
        yield from shards.input_tables(items, size)
        return
    other = next((path for path in paths if not is_table(path)), None)
    if other is not None:
        raise UserError(
            f"expected tables alone, or files and folders alone, found "
            f"{printable(with_tables[0])} and {printable(other)}; give them to two "
            "commands, with a --parquet folder each"
        )
    every = (part for path in with_tables for part in _table(path, path_column))
    yield from shards.regrouped(_of_one_kind(every), size)


def _named(path: str) -> list[str]:
    """The tables that a path or a pattern of the shell stands for."""
    if storage.is_address(path) or os.path.lexists(path):
        return [path]
    return sorted(glob.glob(path, recursive=True), key=os.fsencode) or [path]


def _items(
    paths: Sequence[str],
    listed: Sequence[str],
    own: Collection[Identity],
    skipped: inputs.Skipped,
) -> Iterator[inputs.Item]:
    for path in paths:
        if storage.is_address(path):
            yield from storage.expand(path, skipped)
        elif path == inputs.STDIN and any(map(storage.is_address, listed)):
            for name in listed:
                if storage.is_address(name):
                    yield inputs.Item(name, storage.kind_of(name))
                else:
                    yield from inputs.expand([inputs.STDIN], [name], skipped=skipped)
        else:
            yield from inputs.expand([path], listed, own=own, skipped=skipped)


def _table(path: str, column: str) -> Iterator[pa.Table]:
    """Yields a table in parts: those of the list of inputs, then what is carried."""
    try:
        for part in _parts(path):
            yield _inputs(part, path, column)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"cannot read the table {printable(path)}: {' '.join(str(error).split())}; "
            "give a Parquet file, or a CSV file in UTF-8 with a head"
        ) from error


def _parts(path: str) -> Iterator[pa.Table]:
    system, inside = storage.locate(path)
    if path.lower().endswith(".parquet"):
        with pq.ParquetFile(inside, filesystem=system) as file:
            for batch in file.iter_batches(_ROWS):
                yield pa.Table.from_batches([batch])
            if not file.metadata.num_rows:
                yield file.schema_arrow.empty_table()
        return
    with system.open_input_stream(inside) as stream:
        names = pc.open_csv(stream).schema.names
    as_text = pc.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    # (A name may hold a line break.)
    lines = pc.ParseOptions(newlines_in_values=True)
    with system.open_input_stream(inside) as stream:
        reader = pc.open_csv(stream, parse_options=lines, convert_options=as_text)
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _inputs(part: pa.Table, path: str, column: str) -> pa.Table:
    if part.column_names.count(column) != 1:
        raise UserError(
            f"expected a column {column} in the table {printable(path)}, found "
            f"{', '.join(part.column_names) or 'none'}; name yours with --path-column"
        )
    try:
        paths = part[column].cast(pa.string()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"expected paths in the column {column} of {printable(path)}, found "
            f"{part.schema.field(column).type}; name another with --path-column"
        ) from error
    items = [
        inputs.Item(name, storage.kind_of(name))
        if name
        else inputs.Item("", "", "no path in the table")
        for name in paths
    ]
    columns = [
        [os.fsencode(item.path) for item in items],
        [item.kind for item in items],
        [item.reason for item in items],
    ]
    table = pa.table(columns, schema=shards.INPUT_SCHEMA)
    taken = {*shards.SCHEMA.names, *table.column_names}
    for name in part.column_names:
        if name == column:
            continue
        # The results have columns of their own.
        carried = f"input_{name}" if name in taken else name
        if carried in table.column_names:
            raise UserError(
                f"the table {printable(path)} has two columns that would be called "
                f"{carried} in the results; rename one"
            )
        table = table.append_column(
            part.schema.field(name).with_name(carried), part[name]
        )
    return table


def _of_one_kind(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    schema = None
    for part in parts:
        schema = schema or part.schema.remove_metadata()
        part = part.replace_schema_metadata(None)
        if part.schema != schema:
            raise UserError(
                "expected tables with the same columns, found "
                f"{schema.names} and {part.schema.names}, or other types; give them to "
                "two commands, with a --parquet folder each"
            )
        yield part
