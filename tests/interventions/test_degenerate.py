"""Degenerate sets, compared with brute force over functions of subsets, and over a Hugging Face model with hooks."""

from itertools import chain, combinations

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.interventions import degenerate
from kn_lens.interventions.degenerate import Measured, enumerate_subsets, grow_subsets
from tests.tiny import D_MLP, tiny_hf_model, tiny_tokenizer

TEMPLATES = ("The capital of [X] is [Y].", "[X]'s capital city, [Y]", "In fact, [X] has its seat of government in [Y]")
LAYER = 2


def subsets_of(items):
    return [frozenset(part) for part in chain.from_iterable(combinations(items, k) for k in range(len(items) + 1))]


def search(make, n, given, prob=None):
    """Return what a search finds where `given` is a function of the set of suppressed neurons."""
    running = make(n)
    subsets = next(running)
    while True:
        measured = []
        for subset in subsets:
            members = members_of(subset)
            measured.append(Measured(-len(members) if prob is None else prob(members), given(members)))
        try:
            subsets = running.send(measured)
        except StopIteration as end:
            found = end.value
            smallest = None if found.smallest is None else members_of(found.smallest)
            return smallest, {members_of(subset) for subset in found.sufficient}


def members_of(number):
    return frozenset(position for position in range(number.bit_length()) if number >> position & 1)


def most_disjoint(sufficient):
    """The largest number of pairwise disjoint sets, by trying all families of them."""
    if not sufficient:
        return 0
    first, *others = sufficient
    with_first = 1 + most_disjoint([one for one in others if not one & first])
    return max(with_first, most_disjoint(others))


@pytest.mark.parametrize("make", [enumerate_subsets, grow_subsets])
class TestPlanted:
    def test_two_neurons_each_of_which_suffices(self, make):
        smallest, sufficient = search(make, 5, lambda off: not {1, 3} <= off)
        assert smallest == {1, 3} and sufficient == {frozenset({1}), frozenset({3})}

    def test_one_neuron_that_is_needed(self, make):
        smallest, sufficient = search(make, 5, lambda off: 2 not in off)
        assert smallest == {2} and sufficient == {frozenset({2})}

    def test_two_homes_of_two_neurons(self, make):
        smallest, sufficient = search(make, 6, lambda off: not off & {0, 1} or not off & {4, 5})
        assert len(smallest) == 2 and smallest & {0, 1} and smallest & {4, 5}
        assert sufficient == {frozenset({0, 1}), frozenset({4, 5})}

    def test_two_of_three(self, make):
        """No neuron is needed, and no two subsets without a common neuron suffice."""
        smallest, sufficient = search(make, 3, lambda off: len(off) < 2)
        assert len(smallest) == 2 and [len(one) for one in sufficient] == [2]

    def test_an_answer_that_needs_none_of_them(self, make):
        assert search(make, 4, lambda off: True) == (None, set())

    def test_an_answer_that_is_not_given(self, make):
        assert search(make, 4, lambda off: False) == (None, set())

    def test_no_neurons(self, make):
        assert search(make, 0, lambda off: True) == (None, set())


@pytest.mark.parametrize("seed", range(20))
def test_all_subsets_are_brute_force_on_any_function(seed):
    draw, n = np.random.default_rng(seed), 5
    every = subsets_of(range(n))
    values = {subset: bool(draw.random() < 0.5) for subset in every} | {frozenset(): True}
    probs = {subset: draw.random() for subset in every}
    smallest, sufficient = search(enumerate_subsets, n, values.__getitem__, probs.__getitem__)
    taking = [subset for subset in every if not values[subset]]
    expected = min(taking, key=lambda subset: (len(subset), probs[subset]))
    assert smallest == expected
    whole = frozenset(range(n))
    if values[whole]:
        assert not sufficient
    else:
        suffice = [subset for subset in every if values[whole - subset]]
        minimal = [one for one in suffice if not any(other < one for other in suffice)]
        assert sufficient <= set(suffice) and len(sufficient) == most_disjoint(minimal)
        assert sum(map(len, sufficient)) == len(frozenset().union(*sufficient))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_grown_reaches_its_goal_and_none_of_it_can_be_left_out(seed):
    """On functions under which suppressing more never brings the answer back."""
    draw, n = np.random.default_rng(seed), 7
    weights, threshold = draw.random(n), draw.uniform(0.2, 0.8)

    def prob(off):
        return 1 - sum(weights[list(off)]) / weights.sum()

    def given(off):
        return prob(off) > threshold

    whole = frozenset(range(n))
    smallest, sufficient = search(grow_subsets, n, given, prob)
    assert not given(smallest) and all(given(smallest - {neuron}) for neuron in smallest)
    for subset in sufficient:
        assert given(whole - subset) and not any(given(whole - subset | {neuron}) for neuron in subset)
    assert sum(map(len, sufficient)) == len(frozenset().union(*sufficient))
    exact_smallest, exact_sufficient = search(enumerate_subsets, n, given, prob)
    assert len(smallest) == len(exact_smallest) and len(sufficient) <= len(exact_sufficient)


