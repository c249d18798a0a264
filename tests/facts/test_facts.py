"""Facts and sets of them."""

import pytest
from hypothesis import given

from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts.facts import Fact, FactSet
from kn_lens.runs.data import digest_of_facts
from kn_lens.runs.directory import digest_of_json
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


def test_the_label_of_a_relation_changes_neither_equality_nor_key_nor_digest():
    fact = Fact("Ireland", "P36", "Dublin", (CAPITAL,))
    labelled = Fact("Ireland", "P36", "Dublin", (CAPITAL,), relation_label="capital")
    assert fact == labelled and hash(fact) == hash(labelled) and fact.key == labelled.key
    assert digest_of_facts([fact]) == digest_of_facts([labelled])
    # As runs of earlier versions recorded it.
    assert digest_of_facts([labelled]) == digest_of_json([["P36/Ireland/Dublin", [CAPITAL]]])
    assert (fact.relation_name, labelled.relation_name) == ("P36", "capital (P36)")
    assert Fact("Ireland", "capital", "Dublin", relation_label="capital").relation_name == "capital"


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
        (("Ireland", "P36", "Dublin", (), "", " capital"), "relation_label of a fact must be text without blanks"),
        (("Ireland", "P36", "Dublin", (), "", None), "relation_label of a fact must be text; got None"),
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


LABELLED = FactSet(
    [
        Fact("Ireland", "P36", "Dublin", relation_label="capital"),
        Fact("Dublin", "P1376", "Ireland", relation_label="capital of"),
        Fact("Kerry", "seat", "Tralee"),
    ]
)


@pytest.mark.parametrize("name", ["P36", "capital", "capital (P36)"])
def test_a_relation_is_found_by_its_label(name):
    assert LABELLED.find("Ireland", relation=name) is LABELLED[0]
    assert LABELLED.of(name, "seat").relations == ("P36", "seat")
    assert LABELLED.relation_of(name) == "P36"


def test_an_identifier_goes_before_a_label_and_labels_of_several_relations_are_refused():
    facts = LABELLED + FactSet([Fact("Ireland", "capital", "Cork"), Fact("a", "b", "c", relation_label="seat")])
    assert facts.find("Ireland", relation="capital").object == "Cork"
    assert facts.find("Ireland", relation="capital (P36)").object == "Dublin"
    facts = LABELLED + FactSet([Fact("a", "b", "c", relation_label="capital")])
    with pytest.raises(ArgumentError, match="'capital' is the label of P36, b; expected one of these"):
        facts.of("capital")
    with pytest.raises(ArgumentError, match=r"'capitol'; there are capital \(P36\), .*, seat\. Did you mean 'capital'"):
        LABELLED.of("capitol")
    with pytest.raises(ArgumentError, match=r"No fact about 'Irland' in relation capital \(P36\)"):
        LABELLED.find("Irland", relation="capital")


def test_sets_add_up_in_order_and_not_with_a_fact_of_both():
    last = [FACTS[3]]
    assert FACTS[:2] + FACTS[2:] == FACTS and FACTS[:3] + last == FACTS
    assert isinstance(FACTS[:2] + FACTS[2:], FactSet)
    with pytest.raises(DataError, match="P36/Ireland/Dublin#a occurs twice"):
        FACTS + FACTS[:1]
    with pytest.raises(ArgumentError, match="Got the text 'Ireland'; expected several Facts"):
        FACTS + "Ireland"


HOSTILE = Fact("<b>&\x1b[31m", "\u202eP", "o" * 500, ("[X] <script> [Y]",), relation_label="a\nb")


@pytest.mark.parametrize("value", [HOSTILE, FactSet([HOSTILE]), FactSet.world(), FactSet.world()[0], FactSet([])])
def test_the_text_is_one_line_and_the_html_a_short_table(value):
    assert "\n" not in repr(value) and len(repr(value)) < 400 and repr(value).isprintable()
    html = value._repr_html_()
    assert html.count("\n") < 30 and len(html) < 4000
    assert html.replace("\n", "").isprintable() and "<script>" not in html and "<b>" not in html


def test_a_set_shows_its_size_and_its_first_facts():
    world = FactSet.world()
    assert repr(world).startswith("FactSet(1,328 facts, 11 relations: capital (P36), capital of (P1376), ")
    html = world._repr_html_()
    assert "<td>Beijing</td>" in html and "1,318 more" in html and html.count("<tr>") == 11
    assert repr(world[0]) == "Fact('China', 'capital (P36)', 'Beijing', 30 templates)"


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
    with pytest.raises(ArgumentError, match="Got the text 'Ireland' as one of the facts; expected Facts alone"):
        FactSet([FACTS[0], "Ireland"])  # pyright: ignore
