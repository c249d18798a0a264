"""Language-independent neurons: the definitions by plain sets, the null by plain draws, and planted sharing."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens.errors import ArgumentError

LANGUAGES = ("en", "de", "es")


def version(number: int, language: str, relation: str = "P36") -> kn.Fact:
    return kn.Fact(f"{language}{number}", relation, f"capital{number}", uid=str(number), language=language)


def planted(n_facts: int, n_shared: int, n_specific: int, relation: str = "P36") -> dict[kn.Fact, kn.NeuronSet]:
    """Facts with neurons of layer 0 in all languages, and neurons of layer 1 in one language alone."""
    sets = {}
    for number in range(n_facts):
        shared = [(0, number * n_shared + index) for index in range(n_shared)]
        for place, language in enumerate(LANGUAGES):
            first = (number * len(LANGUAGES) + place) * n_specific
            own = [(1, first + index) for index in range(n_specific)]
            sets[version(number, language, relation)] = kn.NeuronSet([*shared, *own])
    return sets


NEURONS = st.sets(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=5)
SETS = st.lists(st.fixed_dictionaries(dict.fromkeys(LANGUAGES, NEURONS)), min_size=1, max_size=4)


@given(rows=SETS, min_languages=st.sampled_from([2, 3, None]))
@settings(deadline=None, max_examples=40)
def test_sets_are_those_of_the_definition(rows, min_languages):
    sets = {}
    for number, by_language in enumerate(rows):
        for language, neurons in by_language.items():
            sets[version(number, language)] = kn.NeuronSet(neurons)
    found = kn.language_neurons(sets, min_languages=min_languages, n_shuffled=5)
    for number, by_language in enumerate(rows):
        everything = set().union(*by_language.values())
        n_languages = {n: sum(n in neurons for neurons in by_language.values()) for n in everything}
        expected = {n for n in everything if n_languages[n] >= (min_languages or 3)}
        row = found.table.iloc[number]
        assert row["n_independent"] == len(expected)
        for language, neurons in by_language.items():
            fact = version(number, language)
            assert found.independent[fact] == kn.NeuronSet(expected)
            assert found.specific[fact] == kn.NeuronSet(n for n in neurons if n_languages[n] == 1)
            assert found.of_language("de")[fact] == sets[version(number, "de")]
        indices = []
        for one, other in combinations([neurons for neurons in by_language.values() if neurons], 2):
            indices.append(len(one & other) / len(one | other))
        np.testing.assert_allclose(row["jaccard"], np.mean(indices) if indices else np.nan)


def test_null_is_that_of_different_facts():
    """Versions of different facts, all draws alike: so the number of shared neurons can be computed in full."""
    sets = planted(4, n_shared=2, n_specific=1)
    sets[version(0, "en")] = sets[version(1, "de")] = kn.NeuronSet([(0, 0), (0, 2), (0, 4)])
    found = kn.language_neurons(sets, min_languages=2, n_shuffled=4000)
    numbers = []
    for draw in permutations(range(4), 3):
        drawn = [set(sets[version(number, language)]) for number, language in zip(draw, LANGUAGES, strict=True)]
        everything = set().union(*drawn)
        numbers.append(sum(sum(neuron in neurons for neurons in drawn) >= 2 for neuron in everything))
    assert np.std(numbers) > 0.3
    assert found.table["null_mean"].to_numpy() == pytest.approx(np.mean(numbers), abs=4 * np.std(numbers) / 4000**0.5)
    for _, row in found.table.iterrows():
        exact = np.mean([number >= row["n_independent"] for number in numbers])
        assert row["p"] == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 4000) ** 0.5 + 1 / 4000)


def test_planted_sharing_is_found_and_its_absence_is_not():
    sets = planted(30, n_shared=2, n_specific=1) | planted(30, n_shared=0, n_specific=3, relation="P30")
    found = kn.language_neurons(sets)
    assert found.table.groupby("relation", sort=False)["shared"].mean().to_dict() == {"P36": 1.0, "P30": 0.0}
    layers = found.by_layer().set_index("layer")
    assert layers.loc[0].to_dict() == {"found": 1.0, "independent": 1.0, "specific": 0.0}
    assert layers.loc[1].to_dict() == {"found": 2.0, "independent": 0.0, "specific": 2.0}
    assert found.pairs[["language", "other"]].to_numpy().tolist() == [["en", "de"], ["en", "es"], ["de", "es"]]
    assert found.pairs["jaccard"].to_numpy() == pytest.approx((0.5 + 0) / 2)
    assert found.pairs["null_jaccard"].to_numpy() == pytest.approx(0)
    summary = found.summary(n_resamples=50).set_index("measure")
    assert summary.loc["shared", ["value", "control"]].tolist() == [0.5, 0.05]
    assert summary.loc["n_independent", "control"] == 0 < summary.loc["n_independent", "value"]


def test_neurons_of_the_relation_are_no_evidence():
    """All facts of a relation have the same neurons: so have shuffled facts."""
    sets = {fact: kn.NeuronSet([(0, 1), (1, 2)]) for fact in planted(20, 1, 1)}
    found = kn.language_neurons(sets)
    assert (found.table["n_independent"] == 2).all() and (found.table["p"] == 1).all()
    assert not found.table["shared"].any()


def test_facts_without_neurons_leave_the_mean_jaccard_index_alone():
    sets = planted(6, 1, 1)
    for number in range(2):
        for language in LANGUAGES:
            sets[version(number, language)] = kn.NeuronSet()
    summary = kn.language_neurons(sets).summary(n_resamples=50).set_index("measure")
    assert summary.loc["jaccard", "value"] == pytest.approx(1 / 3)
    assert summary.loc["n_independent", "value"] == pytest.approx(4 / 6)


def test_relations_do_not_change_each_other():
    alone = kn.language_neurons(planted(5, 1, 1), seed=3).table
    together = kn.language_neurons(planted(4, 2, 1, "P30") | planted(5, 1, 1), seed=3).table
    assert together[together["relation"] == "P36"].to_numpy().tolist() == alone.to_numpy().tolist()


def test_facts_of_one_language_are_left_out_and_a_lonely_fact_is_not_tested():
    sets = planted(1, 1, 1)
    sets[version(7, "de")] = kn.NeuronSet([(0, 9)])
    found = kn.language_neurons(sets)
    assert len(found.table) == 1 and version(7, "de") not in found.found
    assert np.isnan(found.table["p"].item()) and not found.table["shared"].item()
    assert repr(found) == "LanguageNeurons(1 fact, 0 of 0 tested share neurons between languages)"
    assert "<table" in found._repr_html_()


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ({kn.Fact("A", "r", "b", language="de"): kn.NeuronSet()}, {}, "expected a fact with both"),
        ({kn.Fact("A", "r", "b", uid="1"): kn.NeuronSet()}, {}, "expected a fact with both"),
        ({version(0, "de"): kn.NeuronSet([(0, 1)])}, {}, "No fact has versions in two languages"),
        (planted(2, 1, 1), {"min_languages": 1}, "min_languages=1; expected a whole number from 2"),
        (planted(2, 1, 1), {"n_shuffled": 0}, "n_shuffled=0; expected a whole number from 1"),
        (planted(2, 1, 1), {"alpha": 2}, "alpha"),
        (kn.NeuronSet([(0, 1)]), {}, "neurons_by_fact"),
    ],
)
def test_refusals(sets, options, message):
    with pytest.raises(ArgumentError, match=message):
        kn.language_neurons(sets, **options)


def test_two_versions_in_one_language_are_refused():
    sets = planted(1, 1, 1)
    sets[kn.Fact("other", "P36", "x", uid="0", language="de")] = kn.NeuronSet([(0, 1)])
    with pytest.raises(ArgumentError, match="versions of one fact in one language"):
        kn.language_neurons(sets)


def test_an_unknown_language_is_refused():
    with pytest.raises(ArgumentError, match=r"found in 'dee'; there are en, de, es\. Did you mean 'de'"):
        kn.language_neurons(planted(2, 1, 1)).of_language("dee")
