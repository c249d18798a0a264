"""Runs as earlier versions wrote them: ``neurons`` and ``facts`` in place of ``neuron_set`` and ``scope``."""

from pathlib import Path

import pyarrow.parquet as pq

from kn_lens.runs.directory import RunDirectory

OLD = {"neuron_set": "neurons", "scope": "facts"}


def old_names(columns, table=""):
    renamed = {"n_neurons": "neurons"} if table == "erased" else OLD
    return [renamed.get(name, name) for name in columns]


def write_old_columns(monkeypatch):
    """From now on write records and tables with the old columns."""
    write_table, write_text = pq.write_table, RunDirectory.write_text

    def write_old_table(table, *args, **options):
        write_table(table.rename_columns(old_names(table.column_names)), *args, **options)

    def write_old_text(run, path, text):
        if str(path).startswith("tables/"):
            head, newline, rows = text.partition("\n")
            text = ",".join(old_names(head.split(","), Path(path).stem)) + newline + rows
        write_text(run, path, text)

    monkeypatch.setattr(pq, "write_table", write_old_table)
    monkeypatch.setattr(RunDirectory, "write_text", write_old_text)
