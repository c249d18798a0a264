"""Labels of relations in runs: they choose facts and are recorded, and nothing of a run depends on them."""

from dataclasses import replace

import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.runs.data import RunData
from kn_lens.runs.reader import RunRecords
from kn_lens.runs.settings import Settings
from tests.tiny_runs import tiny_facts

LABELS = {"P36": "capital", "P1376": "capital of", "seat/of": ""}


@pytest.fixture(scope="module")
def labelled():
    return kn.FactSet(replace(fact, relation_label=LABELS[fact.relation]) for fact in tiny_facts())


def test_a_run_of_a_label_is_the_run_of_the_identifier(model, labelled, tmp_path):
    path = tmp_path / "run"
    kn.reproduce(model, labelled, path, stages=["facts"], relations=["capital of", "seat/of"])
    records = RunRecords.read(path)
    assert records.relation_names() == {"P1376": "capital of (P1376)", "seat/of": "seat/of"}
    assert records.config["relations"] == ["P1376", "seat/of"]
    # The same run, resumed without labels: nothing is made again, and no setting or digest differs.
    before = {file: file.stat().st_mtime_ns for file in path.glob("records/**/*.parquet")}
    kn.reproduce(model, tiny_facts(), path, stages=["facts"], relations=["P1376", "seat/of"])
    assert before == {file: file.stat().st_mtime_ns for file in path.glob("records/**/*.parquet")}
    with pytest.raises(kn.ArgumentError, match=r"No relation 'capitol'.*Did you mean 'capital'"):
        kn.reproduce(model, labelled, tmp_path / "other", stages=["facts"], relations=["capitol"])
    assert not (tmp_path / "other").exists()


def test_labels_change_no_digest(labelled):
    data = [RunData.of(facts, Settings.of()) for facts in (labelled, tiny_facts())]
    assert data[0].digests() == data[1].digests()


def test_records_without_labels_and_of_both_kinds_are_read(monkeypatch, tmp_path, model, labelled):
    path = tmp_path / "run"
    kn.reproduce(model, labelled, path, stages=["facts"])
    records = RunRecords.read(path)
    read = pd.read_parquet

    def without_label(path, **options):
        table = read(path, **options)
        return table.drop(columns="relation_label") if "P36" in str(path) or everywhere else table

    everywhere = False
    monkeypatch.setattr(pd, "read_parquet", without_label)
    assert records.relation_names() == {"P36": "P36", "P1376": "capital of (P1376)", "seat/of": "seat/of"}
    everywhere = True
    assert records.relation_names() == {}
