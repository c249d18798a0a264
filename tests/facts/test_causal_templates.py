"""The package's own templates for ParaRel's relations: sentences that end with the object, for causal models."""

import hashlib
import itertools
import json
import re
from pathlib import Path

import pytest

import kn_lens as kn
from kn_lens.cli._facts import read_facts
from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts.readers import CAUSAL_TEMPLATES, read_patterns
from kn_lens.runs.studies.config import as_toml, read_study

RELATIONS = (
    "P19 P20 P27 P30 P36 P37 P39 P47 P101 P103 P106 P108 P127 P136 P138 P140 P159 P176 P178 P190 P264 P279 P364 P407 "
    "P413 P449 P463 P495 P530 P740 P937 P1303 P1376 P1412"
).split()
"""Those of ParaRel with at least four patterns and with facts, which are the paper's."""

PARAREL_PATTERNS = Path(__file__).with_name("pararel_patterns.sha256")
"""Digests of ParaRel's 329 patterns: ``digest(json.loads(line)["pattern"])`` of each line of ``patterns/*.jsonl``."""

TEMPLATES = read_patterns(Path("kn_lens"))
PAIRS = [(relation, template) for relation, templates in TEMPLATES.items() for template in templates]


def words(template: str) -> list[str]:
    """The words and slots of a template in lower case, without punctuation."""
    return re.findall(r"\[[xy]\]|[\w']+", template.lower())


def digest(template: str) -> str:
    return hashlib.sha256(" ".join(words(template)).encode()).hexdigest()[:16]


def edit_distance(left: list[str], right: list[str]) -> int:
    """The least number of words to insert, delete or replace."""
    row = list(range(len(right) + 1))
    for i, word in enumerate(left, start=1):
        previous, row = row, [i]
        for j, other in enumerate(right, start=1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (word != other)))
    return row[-1]


def test_every_relation_of_the_paper_has_at_least_six_templates():
    assert list(TEMPLATES) == RELATIONS
    assert min(len(templates) for templates in TEMPLATES.values()) >= 6


@pytest.mark.parametrize(("relation", "template"), PAIRS)
def test_a_template_is_a_sentence_about_the_subject_that_ends_with_the_object(relation, template):
    assert template.endswith(" [Y].") and template.count("[Y]") == 1 and template.count("[X]") == 1
    assert template[0].isupper() or template.startswith("[X]")
    assert not re.search(r"\s\s|\s[.,?:]|\b(a|an) \[Y\]", template), "blanks, or an article that the object decides"


def test_templates_differ_by_more_than_a_word_or_two():
    for templates in TEMPLATES.values():
        for left, right in itertools.combinations(templates, 2):
            assert edit_distance(words(left), words(right)) >= 3, (left, right)


def test_no_template_asks_two_relations():
    assert len({digest(template) for _, template in PAIRS}) == len(PAIRS)


def test_no_template_is_one_of_pararel():
    published = set(PARAREL_PATTERNS.read_text().split())
    assert len(published) > 250 and digest("The capital of [X] is [Y] .") in published, "the digests find a pattern"
    assert not [template for _, template in PAIRS if digest(template) in published]


def test_records_name_their_source_and_the_licence_is_beside_them():
    lines = [json.loads(line) for line in CAUSAL_TEMPLATES.read_text("utf-8").splitlines()]
    assert len(lines) == len(PAIRS) and {line["source"] for line in lines} == {"kn_lens"}
    assert "MIT License" in CAUSAL_TEMPLATES.with_name("LICENSE.txt").read_text("utf-8")


@pytest.fixture
def pararel(tmp_path):
    """A folder in ParaRel's layout; one pattern of four ends with the object, and P31 has no template of ours."""
    rows = {"P36": ("Ireland", "Dublin"), "P1376": ("Dublin", "Ireland"), "P31": ("Ireland", "island")}
    patterns = ["The capital of [X] is [Y].", "[Y] is the capital of [X].", "[Y], the capital of [X].", "[Y] of [X]."]
    for relation, (subject, answer) in rows.items():
        for folder, lines in {
            "facts": [{"sub_label": subject, "obj_label": answer, "uuid": "a"}],
            "patterns": [{"pattern": pattern} for pattern in patterns],
        }.items():
            path = tmp_path / folder / f"{relation}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_pararel_keeps_its_own_patterns_unless_ours_are_asked_for(pararel):
    own = kn.FactSet.from_pararel(pararel)
    chosen = kn.FactSet.from_pararel(pararel, templates="kn_lens")
    assert own.relations == ("P31", "P36", "P1376") and {len(fact.templates) for fact in own} == {4}
    assert chosen.relations == ("P36", "P1376"), "relations without a template of ours are left out, as those with few"
    assert [fact.templates for fact in chosen] == [TEMPLATES["P36"], TEMPLATES["P1376"]]
    with pytest.raises(DataError, match="relation P31 has 0 templates"):
        kn.FactSet.from_pararel(pararel, ["P31"], templates="kn_lens")


def test_a_causal_model_is_asked_every_template_and_a_masked_one_too(pararel):
    facts = kn.FactSet.from_pararel(pararel, ["P36"], templates="kn_lens")
    for name in ("world-gpt2", "world-bert"):
        prompts = kn.make_prompts(kn.load_model(name), facts)
        assert prompts.template == TEMPLATES["P36"] and not prompts.left_out
    before = kn.make_prompts(kn.load_model("world-gpt2"), kn.FactSet.from_pararel(pararel, ["P36"]))
    assert before.left_out == {"object not last": 3}


def test_facts_of_other_formats_take_them_too(pararel, tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text('{"subject": "Ireland", "relation": "P36", "object": "Dublin"}\n')
    for facts in (
        kn.FactSet.from_jsonl(path, templates="kn_lens"),
        kn.FactSet.from_lama(pararel / "facts" / "P36.jsonl", templates="kn_lens"),
        kn.FactSet.from_frame(kn.FactSet.from_jsonl(path).to_frame(), templates="kn_lens"),
    ):
        assert facts[0].templates == TEMPLATES["P36"]


def test_the_command_line_and_studies_choose_them_by_name(pararel, monkeypatch):
    assert read_facts(str(pararel), None, Path("kn_lens"), "all")[0].templates == TEMPLATES["P36"]
    with pytest.raises(ArgumentError, match="world facts have their own templates"):
        read_facts("world", None, Path("kn_lens"), "all")
    (pararel / "kn_lens").mkdir()  # a folder of that name beside the study is not what is meant
    study = pararel / "study.toml"
    study.write_text('[[models]]\nmodel = "world-gpt2"\n[[facts]]\nsource = "."\nname = "p"\ntemplates = "kn_lens"\n')
    config = read_study(study)
    assert config.facts[0].templates == "kn_lens" and 'templates = "kn_lens"' in as_toml(config)


@pytest.mark.parametrize("name", ["KN_LENS", "kn-lens", "templates"])
def test_templates_that_are_nowhere_say_what_is_expected(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "facts.jsonl"
    path.write_text('{"subject": "Ireland", "relation": "P36", "object": "Dublin"}\n')
    with pytest.raises(DataError, match=rf"{name}: no such file\. Templates are .* or 'kn_lens' for those"):
        kn.FactSet.from_jsonl(path, templates=name)
