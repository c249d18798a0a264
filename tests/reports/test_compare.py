"""Comparisons of synthetic runs: equal to plain definitions, with exclusions noted and unusable runs refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.errors import ArgumentError, DataError
from kn_lens.reports.compare.comparison import compare_runs
from tests import made_run
from tests.made_run import TEMPLATES, made_facts, of_objects, write_run
from tests.naive_overlap import naive_overlap
from tests.old_columns import write_old_columns

SAMPLING = {"n_resamples": 100, "n_permutations": 200}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def made():
    """Return synthetic results of two models; each does not know one fact, and the second was not queried for one."""
    a = made_facts(0)
    b = of_objects(made_facts(1, n_layers=6), a)
    a[0], b[1] = replace(a[0], n_right=1), replace(b[1], n_right=0)
    b[-1] = replace(b[-1], queried=False)
    a[2], b[3] = (replace(one, neurons={**one.neurons, "found": kn.NeuronSet()}) for one in (a[2], b[3]))
    return a, b


@pytest.fixture(scope="module")
def runs(folder, made):
    a, b = made
    return {
        "a": write_run(folder / "a", a),
        "b": write_run(folder / "b", b, n_layers=6, kind="causal"),
    }


@pytest.fixture(scope="module")
def comparison(runs):
    return compare_runs(runs, **SAMPLING)


def test_a_run_with_the_columns_of_earlier_versions_is_compared_alike(folder, runs, made, comparison, monkeypatch):
    with monkeypatch.context() as patch:
        write_old_columns(patch)
        old = write_run(folder / "old", made[0])
    assert "facts" in pd.read_parquet(old / "records" / "effects" / "P1.parquet")
    found = compare_runs({"a": old, "b": runs["b"]}, **SAMPLING)
    for name, table in comparison.tables.items():
        pd.testing.assert_frame_equal(found.tables[name], table.replace(str(runs["a"]), str(old)))


def value_of(table, column="value", **where):
    """Return the value of the one row of a table with the given entries."""
    rows = table.loc[np.logical_and.reduce([table[name] == wanted for name, wanted in where.items()])]
    assert len(rows) == 1, rows
    return rows[column].iloc[0]


def mean_over_relations(made, value):
    relations = dict.fromkeys(one.fact.relation for one in made)
    return np.mean([value([one for one in made if one.fact.relation == relation]) for relation in relations])


def known_by_all(a, b):
    return [(one, other) for one, other in zip(a, b, strict=True) if one.known and other.known and other.queried]


def change_ratio(factor, scope, kind):
    def of(facts):
        pairs = np.array([one.effects[factor, scope, kind] for one in facts])
        return (pairs[:, 1] - pairs[:, 0]).sum() / pairs[:, 0].sum()

    return of


def test_fact_sets_are_the_facts_that_all_models_were_queried_with_or_know(comparison, made):
    runs = comparison.runs.set_index("run")
    assert runs["facts"].tolist() == [15, 15] and runs["shared"].tolist() == [14, 14]
    assert runs["known_by_all"].tolist() == [len(known_by_all(*made))] * 2 == [12, 12]
    assert runs["own"].to_dict() == {"a": 14, "b": 13}


@pytest.mark.parametrize("which", [0, 1])
def test_values_follow_their_definitions(comparison, made, which):
    run, n_layers = "ab"[which], (4, 6)[which]
    shared = [pair[which] for pair in zip(*made, strict=True) if pair[1].queried]
    common = [pair[which] for pair in known_by_all(*made)]
    values = comparison.values
    right = mean_over_relations(shared, lambda facts: sum(one.n_right for one in facts) / (4 * len(facts)))
    assert value_of(values, run=run, fact_set="shared", statistic="accuracy") == pytest.approx(right)
    nll = mean_over_relations(shared, lambda facts: np.mean([one.nll for one in facts]))
    assert value_of(values, run=run, fact_set="shared", statistic="nll") == pytest.approx(nll)
    known = np.mean([one.known for one in shared])
    assert value_of(values, run=run, fact_set="shared", statistic="known") == pytest.approx(known)
    for (factor, part), scope, kind in [((0.0, "suppress"), "own", "found"), ((2.0, "amplify"), "other", "random")]:
        expected = mean_over_relations(common, change_ratio(factor, scope, kind))
        where = {"run": run, "fact_set": "known_by_all", "statistic": f"{part}_{scope}", "neuron_set": kind}
        assert value_of(values, **where) == pytest.approx(expected)
        random = mean_over_relations(common, change_ratio(factor, scope, "random"))
        assert value_of(values, "control", **where) == pytest.approx(random)
    there = [pair[which] for pair in known_by_all(*made) if all(one.neurons["found"] for one in pair)]
    depth = mean_over_relations(
        there,
        lambda facts: np.mean([np.mean([(n.layer + 0.5) / n_layers for n in one.neurons["found"]]) for one in facts]),
    )
    where = {"run": run, "fact_set": "known_by_all", "statistic": "mean_depth"}
    assert value_of(values, **where) == pytest.approx(depth) and value_of(values, "n", **where) == len(there) == 10


def test_neurons_and_sharing_equal_loops_over_facts(comparison, made):
    common = [pair[0] for pair in known_by_all(*made)]
    for kind in ("found", "activation", "random"):
        groups = {}
        for fact, one in enumerate(common):
            groups.setdefault(one.fact.relation, []).append((fact, one.neurons[kind]))
        where = {"run": "a", "fact_set": "known_by_all", "neuron_set": kind}
        for statistic, values in naive_overlap(list(groups.values())).items():
            found = value_of(comparison.values, statistic=statistic, **where)
            assert found == pytest.approx(values[-1], rel=1e-6)
    assert value_of(comparison.values, "n", statistic="shared_within", **where) == sum(
        n * (n - 1) // 2 for n in pd.Series([one.fact.relation for one in common]).value_counts()
    )


def test_majority_object_is_the_control_of_accuracy(comparison, made):
    shared = [pair[0] for pair in zip(*made, strict=True) if pair[1].queried]
    share = mean_over_relations(
        shared, lambda facts: pd.Series([one.fact.object for one in facts]).value_counts(normalize=True).iloc[0]
    )
    found = value_of(comparison.values, "control", run="a", fact_set="shared", statistic="accuracy")
    assert found == pytest.approx(share)


def test_differences_equal_those_of_the_values(comparison):
    found = comparison.values.query("neuron_set in ['', 'found']")
    values = found.set_index(["fact_set", "statistic", "run"])["value"].to_dict()
    assert len(comparison.differences) == 3 + 11 - 1
    for row in comparison.differences.to_dict("records"):
        a, b = (values[row["fact_set"], row["statistic"], run] for run in "ab")
        assert row["value"] == pytest.approx(b - a, abs=1e-12)
        assert row["low"] <= row["high"] and row["n"] > 0
        if row["statistic"] in ("shared_within", "shared_across"):
            assert np.isnan(row["p"])
        else:
            assert 0 < row["p"] <= row["p_holm"] <= 1
        assert np.isnan(row["p_relations"])  # two relations could not give 0.05


def test_depth_is_a_distribution_over_the_layers_of_each_model(comparison):
    for run, n_layers in (("a", 4), ("b", 6)):
        depth = comparison.depth[comparison.depth["run"] == run].query("fact_set == 'known_by_all'")
        assert depth["depth"].tolist() == pytest.approx([(layer + 1) / n_layers for layer in range(n_layers)])
        assert depth["value"].is_monotonic_increasing and depth["value"].iloc[-1] == pytest.approx(1)
        assert (depth["low"] <= depth["value"] + 1e-12).all() and (depth["value"] <= depth["high"] + 1e-12).all()
    assert comparison.distances["resolution"].tolist() == pytest.approx([(1 / 4 + 1 / 6) / 2])


def test_reversed_order_of_runs_flips_the_sign(comparison, runs):
    other = compare_runs({"b": runs["b"], "a": runs["a"]}, **SAMPLING)
    here, there = comparison.differences, other.differences
    assert np.allclose(here["value"], -there["value"]) and np.allclose(here["low"], -there["high"])
    for column in ("p", "p_relations"):
        assert np.array_equal(here[column], there[column], equal_nan=True)
    assert np.allclose(comparison.distances["value"], other.distances["value"])
    assert np.allclose(comparison.correlations["value"], other.correlations["value"])
    pd.testing.assert_frame_equal(comparison.contrasts, other.contrasts)  # whose direction is that of the tag


def test_copy_of_a_run_does_not_differ(folder, runs):
    shutil.copytree(runs["a"], folder / "copy", dirs_exist_ok=True)
    found = compare_runs([runs["a"], folder / "copy"], **SAMPLING)
    assert (found.differences["value"] == 0).all()
    assert found.differences[["low", "high"]].isna().all(axis=None)  # all facts alike
    for column in ("p", "p_holm"):
        assert found.differences[column].dropna().eq(1).all() and found.differences[column].notna().any()
    assert found.distances[["value", "control"]].eq(0).all(axis=None) and found.distances["p"].tolist() == [1]
    assert found.correlations["value"].tolist() == pytest.approx([1, 1]) and found.contrasts.empty


def test_same_depths_in_a_model_with_twice_the_layers_have_distance_zero(folder):
    """Layer 0 of 1 stands for the same depths as layers 0 and 1 of 2."""
    one = [replace(fact, neurons=dict.fromkeys(fact.neurons, kn.NeuronSet([(0, 5)]))) for fact in made_facts(0)]
    two = [replace(fact, neurons=dict.fromkeys(fact.neurons, kn.NeuronSet([(0, 1), (1, 1)]))) for fact in one]
    paths = write_run(folder / "one", one, n_layers=1), write_run(folder / "two", two, n_layers=2)
    found = compare_runs(paths, **SAMPLING).distances.iloc[0]
    assert (found["value"], found["p"], found["resolution"]) == (0, 1, 0.75)


def test_different_effects_are_detected(folder):
    """The effects are larger for all facts of the second model, by just enough for a significant test."""
    a = made_facts(2, sizes=(20, 20))
    b = [
        replace(one, effects={key: (before, after * 0.8) for key, (before, after) in one.effects.items()}) for one in a
    ]
    found = compare_runs([write_run(folder / "less", a), write_run(folder / "more", b)], **SAMPLING)
    row = found.differences.query("statistic == 'suppress_own' and fact_set == 'known_by_all'").iloc[0]
    assert row["high"] < 0 and row["p"] == pytest.approx(1 / 201) and np.isnan(row["p_relations"])
    assert found.correlations["value"].between(0.9, 1).all()


def test_only_facts_with_the_same_templates_are_compared(folder, runs, made):
    changed = [replace(one, fact=replace(one.fact, templates=TEMPLATES[:2])) for one in made[0][:5]]
    path = write_run(folder / "changed", [*changed, *made[0][5:]])
    found = compare_runs([runs["a"], path], **SAMPLING)
    assert found.runs["equal"].tolist() == [10, 10] and any("5 of 15 facts" in note for note in found.notes)
    only = write_run(folder / "only_changed", changed)
    with pytest.raises(DataError, match=r"no fact in common \(5 are in all, but with different templates\)"):
        compare_runs([runs["a"], only], **SAMPLING)
    with pytest.raises(DataError, match="none is in all"):
        compare_runs([only, write_run(folder / "rest", made[0][5:])], **SAMPLING)


def test_models_without_common_knowledge_are_noted(folder):
    a = made_facts(0, right=4)
    b = [replace(one, n_right=0) for one in a]
    found = compare_runs([write_run(folder / "knows", a), write_run(folder / "ignorant", b)], **SAMPLING)
    assert any("No fact is known by all" in note for note in found.notes)
    assert set(found.differences["fact_set"]) == {"shared"} and found.distances.empty and found.correlations.empty
    known = found.values.query("statistic == 'known'").set_index("run")
    assert known["value"].to_dict() == {"knows": 1, "ignorant": 0}
    assert 0 < known.loc["ignorant", "high"] < 0.3 and 0.7 < known.loc["knows", "low"] < 1  # of 15 facts


def test_contrasts_are_means_over_pairs_that_differ_in_one_tag_only(folder):
    base = made_facts(0)
    made = {
        (kind, seed): of_objects(made_facts(10 * i + seed), base)
        for i, kind in enumerate(("masked", "causal"))
        for seed in (0, 1)
    }
    paths = {
        f"{kind}{seed}": write_run(folder / f"{kind}{seed}", facts, kind=kind, tags={"seed": seed})
        for (kind, seed), facts in made.items()
    }
    found = compare_runs(paths, **SAMPLING)
    differs = found.differences.query("fact_set == 'shared' and statistic == 'nll'")["differs_in"].tolist()
    assert sorted(differs) == sorted(["seed", "kind", "kind, seed", "kind, seed", "kind", "seed"])
    nll = found.values.query("fact_set == 'shared' and statistic == 'nll'").set_index("run")["value"]
    row = found.contrasts.query("of == 'kind' and fact_set == 'shared' and statistic == 'nll'").iloc[0]
    apart = [nll["masked0"] - nll["causal0"], nll["masked1"] - nll["causal1"]]
    assert (row["from"], row["to"], row["n_pairs"]) == ("causal", "masked", 2)
    assert row["value"] == pytest.approx(np.mean(apart)) and row["low"] <= row["value"] <= row["high"]
    assert (row["smallest"], row["largest"]) == pytest.approx((min(apart), max(apart)))
    seeds = [abs(nll["masked1"] - nll["masked0"]), abs(nll["causal1"] - nll["causal0"])]
    assert row["between_seeds"] == pytest.approx(np.mean(seeds))
    both = found.differences.query("fact_set == 'known_by_both'")
    assert len(both) == 6 * 10 and (both["p_holm"] >= both["p"] - 1e-12)[both["p"].notna()].all()


def test_differing_settings_become_tags(folder, made):
    paths = [write_run(folder / f"share{share}", made[0], share_threshold=share) for share in (0.7, 0.5)]
    found = compare_runs(paths, **SAMPLING)
    assert set(found.differences["differs_in"]) == {"share_threshold"}
    assert set(found.contrasts["from"]) == {0.5}


def test_tables_are_written_whole_and_never_into_a_run_directory(comparison, folder, runs):
    comparison.write_csv(folder / "out" / "tables")
    assert {path.stem for path in (folder / "out" / "tables").iterdir()} == set(comparison.tables)
    there = pd.read_csv(folder / "out" / "tables" / "values.csv", keep_default_na=False, na_values=[""])
    assert np.allclose(there["value"], comparison.values["value"])
    with pytest.raises(ArgumentError, match="is a run directory"):
        comparison.write_csv(runs["a"])
    with pytest.raises(ArgumentError, match="is a file"):
        comparison.write_csv(folder / "out" / "tables" / "values.csv")


def test_few_or_equal_runs_are_refused(folder, runs):
    with pytest.raises(ArgumentError, match="at least two"):
        compare_runs([runs["a"]])
    with pytest.raises(ArgumentError, match="given twice"):
        compare_runs({"a": runs["a"], "again": runs["a"].parent / "b" / ".." / "a"})
    shutil.copytree(runs["b"], folder / "inner" / "a", dirs_exist_ok=True)
    with pytest.raises(ArgumentError, match="the same name, a"):
        compare_runs([runs["a"], folder / "inner" / "a"])
    with pytest.raises(ArgumentError, match="n_resamples=0"):
        compare_runs(runs, n_resamples=0)


def test_directories_without_a_run_are_refused(folder, runs):
    (folder / "empty").mkdir()
    with pytest.raises(ArgumentError, match="is no run directory"):
        compare_runs([runs["a"], folder / "empty"])
    with pytest.raises(ArgumentError, match="is not there"):
        compare_runs([runs["a"], folder / "nowhere"])
    with pytest.raises(ArgumentError, match=r"contains some. Name those, such as .*inner.a"):
        compare_runs([runs["a"], folder / "inner"])


def broken(folder, runs, name):
    path = folder / name
    shutil.copytree(runs["a"], path)
    return [path, runs["b"]]


@pytest.mark.parametrize(
    ("missing", "stage"),
    [
        ("records/effects", "effects"),
        ("records/effects/P1.parquet", "effects"),
        ("records/neurons/P0.parquet", "neurons"),
        ("records/facts/_P2.json", "facts"),
        ("tables/answers.csv", "answers"),
    ],
)
def test_unfinished_runs_are_refused_with_the_command(folder, runs, missing, stage):
    paths = broken(folder, runs, missing.replace("/", "_"))
    path = paths[0] / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    command = r"kn-lens reproduce --model made .*--stage answers --stage effects"
    with pytest.raises(DataError, match=f"not finished: stage {stage} is missing. '{command}' computes it"):
        compare_runs(paths)


def test_run_with_a_single_factor_is_unfinished(folder, runs, made):
    half = [replace(one, effects={key: value for key, value in one.effects.items() if key[0] == 0}) for one in made[0]]
    with pytest.raises(DataError, match="stage effects is missing"):
        compare_runs([write_run(folder / "half", half), runs["b"]])


def test_damaged_records_are_refused(folder, runs):
    paths = broken(folder, runs, "damaged")
    path = paths[0] / "records" / "answers" / "P1.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"P1.parquet is damaged; it is made again by: kn-lens reproduce"):
        compare_runs(paths)


def test_runs_of_other_versions_are_refused(folder, runs, made, monkeypatch):
    paths = [write_run(folder / "newer", made[0], version="0.2.0"), runs["b"]]
    with pytest.raises(DataError, match=r"newer: 0\.2\.0, b: 0\.1\.0"):
        compare_runs(paths)
    paths = broken(folder, runs, "older_stage")
    for note in (paths[0] / "records" / "answers").glob("_*.json"):
        note.write_text(json.dumps({**json.loads(note.read_text()), "version": 0}))
    with pytest.raises(DataError, match=r"stage answers have version 0; this version of kn_lens writes version 1"):
        compare_runs(paths)
    paths = broken(folder, runs, "sizeless")
    provenance = json.loads((paths[0] / "provenance.json").read_text())
    del provenance["model"]
    (paths[0] / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(DataError, match=r"does not record its origin \(model.kind, model.n_layers,"):
        compare_runs(paths)
    import pyarrow as pa

    from kn_lens.runs.stages.answers import ANSWERS_SCHEMA

    fewer = pa.schema([field for field in ANSWERS_SCHEMA if field.name != "nll"])
    monkeypatch.setattr(made_run, "ANSWERS_SCHEMA", fewer)
    path = write_run(folder / "fewer_columns", made[0])
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"stage answers have the columns .*; this version of kn_lens writes .*nll"):
        compare_runs([path, runs["b"]])


def test_summaries_of_neuron_files_are_refused(folder, runs):
    paths = broken(folder, runs, "found")
    (paths[0] / "config.toml").write_text('neurons = ["kn_bag-P36.json"]\n')
    with pytest.raises(DataError, match="without a model"):
        compare_runs(paths)