# --- on models --------------------------------------------------------------------------------------------


def planted(rows):
    """Return a model in which neurons of the last layer write the answer wherever they are on, and their fact.

    Neurons fire alike under every prompt, as their weights are 0 and their biases 4; `rows` says how much of the
    direction of the answer each writes.
    """
    hf_model, tokenizer = tiny_hf_model("GPT2LMHeadModel"), tiny_tokenizer("GPT2LMHeadModel")
    answer = tokenizer.encode(" Dublin")[0]
    mlp = hf_model.transformer.h[LAYER].mlp
    with torch.no_grad():
        hf_model.lm_head.weight[answer] *= 3  # no other row is as long
        direction = hf_model.lm_head.weight[answer] / hf_model.transformer.ln_f.weight
        direction = direction - direction.mean()
        for index, size in rows.items():
            mlp.c_fc.weight[:, index] = 0
            mlp.c_fc.bias[index] = 4
            mlp.c_proj.weight[index] = size * direction / direction.norm()
    fact = kn.Fact("Ireland", "P36", "Dublin", TEMPLATES)
    return hf_model, kn.load_model(hf_model, tokenizer=tokenizer), fact


def read(hf_model, prompts, off):
    """Mean probability and number of right answers of prompts with neurons at 0, one prompt at a time."""
    probs, right = [], 0
    for i in range(len(prompts)):
        length, position = int(prompts.length[i]), int(prompts.read_pos[i])

        def zero(module, args, layer, position=position):
            (post,) = args
            post = post.clone()
            for neuron in off:
                if neuron.layer == layer:
                    post[:, position, neuron.index] = 0
            return (post,)

        handles = []
        for layer, block in enumerate(hf_model.transformer.h):
            hook = lambda module, args, layer=layer, zero=zero: zero(module, args, layer)  # noqa: E731
            handles.append(block.mlp.c_proj.register_forward_pre_hook(hook))
        with torch.no_grad():
            dist = hf_model(prompts.tokens[i : i + 1, :length]).logits[0, position].softmax(-1)
        for handle in handles:
            handle.remove()
        target = int(prompts.target_ids[i])
        probs.append(float(dist[target]))
        right += int(dist.argmax() == target)
    return float(np.mean(probs)), right


@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.parametrize("enumerate_up_to", [8, 0])
class TestModels:
    def test_duplicated_neurons_are_found(self, share, enumerate_up_to):
        _, model, fact = planted({3: 6.0, 4: 6.0})
        neurons = {fact: kn.NeuronSet([(LAYER, 3), (LAYER, 4), (0, 1), (1, 5)])}
        prompts = kn.make_prompts(model, fact)
        sets = kn.degenerate_sets(model, prompts, neurons, share=share, enumerate_up_to=enumerate_up_to)
        one = sets[fact]
        assert one.known and one.taken and one.degenerate and one.exact == (enumerate_up_to > 0)
        assert one.smallest == kn.NeuronSet([(LAYER, 3), (LAYER, 4)]) and one.smallest_suffices
        assert set(one.sufficient) == {kn.NeuronSet([(LAYER, 3)]), kn.NeuronSet([(LAYER, 4)])}
        (control,) = [one for one in sets.results if one.neuron_set == "random"]
        assert control.neurons == kn.random_neurons(neurons[fact], model, seed=degenerate_seed(fact))
        assert control.known and not control.taken

    def test_a_neuron_that_is_needed_is_no_degenerate_fact(self, share, enumerate_up_to):
        _, model, fact = planted({3: 6.0})
        neurons = {fact: kn.NeuronSet([(LAYER, 3), (LAYER, 4), (0, 1), (1, 5)])}
        sets = kn.degenerate_sets(
            model, kn.make_prompts(model, fact), neurons, share=share, enumerate_up_to=enumerate_up_to
        )
        one = sets[fact]
        assert one.taken and not one.degenerate
        assert one.smallest == kn.NeuronSet([(LAYER, 3)]) and one.sufficient == (one.smallest,)


def degenerate_seed(fact):
    import zlib

    return [0, zlib.crc32(fact.key.encode())]


