"""Stages ``circuits`` and ``queries``, which run on request."""

import shutil

import numpy as np
import pytest

import kn_lens as kn
from kn_lens.errors import ArgumentError, UnsupportedModelError
from kn_lens.reports import write_report
from kn_lens.reports.html.panels import draw_figures, read_tables
from kn_lens.runs.execute import stages_named
from kn_lens.runs.reader import RunRecords
from kn_lens.runs.stages.circuits import CIRCUITS, N_DRAWN, PAIRS_PER_FACT, QUERIES, SHARE, SIZES
from kn_lens.runs.stages.order import ON_REQUEST, STAGES
from tests import tiny

N_FACTS = 9


@pytest.fixture(scope="module")
def facts():
    by_relation = {}
    for fact in kn.FactSet.world():
        by_relation.setdefault(fact.relation, []).append(fact)
    return kn.FactSet([*by_relation["P36"][:24], *by_relation["P30"][:24]])


@pytest.fixture(scope="module")
def made(facts, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    model = kn.load_model("world-gpt2")
    stages = ["circuits", "queries"]
    tables = kn.reproduce(model, facts, path, stages=stages, n_resamples=50, check_facts=N_FACTS)
    return model, path, tables


def test_they_run_where_they_are_named_alone():
    assert stages_named(STAGES, [], ON_REQUEST) == list(STAGES)
    assert stages_named(STAGES, ["circuits"], ON_REQUEST) == [CIRCUITS]
    with pytest.raises(ArgumentError, match="Did you mean 'queries'"):
        stages_named(STAGES, ["querys"], ON_REQUEST)


def test_records_are_those_of_the_calls(made, facts):
    model, path, _ = made
    records = RunRecords.read(path).records("circuits")
    assert set(records["relation"]) == {"P36", "P30"}
    row = records[(records["neuron_set"] == "found") & (records["size"] == 100)].iloc[0]
    (fact,) = [fact for fact in facts if fact.key == row["key"]]
    others = [other for other in facts if other.relation == fact.relation]
    pairs = kn.counterfactual_pairs(model, fact, others=others, known=True)
    assert row["n_pairs"] == min(len(pairs), PAIRS_PER_FACT)
    pairs = pairs.select(range(int(row["n_pairs"])))
    scores = kn.circuit_scores(model, pairs)
    trials = kn.faithfulness(model, scores, sizes=[100], controls=False).trials
    for column in ("clean", "empty", "kept", "left"):
        assert row[column] == pytest.approx(trials[column].mean(), abs=1e-3)
    smallest = kn.find_circuits(model, pairs, share=SHARE, scores=scores)
    assert row["n_kept"] == pytest.approx(np.mean([len(circuit) for circuit in smallest]), abs=1)


def test_tables_say_what_circuits_keep(made):
    tables = made[2]
    curve = tables["circuits"].set_index(["neuron_set", "size", "measure"])["value"]
    kept = [curve[neuron_set, 100, "faithfulness"] for neuron_set in ("found", "activation", "random")]
    assert kept[0] > 0.8 > kept[1] > kept[2]
    assert curve["found", 100, "completeness"] > 0.9
    assert set(tables["circuits"]["size"]) == set(SIZES)
    sizes = tables["circuit_sizes"].set_index("statistic")
    assert 20 < sizes.loc["nodes", "low"] < sizes.loc["nodes", "high"] < 150
    assert sizes.loc["share at the read position", "value"] > 0.8
    layers = tables["query_neurons"]
    assert layers["value"].sum() == pytest.approx(1.0)
    assert (layers["control"] == 0.25).all() and layers["value"].iloc[-1] == 0  # nothing reads the last layer


def test_queries_are_means_over_prompts(made, facts):
    model, path, _ = made
    records = RunRecords.read(path).records("queries")
    row = records.iloc[0]
    (fact,) = [fact for fact in facts if fact.key == row["key"]]
    others = [other for other in facts if other.relation == fact.relation]
    pairs = kn.counterfactual_pairs(model, fact, others=others, known=True).select(range(int(row["n_prompts"])))
    found = kn.query_neurons(model, pairs.clean)
    expected = sum(float(result.by_neuron[row["layer"], row["index"]]) for result in found) / len(found)
    assert row["score"] == pytest.approx(expected, rel=1e-3)


def test_the_report_draws_the_curve(made):
    page = write_report(made[1]).read_text(encoding="utf-8")
    assert "Circuits of neurons and heads" in page
    assert "Line charts of circuits of 10 to 3,000 nodes" in page
    assert "Query neurons: distribution over layers" in page


def test_the_report_draws_the_circuit_of_a_fact(made):
    _, path, _ = made
    run = RunRecords.read(path)
    records = run.records("circuits")
    drawn = records[records["circuit"] != ""]
    assert drawn["relation"].tolist() == ["P36", "P30"] or drawn["relation"].tolist() == ["P30", "P36"]
    circuit = kn.Circuit.from_json(drawn["circuit"].iloc[0])
    assert circuit.meta["faithfulness"] >= SHARE and len(circuit.edges) > 20
    strongest = sorted(circuit, key=lambda node: -abs(circuit.scores[node]))[:N_DRAWN]
    assert {edge.source for edge in circuit.edges} <= set(strongest)
    tables = read_tables(run)
    figure = draw_figures(run, tables)["circuit_graph"]
    assert circuit.meta["prompt"] in figure.layout.xaxis.title.text
    assert sum(len(trace.text) for trace in figure.data if trace.name in ("neurons", "heads")) == len(circuit)
    page = write_report(path).read_text(encoding="utf-8")
    assert "One circuit" in page and "Graph of a circuit of" in page and "kn_lens.circuit" not in page


def test_runs_are_compared_by_them(made, tmp_path):
    """A run of these stages alone has no neurons that runs are compared by, and says so."""
    shutil.copytree(made[1], tmp_path / "copy")
    with pytest.raises(kn.DataError):
        kn.compare_runs([made[1], tmp_path / "copy"])


def test_a_relation_without_pairs_has_no_records(tmp_path):
    model = kn.load_model("world-gpt2")
    lone = [fact for fact in kn.FactSet.world() if fact.relation == "P36"][:1]
    tables = kn.reproduce(model, kn.FactSet(lone), tmp_path / "run", stages=["circuits", "queries"], n_resamples=3)
    assert "circuits" not in tables and "query_neurons" not in tables
    assert RunRecords.read(tmp_path / "run").records("circuits").empty


def test_models_without_circuits_are_refused(tmp_path):
    facts = [kn.Fact(country, "P36", capital, ("The capital of [X] is [Y].",)) for country, capital in
             tiny.COUNTRIES.items()]  # fmt: skip
    model = tiny.loaded("BartForConditionalGeneration")
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        kn.reproduce(model, kn.FactSet(facts), tmp_path / "run", stages=["circuits"], min_prompts=1)


def test_counted_passes_are_about_those_made(tmp_path, facts):
    from kn_lens.runs.context import open_context
    from kn_lens.runs.settings import Settings
    from kn_lens.runs.stages.facts import FACTS

    model = kn.load_model("world-gpt2")
    settings = Settings.of(check_facts=4)
    p36 = kn.FactSet([fact for fact in facts if fact.relation == "P36"])
    rows = 0

    def count(module, args, kwargs, output):
        nonlocal rows
        rows += len(output)

    with open_context(model, p36, tmp_path / "run", settings) as context:
        for stage in (FACTS, CIRCUITS):
            (shard,) = stage.shards(context)
            handle = model.unembed.register_forward_hook(lambda m, args, output: count(m, args, {}, output))
            with context.run.writing(stage.name, shard, str(context.inputs(stage, shard)), stage.version) as path:
                stage.write(context, shard, path, lambda done, total: None)
            handle.remove()
        passes = CIRCUITS.passes(context, shard)
    assert rows == pytest.approx(passes.whole + passes.whole_gradients, rel=0.5)
    assert QUERIES.passes(context, shard).rows() > 0


def test_intervals_of_shares_lie_between_0_and_1(made):
    _, _, tables = made
    shares = tables["query_neurons"]
    at_read = tables["circuit_sizes"].query("statistic == 'share at the read position'")
    for table in (shares, at_read):
        ends = table[["low", "high"]].dropna()
        assert len(ends) and (ends["low"] >= 0).all() and (ends["high"] <= 1).all()
