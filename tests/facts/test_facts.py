"""Facts and sets of them."""

import pytest
from hypothesis import given

from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts.facts import Fact, FactSet
from tests.facts.cases import CAPITAL, FACTS, some_facts

# --- Fact ------------------------------------------------------------------------------------------------------------


def test_filling_a_template_keeps_a_subject_that_contains_the_text_of_a_slot():
    assert Fact("Ireland", "P36", "Dublin").filled("[Y] is the capital of [X].") == "[Y] is the capital of Ireland."
    assert Fact("the [Y]", "r", "o").filled("[Y] and [X]") == "[Y] and the [Y]"
    assert Fact("the [X]", "r", "o").filled("[X], [Y]") == "the [X], [Y]"


def test_equality_compares_the_triple_and_the_uid_without_the_templates():
    fact = Fact("Ireland", "P36", "Dublin", (CAPITAL,))
    assert fact == Fact("Ireland", "P36", "Dublin") and hash(fact) == hash(Fact("Ireland", "P36", "Dublin"))
    assert fact != Fact("Ireland", "P36", "Dublin", (CAPITAL,), uid="1")


@given(some_facts, some_facts)
def test_different_facts_have_different_keys(one, other):
    assert (one.key == other.key) == (one == other)


def test_names_with_separators_have_different_keys():
    assert Fact("a/b", "r", "c").key != Fact("a", "r", "b/c").key
    assert Fact("a", "r", "b#c").key != Fact("a", "r", "b", uid="c").key


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("Ireland", "P36", "Dublin", ("The capital of [X] is Dublin.",)), r"holds \[Y\].* 0 times; expected exactly"),
        (("Ireland", "P36", "Dublin", ("[Y] [X] [Y]",)), r"holds \[Y\].* 2 times"),
        (("Ireland", "P36", "Dublin", ("The capital is [Y].",)), r"holds \[X\].* 0 times"),
        (("", "P36", "Dublin", (CAPITAL,)), r"expected none, as the fact has no subject"),
        (("Ireland", "P36", ""), "object of a fact must be text without blanks around it; got ''"),
        (("Ireland", "P36", "Dublin "), "got 'Dublin '"),
        (("Ireland", "P36", 3), "object of a fact must be text; got 3, of type int"),
        (("Ireland", "P36", "Dublin", CAPITAL), "tuple of texts"),
        (("Ireland", "P36", "Dublin", (3,)), "template must be text; got 3"),
        (("Ireland", "P36", "\ud800"), "not valid Unicode"),
    ],
)
def test_a_malformed_fact_is_refused(fields, message):
    with pytest.raises(ArgumentError, match=message):
        Fact(*fields)


# --- FactSet ---------------------------------------------------------------------------------------------------------


def test_a_set_is_a_sequence():
    assert len(FACTS) == 4 and FACTS[0].object == "Dublin" and FACTS[-1].relation == "P1376"
    assert isinstance(FACTS[1:3], FactSet) and list(FACTS[1:3]) == [FACTS[1], FACTS[2]]
    assert FACTS.relations == ("P36", "P30", "P1376")
    assert FACTS[0] in FACTS and FACTS.index(FACTS[2]) == 2


def test_find_names_the_nearest_subject_and_lists_several():
    assert FACTS.find("Ireland", relation="P30").object == "Europe"
    assert FACTS.find("Ireland", object="Dublin") is FACTS[0]
    assert FACTS.find("Ireland", uid="a") is FACTS[0]
    with pytest.raises(ArgumentError, match=r"No fact about 'Irland'\. Did you mean 'Ireland'\?"):
        FACTS.find("Irland")
    with pytest.raises(ArgumentError, match=r"'Dublin' in relation P36"):
        FACTS.find("Dublin", relation="P36")
    with pytest.raises(ArgumentError, match=r"2 facts match .* P36/Ireland/Dublin#a, P30/Ireland/Europe"):
        FACTS.find("Ireland")
    with pytest.raises(ArgumentError, match=r"0 facts match"):
        FACTS.find("Ireland", object="Cork")


def test_of_keeps_the_order_and_names_the_nearest_relation():
    assert list(FACTS.of("P30", "P36")) == list(FACTS[:3])
    with pytest.raises(ArgumentError, match=r"No relation 'P376'.*Did you mean 'P1376'"):
        FACTS.of("P376")


def test_sample_is_seeded_in_order_and_without_repeats():
    facts = FactSet(Fact(str(i), "r", "o") for i in range(50))
    drawn = facts.sample(20, seed=1)
    assert drawn == facts.sample(20, seed=1) != facts.sample(20, seed=2)
    assert [facts.index(fact) for fact in drawn] == sorted({facts.index(fact) for fact in drawn})
    assert facts.sample(50, seed=0) == facts
    for n in (-1, 51):
        with pytest.raises(ArgumentError, match=rf"n is {n}; expected 0 to 50"):
            facts.sample(n, seed=0)


def test_paired_facts_are_of_another_relation_and_all_are_drawn():
    partners = {seed: FACTS.paired_with_other_relations(seed) for seed in range(200)}
    assert partners[3] == FACTS.paired_with_other_relations(3)
    for i, fact in enumerate(FACTS):
        seen = {pairs[i] for pairs in partners.values()}
        assert seen == {j for j, other in enumerate(FACTS) if other.relation != fact.relation}
    with pytest.raises(ArgumentError, match="at least two relations; got P36"):
        FACTS.of("P36").paired_with_other_relations(0)


def test_a_repeated_fact_is_refused_with_both_positions():
    with pytest.raises(DataError, match=r"P36/Ireland/Dublin#a occurs twice: 0 and 4"):
        FactSet([*FACTS, FACTS[0]])


def test_a_set_refuses_elements_that_are_no_facts():
    with pytest.raises(ArgumentError, match="holds Facts; got 'Ireland', of type str"):
        FactSet([FACTS[0], "Ireland"])  # pyright: ignore
