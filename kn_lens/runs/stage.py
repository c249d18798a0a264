"""A stage: one kind of records, how they are computed, and the tables that summarise them.

To add a stage, write a file in ``stages/`` and list its stage in ``stages/order.py``. The file has four parts:

    SCHEMA              the columns of its records, a ``pyarrow.schema``
    make(...)           computes the records of one shard and writes them with ``write_records``
    tables(context)     summarises the records of all shards; reads records alone, never the model
    NAME = Stage(...)   names both, the stages whose records are read, and the settings that the records depend on

Everything else follows from these: a shard whose inputs have not changed is skipped, an interrupted run resumes,
workers share the shards, and ``kn-lens reproduce`` estimates the cost and shows the tables. ``docs/extending.md`` has a
whole example.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.hosts import release_memory
from kn_lens.runs.directory import Shard
from kn_lens.runs.passes import Passes

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.runs.context import RunContext

Progress = Callable[[int, int], None]
"""Called with (done, total), in any unit."""


@dataclass(frozen=True)
class TableDisplay:
    """How a table is shown on the terminal and in the report.

    Attributes:
        caption: one line that says what the values and the control are.
        measures: values of the column ``measure`` to show, in this order; empty shows all.
    """

    caption: str
    measures: tuple[str, ...] = ()


def _no_tables(context: "RunContext") -> "Mapping[str, pd.DataFrame]":
    return {}


def _shard_per_relation(context: "RunContext") -> list[Shard]:
    return [Shard(relation) for relation in context.relations()]


def _no_passes(context: "RunContext", shard: Shard) -> Passes:
    return Passes()


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One kind of records. Its *shards* are computed, written and skipped one by one.

    The *inputs* of a shard are the facts, the settings named here, the model and libraries, the records of the stages
    in ``needs``, and ``version``. As long as their digest is the one noted beside the records, the shard is current.

    Attributes:
        name: directory of the records, and name of the stage on the command line.
        title: what the stage computes, for progress bars and the report.
        make: ``make(context, shard, path, progress)`` computes the records of a shard and writes them to ``path`` as
            Parquet. The result may depend on nothing but the inputs; draw random numbers with ``context.generator``.
        tables: ``tables(context)`` returns tables by name. It is called once all shards are written, and reads records
            alone.
        shown: the tables to show, by name. They have columns of labels, then ``value`` with its interval ``low`` and
            ``high`` and the number of observations ``n``, and where they exist ``control`` and ``paper``.
        needs: the stages whose records ``make`` reads: those of the shard's own relation; of all relations where the
            shard's relation is ``ALL``.
        settings: names of the settings that the records depend on.
        across: whether a shard depends on facts of other relations too.
        shards: ``shards(context)`` returns the shards in order; by default one for each relation with facts to query.
        passes: ``passes(context, shard)`` counts the model passes of a shard, for progress bars and ``--dry-run``.
        version: raise it when the same inputs give other records.
    """

    name: str
    title: str
    make: "Callable[[RunContext, Shard, Path, Progress], None]"
    tables: "Callable[[RunContext], Mapping[str, pd.DataFrame]]" = _no_tables
    shown: Mapping[str, TableDisplay] = field(default_factory=dict)
    needs: "tuple[Stage, ...]" = ()
    settings: tuple[str, ...] = ()
    across: bool = False
    shards: "Callable[[RunContext], Sequence[Shard]]" = _shard_per_relation
    passes: "Callable[[RunContext, Shard], Passes]" = _no_passes
    version: int = 1

    def write(self, context: "RunContext", shard: Shard, path: Path, progress: Progress) -> None:
        """Write the records of a shard, then return cached memory: the next shard has other sizes."""
        self.make(context, shard, path, progress)
        release_memory()

    def cost(self, context: "RunContext", shard: Shard) -> float:
        """Return the approximate duration of a shard in forward passes of one row."""
        return self.passes(context, shard).forwards()


def write_records(path: Path, columns: "Mapping[str, Any] | pd.DataFrame", schema: Any) -> None:
    """Write columns as Parquet with the column order and types of a ``pyarrow.schema``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = []
    for column in schema:
        arrays.append(pa.array(columns[column.name], column.type))
    table = pa.Table.from_arrays(arrays, schema=schema)
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: Any) -> None:
    """Write rows as Parquet with the column order and types of a ``pyarrow.schema``; a missing value is null."""
    columns = {}
    for name in schema.names:
        columns[name] = [row.get(name) for row in rows]
    write_records(path, columns, schema)
