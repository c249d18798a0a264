"""Table 2 and Figure 3: every value and interval equals plain loops over facts, pairs and bootstrap samples."""

import json
import math
from itertools import product

import numpy as np
import pytest

from kn_lens import NeuronSet
from kn_lens._core.layout import LayerLayout, NeuronLayout
from kn_lens.errors import DataError
from kn_lens.runs.found_files import found_tables, read_found
from kn_lens.runs.overlap_tables import expert_table, layer_table, overlap_table, table_2
from kn_lens.runs.paper import TABLE_2
from tests.intervals import AT_LEAST_0, SHARE, drawn_facts, is_close, naive_interval
from tests.naive_overlap import naive_overlap, sampled_shares


def random_sets(seed, sizes=(6, 4, 5)):
    """Return neuron sets that the facts of a relation partly share."""
    rng = np.random.default_rng(seed)
    return {
        f"P{r}": [NeuronSet((int(rng.integers(3)), int(rng.integers(r, r + 5))) for _ in range(4)) for _ in range(n)]
        for r, n in enumerate(sizes)
    }


@pytest.mark.parametrize("across_samples", [0, 7])
@pytest.mark.parametrize("sizes", [(9, 5, 2, 1), (3, 3, 3), (3, 3, 2)])
def test_table_2_equals_loops_over_facts_and_draws(sizes, across_samples):
    """With three facts in each relation some draws have no pair of different facts, with (3, 3, 2) too many."""
    kinds = {"found": random_sets(0, sizes), "baseline": random_sets(1, sizes), "random": random_sets(2, sizes)}
    table = overlap_table(kinds, across_samples=across_samples, n_resamples=90, seed=4)
    n_undefined = 0
    expected = []
    for statistic, kind in product(("neurons_per_fact", "shared_within", "shared_across"), kinds):
        groups = [list(enumerate(group)) for group in kinds[kind].values()]
        values = naive_overlap(groups)[statistic]
        draws = []
        for positions in drawn_facts(sizes, 90, seed=4):
            drawn = [[group[i] for i in chosen] for group, chosen in zip(groups, positions, strict=True)]
            draws.append(naive_overlap(drawn)[statistic])
        given = values
        if across_samples and statistic == "shared_across":
            given = sampled_shares(kinds[kind], across_samples, 4)
        for r, relation in enumerate([*kinds[kind], "all"]):
            of_draws = [draw[r] for draw in draws]
            n_facts = sizes if relation == "all" else [sizes[r]]
            ends = naive_interval(values[r], of_draws, n_facts, bounds=AT_LEAST_0)
            n = sum(k * (k - 1) // 2 for k in n_facts) if statistic == "shared_within" else sum(n_facts)
            paper = TABLE_2.get((statistic, kind), math.nan) if relation == "all" else math.nan
            expected.append((statistic, kind, relation, given[r], *ends, n, paper))
            n_undefined += relation == "all" and sum(map(math.isnan, of_draws))
    assert (n_undefined > 0) == (sizes != (9, 5, 2, 1))
    assert len(table) == len(expected)
    rows = table.set_index(["statistic", "neuron_set", "relation"])
    for statistic, kind, relation, value, low, high, n, paper in expected:
        row = rows.loc[(statistic, kind, relation)]
        assert row["value"] == pytest.approx(value, rel=2e-7, nan_ok=True)  # shares of facts are of float32
        assert is_close([row["low"], row["high"]], [low, high]), (statistic, kind, relation)
        assert row["n"] == n and row["paper"] == pytest.approx(paper, nan_ok=True)
        control = rows.loc[(statistic, "random", relation), "value"]
        assert row["control"] == control or np.isnan([row["control"], control]).all()
    of_all = rows.loc[("shared_within", "found", "all")]
    assert np.isfinite([of_all["low"], of_all["high"]]).all() == (sizes != (3, 3, 2))


def test_intervals_have_about_their_nominal_coverage():
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


@pytest.mark.parametrize("n_facts", [1, 2, 7])
def test_fewer_than_eight_facts_have_no_interval(n_facts):
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
    random = table[table["neuron_set"] == "random"].set_index(["statistic", "relation"])["value"]
    found = table[table["neuron_set"] == "found"].set_index(["statistic", "relation"])["control"]
    assert found.equals(random.rename("control"))


def test_single_facts_and_relations_share_nothing():
    alone = {"P1": [NeuronSet([(0, 1)])]}
    values = table_2({"found": alone}, n_resamples=5)["table2"].set_index("statistic")["value"]
    assert values["neurons_per_fact"] == 1 and values[["shared_within", "shared_across"]].isna().all()


def naive_layers(facts, n_layers):
    """Return the share of the neurons of some facts in each layer, NaN without any, and their number in each."""
    counts = [0] * n_layers
    for found in facts:
        for neuron in found:
            counts[neuron.layer] += 1
    total = sum(counts)
    return [count / total if total else math.nan for count in counts], counts


def sets_of_few(n_facts, n_with_neurons):
    """One relation of which only some facts have neurons, in layers 0 and 2."""
    found = [NeuronSet([(0, i), (2, i), (2, i + 9)][: 1 + i % 3]) for i in range(n_with_neurons)]
    return {"P0": found + [NeuronSet()] * (n_facts - n_with_neurons)}


@pytest.mark.parametrize(
    "sets, undefined",
    [
        (random_sets(3, (9, 4, 1)), "none"),
        (sets_of_few(10, 3), "few"),  # no more than one draw in twenty, which are left out
        (sets_of_few(10, 1), "many"),  # there is no interval
    ],
)
def test_figure_3_equals_loops_over_facts_and_draws(sets, undefined):
    table = layer_table({"found": sets, "random": random_sets(4, (8, 3))}, 3, n_resamples=90, seed=4)
    assert table["neuron_set"].tolist() == ["found"] * 3 + ["random"] * 3
    assert table["layer"].tolist() == [0, 1, 2] * 2
    rows = table[table["neuron_set"] == "found"].reset_index(drop=True)
    sizes = [len(group) for group in sets.values()]
    shares, counts = naive_layers([found for group in sets.values() for found in group], 3)
    draws = []
    for positions in drawn_facts(sizes, 90, seed=4):
        drawn = []
        for group, chosen in zip(sets.values(), positions, strict=True):
            drawn += [group[i] for i in chosen]
        draws.append(naive_layers(drawn, 3)[0])
    n_undefined = sum(math.isnan(draw[0]) for draw in draws)
    assert undefined == ("none" if n_undefined == 0 else "few" if n_undefined <= 4 else "many")
    for layer in range(3):
        row = rows.loc[layer]
        assert row["value"] == pytest.approx(shares[layer], rel=1e-9)
        ends = naive_interval(shares[layer], [draw[layer] for draw in draws], sizes, bounds=SHARE)
        assert is_close([row["low"], row["high"]], ends), layer
        assert (row["n"], row["n_neurons"], row["control"]) == (sum(sizes), counts[layer], 1 / 3)


def test_without_neurons_no_layer_has_a_share():
    assert layer_table({"found": {"P1": [NeuronSet()]}}, 3, n_resamples=5)["value"].isna().all()


def test_the_table_of_experts_equals_loops_over_facts_and_draws():
    rng = np.random.default_rng(5)
    layout = NeuronLayout((LayerLayout(n_rows=4), LayerLayout(n_rows=14, n_experts=3, d_expert=4)))
    sets = {}
    for relation, size in {"P1": 9, "P2": 3}.items():
        keys = [[layout.key(layer, int(rng.integers(4))) for layer in (0, 1, 1)] for _ in range(size)]
        sets[relation] = [NeuronSet(of_fact) for of_fact in keys]
    table = expert_table({"found": sets}, layout, n_resamples=90, seed=4)
    assert list(zip(table["layer"], table["expert"], strict=True)) == [(1, "shared"), (1, "0")]
    every = [neurons for group in sets.values() for neurons in group]
    groups = list(sets.values())
    for row in table.to_dict("records"):
        expert = row["expert"] if row["expert"] == "shared" else int(row["expert"])

        def share(facts, expert=expert):
            experts = [neuron.expert for neurons in facts for neuron in neurons]
            return experts.count(expert) / len(experts)

        draws = []
        for positions in drawn_facts([9, 3], 90, seed=4):
            pairs = zip(groups, positions, strict=True)
            draws.append(share([group[i] for group, chosen in pairs for i in chosen]))
        assert row["value"] == pytest.approx(share(every), rel=1e-9)
        assert is_close([row["low"], row["high"]], naive_interval(share(every), draws, [9, 3], bounds=SHARE))
        assert row["n"] == 12 and row["n_neurons"] == round(share(every) * sum(map(len, every)))
        assert row["n_facts"] == sum(any(neuron.expert == expert for neuron in neurons) for neurons in every)
        assert row["control"] == {"shared": 2, 0: 4}[expert] / 18


def test_neuron_files_of_other_programs_are_read_by_relation(tmp_path):
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
