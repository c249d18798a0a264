"""Stage ``positions``, which runs on request."""

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
        facts += [kn.Fact(f.subject, f.relation, f.object, f.templates[:3]) for f in list(world.of(relation))[:10]]
    options = {"n_resamples": 50, "check_facts": N_FACTS, "keep": 0.1}
    tables = kn.reproduce(model, kn.FactSet(facts), path, stages=["positions"], **options)
    return model, facts, path, tables


def test_records_are_those_of_the_calls(made):
    model, facts, path, _ = made
    records = RunRecords.read(path).records("positions")
    first = records.iloc[0]["key"]
    (fact,) = [fact for fact in facts if fact.key == first]
    prompts = kn.make_prompts(model, [fact])
    attr = kn.attribute(model, prompts, positions="all")
    of_fact = records[records["key"] == first]
    layers = of_fact[of_fact["neuron_set"] == ""].set_index(["role", "layer"])
    for row in attr.by_role().to_dict("records"):
        assert layers.loc[(row["role"], row["layer"]), "effect"] == pytest.approx(row["effect"], abs=1e-5)
    for place in ("subject_last", "read"):
        found = of_fact[(of_fact["neuron_set"] == "found") & (of_fact["role"] == place)].iloc[0]
        neurons = kn.refine(attr.at(place))[fact]
        effect = kn.measure(model, prompts.at(place), kn.Suppress(neurons))
        assert found["n_neurons"] == len(neurons)
        assert found["after"] == pytest.approx(effect["after"].mean(), abs=1e-5)


def test_tables_have_all_roles_and_controls_and_the_report_a_map(made):
    _, _, path, tables = made
    carried = tables["positions"].set_index(["role", "layer"])
    assert list(dict.fromkeys(tables["positions"]["role"]))[-1] == "read"
    assert (carried.loc[("subject_last", 3), "value"], carried.loc[("after", 3), "value"]) == (0, 0)
    assert carried.loc[("read", 2), "value"] > 0.1 and carried.loc[("read", 2), "n"] == 2 * N_FACTS
    effects = tables["position_effects"].set_index(["role", "neuron_set"])["value"]
    assert effects["read", "found"] < effects["read", "random"]
    assert {"found", "activation", "random"} == set(tables["position_effects"]["neuron_set"])
    labels = list(tables["position_effects"])
    assert labels.index("role") < labels.index("value")  # what comes before the value labels a row on the terminal
    write_report(path)
    assert "Where the answer comes about" in (path / "report.html").read_text(encoding="utf-8")
