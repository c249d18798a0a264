"""The facts and templates of the embedded world have the properties that their data card states."""

import json
import re
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest

import kn_lens.world

WORLD = Path(kn_lens.world.__file__).parent
KEYS = {
    "facts.jsonl": ["subject", "relation", "object", "source"],
    "templates.jsonl": ["relation", "pattern", "split"],
    "relations.jsonl": ["relation", "label", "inverse"],
}

# The words by which a reader tells the relation, in the order in which they decide: a capital is a city too.
TELLING_WORDS = [
    ({"P36", "P1376"}, {"capital"}),
    ({"P30"}, {"continent", "continents"}),
    ({"P38"}, {"currency", "money", "pay", "paid", "prices"}),
    ({"P474"}, {"call", "calls", "calling", "dial", "dialling", "phone", "telephone"}),
    ({"P78"}, {"domain", "domains", "internet", "site", "sites", "web", "websites", "email"}),
    ({"P17"}, {"city", "cities"}),
    ({"P282"}, {"script", "scripts", "writing"}),
    ({"P246"}, {"symbol", "sign", "chemists", "chemical"}),
    ({"P1086"}, {"atomic", "protons", "periodic"}),
    ({"P37"}, {"language", "official", "officials", "government", "laws"}),
]


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (WORLD / name).read_text(encoding="ascii").splitlines()]


FACTS, TEMPLATES, RELATIONS = map(rows, KEYS)
NAMES = [row["relation"] for row in RELATIONS]


def of(table: list[dict[str, str]], relation: str) -> list[dict[str, str]]:
    return [row for row in table if row["relation"] == relation]


def patterns(relation: str, split: str) -> list[str]:
    return [row["pattern"] for row in of(TEMPLATES, relation) if row["split"] == split]


def words(pattern: str) -> list[str]:
    return re.findall(r"[a-z-]+", pattern.replace("[X]", "").replace("[Y]", "").lower())


def plain(pattern: str) -> str:
    """Return a sentence without case, punctuation and articles, by which similar sentences are equal."""
    kept = re.findall(r"\[[xy]\]|[a-z-]+", pattern.lower())
    return " ".join(word for word in kept if word not in {"the", "a", "an"})


def object_is_last(pattern: str) -> bool:
    return not re.search(r"\w", pattern.split("[Y]")[1])


def swapped(pattern: str) -> str:
    return pattern.translate(str.maketrans("XY", "YX"))


@pytest.mark.parametrize("name", KEYS)
def test_data_files_are_canonical_json_lines_without_repeats(name):
    text = (WORLD / name).read_text(encoding="ascii")
    assert text == "".join(json.dumps(row) + "\n" for row in rows(name))
    assert all(list(row) == KEYS[name] for row in rows(name))
    assert len(set(text.splitlines())) == len(text.splitlines())


def test_there_are_enough_facts_and_relations():
    assert len(NAMES) >= 10 and len(set(NAMES)) == len(NAMES)
    assert {row["relation"] for row in FACTS} == {row["relation"] for row in TEMPLATES} == set(NAMES)
    assert 1200 <= len(FACTS) <= 1400
    assert all(len(of(FACTS, relation)) >= 75 for relation in NAMES)
    assert {row["source"] for row in FACTS} == {"geonames", "cldr", "periodictable"}


def test_each_subject_and_relation_has_one_object_other_than_the_subject():
    questions = Counter((row["subject"], row["relation"]) for row in FACTS)
    assert questions.most_common(1)[0][1] == 1
    assert [row for row in FACTS if row["subject"] == row["object"]] == []


def test_names_hold_letters_spaces_hyphens_and_apostrophes_only():
    odd = [row for row in FACTS if not re.fullmatch(r"[A-Za-z '-]+|\d+", row["object"])]
    odd += [row for row in FACTS if not re.fullmatch(r"[A-Za-z][A-Za-z '-]+", row["subject"])]
    assert odd == []


@pytest.mark.parametrize("relation", NAMES)
def test_no_answer_dominates(relation):
    answers = Counter(row["object"] for row in of(FACTS, relation))
    assert answers.most_common(1)[0][1] <= 0.5 * answers.total()


