"""``kn-lens edit compare``: it measures what the library measures, and refuses what it does before any pass."""

import csv
import json
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest

import kn_lens as kn
from tests.tiny import COUNTRIES

ANSWERS = {"Ireland": "Lima", "Peru": "Dublin"}
TEMPLATES = (
    "The capital of [X] is [Y].",
    "[Y] is the capital of [X].",
    "In fact, [X] has its seat in [Y]",
    "[X], [Y].",
)


@pytest.fixture
def cli(cli):
    """Run ``kn-lens edit compare``."""
    return partial(cli, "edit", "compare")


@pytest.fixture(scope="module")
def causal(checkpoints):
    return checkpoints["gpt2"], kn.load_model(checkpoints["gpt2"], device="cpu")


def same_rows(found, expected):
    """Check that two tables have the same rows, but for the time that edits took."""
    found = pd.DataFrame(found)[list(expected)].astype(expected.dtypes)  # NaN is null in JSON
    found, expected = (table.drop(columns="seconds") for table in (found, expected))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=1e-8)


def test_the_effects_are_those_of_the_library(cli, causal, facts_file, tmp_path):
    """One answer for all; the last usable template is held out; other facts are asked in one template each."""
    path, model = causal
    chosen = ("-f", facts_file, "-r", "P36", "-s", "Ireland", "-s", "Peru", "--object", "Rome")
    how = ("--editor", "KN-easyedit", "--editor", "FT", "--size", 2, "--others", 6, "--seed", 3)
    code, out, err = cli("-m", path, *chosen, *how, "--json", "-o", tmp_path / "effects.csv")
    assert (code, err) == (0, "")
    document = json.loads(out)

    source = kn.FactSet.from_jsonl(facts_file)
    facts = [fact for fact in source.of("P36") if fact.subject in ("Ireland", "Peru")]
    seen = {replace(fact, templates=(TEMPLATES[0], TEMPLATES[2])): "Rome" for fact in facts}
    held_out = {fact: kn.Question(replace(fact, templates=TEMPLATES[3:]), "Rome") for fact in seen}
    rest = kn.FactSet(fact for fact in source if fact not in facts).sample(6, 3)
    others = kn.make_prompts(model, [replace(fact, templates=(first_usable(fact),)) for fact in rest])
    expected = kn.compare_edits(
        model,
        seen,
        [kn.KN(preset="easyedit"), kn.FT()],
        questions={"held-out wording": held_out},
        others=others,
        sizes=(2,),
        refused="unchanged",
        seed=3,
    )
    same_rows(document["facts"], expected)
    with (tmp_path / "effects.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(expected)
    assert (document["n_facts"], document["n_held_out"], document["n_others"]) == (2, 2, 6)
    table = kn.edit_table(expected, seed=3)
    assert [row["measure"] for row in document["table"]] == table["measure"].tolist()


def first_usable(fact):
    """The first template of a fact that a causal model can be asked in."""
    return next(template for template in fact.templates if template.rstrip(".").endswith("[Y]"))


def test_moments_come_from_a_file_of_texts_or_of_moments(cli, causal, facts_file, tmp_path):
    path, model = causal
    texts = [f"{country} has {capital}." for country, capital in COUNTRIES.items()]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    moments = kn.second_moments(model, texts, layers=[0, 1])
    moments.save(tmp_path / "moments.safetensors")
    how = ("-m", path, "-f", facts_file, "-r", "P36", "-s", "Ireland", "--object", "Rome", "--others", 0)
    how += ("--editor", "ROME", "--rome-layer", 0, "--editor", "MEMIT", "--memit-layer", 0, "--memit-layer", 1)
    how += ("--no-controls", "--no-prefixes", "--held-out", 0, "--wordings", 1, "--json")
    results = [cli(*how, "--moments", tmp_path / name) for name in ("texts.txt", "moments.safetensors")]
    assert all((code, err) == (0, "") for code, _, err in results)
    first, second = (pd.DataFrame(json.loads(out)["facts"]) for _, out, _ in results)
    same_rows(first, second)

    fact = kn.FactSet.from_jsonl(facts_file).find("Ireland", "P36")
    fact = replace(fact, templates=TEMPLATES[:1])
    editors = [
        kn.ROME(moments=moments, layer=0, prefixes=()),
        kn.MEMIT(moments=moments, layers=[0, 1], prefixes=()),
    ]
    same_rows(first, kn.compare_edits(model, {fact: "Rome"}, editors, controls=False))


def test_new_answers_are_drawn_from_those_of_the_relation(cli, checkpoints, facts_file):
    """A masked model has the editors by knowledge neurons; a refused edit is told, and counts as no change."""
    how = ("-m", checkpoints["bert"], "-f", facts_file, "--limit", 1, "--others", 4)
    code, out, err = cli(*how, "--no-controls", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["editors"] == ["KN", "KN (EasyEdit)", "KN (EleutherAI)"]
    answers = {row["relation"]: set() for row in document["facts"]}
    for row in document["facts"]:
        answers[row["relation"]].add((row["object"], row["new_object"]))
    names = {"P36": set(COUNTRIES.values()), "P1376": set(COUNTRIES)}
    for relation, pairs in answers.items():
        assert all(old != new and new in names[relation] for old, new in pairs)
    refused = [row for row in document["facts"] if row["why"]]
    for row in refused:  # other passes have other rows together, and round otherwise
        assert row["norm"] == row["edit_bytes"] == 0 and row["nll_after"] == pytest.approx(row["nll_before"], rel=1e-5)
    assert {row["key"] for row in document["refused"]} == {row["key"] for row in refused}
    code, out, _ = cli(*how, "-r", "P36", "--editor", "KN-eleutherai")
    assert code == 0 and "KN (EleutherAI)" in out and "most active" in out and "4 prompts of other facts" in out


def test_data_sets_bring_their_answers_questions_and_other_facts(cli, checkpoints, tmp_path):
    rewrite = {"prompt": "The capital of {} is", "relation_id": "P36", "subject": "Ireland"}
    rewrite |= {"target_true": {"str": "Dublin"}, "target_new": {"str": "Rome"}}
    case = {"case_id": 0, "requested_rewrite": rewrite, "paraphrase_prompts": ["See Ireland, see"]}
    record = {
        "subject": "Ireland",
        "prompt": "The capital of Ireland is",
        "target_new": "Rome",
        "ground_truth": "Dublin",
    }
    record |= {"rephrase_prompt": "See Ireland, see"}
    record |= {"locality": {"P36": [{"prompt": "The capital of Peru is", "ground_truth": [["Lima"]]}]}}
    path = tmp_path / "data.json"
    for entry in ({**case, "neighborhood_prompts": ["The capital of Peru is"]}, record):
        path.write_text(json.dumps([entry]))
        code, out, err = cli("-m", checkpoints["gpt2"], "-f", path, "--editor", "KN", "--no-controls", "--json")
        assert (code, err) == (0, "")
        document = json.loads(out)
        assert {(row["object"], row["new_object"]) for row in document["facts"]} == {("Dublin", "Rome")}
        questions = {row["question"] for row in document["facts"]}
        assert {"own wording", "held-out wording"} < questions and document["n_others"] == 1
    for options, message in ((("--object", "Lima"), "has its own"), (("--split", "trained"), "their own templates")):
        code, _, err = cli("-m", checkpoints["gpt2"], "-f", path, *options)
        assert code == 2 and message in err


def test_invalid_input_is_one_line_before_any_pass(cli, checkpoints, facts_file, tmp_path, monkeypatch):
    monkeypatch.setattr("kn_lens.edits.comparison.score_answers", None)  # no pass is reached
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "cut.safetensors").write_bytes(b"x")
    gpt2 = ("-m", checkpoints["gpt2"], "-f", facts_file)
    bert = ("-m", checkpoints["bert"], "-f", facts_file)
    for args, message in [
        ((*gpt2, "--editor", "ROM"), "Did you mean 'ROME'"),
        ((*gpt2, "--editor", "FT", "--editor", "FT"), "FT is named twice"),
        ((*gpt2, "--size", 99), "expected 1 to 10, the number of facts"),
        ((*gpt2, "-s", "Ireland", "--size", 1, "--size", 1), "given twice"),
        ((*gpt2, "-s", "Ireland", "--object", "Dublin"), "all 1 facts have this answer"),
        ((*bert, "-s", "Ireland", "--object", "東京"), "cannot be asked in any template that takes both answers"),
        ((*gpt2, "--moments", tmp_path / "empty.txt"), "there is no text in it"),
        ((*gpt2, "--moments", tmp_path / "none.txt"), "cannot be read as text"),
        ((*gpt2, "--moments", tmp_path / "cut.safetensors"), "cannot be read as second moments"),
        ((*gpt2, "--editor", "ROME", "--rome-layer", 9), "has no layer 9"),
        ((*gpt2, "--editor", "MEMIT", "--memit-layer", 9), "has no layer 9"),
        ((*bert, "--editor", "MEMIT"), "is a masked model; expected a causal one"),
        ((*gpt2, "--n-generated", 2), "n_generated=2; expected 0, or a number from 3"),
        ((*gpt2, "-o", tmp_path / "none" / "x.csv"), "Create it first"),
    ]:
        code, out, err = cli(*args)
        assert (code, out) == (2, ""), (args, out, err)
        assert message in err and err.count("\n") == 1, (args, err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.safetensors", "empty.txt"]
