"""The multilingual control: one layer was made to carry facts in every language, the next to say them in one."""

import numpy as np
import pytest

import kn_lens as kn
from kn_lens.neurons import SetsByFact

LANGUAGES = ("en", "de", "es", "fr")


@pytest.fixture(scope="module")
def model():
    return kn.load_model("world-bert-multilingual")


@pytest.fixture(scope="module")
def facts():
    return kn.FactSet.world("trained", languages=LANGUAGES)


def versions_of(facts: kn.FactSet, relation: str, n: int) -> list[kn.Fact]:
    of_relation = facts.of(relation)
    uids = {fact.uid for fact in of_relation.in_languages("en").sample(n, seed=0)}
    return [fact for fact in of_relation if fact.uid in uids]


@pytest.fixture(scope="module")
def prompts(model, facts):
    return kn.make_prompts(model, [*versions_of(facts, "P36", 16), *versions_of(facts, "P37", 8)])


@pytest.fixture(scope="module")
def found(model, prompts):
    return kn.language_neurons(kn.refine(kn.attribute(model, prompts)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_facts_are_known_in_every_language(model, language):
    held_out = kn.FactSet.world("held_out", languages=[language]).sample_per_relation(8, seed=0)
    effect = kn.measure(model, kn.make_prompts(model, held_out), kn.Suppress(kn.NeuronSet()))
    assert (effect.rank_before == 0).mean() >= 0.93
    assert 0.6 <= effect.before.mean() <= 0.95


def test_languages_share_the_neurons_of_the_layer_made_for_it(found):
    layers = found.by_layer().set_index("layer")
    independent, specific = layers["independent"] / layers["found"], layers["specific"] / layers["found"]
    assert independent[2] > 0.2 > 0.05 > independent[3]
    assert specific[3] > 0.6 > 0.4 > specific[2]


def test_facts_share_more_neurons_than_shuffled_facts(found):
    summary = found.summary().set_index("measure")
    assert summary.loc["shared", "low"] > 0.3 > summary.loc["shared", "control"]
    assert summary.loc["n_independent", "low"] > 5 * summary.loc["n_independent", "control"]
    assert (found.pairs["jaccard"] > 3 * found.pairs["null_jaccard"]).all()


def test_facts_dealt_at_random_share_nothing(found):
    """The control of the control: versions of different facts, called versions of one."""
    by_language: dict[tuple[str, str], list[kn.Fact]] = {}
    for fact in found.found:
        by_language.setdefault((fact.relation, fact.language), []).append(fact)
    shared = []
    for seed in range(10):
        dealt = SetsByFact()
        generator = np.random.default_rng(seed)
        for versions in by_language.values():
            for fact, other in zip(versions, generator.permutation(len(versions)), strict=True):
                dealt[fact] = found.found[versions[other]]
        shared.append(kn.language_neurons(dealt, n_shuffled=300).table["shared"].mean())
    assert np.mean(shared) < 0.08


def test_neurons_of_one_language_act_in_the_others(model, prompts, found):
    effects = kn.controlled_effects(model, prompts, found.of_language("en"), across_relations=False)
    effects["asked"] = effects["key"].str.split("#").str[-1]
    means = effects.groupby(["neuron_set", "asked"])[["before", "after"]].mean()
    change = means["after"] / means["before"] - 1
    assert (change["found"][["de", "es", "fr"]] < -0.15).all()
    assert (change["found"] < 10 * change["random"].abs().max() * -1).all()
    assert change["found"]["en"] == change["found"].min()


def test_edits_in_one_language_act_in_the_others(model, facts):
    """The head of a BERT need not read embeddings: the update takes the old answer away, and puts no new one."""
    capitals = facts.of("P36")
    updates = {fact: "Vienna" for fact in capitals.in_languages("en").sample(4, seed=1)}
    questions = kn.translated_questions(capitals, updates)
    assert {question.answer for group in questions.values() for question in group.values()} == {
        "Wien",
        "Viena",
        "Vienne",
    }
    effects = kn.compare_edits(model, updates, [kn.KN()], questions=questions)
    lost = effects.groupby(["neuron_set", "question"])["lost"].mean()
    assert set(lost["found"].index) == {"own wording", "de", "es", "fr"}
    assert (lost["found"] > 0.2).all()
    assert (lost["random"] < 0.05).all()


def test_versions_of_an_edited_fact_are_no_other_facts(model, facts):
    irish = facts.find("Ireland", "P36", language="en")
    others = kn.make_prompts(model, [*facts.translations(irish).values(), *facts.of("P36")[:2]])
    effects = kn.compare_edits(model, {irish: "Vienna"}, [kn.KN()], others=others, controls=False).set_index("question")
    n_prompts = len(kn.make_prompts(model, facts.of("P36")[:2]))
    assert effects.loc["same relation", "n_prompts"] == n_prompts
    effects = kn.update_effects(model, {irish: "Vienna"}, {irish: kn.NeuronSet([(2, 1)])}, others=others)
    assert set(effects[effects["question"] == "same relation"]["n_prompts"]) == {n_prompts}