def test_some_objects_have_several_words():
    several = Counter(row["relation"] for row in FACTS if re.search("[ -]", row["object"]))
    assert len(several) >= 4 and several.total() >= 0.04 * len(FACTS)


def test_inverse_relations_mirror_each_other():
    inverse = {row["relation"]: row["inverse"] for row in RELATIONS if row["inverse"]}
    assert inverse and all(inverse[other] == relation for relation, other in inverse.items())
    for relation, other in inverse.items():
        there = {(row["subject"], row["object"]) for row in of(FACTS, relation)}
        assert there == {(row["object"], row["subject"]) for row in of(FACTS, other)}


def test_every_template_has_both_slots_once():
    assert [row for row in TEMPLATES if sorted(re.findall(r"\[.*?\]", row["pattern"])) != ["[X]", "[Y]"]] == []


@pytest.mark.parametrize("relation", NAMES)
def test_templates_are_many_and_split(relation):
    counts = Counter((row["split"], object_is_last(row["pattern"])) for row in of(TEMPLATES, relation))
    assert counts == {
        ("trained", True): 17,
        ("trained", False): 7,
        ("held_out", True): 3,
        ("held_out", False): 3,
    }


@pytest.mark.parametrize("relation", NAMES)
def test_held_out_templates_use_only_words_trained_in_the_relation(relation):
    known = {word for pattern in patterns(relation, "trained") for word in words(pattern)}
    unseen = {pattern: set(words(pattern)) - known for pattern in patterns(relation, "held_out")}
    assert {pattern: new for pattern, new in unseen.items() if new} == {}


def test_no_two_templates_read_the_same():
    readers = defaultdict(list)
    for row in TEMPLATES:
        readers[plain(row["pattern"])].append(row)
    assert [same for same in readers.values() if len(same) > 1] == []


@pytest.mark.parametrize("relation", NAMES)
def test_held_out_templates_are_not_trained_by_the_inverse_relation(relation):
    trained_sentences = {plain(row["pattern"]) for row in TEMPLATES if row["split"] == "trained"}
    assert [p for p in patterns(relation, "held_out") if plain(swapped(p)) in trained_sentences] == []


@pytest.mark.parametrize("relation", NAMES)
def test_each_template_holds_a_word_of_its_relation(relation):
    for row in of(TEMPLATES, relation):
        said = set(words(row["pattern"]))
        first = next((relations for relations, telling in TELLING_WORDS if said & telling), set())
        assert relation in first, row["pattern"]


def test_shipped_facts_equal_those_built_from_the_sources():
    build_facts = pytest.importorskip("kn_lens.world.training.build_facts", reason="needs the extra kn-lens[world]")
    installed = {package: version(package) for package in build_facts.SOURCE_VERSIONS}
    if installed != build_facts.SOURCE_VERSIONS:
        pytest.skip(f"facts.jsonl was made with {build_facts.SOURCE_VERSIONS}, installed are {installed}")
    assert [vars(fact) for fact in build_facts.build()] == FACTS


def test_data_card_counts_the_facts():
    cells = [line.strip("| \n").split(" | ") for line in (WORLD / "DATA_CARD.md").read_text("utf-8").splitlines()]
    stated = {row[0]: tuple(map(int, row[2:5])) for row in cells if row[0] in NAMES}
    counted = {}
    for relation in NAMES:
        answers = [row["object"] for row in of(FACTS, relation)]
        counted[relation] = (len(answers), len(set(answers)), sum(bool(re.search("[ -]", name)) for name in answers))
    assert stated == counted


def test_every_source_has_its_licence_beside_it():
    licences = (WORLD / "LICENSES" / "README.txt").read_text("utf-8")
    for source in {row["source"] for row in FACTS}:
        assert f'source "{source}"' in licences
    for name in re.findall(r"\S+-\S+\.txt", licences):
        assert len((WORLD / "LICENSES" / name).read_text("utf-8")) > 2000
