"""Statistics of stages on request in a comparison, beside plain loops over the facts that they measured."""

from itertools import product

import numpy as np
import pyarrow as pa
import pytest

import kn_lens as kn
from kn_lens.reports.compare.comparison import compare_runs
from kn_lens.reports.compare.requested import REQUESTED
from kn_lens.reports.html.comparison import comparison_page
from kn_lens.runs.stages.editors import EDITORS_SCHEMA
from tests.made_run import KINDS, TABLES, made_facts, of_objects, write_run

SAMPLING = {"n_resamples": 60, "n_permutations": 60}
N_LAYERS = (4, 6)
TEXTS_OF_EDITS = [field.name for field in EDITORS_SCHEMA if field.type == pa.string()]


def requested_rows(made, seed, n_layers):
    """Rows of the stages for most facts, by stage."""
    rng = np.random.default_rng(seed)
    rows = {"positions": [], "circuits": [], "queries": [], "degenerate": [], "consistency": [], "editors": []}
    for number, one in enumerate(made):
        if number % 5 == seed:  # each model lacks other facts
            continue
        base = {"relation": one.fact.relation, "key": one.key}
        rows["positions"].append({**base, "role": "read", "layer": 0, "neuron_set": "", "n_prompts": 2, "effect": 0.1,
                                  "n_neurons": None, "before": None, "after": None})  # fmt: skip
        for kind in KINDS:
            before, after = rng.uniform(0.2, 0.9, 2).tolist()
            for role in ("subject_last", "read"):
                rows["positions"].append({**base, "role": role, "layer": -1, "neuron_set": kind, "effect": None,
                                          "n_prompts": int(rng.integers(1, 5)), "n_neurons": 3, "before": before,
                                          "after": after * (role == "read" or 0.5)})  # fmt: skip
            for size in (10, 100):
                numbers = dict(zip(("empty", "kept", "left", "clean"), rng.uniform(0, 4, 4).tolist(), strict=True))
                numbers["clean"] += 5.0
                rows["circuits"].append({**base, "neuron_set": kind, "size": size, "n_pairs": number % 3 + 1, **numbers,
                                         "n_kept": 10.0 + number, "at_read": 0.5, "circuit": ""})  # fmt: skip
        for index in range(4):
            rows["queries"].append({**base, "layer": int(rng.integers(n_layers)), "index": index, "score": 0.1,
                                    "n_prompts": 2})  # fmt: skip
        for kind, criterion in product(KINDS, ("answer", "probability")):
            taken = bool(rng.integers(2))
            rows["degenerate"].append({**base, "neuron_set": kind, "criterion": criterion, "n_neurons": 4,
                                       "n_prompts": 2, "exact": True, "known": number % 4 != 0, "taken": taken,
                                       "n_smallest": float(rng.integers(1, 4)) if taken or number % 3 else np.nan,
                                       "smallest_suffices": bool(rng.integers(2)), "n_sufficient": 1,
                                       "degenerate": bool(rng.integers(2)), "before": 0.5, "after": 0.2})  # fmt: skip
        rows["consistency"].append({**base, "n_prompts": 3, "jaccard": float(rng.uniform()),
                                    "null_mean": float(rng.uniform(0, 0.2)), "null_high": 0.3,
                                    "p": np.nan if number % 4 == 1 else 0.01,
                                    "consistent": bool(rng.integers(2))})  # fmt: skip
        for editor, kind in product(("KN (EasyEdit)", "ROME"), KINDS):
            for question in ("own wording", "held-out wording", "same relation", "other relations", "same answer"):
                right = float(rng.uniform(0.5, 1))
                row = dict.fromkeys(EDITORS_SCHEMA.names, 0) | dict.fromkeys(TEXTS_OF_EDITS, "")
                rows["editors"].append({**row, **base, "editor": editor, "neuron_set": kind, "question": question,
                                        "n_prompts": int(rng.integers(1, 5)), "right_before": right,
                                        "lost": right * float(rng.uniform()),
                                        "new_right_after": float(rng.uniform())})  # fmt: skip
    schemas = {stage.name: schema for stage, (schema, _, _) in REQUESTED.items()}
    return {stage: (schemas[stage], of_stage) for stage, of_stage in rows.items()}


@pytest.fixture(scope="module")
def made():
    first = made_facts(0)
    return first, of_objects(made_facts(1, n_layers=6), first)


@pytest.fixture(scope="module")
def rows(made):
    return [requested_rows(facts, seed, N_LAYERS[seed]) for seed, facts in enumerate(made)]


