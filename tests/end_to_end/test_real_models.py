"""The page on a pretrained model, the notebook and the README say what the stored records say."""

import importlib.util
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.facts.readers import read_patterns

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "smollm2"


def script(name):
    """A script of the folder as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def records():
    """The records of the runs on ParaRel's and on the embedded facts, by stage."""
    tables = {}
    for stage in ("attributions", "neurons", "effects"):
        parts = []
        for run in ("pararel", "world"):
            for path in sorted((FOLDER / run / "records" / stage).glob("*.parquet")):
                parts.append(pd.read_parquet(path).assign(run=run))
        tables[stage] = pd.concat(parts)
    return tables


def test_the_tables_of_the_page_are_those_of_the_records():
    page = (ROOT / "docs" / "real_models.md").read_text(encoding="utf-8")
    tables = script("tables")
    assert tables.with_tables(page) == page
    with pytest.raises(ValueError, match="begin doses"):
        tables.with_tables(page.replace("begin doses", "begin dose"))


@pytest.mark.parametrize("run", ["pararel", "world"])
def test_the_stored_tables_are_those_of_the_stored_records(records, run):
    """The relative change of the found neurons, computed again from the records of single facts."""
    doses = pd.read_csv(FOLDER / run / "tables" / "dose_response.csv")
    own = records["effects"].query("run == @run and neuron_set == 'found' and scope == 'own'")
    for factor, value in (doses.query("neuron_set == 'found' and scope == 'own'")[["factor", "value"]]).to_numpy():
        group = own[own["factor"] == factor]
        if len(group):
            means = group.groupby("relation")[["before", "after"]].mean()
            assert ((means["after"] - means["before"]) / means["before"]).mean() == pytest.approx(value, rel=1e-6)


def test_what_the_page_says_of_single_neurons_and_layers_holds(records):
    attributions = records["attributions"]
    gap = (attributions["total"] - attributions["expected"]).abs()
    assert (gap <= attributions["tolerance"] * (1 + 1e-6)).all()
    points = attributions.groupby("layer")["n_points"].mean()
    assert points[0] == pytest.approx(51, abs=1) and 3 <= points[1:].min() < points[1:].max() < 9
    found = {}
    for run, of_run in records["neurons"].query("neuron_set == 'found'").groupby("run"):
        found[run] = of_run.explode(["layer", "index"]).groupby(["layer", "index"])["relation"].value_counts()
    assert found["pararel"][24, 1005].to_dict() == {"P36": 5}
    assert found["world"][25, 567].to_dict() == {"P37": 8}
    assert found["world"][21, 523].to_dict() == {"P17": 6, "P1376": 6}
    assert found["world"][0, 767].to_dict() == {"P17": 7}
    assert set(found["world"][29, 1197].index) == {"P17", "P1376", "P30"}


def test_the_facts_are_asked_in_the_packages_own_templates():
    own = read_patterns(Path("kn_lens"))
    facts = kn.FactSet.from_jsonl(FOLDER / "facts" / "pararel.jsonl")
    assert all(fact.templates == own[fact.relation] for fact in facts)
    provenance = json.loads((FOLDER / "pararel" / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["n_facts"] == len(facts)
    assert "Permission is hereby granted" in (FOLDER / "LICENSE-ParaRel.txt").read_text(encoding="utf-8")


def test_what_is_stored_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 3_000_000


def test_facts_are_selected_by_the_rule_of_the_script():
    select_facts = script("select_facts")
    facts = select_facts.object_last(kn.FactSet.world("trained").of("P36", "P30"))
    copied = kn.Fact("Dublin City", "P36", "Dublin", facts[0].templates)
    letters = kn.Fact("Malaysia", "P36", "Laya", facts[0].templates)
    assert select_facts.can_be_copied(copied) and not select_facts.can_be_copied(letters)
    taken, spare, table = select_facts.select(kn.load_model("world-gpt2"), facts, n_queried=20)
    counts = table.set_index("relation")
    assert counts.loc["P36", "known"] == 20, "the embedded model knows its facts"
    answers = pd.Series([fact.object for fact in taken if fact.relation == "P30"]).value_counts()
    assert answers.max() <= select_facts.SAME_ANSWER and counts.loc["P30", "same_answer"] > 0
    assert len(taken) == counts["taken"].sum() and not set(taken) & set(spare)
    assert all(len(fact.templates) == 8 and fact.templates[0].endswith("[Y].") for fact in taken)


def test_a_section_without_records_is_left_out(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "real_models.md").read_text(encoding="utf-8")
    tables = script("tables")
    heading = tables.HEADINGS["methods"]
    assert heading in page
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    for run in tables.RUNS:
        (tmp_path / run / "tables" / "methods.csv").unlink(missing_ok=True)
    monkeypatch.setattr(tables, "HERE", tmp_path)
    assert heading not in tables.with_tables(page)


def test_what_the_page_says_of_edits_holds():
    def values(run, table, measure):
        chosen = pd.read_csv(FOLDER / run / "tables" / f"{table}.csv").query("measure == @measure")
        return chosen.set_index(["question", "neuron_set"])["value"]

    success = {run: values(run, "table6", "success") for run in ("pararel", "world")}
    assert success["pararel"]["own wording", "found"] == 0
    assert round(success["world"]["own wording", "found"], 2) == 0.02
    assert all(one["own wording", "activation"] >= one["own wording", "found"] for one in success.values())
    for run, before, after in (("pararel", 0.55, 0.05), ("world", 0.53, 0.03)):
        assert round(values(run, "table5", "accuracy_before")["same relation", "found"], 2) == before
        assert round(values(run, "table5", "accuracy_after")["same relation", "found"], 2) == after
        changed = values(run, "table5", "changed")
        assert 0.45 < changed["other relations", "found"] < 0.6
        assert 1.4 < changed["other relations", "found"] / changed["other relations", "activation"] < 3.2
        assert changed["other relations", "random"] < 0.1
    methods = pd.read_csv(FOLDER / "pararel" / "tables" / "methods.csv").set_index("neuron_set")["value"]
    assert methods.idxmin() == "ablation" and methods.drop(["activation", "random"]).max() < -0.69


def test_what_the_page_says_of_stability_holds():
    table = pd.read_csv(FOLDER / "pararel" / "tables" / "stability.csv").set_index("varied")["value"]
    rules, thresholds = table[["left 20", "right 20", "midpoint 20"]], table[table.index.str.contains("threshold")]
    assert rules.min() > thresholds.max()
    assert table["gauss-legendre 10"] < thresholds[thresholds > 0].min()
    records = pd.concat(map(pd.read_parquet, (FOLDER / "pararel" / "records" / "stability").glob("*.parquet")))
    assert records["key"].nunique() == 2


def test_more_than_half_of_the_neurons_refined_from_activations_are_shared():
    table = pd.read_csv(FOLDER / "pararel" / "tables" / "table2.csv").query("neuron_set == 'baseline'")
    values = table.set_index("statistic")["value"]
    assert values["shared_across"] > values["neurons_per_fact"] / 2
    assert values["shared_within"] > values["neurons_per_fact"] / 2
