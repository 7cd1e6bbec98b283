"""The list of inputs and the results, in shards, and the manifest beside them.

    DIR/manifest.json                what the results rest on, and their counts
    DIR/inputs/part-0000000.parquet  the inputs of a shard, in order
    DIR/rows/part-0000000.parquet    their results
    DIR/attempts/part-0000000        how often a shard was begun and not finished

The list of inputs is written once, before anything is scored: a file that appears in a
folder later moves none into another shard. The manifest comes after the list, so that a
list without one is not complete. A shard of results appears whole or not at all, and
its footer holds the counts of its rows.
"""

import collections
import dataclasses
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fdftnet_jax
from fdftnet_jax.errors import UserError
from fdftnet_jax.files import printable
from fdftnet_jax.prediction import writers
from fdftnet_jax.prediction.inputs import Item
from fdftnet_jax.prediction.results import TOO_CLOSE, Row
from fdftnet_jax.scale.storage import Store, is_address
from fdftnet_jax.verdicts import FAKE, REAL, UNDECIDED

SCHEMA_VERSION = 1
MANIFEST, INPUTS, ROWS, ATTEMPTS = "manifest.json", "inputs", "rows", "attempts"
# The columns of `predict --csv`. Text is never null; a number that there is not is.
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("face", pa.int32()),
        *(pa.field(name, pa.int32()) for name in ("x", "y", "width", "height")),
        *(pa.field(name, pa.float64()) for name in ("score", "logit", "probability")),
        *(
            pa.field(name, pa.string(), nullable=False)
            for name in ("verdict", "reason", "notes")
        ),
        pa.field("frames", pa.int32()),
        pa.field("deviation", pa.float64()),
    ]
)
# Of the list of inputs; a name need not be UTF-8.
INPUT_SCHEMA = pa.schema(
    [("path", pa.binary()), ("kind", pa.string()), ("reason", pa.string())]
)
# The number of an input in its shard, until the shard is written.
_POSITION = "position"
_COUNTS = b"fdftnet_jax.counts"
# Different reasons that are counted apart.
_REASONS = 100