@pytest.fixture(scope="module")
def runs(made, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("requested")
    tables = (*TABLES, "positions", "circuits", "query_neurons", "degenerate", "consistency", "editors")
    written = {}
    for number, name in enumerate("ab"):
        path = folder / name
        options = {"n_layers": N_LAYERS[number], "tables": tables, "requested": rows[number]}
        written[name] = write_run(path, made[number], **options)
    return written


@pytest.fixture(scope="module")
def comparison(runs):
    return compare_runs(runs, **SAMPLING)


def mean_of_ratios(rows, keys, numerator, denominator):
    """The mean over relations of sums over facts."""
    ratios = []
    for relation in dict.fromkeys(row["relation"] for row in rows):
        mine = [row for row in rows if row["relation"] == relation and row["key"] in keys]
        ratios.append(sum(map(numerator, mine)) / sum(map(denominator, mine)))
    return np.mean(ratios)


def changed(row):
    return row["n_prompts"] * (row["after"] - row["before"])


def gap(row):
    return row["n_pairs"] * (row["clean"] - row["empty"])


STATISTICS = {
    "suppress_at_subject": ("positions", changed, lambda row: row["n_prompts"] * row["before"]),
    "circuit_nodes": ("circuits", lambda row: row["n_kept"], lambda row: 1),
    "circuit_at_read": ("circuits", lambda row: row["at_read"], lambda row: 1),
    "faithfulness_100": ("circuits", lambda row: row["n_pairs"] * (row["kept"] - row["empty"]), gap),
    "completeness_100": ("circuits", lambda row: row["n_pairs"] * (row["clean"] - row["left"]), gap),
}


def chosen(rows, stage, kind):
    if stage == "positions":
        return [row for row in rows[stage][1] if row["role"] == "subject_last" and row["neuron_set"] == kind]
    return [row for row in rows[stage][1] if row["size"] == 100 and row["neuron_set"] == kind]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_they_are_those_of_the_facts_measured_in_all_runs(comparison, rows, statistic):
    stage, numerator, denominator = STATISTICS[statistic]
    keys = set.intersection(*({row["key"] for row in of_run[stage][1]} for of_run in rows))
    values = {}
    for number, run in enumerate("ab"):
        for kind in ("found", "random"):
            values[run, kind] = mean_of_ratios(chosen(rows[number], stage, kind), keys, numerator, denominator)
        where = f"fact_set == 'measured' and statistic == {statistic!r} and run == {run!r} and neuron_set == 'found'"
        (row,) = comparison.values.query(where).to_dict("records")
        assert row["value"] == pytest.approx(values[run, "found"]) and row["n"] == len(keys) == 9
        has_control = statistic not in ("circuit_nodes", "circuit_at_read")
        assert row["control"] == pytest.approx(values[run, "random"]) if has_control else np.isnan(row["control"])
    (row,) = comparison.differences.query(f"statistic == {statistic!r}").to_dict("records")
    assert row["value"] == pytest.approx(values["b", "found"] - values["a", "found"])
    assert row["fact_set"] == "measured"


POOLED = {
    "taken": ("degenerate", lambda row: row["taken"], lambda row: True),
    "degenerate": ("degenerate", lambda row: row["degenerate"], lambda row: True),
    "smallest_set": ("degenerate", lambda row: row["n_smallest"], lambda row: row["n_smallest"] > 0),
    "smallest_suffices": ("degenerate", lambda row: row["smallest_suffices"], lambda row: row["n_smallest"] > 0),
    "consistent": ("consistency", lambda row: row["consistent"], lambda row: row["p"] > 0),
    "wordings_jaccard": ("consistency", lambda row: row["jaccard"], lambda row: row["p"] > 0),
}
"""The number that is averaged over all facts of which a condition holds; of degenerate sets, over known facts."""


@pytest.mark.parametrize("statistic", POOLED)
def test_redundancy_is_averaged_over_the_facts_that_it_is_about(comparison, rows, statistic):
    stage, number, holds = POOLED[statistic]
    keys = set.intersection(*({row["key"] for row in of_run[stage][1]} for of_run in rows))

    def mean(of_run, kind):
        mine = [row for row in of_run[stage][1] if row["key"] in keys and holds(row)]
        if stage == "degenerate":
            mine = [row for row in mine if row["known"] and row["neuron_set"] == kind]
            mine = [row for row in mine if row["criterion"] == "probability"]
        return np.mean([number(row) for row in mine])

    for of_run, run in zip(rows, "ab", strict=True):
        where = f"fact_set == 'measured' and statistic == {statistic!r} and run == {run!r} and neuron_set == 'found'"
        (row,) = comparison.values.query(where).to_dict("records")
        assert row["value"] == pytest.approx(mean(of_run, "found")) and row["n"] == len(keys)
        if stage == "degenerate":
            assert row["control"] == pytest.approx(mean(of_run, "random"))
    if statistic == "consistent":
        assert row["control"] == 0.05


@pytest.mark.parametrize("editor", ["KN (EasyEdit)", "ROME"])
def test_editors_are_compared_in_held_out_wordings_and_by_what_they_keep(comparison, rows, editor):
    keys = set.intersection(*({row["key"] for row in of_run["editors"][1]} for of_run in rows))
    name = {"KN (EasyEdit)": "kn_easyedit", "ROME": "rome"}[editor]
    for of_run, run in zip(rows, "ab", strict=True):
        for statistic, questions, numerator, denominator in (
            ("success", ["held-out wording"], lambda row: row["new_right_after"], lambda row: 1),
            (
                "kept",
                ["same relation", "other relations"],
                lambda row: row["right_before"] - row["lost"],
                lambda row: row["right_before"],
            ),
        ):
            values = {}
            for kind in ("found", "random"):
                mine = [row for row in of_run["editors"][1] if row["editor"] == editor and row["neuron_set"] == kind]
                mine = [row for row in mine if row["question"] in questions]
                values[kind] = mean_of_ratios(
                    mine,
                    keys,
                    lambda row: row["n_prompts"] * numerator(row),  # noqa: B023
                    lambda row: row["n_prompts"] * denominator(row),  # noqa: B023
                )
            where = f"statistic == '{statistic}_{name}' and run == {run!r} and neuron_set == 'found'"
            (row,) = comparison.values.query(where).to_dict("records")
            assert row["value"] == pytest.approx(values["found"])
            assert row["control"] == pytest.approx(values["random"]) and 0 <= row["value"] <= 1


def test_the_depth_of_query_neurons_is_a_share_of_the_layers(comparison, rows):
    for number, run in enumerate("ab"):
        of_run = rows[number]["queries"][1]
        keys = {row["key"] for row in rows[0]["queries"][1]} & {row["key"] for row in rows[1]["queries"][1]}
        depth = mean_of_ratios(of_run, keys, lambda row: (row["layer"] + 0.5) / N_LAYERS[number], lambda row: 1)  # noqa: B023
        (row,) = comparison.values.query(f"statistic == 'query_depth' and run == {run!r}").to_dict("records")
        assert row["value"] == pytest.approx(depth) and row["control"] == 0.5 and 0 <= row["low"] <= row["high"] <= 1


def test_the_page_shows_them(comparison):
    page = comparison_page(comparison)
    assert "Facts measured in all models by stages on request" in page
    labels = ["nodes of the smallest circuit", "faithfulness of 100 nodes", "mean depth of the query neurons"]
    labels += ["ROME: new answer on top, held-out wordings", "facts whose smallest subset suffices too"]
    for label in labels:
        assert label in page


def test_a_stage_that_a_run_lacks_is_not_compared_and_named(made, rows, runs, tmp_path):
    path = tmp_path / "few"
    few = {name: of_stage for name, of_stage in rows[1].items() if name != "queries"}
    tables = (*TABLES, "positions")  # circuits are not complete without their table
    write_run(path, made[1], n_layers=6, tables=tables, requested=few)
    found = compare_runs({"a": runs["a"], "few": path}, **SAMPLING)
    assert set(found.values.query("fact_set == 'measured'")["statistic"]) == {"suppress_at_subject"}
    notes = " ".join(found.notes)
    assert "The stage circuits is not compared: it is missing in few." in notes and "The stage queries is not" in notes
    assert "positions" not in notes


def test_records_of_other_facts_are_damaged(made, rows, runs, tmp_path):
    schema, of_stage = rows[0]["circuits"]
    other = [{**row, "key": row["key"] + "?"} for row in of_stage]
    path = write_run(tmp_path / "bad", made[0], tables=(*TABLES, "circuits"), requested={"circuits": (schema, other)})
    with pytest.raises(kn.DataError, match="stage circuits have facts that the run did not query"):
        compare_runs({"a": path, "b": runs["b"]}, **SAMPLING)
