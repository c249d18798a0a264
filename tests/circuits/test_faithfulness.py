from dataclasses import replace

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.circuits import HeadNode, NeuronNode
from kn_lens.circuits.orders import active_order, is_node, order_by, random_order
from tests import tiny
from tests.circuits.conftest import made_pairs

ARCHITECTURES = ("GPT2LMHeadModel", "LlamaForCausalLM", "BertForMaskedLM")


def difference(pairs, row, logits):
    at = logits[0, int(pairs.clean.read_pos[row])]
    return float(at[pairs.clean.target_ids[row]] - at[pairs.clean.contrast_ids[row]])


def set_outside(model, pairs, row, nodes, kinds, references, without=False):
    """Return the logit difference with all nodes but some (or these alone) set, in a loop over nodes."""
    cache = references[row]

    def hook_for(layer, kind):
        def hook_fn(value, hook):
            value = value.clone()
            name = f"blocks.{layer}." + ("mlp.hook_post" if kind == "neuron" else "attn.hook_z")
            for position in range(value.shape[1]):
                for number in range(value.shape[2]):
                    node = (NeuronNode if kind == "neuron" else HeadNode)(layer, number, position)
                    if (node in nodes) == without:
                        value[0, position, number] = cache[name][0, position, number]
            return value

        return hook_fn

    hooks = []
    for layer in range(tiny.N_LAYERS):
        if "neuron" in kinds:
            hooks.append((f"blocks.{layer}.mlp.hook_post", hook_for(layer, "neuron")))
        if "head" in kinds:
            hooks.append((f"blocks.{layer}.attn.hook_z", hook_for(layer, "head")))
    with torch.no_grad():
        return difference(pairs, row, model.run_with_hooks(pairs.clean.tokens[[row]], fwd_hooks=hooks))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kinds", [("neuron",), ("neuron", "head")])
def test_shares_are_those_of_a_plain_loop(architecture, kinds, pairs):
    model = tiny.loaded(architecture)
    scores = kn.circuit_scores(model, pairs)
    trials = kn.faithfulness(model, scores, sizes=[0, 7, 40], kinds=kinds, controls=False).trials
    caches = []
    for row in range(len(pairs)):
        with torch.no_grad():
            caches.append(model.run_with_cache(pairs.counterfactual.tokens[[row]])[1])
    of_kind = scores if "head" in kinds else _neurons_alone(scores)
    for trial in trials.itertuples():
        row = trial.pair
        nodes = set(of_kind.top(row, trial.size))
        expected = set_outside(model, pairs, row, nodes, kinds, caches)
        assert trial.kept == pytest.approx(expected, abs=1e-9)
        without = set_outside(model, pairs, row, nodes, kinds, caches, without=True)
        assert trial.left == pytest.approx(without, abs=1e-9)
        empty = set_outside(model, pairs, row, set(), kinds, caches)
        assert trial.empty == pytest.approx(empty, abs=1e-9)
        assert trial.clean == pytest.approx(float(scores.clean[row]), abs=1e-9)
        gap = trial.clean - empty
        assert trial.faithfulness == pytest.approx((expected - empty) / gap, abs=1e-6)
        assert trial.completeness == pytest.approx((trial.clean - without) / gap, abs=1e-6)
    assert trials["kept"].std() > 1e-2


def _neurons_alone(scores):
    return replace(scores, values=scores.neurons, activity=scores.activity[..., : scores.n_neurons])


def test_nothing_keeps_nothing_and_everything_keeps_all(pairs):
    model = tiny.loaded("LlamaForCausalLM")
    scores = kn.circuit_scores(model, pairs)
    n_nodes = scores.values[0].numel()
    trials = kn.faithfulness(model, scores, sizes=[0, n_nodes]).trials
    shares = trials.groupby("size")[["faithfulness", "completeness"]]
    np.testing.assert_allclose(shares.max().loc[0], 0, atol=1e-9)
    np.testing.assert_allclose(shares.min().loc[n_nodes], 1, atol=1e-9)


@pytest.mark.parametrize("reference", ["mean", "zero"])
def test_other_references(reference, pairs):
    model = tiny.loaded("GPT2LMHeadModel")
    scores = kn.circuit_scores(model, pairs)
    trials = kn.faithfulness(model, scores, sizes=[5], reference=reference, controls=False).trials
    caches = []
    for row in range(len(pairs)):
        with torch.no_grad():
            caches.append(dict(model.run_with_cache(pairs.counterfactual.tokens[[row]])[1]))
    names = [name for name in caches[0] if "hook_post" in name or "hook_z" in name]
    means = {name: (caches[0][name] + caches[1][name]) / 2 for name in names}
    used = [means if reference == "mean" else {name: 0 * means[name] for name in names}] * 2
    for trial in trials.itertuples():
        nodes = set(scores.top(trial.pair, 5))
        expected = set_outside(model, pairs, trial.pair, nodes, ("neuron", "head"), used)
        assert trial.kept == pytest.approx(expected, abs=1e-9)


