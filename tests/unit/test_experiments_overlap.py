"""Table 2 and Figure 3: the values are those of the library, the intervals those of drawing facts anew by hand."""

import json

import numpy as np
import pytest

from kn_lens import Fact, NeuronSet
from kn_lens.errors import DataError
from kn_lens.experiments.found_files import found_tables, read_found
from kn_lens.experiments.overlap_tables import _Incidence, layer_table, overlap_table, table_2
from kn_lens.overlap import (
    layer_distribution,
    neurons_per_fact,
    relation_table,
    shared_across_relations,
    shared_within_relation,
)
from tests.intervals import facts_drawn, skewed_t


def random_sets(seed, sizes=(6, 4, 5)):
    """Sets of neurons that facts of a relation share in part."""
    rng = np.random.default_rng(seed)
    return {
        f"P{r}": [NeuronSet((int(rng.integers(3)), int(rng.integers(r, r + 5))) for _ in range(4)) for _ in range(n)]
        for r, n in enumerate(sizes)
    }


def by_fact(sets):
    return {Fact(f"s{i}", relation, "o"): one for relation, group in sets.items() for i, one in enumerate(group)}


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_the_library(seed):
    sets = random_sets(seed)
    values = overlap_table({"found": sets}, n_resamples=10).set_index(["relation", "statistic"])["value"]
    neurons = by_fact(sets)
    expected = relation_table(neurons).set_index("relation")
    assert values["all", "neurons_per_fact"] == pytest.approx(neurons_per_fact(neurons))
    assert values["all", "shared_within"] == pytest.approx(shared_within_relation(neurons))
    assert values["all", "shared_across"] == pytest.approx(shared_across_relations(neurons))
    for relation in sets:
        for statistic in ("neurons_per_fact", "shared_within", "shared_across"):
            assert values[relation, statistic] == pytest.approx(expected.loc[relation, statistic])


def test_drawn_facts_count_as_often_as_they_were_drawn():
    """Against pairs of draws, one by one, leaving out those of a fact with itself."""
    sets = random_sets(0)
    rng = np.random.default_rng(1)
    draws = [rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=3) for group in sets.values()]
    found = _Incidence.of(sets).statistics([one.astype(float) for one in draws])
    for draw in range(3):
        drawn = [
            [(i, one) for i, one in enumerate(group) for _ in range(counts[draw, i])]
            for group, counts in zip(sets.values(), draws, strict=True)
        ]
        pairs = [len(a & b) for group in drawn for n, (i, a) in enumerate(group) for j, b in group[n + 1 :] if i != j]
        assert found["shared_within"][draw, -1] == pytest.approx(np.mean(pairs))
        across = [
            np.mean([np.mean([len(a & b) for _, b in other]) for other in drawn if other is not group])
            for group in drawn
            for _, a in group
        ]
        assert found["shared_across"][draw, -1] == pytest.approx(np.mean(across))
        assert found["neurons_per_fact"][draw, -1] == pytest.approx(np.mean([len(a) for g in drawn for _, a in g]))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = {"neurons_per_fact": 0, "shared_within": 0}
    trials, truth = 150, {"neurons_per_fact": 3.0, "shared_within": 0.9}  # ten neurons, each with a chance of 0.3
    for trial in range(trials):
        sets = {"P1": [NeuronSet((0, int(i)) for i in np.flatnonzero(rng.random(10) < 0.3)) for _ in range(8)]}
        rows = (
            overlap_table({"found": sets}, n_resamples=300, seed=trial)
            .query("relation == 'all'")
            .set_index("statistic")
        )
        for name in covered:
            low, high = rows.loc[name, ["low", "high"]]
            covered[name] += low <= truth[name] <= high
    for name, times in covered.items():
        assert times / trials >= 0.9, name