@dataclasses.dataclass
class Counts:
    """What there is in a shard, or in several.

    Attributes:
      inputs: how many.
      rows: of inputs and of faces.
      verdicts: verdict -> inputs.
      too_close: inputs that were judged, and are too close to call.
      reasons: why inputs could not be judged, without details -> inputs.
    """

    inputs: int = 0
    rows: int = 0
    verdicts: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    too_close: int = 0
    reasons: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )

    @property
    def judged(self) -> int:
        """Number of inputs with a score."""
        return self.verdicts[REAL] + self.verdicts[FAKE] + self.too_close

    @classmethod
    def of(cls, table: pa.Table) -> "Counts":
        """Counts the rows of a table of results."""
        counts = cls(rows=table.num_rows)
        columns = (table[name].to_pylist() for name in ("face", "verdict", "reason"))
        for face, verdict, reason in zip(*columns, strict=True):
            if face is not None:
                continue
            counts.inputs += 1
            counts.verdicts[verdict] += 1
            if reason == TOO_CLOSE:
                counts.too_close += 1
            elif verdict == UNDECIDED:
                counts.reasons[re.split(r" \(|: ", reason)[0]] += 1
        return counts

    def add(self, other: "Counts") -> None:
        """Adds those of another shard."""
        self.inputs += other.inputs
        self.rows += other.rows
        self.verdicts += other.verdicts
        self.too_close += other.too_close
        for reason, count in other.reasons.items():
            known = reason in self.reasons or len(self.reasons) < _REASONS
            self.reasons[reason if known else "other reasons"] += count

    def to_dict(self) -> dict[str, Any]:
        """The counts, for JSON."""
        return {
            "inputs": self.inputs,
            "rows": self.rows,
            **{verdict: self.verdicts[verdict] for verdict in (REAL, FAKE, UNDECIDED)},
            "too_close": self.too_close,
            "reasons": dict(self.reasons.most_common()),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Counts":
        """Reads what `to_dict` wrote."""
        verdicts = {verdict: values[verdict] for verdict in (REAL, FAKE, UNDECIDED)}
        return cls(
            values["inputs"],
            values["rows"],
            collections.Counter(verdicts),
            values["too_close"],
            collections.Counter(values["reasons"]),
        )


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What results rest on.

    Attributes:
      detector: name, SHA-256 and whether it is the toy.
      threshold: what it is about, its value, and the lower one where there are two.
      faces: 'crop' or 'whole'.
      options: those of the command that change the rows.
      folder: where relative paths of inputs begin.
      shard_size: inputs of a shard; the last has what is left.
      inputs: how many there are in all shards.
      skipped: counts of what was left out of folders.
      summary: the counts of all rows, once there are all.
    """

    detector: dict[str, Any]
    threshold: dict[str, Any]
    faces: str
    options: dict[str, Any]
    folder: str
    shard_size: int
    inputs: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] | None = None

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.inputs // self.shard_size)

    def to_dict(self) -> dict[str, Any]:
        """The manifest, for JSON."""
        values = dataclasses.asdict(self)
        summary = values.pop("summary")
        return {
            "schema_version": SCHEMA_VERSION,
            "fdftnet_jax": fdftnet_jax.__version__,
            **values,
            "shards": self.shards,
            "complete": summary is not None,
            "summary": summary,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Manifest":
        """Reads what `to_dict` wrote; raises KeyError or ValueError otherwise."""
        if values["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {values['schema_version']}")
        return cls(
            **{field.name: values[field.name] for field in dataclasses.fields(cls)}
        )

    def differences(self, other: "Manifest") -> list[str]:
        """Says in words what would make other rows than these."""
        names = ("detector", "threshold", "faces", "shard_size")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        for name in sorted({*self.options, *other.options}):
            pairs.append((name, self.options.get(name), other.options.get(name)))
        return [f"{name} {old}, now {new}" for name, old, new in pairs if old != new]


def part(folder: str, number: int) -> str:
    """The name of a shard's file."""
    suffix = "" if folder == ATTEMPTS else ".parquet"
    return f"{folder}/part-{number:07d}{suffix}"


def input_tables(items: Iterable[Item], size: int) -> Iterator[pa.Table]:
    """Yields the list of inputs, `size` at a time."""
    items = iter(items)
    while some := list(itertools.islice(items, size)):
        paths, kinds, reasons = zip(*some, strict=True)
        columns = [[os.fsencode(path) for path in paths], kinds, reasons]
        yield pa.table(columns, schema=INPUT_SCHEMA)


def regrouped(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Yields the rows of tables of any length, `size` at a time."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += table.num_rows
        while count >= size:
            together = pa.concat_tables(waiting)
            yield together.slice(0, size)
            waiting, count = [together.slice(size)], count - size
    if count:
        yield pa.concat_tables(waiting)


def result_table(rows_of_each: Iterable[tuple[int, Sequence[Row]]]) -> pa.Table:
    """Makes a table of the rows of inputs, with the numbers of these in their shard."""
    positions, values = [], []
    for position, rows in rows_of_each:
        positions += [position] * len(rows)
        for row in rows:
            plain = writers.plain(row)
            if is_address(row.path):
                plain["path"] = row.path
            # (A reason may quote a name that is not UTF-8.)
            for name in ("reason", "notes"):
                text = plain[name].encode("utf-8", "backslashreplace")
                plain[name] = text.decode()
            values.append(plain)
    table = pa.Table.from_pylist(values, schema=SCHEMA)
    return table.append_column(_POSITION, pa.array(positions, pa.int32()))


class Shards:
    """The list of inputs and their results in a folder.

    Attributes:
      manifest: what the results rest on.
    """

    def __init__(self, store: Store, manifest: Manifest):
        """Takes the folder and the manifest that is in it."""
        self._store = store
        self.manifest = manifest

    def __reduce__(self):
        # (The connection to a storage may not be one that another process can use.)
        address = self._store.address
        address = address if is_address(address) else os.path.abspath(address)
        return _shards_at, (address, self.manifest)

    def count(self, number: int) -> int:
        """The number of inputs of a shard."""
        size = self.manifest.shard_size
        return min(size, self.manifest.inputs - number * size)

    def inputs(self, number: int) -> pa.Table:
        """The inputs of a shard, with the columns that the user's table had."""
        data = self._store.read(part(INPUTS, number))
        return pq.read_table(pa.BufferReader(data))

    def items(self, number: int) -> list[Item]:
        """The inputs of a shard."""
        table = self.inputs(number).select(INPUT_SCHEMA.names)
        return [
            Item(os.fsdecode(path), kind, reason)
            for path, kind, reason in zip(
                *(column.to_pylist() for column in table.columns), strict=True
            )
        ]

    def missing(self) -> list[int]:
        """The numbers of the shards that have no results yet."""
        there = set(self._store.names(ROWS))
        if self._store.local:
            # What a process left that was killed as it wrote; no other one writes now.
            for name in there:
                if name.startswith("."):
                    self._store.delete(f"{ROWS}/{name}")
        names = ((n, part(ROWS, n)) for n in range(self.manifest.shards))
        return [n for n, name in names if os.path.basename(name) not in there]

    def write(self, number: int, table: pa.Table) -> Counts:
        """Writes the results of a shard, whole or not at all.

        Args:
          number: of the shard.
          table: of `result_table`, in any order.

        Returns:
          What there is in it.

        Raises:
          RuntimeError: an input has no row of its own, or two.
          OSError: the storage refuses.
        """
        table = _in_order(table)
        positions = table[_POSITION]
        whole = table.filter(table["face"].is_null())[_POSITION].to_pylist()
        if whole != list(range(self.count(number))):
            raise RuntimeError(f"shard {number} has rows of {len(whole)} inputs")
        counts = Counts.of(table)
        table = table.drop_columns([_POSITION])
        inputs = self.inputs(number)
        for name in inputs.column_names[len(INPUT_SCHEMA) :]:
            table = table.append_column(
                inputs.schema.field(name), inputs[name].take(positions)
            )
        table = table.replace_schema_metadata(
            {
                b"fdftnet_jax.schema_version": str(SCHEMA_VERSION),
                b"fdftnet_jax.detector": self.manifest.detector["sha256"],
                _COUNTS: json.dumps(counts.to_dict()),
            }
        )
        self._store.write(part(ROWS, number), _parquet(table))
        self._store.delete(part(ATTEMPTS, number))
        return counts

    def counts(self, number: int) -> Counts:
        """What there is in a shard that was written; raises UserError if it is none."""
        name = part(ROWS, number)
        try:
            with self._store.open(name) as file:
                metadata = pq.read_schema(file).metadata or {}
            return Counts.from_dict(json.loads(metadata[_COUNTS]))
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise UserError(
                f"{self._store.address}/{name} is damaged, or no shard of results; "
                "delete it and give the same command again"
            ) from error

    def attempts(self) -> dict[int, int]:
        """How often shards were begun and not finished, of those that were."""
        return {
            int(name.removeprefix("part-")): len(self._store.read(f"{ATTEMPTS}/{name}"))
            for name in self._store.names(ATTEMPTS)
            if re.fullmatch(r"part-\d+", name)
        }

    def begin(self, number: int, attempts: int) -> None:
        """Writes down that a shard is begun once more."""
        self._store.write(part(ATTEMPTS, number), b"." * (attempts + 1))

    def finish(self, counts: Counts) -> None:
        """Writes the counts of all rows into the manifest."""
        done = dataclasses.replace(self.manifest, summary=counts.to_dict())
        write_manifest(self._store, done)
        self._store.delete(ATTEMPTS)


def _in_order(table: pa.Table) -> pa.Table:
    """Puts inputs in their order, and the row of each before those of its faces."""
    positions, faces = table[_POSITION].to_numpy(), table["face"].fill_null(-1)
    return table.take(np.lexsort([faces.to_numpy(), positions]))


def _shards_at(address: str, manifest: Manifest) -> Shards:
    return Shards(Store(address), manifest)


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Writes the manifest of a folder, whole or not at all."""
    # (In ASCII, a name that is not UTF-8 can be read again.)
    store.write(MANIFEST, json.dumps(manifest.to_dict(), indent=2).encode() + b"\n")


def read_manifest(store: Store) -> Manifest | None:
    """Reads the manifest of a folder; None where there is none.

    Raises:
      UserError: it is none that this version of the package can read.
    """
    if not store.exists(MANIFEST):
        return None
    try:
        return Manifest.from_dict(json.loads(store.read(MANIFEST)))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"expected {store.address}/{MANIFEST} to be one of this version of "
            f"fdftnet, found another ({error}); give another folder"
        ) from error


def prepare(
    store: Store,
    wanted: Manifest,
    tables: Callable[[], Iterator[pa.Table]],
    skipped: Callable[[], dict[str, int]],
) -> tuple[Shards, bool]:
    """Reads the list of inputs in a folder, or makes it.

    Args:
      store: the folder.
      wanted: what the results are to rest on.
      tables: lists the inputs, a shard at a time.
      skipped: counts what was left out, once they are listed.

    Returns:
      The shards, and whether the list was there.

    Raises:
      UserError: the folder holds something else, or results of another detector or of
        other options.
    """
    found = read_manifest(store)
    if found is not None:
        if different := found.differences(wanted):
            raise UserError(
                f"--parquet {printable(store.address)} holds results of another "
                f"command ({'; '.join(different)}); give another folder, or the "
                "detector and the options of before"
            )
        return Shards(store, found), True
    # (A list that was not completed has no results beside it.)
    others = [n for n in store.names() if n != INPUTS and not n.startswith(".")]
    if others:
        raise UserError(
            f"--parquet {printable(store.address)} holds files that this command did "
            f"not make, such as {printable(others[0])}; give another folder"
        )
    store.delete(INPUTS)
    count = 0
    for number, table in enumerate(tables()):
        store.write(part(INPUTS, number), _parquet(table))
        count += table.num_rows
    manifest = dataclasses.replace(wanted, inputs=count, skipped=skipped())
    write_manifest(store, manifest)
    return Shards(store, manifest), False


def _parquet(table: pa.Table) -> bytes:
    data = io.BytesIO()
    pq.write_table(table, data, compression="zstd")
    return data.getvalue()
