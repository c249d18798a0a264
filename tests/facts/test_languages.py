"""Facts in several languages: their fields, their files, and the readers of mLAMA and mParaRel."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens.cli._facts import detect_format, read_facts
from kn_lens.errors import ArgumentError, DataError

PART = st.text("a#/%", max_size=3)
FIELDS = st.tuples(PART.filter(bool), PART, PART)
"""Object, uid and language of a fact."""

GERMAN = kn.Fact("Irland", "P36", "Dublin", ("[Y] ist die Hauptstadt von [X].",), "0", language="de")
ENGLISH = kn.Fact("Ireland", "P36", "Dublin", ("[Y] is the capital of [X].",), "0", language="en")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tuples(*names: tuple[str, str]) -> list[dict]:
    """Lines as mLAMA and mParaRel have them."""
    rows = []
    for number, (subject, object_) in enumerate(names):
        rows.append(
            {
                "sub_uri": "Q1",
                "obj_uri": "Q2",
                "obj_label": object_,
                "sub_label": subject,
                "lineid": number,
                "from_english": False,
            }
        )
    return rows


@pytest.fixture
def mlama(tmp_path):
    root = tmp_path / "mlama1.1"
    write_lines(root / "en" / "templates.jsonl", [{"relation": "P36", "template": "[Y] is the capital of [X]."}])
    write_lines(root / "de" / "templates.jsonl", [{"relation": "P36", "template": "[Y] ist die Hauptstadt von [X]."}])
    write_lines(root / "en" / "P36.jsonl", tuples(("Ireland", "Dublin"), ("Austria", "Vienna")))
    write_lines(root / "de" / "P36.jsonl", tuples(("Irland", "Dublin"), ("Österreich", "Wien")))
    write_lines(root / "de" / "P30.jsonl", tuples(("Irland", "Europa")))  # without a template
    write_lines(root / "xx" / "P36.jsonl", tuples(("Irxx", "Dublin")))  # a language without templates
    return root


@pytest.fixture
def mpararel(tmp_path):
    root = tmp_path / "mpararel"
    same = {"pattern": "[X]s hauptstadt ist [Y]", "checked-by-human": True}
    write_lines(root / "patterns/de/P36.jsonl", [same, {"pattern": "[Y] ist die hauptstadt von [X]"}, same])
    write_lines(root / "patterns/en/P36.jsonl", [{"pattern": "[X]'s capital is [Y]"}])
    write_lines(root / "tuples/de/P36.jsonl", tuples(("Irland", "Dublin")))
    write_lines(root / "tuples/en/P36.jsonl", tuples(("Ireland", "Dublin")))
    return root


def test_language_tells_facts_apart():
    same_words = kn.Fact("Europa", "P31", "Mond", uid="1", language="de")
    other = kn.Fact("Europa", "P31", "Mond", uid="1", language="it")
    assert same_words != other and len({same_words, other}) == 2
    assert same_words.key == "P31/Europa/Mond#1#de"
    assert "language='de'" in repr(same_words)


@given(one=FIELDS, other=FIELDS)
def test_keys_of_different_facts_differ(one, other):
    facts = [kn.Fact("A", "r", object_, uid=uid, language=language) for object_, uid, language in (one, other)]
    assert (facts[0].key == facts[1].key) == (facts[0] == facts[1])


def test_keys_without_language_are_as_they_were():
    assert kn.Fact("a@b", "r", "c%/#", uid="u").key == "r/a@b/c%25%2F%23#u"


@pytest.mark.parametrize("write", ["jsonl", "frame"])
def test_language_goes_through_files(write, tmp_path):
    facts = kn.FactSet([GERMAN, ENGLISH, kn.Fact("Ireland", "P36", "Dublin", ENGLISH.templates)])
    if write == "jsonl":
        facts.to_jsonl(tmp_path / "facts.jsonl")
        read = kn.FactSet.from_jsonl(tmp_path / "facts.jsonl")
    else:
        read = kn.FactSet.from_frame(facts.to_frame())
    assert read == facts
    assert [fact.templates for fact in read] == [fact.templates for fact in facts]
    assert read.languages == ("de", "en", "")


def test_template_lines_of_two_languages_are_two_facts(tmp_path):
    path = tmp_path / "facts.jsonl"
    row = {"subject": "Nairobi", "relation": "P1376", "object": "Kenya"}
    write_lines(
        path,
        [
            {**row, "template": "[X] is the capital of [Y].", "language": "en"},
            {**row, "template": "[X] est la capitale de [Y].", "language": "fr"},
        ],
    )
    assert [fact.language for fact in kn.FactSet.from_jsonl(path)] == ["en", "fr"]


def test_find_takes_a_language():
    facts = kn.FactSet.world(languages=["en", "es"])
    assert facts.find("Austria", "P36", language="es").object == "Viena"
    with pytest.raises(ArgumentError, match="language="):
        facts.find("Austria", "P36")
    with pytest.raises(ArgumentError, match=r"the language 'ess'; there are 'en', 'es'\. Did you mean 'es'"):
        facts.in_languages("ess")


def test_translations_need_identity():
    facts = kn.FactSet([GERMAN, ENGLISH])
    assert facts.translations(ENGLISH) == {"de": GERMAN, "en": ENGLISH}
    with pytest.raises(ArgumentError, match="expected a fact with both"):
        facts.translations(kn.Fact("Ireland", "P36", "Dublin"))
    twice = kn.FactSet([GERMAN, kn.Fact("Eire", "P36", "Dublin", uid="0", language="de")])
    with pytest.raises(ArgumentError, match="in one language"):
        twice.translations(GERMAN)


def test_mlama_reads_languages_with_templates(mlama):
    facts = kn.FactSet.from_mlama(mlama)
    assert facts.languages == ("de", "en")
    assert facts.relations == ("P36",)
    german = facts.find("Österreich")
    assert german == kn.Fact("Österreich", "P36", "Wien", uid="1", language="de")
    assert german.templates == ("[Y] ist die Hauptstadt von [X].",)
    assert facts.translations(german)["en"].object == "Vienna"
    assert kn.FactSet.from_mlama(mlama, languages="en", relations="P36").languages == ("en",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ["dee"]}, "no language 'dee' there. Did you mean 'de'"),
        ({"languages": ["xx"]}, "no language 'xx'"),
        ({"relations": ["P30"], "languages": ["de"]}, "no relation 'P30'"),
    ],
)
def test_mlama_names_what_is_missing(mlama, options, message):
    with pytest.raises(DataError, match=message):
        kn.FactSet.from_mlama(mlama, **options)


def test_languages_are_a_name_or_names():
    assert kn.FactSet.world(languages="de") == kn.FactSet.world(languages=["de"])
    with pytest.raises(DataError, match=r"no language 'de,fr' there\. There are en, de, es, fr\."):
        kn.FactSet.world(languages="de,fr")
    with pytest.raises(ArgumentError, match="no language is named; expected at least one of en, de, es, fr"):
        kn.FactSet.world(languages=[])
    with pytest.raises(ArgumentError, match="Got an int as languages; expected the name of a language, or several"):
        kn.FactSet.world(languages=3)  # type: ignore[arg-type]


def test_mlama_names_the_line_of_a_template_without_slot(mlama):
    write_lines(mlama / "de" / "templates.jsonl", [{"relation": "P36", "template": "[Y] ist die Hauptstadt."}])
    with pytest.raises(DataError, match=r"templates\.jsonl:1: the template .* holds \[X\] 0 times"):
        kn.FactSet.from_mlama(mlama)


def test_mlama_needs_the_number_of_a_fact(mlama):
    write_lines(mlama / "en" / "P36.jsonl", [{"sub_label": "Ireland", "obj_label": "Dublin", "lineid": "0"}])
    with pytest.raises(DataError, match=r"P36\.jsonl:1: 'lineid' must be a whole number; got '0'"):
        kn.FactSet.from_mlama(mlama)


def test_mpararel_reads_patterns_once(mpararel):
    facts = kn.FactSet.from_mpararel(mpararel, min_templates=1)
    assert facts.languages == ("de", "en")
    german = facts.find("Irland")
    assert german.templates == ("[X]s hauptstadt ist [Y]", "[Y] ist die hauptstadt von [X]")
    assert set(facts.translations(german)) == {"de", "en"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no relation has both facts and enough templates"),
        ({"min_templates": 2}, r"tuples/en: no relation has both facts and enough templates"),
        ({"languages": ["fr"], "min_templates": 1}, "no language 'fr'"),
    ],
)
def test_mpararel_names_what_is_missing(mpararel, options, message):
    with pytest.raises(DataError, match=message):
        kn.FactSet.from_mpararel(mpararel, **options)


@pytest.mark.parametrize("read", [kn.FactSet.from_mlama, kn.FactSet.from_mpararel])
def test_another_folder_is_refused(read, tmp_path):
    with pytest.raises(DataError, match=r"no (folder of a language|language has both)"):
        read(tmp_path)


def test_sources_of_the_command_line_name_languages(mlama, mpararel):
    assert (detect_format(str(mlama)), detect_format(f"{mpararel}:de")) == ("mlama", "mpararel")
    assert read_facts("world:de,fr", None, None, "trained") == kn.FactSet.world("trained", languages=["de", "fr"])
    assert read_facts(str(mlama), None, None, "all") == kn.FactSet.from_mlama(mlama)
    assert read_facts(f"{mlama}:de", None, None, "all") == kn.FactSet.from_mlama(mlama, ["de"])
    assert read_facts("world", None, None, "all").languages == ("",)


@pytest.mark.parametrize(
    ("source", "format", "message"),
    [
        ("world:xx", None, "the embedded world: no language 'xx'"),
        ("{mlama}:de", "lama", r"names the languages de, and lama facts have none; expected '.*mlama1.1'"),
        ("{mpararel}", None, "enough templates"),
    ],
)
def test_sources_with_wrong_languages_are_refused(mlama, mpararel, source, format, message):
    with pytest.raises((ArgumentError, DataError), match=message):
        read_facts(source.format(mlama=mlama, mpararel=mpararel), format, None, "all")
