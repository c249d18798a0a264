"""Runs as earlier versions wrote them, with their names of columns in records and tables."""

from pathlib import Path

import pyarrow.parquet as pq

from kn_lens.runs.directory import RunDirectory

OLD = {
    "coverage": {
        "n_facts": "facts",
        "n_queried": "facts_asked",
        "n_templates": "pairs",
        "n_prompts": "prompts_asked",
        "n_rows": "rows",
    },
    "erased": {"n_neurons": "neurons"},
    "facts": {"queried": "asked"},
    "syntax_coverage": {
        "n_pairs": "pairs",
        "n_forms": "forms",
        "n_queried_forms": "forms_asked",
        "n_queried_pairs": "pairs_asked",
    },
    "updated": {
        "n_queried": "asked",
        "n_known": "known",
        "n_updated": "updated",
        "n_disturbing": "disturbing",
        "n_left_out": "left_out",
    },
}
"""Old names in the records of a stage, or in a table."""
OLD_ELSEWHERE = {"neuron_set": "neurons", "scope": "facts", "question": "asked"}


def old_names(columns, name):
    """The old names of the columns of a stage's records, or of a table."""
    renamed = OLD.get(name, OLD_ELSEWHERE)
    return [renamed.get(column, column) for column in columns]


def write_old_columns(monkeypatch):
    """From now on write records and tables with the old columns."""
    write_table, write_text = pq.write_table, RunDirectory.write_text

    def write_old_table(table, *args, **options):
        stage = "facts" if "queried" in table.column_names else ""
        write_table(table.rename_columns(old_names(table.column_names, stage)), *args, **options)

    def write_old_text(run, path, text):
        if str(path).startswith("tables/"):
            head, newline, rows = text.partition("\n")
            text = ",".join(old_names(head.split(","), Path(path).stem)) + newline + rows
        write_text(run, path, text)

    monkeypatch.setattr(pq, "write_table", write_old_table)
    monkeypatch.setattr(RunDirectory, "write_text", write_old_text)