@pytest.mark.parametrize("share", [None, 0.8])
def test_all_subsets_are_those_of_a_loop_over_the_hugging_face_model(share, monkeypatch):
    """Of neurons in several layers, of which some matter; measured in calls of few prompts."""
    monkeypatch.setattr(degenerate, "ITEMS_AT_ONCE", 20)
    hf_model, model, fact = planted({3: 1.0, 4: 0.7, 9: 0.8})
    other = kn.Fact("France", "P36", "Paris", TEMPLATES)
    neurons = kn.NeuronSet([(LAYER, 3), (LAYER, 4), (LAYER, 9), (0, 1), (1, 5)])
    prompts = kn.make_prompts(model, [other, fact])
    own = prompts.select([i for i in range(len(prompts)) if prompts.fact(i) == fact])
    readings = {off: read(hf_model, own, off) for off in subsets_of(neurons)}
    before = readings[frozenset()][0]

    def given(off):
        prob, right = readings[frozenset(off)]
        return 2 * right >= len(own) if share is None else prob >= share * before

    sets = kn.degenerate_sets(model, prompts, {other: kn.NeuronSet([(1, 1)]), fact: neurons}, share=share)
    one = sets[fact]
    assert (one.n_prompts, one.exact, one.known) == (3, True, given(()))
    assert one.known and one.taken and not given(neurons)
    taking = [off for off in readings if not given(off)]
    fewest = min(map(len, taking))
    assert len(one.smallest) == fewest and not given(one.smallest)
    assert one.without_smallest == pytest.approx(
        min(readings[off][0] for off in taking if len(off) == fewest), rel=1e-9
    )
    assert one.smallest_suffices == given(neurons - one.smallest)
    assert one.before == pytest.approx(before, rel=1e-9)
    assert one.after == pytest.approx(readings[frozenset(neurons)][0], rel=1e-9)
    assert one.smallest_alone == pytest.approx(readings[frozenset(neurons - one.smallest)][0], rel=1e-9)
    suffice = [off for off in readings if given(neurons - off)]
    minimal = [off for off in suffice if not any(smaller < off for smaller in suffice)]
    assert len(one.sufficient) == most_disjoint(minimal)
    assert {frozenset(subset) for subset in one.sufficient} <= set(suffice)


def test_facts_that_are_not_known_have_no_sets_and_are_left_out_of_the_shares():
    _, model, fact = planted({3: 6.0, 4: 6.0})
    unknown = kn.Fact("France", "P36", "Paris", TEMPLATES)  # the neurons write Dublin
    neurons = kn.NeuronSet([(LAYER, 3), (LAYER, 4)])
    ticks = []
    sets = kn.degenerate_sets(
        model,
        kn.make_prompts(model, [fact, unknown]),
        {fact: neurons, unknown: neurons},
        {fact: neurons, unknown: neurons},
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert ticks[-1] == (6, 6)
    assert not sets[unknown].known and sets[unknown].smallest is None and sets[unknown].sufficient == ()
    summary = sets.summary(n_resamples=10).set_index(["measure", "neuron_set"])
    assert summary.loc[("degenerate", "found"), "value"] == 1 and summary.loc[("degenerate", "random"), "value"] == 0
    assert summary.loc[("smallest", "found"), ["value", "n"]].tolist() == [2, 1]
    assert (summary.loc["taken", "n"] == 1).all()
    assert ("smallest", "random") not in summary.index
    table = sets.table()
    assert table["neuron_set"].tolist() == ["found", "activation", "random"] * 2
    assert table["sufficient"][0] == "L2N3 | L2N4" and table["smallest"][0] == "L2N3 L2N4"
    assert repr(sets) == "DegenerateSets(2 facts, 1 known: all neurons take the answer of 1, 1 of these degenerate)"
    assert "L2N3 L2N4" in sets._repr_html_()
    with pytest.raises(kn.ArgumentError, match="There are no sets of P36/Italy/Rome"):
        sets[kn.Fact("Italy", "P36", "Rome")]


def test_neurons_are_suppressed_where_the_prompts_are_put():
    _, model, fact = planted({3: 6.0})
    prompts = kn.make_prompts(model, fact)
    neurons = {fact: kn.NeuronSet([(LAYER, 3), (LAYER, 5)])}
    there = kn.degenerate_sets(model, prompts.at("subject_last"), neurons, controls=False)[fact]
    effect = kn.measure(model, prompts.at("subject_last"), kn.Suppress(neurons))
    assert there.after == pytest.approx(effect["after"].mean(), rel=1e-9)
    assert not there.taken  # in the last layer nothing is read from there


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 2}, "share=2; expected a share from 0 to 1"),
        ({"enumerate_up_to": True}, "enumerate_up_to=True; expected a number of neurons"),
        ({"enumerate_up_to": 40}, "enumerate_up_to=40; expected at most 16: n neurons have 2"),
        ({"activation_neurons": {}}, "has neurons and no activation neurons"),
    ],
)
def test_what_is_refused(no_passes, options, message):
    fact = kn.Fact("Ireland", "P36", "Dublin", TEMPLATES)
    prompts = kn.make_prompts(no_passes, [fact])
    with pytest.raises(kn.ArgumentError, match=message):
        kn.degenerate_sets(no_passes, prompts, {fact: kn.NeuronSet([(0, 1)])}, **options)
    with pytest.raises(kn.ArgumentError, match=f"L0N{D_MLP}"):
        kn.degenerate_sets(no_passes, prompts, {fact: kn.NeuronSet([(0, D_MLP)])})
