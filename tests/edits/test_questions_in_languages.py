"""Questions about updates of facts in several languages."""

import pytest

import kn_lens as kn
from kn_lens.cli.edit import _other_prompts
from kn_lens.errors import ArgumentError
from tests.tiny import loaded

TEMPLATES = ("The capital of [X] is [Y].",)


def version(subject: str, object_: str, uid: str, language: str, relation: str = "P36") -> kn.Fact:
    return kn.Fact(subject, relation, object_, TEMPLATES, uid, language=language)


ITALY, ITALIEN = version("Italy", "Rome", "IT", "en"), version("Italien", "Rom", "IT", "de")
AUSTRIA, OESTERREICH = version("Austria", "Vienna", "AT", "en"), version("Österreich", "Wien", "AT", "de")


def test_facts_without_uid_translate_nothing():
    """They are no versions of one another, though they share the empty ``uid``."""
    facts = [ITALY, ITALIEN, version("Austria", "Vienna", "", "en"), version("Frankreich", "Paris", "", "de")]
    with pytest.raises(ArgumentError, match="'Vienna' of P36/Italy/Rome#IT#en has the translations none into 'de'"):
        kn.translated_questions(facts, {ITALY: "Vienna"})
    questions = kn.translated_questions([*facts, AUSTRIA, OESTERREICH], {ITALY: "Vienna"})
    assert questions == {"de": {ITALY: kn.Question(ITALIEN, "Wien")}}


def test_two_versions_in_one_language_are_refused():
    facts = [ITALY, ITALIEN, AUSTRIA, OESTERREICH, version("Oesterreich", "Wien", "AT", "de")]
    with pytest.raises(ArgumentError, match="P36/Österreich/Wien#AT#de and P36/Oesterreich/Wien#AT#de are versions"):
        kn.translated_questions(facts, {ITALY: "Vienna"})


def test_the_inverse_question_is_in_the_language_of_the_update():
    """Lima is the capital of Peru in both languages."""
    english, german = (version("Lima", "Peru", "PE", language, "P1376") for language in ("en", "de"))
    inverse = {"P36": "P1376"}
    both = kn.inverse_questions([english, german], {ITALY: "Lima", ITALIEN: "Lima"}, inverse)
    assert both == {ITALY: kn.Question(english, "Italy"), ITALIEN: kn.Question(german, "Italien")}
    assert kn.inverse_questions([german], {ITALY: "Lima"}, inverse) == {}


def test_facts_without_uid_are_other_facts_beside_an_edit():
    """As facts with a language alone have no versions, an edit of one leaves the others to be measured."""
    names = (("Ireland", "Dublin"), ("Peru", "Lima"), ("Italy", "Rome"))
    facts = kn.FactSet(version(subject, object_, "", "en") for subject, object_ in names)
    others = _other_prompts(loaded("BertForMaskedLM"), facts, facts[:1], 10, 0)
    assert others is not None and {fact.subject for fact in others.facts} == {"Peru", "Italy"}
