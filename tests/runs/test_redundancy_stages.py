"""Stages ``degenerate`` and ``consistency``, which run on request."""

import pytest

import kn_lens as kn
from kn_lens.reports import write_report
from kn_lens.runs.reader import RunRecords

N_FACTS = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    model, world = kn.load_model("world-gpt2"), kn.FactSet.world()
    facts = []
    for relation in ("P36", "P30"):
        facts += [kn.Fact(f.subject, f.relation, f.object, f.templates[:3]) for f in list(world.of(relation))[:N_FACTS]]
    options = {"n_resamples": 50, "check_facts": 2, "keep": 0.1}
    tables = kn.reproduce(model, kn.FactSet(facts), path, stages=["degenerate", "consistency"], **options)
    return model, facts, path, tables


def test_degenerate_records_are_those_of_the_call(made):
    model, facts, path, tables = made
    run = RunRecords.read(path)
    records = run.records("degenerate")
    assert records.groupby(["neuron_set", "criterion"]).size().tolist() == [4] * 6
    row = records.loc[(records["neuron_set"] == "found") & (records["criterion"] == "probability")].iloc[0]
    (fact,) = [fact for fact in facts if fact.key == row["key"]]
    neurons = run.records("neurons")
    found = neurons.loc[(neurons["neuron_set"] == "found") & (neurons["key"] == fact.key)].iloc[0]
    own = kn.NeuronSet(zip(found["layer"].tolist(), found["index"].tolist(), strict=True))
    sets = kn.degenerate_sets(model, kn.make_prompts(model, fact), {fact: own}, share=0.5)
    assert (row["n_neurons"], row["taken"], row["n_sufficient"]) == (
        len(own),
        sets[fact].taken,
        len(sets[fact].sufficient),
    )
    assert row["after"] == pytest.approx(sets[fact].after, abs=1e-5)
    table = tables["degenerate"].set_index(["criterion", "measure", "neuron_set"])
    assert table.loc[("answer", "taken", "random"), "value"] == 0
    assert table.loc[("probability", "taken", "found"), ["n", "control"]].tolist() == [4, 0]


def test_consistency_records_are_those_of_the_call(made):
    model, facts, path, tables = made
    records = RunRecords.read(path).records("consistency")
    prompts = kn.make_prompts(model, facts)
    expected = kn.consistency(kn.attribute(model, prompts)).table.set_index("key")
    found = records.set_index("key").loc[expected.index]
    assert found["jaccard"].to_numpy() == pytest.approx(expected["jaccard"].to_numpy(), abs=0.02)
    assert (found["n_prompts"] == expected["n_prompts"]).all() and found["p"].between(0, 1).all()
    table = tables["consistency"].set_index("measure")
    assert table.loc["consistent", "control"] == 0.05 and table.loc["consistent", "n"] == 2 * N_FACTS
    by_relation = tables["consistency_by_relation"]
    assert by_relation["relation"].tolist() == ["P30", "P30", "P36", "P36"]
    assert table.loc["jaccard", "control"] < table.loc["jaccard", "value"]


def test_the_report_draws_both(made):
    _, _, path, _ = made
    write_report(path)
    page = (path / "report.html").read_text(encoding="utf-8")
    for text in ('id="figure-degenerate"', 'id="figure-consistency"', "Facts with more than one home"):
        assert text in page
