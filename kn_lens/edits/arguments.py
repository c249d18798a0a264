"""Kinds of arguments: one sentence with the right call for each mix-up that is easy to make."""

from collections.abc import Iterable, Mapping
from typing import Any

from kn_lens._core.checks import check_kind, wrong_kind
from kn_lens.errors import ArgumentError, EditError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.neurons import NeuronSet, check_neurons_by_fact, neuron_set_of


def checked_neurons(neurons: Any) -> NeuronSet:
    """Return one set of at least one neuron, of a set or of several neurons.

    Raises:
        ArgumentError: another kind of argument, such as a mapping from facts to sets.
        EditError: an empty set.
    """
    neuron_set = neuron_set_of(neurons)
    if not neuron_set:
        raise EditError("The edit would change no row: its set of neurons is empty. Expected at least one neuron.")
    return neuron_set


def check_fact(fact: Any) -> None:
    """Raise unless the argument is a fact.

    Raises:
        ArgumentError: another kind of argument, such as a subject or several facts.
    """
    check_kind(fact, Fact, "one Fact: facts.find('Ireland', 'P36')", "fact")


def checked_facts(facts: Any) -> list[Fact]:
    """Return several facts as a list.

    Raises:
        ArgumentError: another kind of argument, such as prompts.
    """
    check_kind(facts, Iterable, "several Facts, such as a FactSet", "facts")
    facts = list(facts)
    for fact in facts:
        check_fact(fact)
    return facts


def check_each_has_neurons(
    facts: Iterable[Fact],
    neurons_by_fact: Any,
    name: str,
    what: str,
) -> None:
    """Raise unless there is at least one fact and a set of neurons for each.

    Args:
        facts: the facts to edit.
        neurons_by_fact: the argument with their sets.
        name: its name.
        what: what the sets hold, in words.

    Raises:
        ArgumentError: no facts, another kind of argument, or a fact without a set.
    """
    check_neurons_by_fact(neurons_by_fact, name)
    facts = list(facts)
    if not facts:
        raise ArgumentError("There are no facts to edit; expected at least one.")
    for fact in facts:
        if fact not in neurons_by_fact:
            near = did_you_mean(fact.key, (other.key for other in neurons_by_fact))
            raise ArgumentError(f"{fact.key} has no {what}; expected a set for every fact.{near}")


def check_new_objects(new_objects: Any) -> None:
    """Raise unless the argument is a mapping from facts to new objects.

    Raises:
        ArgumentError: another kind of argument, such as one fact.
    """
    is_mapping = isinstance(new_objects, Mapping)
    if not is_mapping or not all(isinstance(fact, Fact) for fact in new_objects):
        raise wrong_kind(new_objects, "a mapping from facts to new objects: {fact: 'Tokyo'}", "new_objects")