def test_the_interval_of_table_2_is_that_of_facts_drawn_one_by_one():
    """Nine of ten facts are drawn, 4.5 degrees of freedom: t reaches to 2.6589123."""
    rng = np.random.default_rng(0)
    group = [NeuronSet((0, int(i)) for i in np.flatnonzero(rng.random(8) < 0.4)) for _ in range(10)]
    rows = overlap_table({"found": {"P1": group}}, n_resamples=200).query("relation == 'all'").set_index("statistic")
    sizes, shared = [], []
    for (drawn,) in facts_drawn([10], 200):
        sizes.append(np.mean([len(group[i]) for i in drawn]))
        pairs = [len(group[i] & group[j]) for n, i in enumerate(drawn) for j in drawn[n + 1 :] if i != j]
        shared.append(np.mean(pairs))
    for name, values in {"neurons_per_fact": sizes, "shared_within": shared}.items():
        row = rows.loc[name]
        low, high = skewed_t(row["value"], values, 2.6589123)
        assert [row["low"], row["high"]] == pytest.approx([max(0, low), high], rel=1e-6), name


@pytest.mark.parametrize("n_facts", [1, 2, 7])
def test_there_is_no_interval_of_fewer_than_eight_facts(n_facts):
    group = [NeuronSet([(0, 1), (0, 2 + i)]) for i in range(n_facts)]
    assert overlap_table({"found": {"P1": group}}, n_resamples=20)[["low", "high"]].isna().all(axis=None)


def test_sampling_others_agrees_with_the_exact_mean():
    sets = random_sets(2, sizes=(30, 40, 20))
    exact, drawn = (
        table_2({"found": sets}, n_resamples=2, across_samples=n)["table2"].set_index("statistic")["value"]
        for n in (0, 300)
    )
    assert drawn["shared_across"] == pytest.approx(exact["shared_across"], rel=0.05)
    assert drawn["shared_within"] == exact["shared_within"]


def test_random_neurons_are_the_control():
    table = overlap_table({"found": random_sets(0), "random": random_sets(1)}, n_resamples=5)
    random = table[table["neurons"] == "random"].set_index(["statistic", "relation"])["value"]
    found = table[table["neurons"] == "found"].set_index(["statistic", "relation"])["control"]
    assert found.equals(random.rename("control"))


def test_one_fact_shares_with_none_and_one_relation_with_no_other():
    alone = {"P1": [NeuronSet([(0, 1)])]}
    values = table_2({"found": alone}, n_resamples=5)["table2"].set_index("statistic")["value"]
    assert values["neurons_per_fact"] == 1 and values[["shared_within", "shared_across"]].isna().all()


def test_layers_are_those_of_the_library():
    sets = random_sets(3)
    table = layer_table({"found": sets}, 3, n_resamples=50)
    expected = layer_distribution(by_fact(sets), 3)
    assert np.allclose(table["value"], expected["share"])
    assert table["n_neurons"].tolist() == expected["n_neurons"].tolist()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert layer_table({"found": {"P1": [NeuronSet()]}}, 3, n_resamples=5)["value"].isna().all()


def test_files_of_others_are_read_by_relation(tmp_path):
    (tmp_path / "kn_bag-P36.json").write_text("[[[9, 7], [9, 8]], []]")
    NeuronSet.write_many(tmp_path / "own.json", {"seat%2Fof/Ireland/Dublin": NeuronSet([(1, 2)])})
    found = read_found([tmp_path / "kn_bag-P36.json", tmp_path / "own.json"])
    assert found == {"P36": [NeuronSet([(9, 7), (9, 8)]), NeuronSet()], "seat/of": [NeuronSet([(1, 2)])]}
    assert len(found_tables({"found": found}, n_resamples=5)["figure3"]) == 10
    (tmp_path / "uuids.json").write_text('{"some-uuid": [[1, 2]]}')
    with pytest.raises(DataError, match="does not tell the relation"):
        read_found([tmp_path / "uuids.json"])


def test_attributions_of_the_released_code_are_refined(tmp_path):
    prompt = [{"relation": "P36(capital)"}, {"ig_gold": [[9, 7, 1.0], [9, 8, 0.1]], "base": [[1, 1, 2.0]]}]
    (tmp_path / "P36.rlt.jsonl").write_text(json.dumps([prompt] * 4) + "\n")
    assert read_found([tmp_path / "P36.rlt.jsonl"]) == {"P36": [NeuronSet([(9, 7)])]}
    assert read_found([tmp_path / "P36.rlt.jsonl"], metric="base") == {"P36": [NeuronSet([(1, 1)])]}