def test_controls_have_the_shape_of_the_circuit_at_every_size():
    model = tiny.loaded("GPT2LMHeadModel")
    pairs = made_pairs(n_pairs=2)
    scores = kn.circuit_scores(model, pairs)
    own = order_by(scores.values, is_node(scores, ("neuron", "head")))
    n_neurons = scores.n_neurons
    chance = random_order(own, n_neurons, [1, 2])
    active = active_order(own, n_neurons, scores.activity)
    assert not torch.equal(chance, own)
    for size in (1, 10, 50, 200):
        for other in (chance, active):
            assert int((other[0] < size).sum()) == size
            for group in (slice(0, n_neurons), slice(n_neurons, None)):
                shape = [(order[..., group] < size).sum(-1) for order in (own, other)]
                assert torch.equal(*shape)
        inside, activity = active[..., :n_neurons] < size, scores.activity[..., :n_neurons]
        least_inside = activity.masked_fill(~inside, torch.inf).amin(-1)
        most_outside = activity.masked_fill(inside, -torch.inf).amax(-1)
        assert bool((least_inside >= most_outside).all())


def test_random_circuits_depend_on_the_seed_and_not_on_the_other_pairs():
    model = tiny.loaded("GPT2LMHeadModel")
    scores = kn.circuit_scores(model, made_pairs(n_pairs=4))

    def kept(**options):
        trials = kn.faithfulness(model, scores, sizes=[30], **options).trials
        return trials[trials["set"] == "random"]["kept"].to_numpy()

    np.testing.assert_allclose(kept(), kept(memory_budget=1.0), atol=1e-9)
    assert np.abs(kept() - kept(seed=1)).max() > 1e-6


def test_given_circuits_are_measured_at_their_own_size(pairs):
    model = tiny.loaded("GPT2LMHeadModel")
    scores = kn.circuit_scores(model, pairs)
    circuits = [kn.Circuit(scores.top(0, 6)), kn.Circuit(scores.top(1, 9))]
    given = kn.faithfulness(model, scores, circuits)
    by_size = kn.faithfulness(model, scores, sizes=[6, 9]).trials
    for row, size in ((0, 6), (1, 9)):
        own = given.trials.query(f"pair == {row} and set == 'circuit'").iloc[0]
        same = by_size.query(f"pair == {row} and size == {size} and set == 'circuit'").iloc[0]
        assert own["size"] == size and own["kept"] == pytest.approx(same["kept"], abs=1e-9)
    assert set(given.curve()["set"]) == {"circuit", "random", "active"} and "size" not in given.curve()
    everywhere = kn.faithfulness(model, scores, kn.Circuit(["L1N3"]), controls=False).trials
    at_each = kn.Circuit([NeuronNode(1, 3, position) for position in range(5)])
    expected = kn.faithfulness(model, scores, at_each, controls=False).trials
    assert everywhere["size"].tolist() == [5, 5]
    np.testing.assert_allclose(everywhere["kept"], expected["kept"], atol=1e-12)


def test_curve_is_the_share_of_sums_over_facts():
    model = kn.load_model("world-gpt2")
    pairs = kn.counterfactual_pairs(model, kn.FactSet.world().of("P36")[:24], known=True)
    pairs = pairs.select(range(0, len(pairs), 10))
    measured = kn.faithfulness(model, kn.circuit_scores(model, pairs, n_steps=3), sizes=[50], kinds="neuron")
    curve = measured.curve().set_index(["set", "measure"])
    own = measured.trials[measured.trials["set"] == "circuit"]
    facts_of = own.groupby("subject")[["kept", "empty", "clean"]].mean().sum()
    expected = (facts_of["kept"] - facts_of["empty"]) / (facts_of["clean"] - facts_of["empty"])
    row = curve.loc[("circuit", "faithfulness")]
    assert row["value"] == pytest.approx(expected)
    assert row["low"] < row["value"] < row["high"]
    assert curve.loc[("random", "faithfulness"), "high"] < row["low"]


def test_arguments_are_checked(pairs):
    model = tiny.loaded("GPT2LMHeadModel")
    scores = kn.circuit_scores(model, pairs)
    for options, message in (
        ({"kinds": "neurons"}, "kinds="),
        ({"reference": "counterfactuals"}, "Did you mean"),
        ({"sizes": [-1]}, "sizes="),
        ({"circuits": [kn.Circuit()]}, "1 circuits for 2 pairs"),
        ({"circuits": kn.Circuit(["L0H1@1"]), "kinds": "neuron"}, "has the head"),
        ({"circuits": kn.Circuit(["L0N99@1"])}, "There is no L0N99@1"),
        ({"circuits": kn.Circuit(["L0N1@1"]), "sizes": [1]}, "their own sizes"),
    ):
        with pytest.raises(kn.ArgumentError, match=message):
            kn.faithfulness(model, scores, **options)
