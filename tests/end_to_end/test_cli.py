"""The command line: what it computes is what the library computes; streams, exit codes and files are as promised."""

import io
import json
import signal
import subprocess
import sys
import time
from typing import get_args

import pandas as pd
import pytest
from rich.console import Console

import kn_lens as kn
from kn_lens import attribution, fact_files, outputs, quadrature
from kn_lens.cli import _app, _options, _run, _story, _terminal, demo
from kn_lens.neurons import match_facts
from tests.tiny import COUNTRIES, tiny_checkpoint

CAPITAL = ["The capital of [X] is [Y].", "[Y] is the capital of [X].", "In fact, [X] has its seat in [Y]", "[X], [Y]."]
CAPITAL_OF = ["[X] is the capital of [Y].", "The capital of [Y] is [X].", "[X] lies in [Y].", "The capital [X] of [Y]."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def checkpoints(folder):
    """A masked and a causal checkpoint in float32, as directories."""
    kinds = {"bert": "BertForMaskedLM", "gpt2": "GPT2LMHeadModel"}
    return {name: str(tiny_checkpoint(kind, folder / name)) for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def facts_file(folder):
    facts = [kn.Fact(country, "P36", capital, tuple(CAPITAL)) for country, capital in COUNTRIES.items()]
    facts += [kn.Fact(capital, "P1376", country, tuple(CAPITAL_OF)) for country, capital in COUNTRIES.items()]
    kn.FactSet(facts).to_jsonl(folder / "facts.jsonl")
    return str(folder / "facts.jsonl")


@pytest.fixture
def found(cli, checkpoints, facts_file, tmp_path):
    """A neuron file of the masked checkpoint, and the document that came with it."""
    path = tmp_path / "neurons.json"
    code, out, err = cli("find", "-m", checkpoints["bert"], "-f", facts_file, "--out", path, "--json")
    assert (code, err) == (0, "")
    return path, json.loads(out)


PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def run_process(*args):
    return subprocess.Popen([sys.executable, "-m", "kn_lens.cli", *map(str, args)], **PIPES)


# --- the process -----------------------------------------------------------


def test_help_needs_no_heavy_import():
    script = (
        "import sys; sys.argv[1:] = ['find', '--help']\n"
        "from kn_lens.cli import main\n"
        "try: main()\n"
        "except SystemExit as error: assert error.code == 0\n"
        "print(sorted({'torch', 'transformers', 'transformer_lens', 'pandas'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert all(name in done.stdout for name in ("--attr-threshold", "--by-relation", "integrated_gradients"))


def test_a_process_keeps_its_streams_apart(checkpoints, facts_file):
    process = run_process("find", "-m", checkpoints["bert"], "-f", facts_file, "--limit", 3, "--json")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert len(json.loads(out)["facts"]) == 3


def test_a_user_error_is_one_line_and_exit_code_2(facts_file):
    process = run_process("find", "-f", facts_file, "-r", "P37")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.startswith("kn-lens: error: No relation 'P37'; there are P36, P1376.") and err.count("\n") == 1


def test_interrupting_ends_in_one_line_and_writes_nothing(checkpoints, facts_file, tmp_path):
    arguments = ["find", "-m", checkpoints["bert"], "-f", facts_file, "-o", str(tmp_path / "neurons.json")]
    script = (
        "import sys, time\n"
        "from kn_lens import attribution, cli\n"
        "attribution.attribute = lambda *args, **how: (print('at work', flush=True), time.sleep(60))\n"
        f"sys.argv[1:] = {arguments}\n"
        "cli.main()"
    )
    with subprocess.Popen([sys.executable, "-c", script], **PIPES) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err == "kn-lens: interrupted; nothing was written.\n"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_an_import_wraps_is_one_all_the_same(cli, monkeypatch):
    def importing(*args, **kwargs):
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr("kn_lens.cli.data.read_facts", importing)
    assert cli("data", "read", "world") == (130, "", "kn-lens: interrupted; nothing was written.\n")


def test_a_reader_that_leaves_is_met_with_silence():
    with run_process("data", "read", "world") as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 1)


# --- find -----------------------------------------------------------


def test_find_is_the_library(found, checkpoints, facts_file):
    path, document = found
    model, facts = kn.load_model(checkpoints["bert"]), kn.FactSet.from_jsonl(facts_file)
    attr = kn.attribute(model, kn.make_prompts(model, facts))
    expected = kn.refine(attr)
    assert any(expected.values())
    rows = {row["key"]: row for row in document["facts"]}
    for number, fact in enumerate(facts):
        row, mine = rows[fact.key], attr.prompts.fact_index == number
        assert kn.NeuronSet(map(tuple, row["neurons"])) == expected[fact]
        assert row["n_prompts"] == len(fact.templates) == int(mine.sum())
        assert row["largest_gap"] == pytest.approx(float(attr.completeness_gap[mine].abs().max()), abs=1e-7)
        assert row["n_unconverged"] == int((~attr.converged[mine]).sum())
    assert match_facts(kn.NeuronSet.read_many(path), facts) == expected
    meta = json.loads(path.read_text())["meta"]
    assert meta["model"]["name"] == checkpoints["bert"] and meta["settings"]["share_threshold"] == 0.7


@pytest.mark.parametrize("by_relation", [False, True])
def test_parts_of_any_size_give_the_same_neurons(cli, found, checkpoints, facts_file, monkeypatch, by_relation):
    arguments = ("find", "-m", checkpoints["bert"], "-f", facts_file, "--json", *(["--by-relation"] * by_relation))
    whole = json.loads(cli(*arguments)[1])
    sizes = []
    attribute = attribution.attribute

    def counted(model, prompts, **how):
        sizes.append(len(prompts))
        return attribute(model, prompts, **how)

    monkeypatch.setattr(attribution, "attribute", counted)
    monkeypatch.setattr(_run, "SCORES_AT_ONCE", 1)
    parts = json.loads(cli(*arguments)[1])
    assert sizes == ([32, 32] if by_relation else [4] * 16)
    assert [row["neurons"] for row in parts["facts"]] == [row["neurons"] for row in whole["facts"]]
    assert parts["share_threshold_by_relation"] == whole["share_threshold_by_relation"]


def test_by_relation_is_the_library(cli, checkpoints, facts_file):
    code, out, _ = cli("find", "-m", checkpoints["bert"], "-f", facts_file, "--by-relation", "--json")
    document = json.loads(out)
    model = kn.load_model(checkpoints["bert"])
    prompts = kn.make_prompts(model, kn.FactSet.from_jsonl(facts_file))
    expected = kn.refine_by_relation(kn.attribute(model, prompts))
    assert code == 0 and document["share_threshold_by_relation"] == expected.share_threshold
    assert [kn.NeuronSet(map(tuple, row["neurons"])) for row in document["facts"]] == list(expected.neurons.values())


def test_what_a_causal_model_cannot_be_asked_is_counted(cli, checkpoints, facts_file):
    arguments = ("find", "-m", checkpoints["gpt2"], "-f", facts_file, "--min-prompts", 1)
    code, out, err = cli(*arguments, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["left_out"] == {"object not last": 16} and document["n_prompts"] == 48
    assert "Left out: 16 prompts (object not last)" in cli(*arguments)[1]


def test_the_table_fits_eighty_columns_and_says_what_it_leaves_out(cli, checkpoints, facts_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("kn_lens.cli._tables.ROWS_SHOWN", 5)
    code, out, _ = cli("find", "-m", checkpoints["bert"], "-f", facts_file, "--preset", "paper", "--tolerance", 1e-9)
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())  # where lines break depends on the length of the checkpoint's path
    assert "Ireland" in text and "right, 20 points" in text and "unconverged" in text
    assert "16 facts, 64 prompts" in text and "11 more facts are not shown" in text


@pytest.mark.parametrize("method", _options.METHODS)
def test_every_method_runs(cli, checkpoints, facts_file, method):
    arguments = ("-f", facts_file, "-r", "P36", "-s", "Peru", "-s", "Kenya", "--method", method)
    code, out, err = cli("find", "-m", checkpoints["bert"], *arguments, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "") and [row["subject"] for row in document["facts"]] == ["Kenya", "Peru"]
    promises_a_sum = method in ("integrated_gradients", "gradient_x_activation")
    assert all((row["largest_gap"] is not None) == promises_a_sum for row in document["facts"])
    assert cli("find", "-m", checkpoints["bert"], *arguments)[0] == 0


def test_the_options_are_the_librarys():
    assert {*_options.METHODS, "single_path"} == set(get_args(attribution.Method))
    assert tuple(outputs.OUTPUTS) == _options.OUTPUTS
    assert ("adaptive", *quadrature.RULES) == _options.QUADRATURES
    assert tuple(attribution.PRESETS) == _options.PRESETS
    assert set(get_args(fact_files.Split)) == set(_options.SPLITS)


# --- intervene -----------------------------------------------------------


def intervene(cli, checkpoints, facts_file, path, *more):
    code, out, err = cli("intervene", "-m", checkpoints["bert"], "-f", facts_file, "-n", path, "--json", *more)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_intervene_is_the_library(cli, found, checkpoints, facts_file, tmp_path):
    path, _ = found
    document = intervene(cli, checkpoints, facts_file, path, "--amplify", 3, "--seed", 5, "-o", tmp_path / "e.csv")
    model, facts = kn.load_model(checkpoints["bert"]), kn.FactSet.from_jsonl(facts_file)
    prompts = kn.make_prompts(model, facts)
    neurons = match_facts(kn.NeuronSet.read_many(path), facts)
    active = kn.activation_neurons(kn.attribute(model, prompts, method="activation"), neurons)
    expected = kn.controlled_effects(
        model, prompts, neurons, active, intervene=lambda sets: kn.Amplify(sets, factor=3.0), seed=5
    )
    assert document["intervention"] == "x3" and document["n_facts"] == 16
    pd.testing.assert_frame_equal(pd.DataFrame(document["facts"]), expected, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "e.csv"), expected, check_dtype=False)
    table = kn.effect_table(expected, seed=5)
    pd.testing.assert_frame_equal(pd.DataFrame(document["effects"]), table, check_dtype=False)


def test_the_same_change_by_other_names(cli, found, checkpoints, facts_file):
    path, _ = found
    off = intervene(cli, checkpoints, facts_file, path, "--suppress")
    assert intervene(cli, checkpoints, facts_file, path)["facts"] == off["facts"]
    assert intervene(cli, checkpoints, facts_file, path, "--set-to", 0)["facts"] == off["facts"]
    everywhere = intervene(cli, checkpoints, facts_file, path, "--all-positions")["facts"]
    assert everywhere != off["facts"]
    own = [row for row in off["facts"] if row["neurons"] == "found" and row["facts"] == "own"]
    alone = intervene(cli, checkpoints, facts_file, path, "--no-controls")["facts"]
    pd.testing.assert_frame_equal(pd.DataFrame(alone), pd.DataFrame(own))
    unchanged = intervene(cli, checkpoints, facts_file, path, "--amplify", 1, "--no-controls")
    assert all(row["before"] == pytest.approx(row["after"]) for row in unchanged["facts"])


def test_a_choice_of_facts_is_compared_with_facts_beyond_it(cli, found, checkpoints, facts_file):
    path, _ = found
    document = intervene(cli, checkpoints, facts_file, path, "-r", "P36", "--limit", 4)
    assert document["n_facts"] == 4
    others = {row["measured"] for row in document["facts"] if row["facts"] == "other"}
    assert others and all(key.startswith("P1376/") for key in others)


def test_intervene_prints_a_table(cli, found, checkpoints, facts_file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli("intervene", "-m", checkpoints["bert"], "-f", facts_file, "-n", found[0])
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert all(words in out for words in ("knowledge neurons", "most active", "random", "own facts", "other facts"))


# --- errors -----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("frobnicate", "No such command 'frobnicate'"),
        ("find --bogus", "No such option: --bogus"),
        ("find --method ablaton", "'ablaton' is not one of"),
        ("find --method ablaton", "Did you mean 'ablation'?"),
        ("find --share-threshold 1.5", "--share-threshold"),
        ("find --n-steps 0 --quadrature left", "--n-steps"),
        ("find --n-steps 5", "--n-steps is for a fixed rule"),
        ("find --preset paper --quadrature left", "--preset paper fixes the quadrature"),
        ("find --tolerance 0", "--tolerance 0.0; expected a positive number"),
        ("find --output logit_diff", "--contrast"),
        ("find --split held_out -f {facts}", "--split held_out is for the embedded facts"),
        ("find --templates x -f world", "--templates is for lama, jsonl and csv"),
        ("find -f nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("find -f {folder}/odd.txt", "--format"),
        ("find -f {facts} -r P36 -s Irelnd", "Did you mean 'Ireland'?"),
        ("find -f {facts} -m world-brt", "Unknown model 'world-brt'"),
        ("find -f {facts} -m wrld-bert", "Did you mean 'world-bert'?"),
        ("find -f {facts} -m world-brt -o {folder}/no/such.json", "there is no directory"),
        ("find -f {facts} -m world-brt -o {folder}", "is a directory"),
        ("find -f {facts} -m {bert} --min-prompts 5", "has 4 prompts, fewer than --min-prompts 5"),
        ("find -f {facts} -m {gpt2} --min-prompts 4", "has 3 prompts, fewer than --min-prompts 4"),
        ("intervene -f {facts}", "Missing option '--neurons'"),
        ("intervene -f {facts} -n {folder}/none.json", "There is no file"),
        ("intervene -f {facts} -n {facts}", "is not JSON"),
        ("intervene -f {facts} -n {folder}/other.json", "P36/Atlantis/Poseidonis"),
        ("intervene -f {facts} -n {folder}/beyond.json -m {bert}", "has no neuron L99N0"),
        ("intervene -f {facts} -n {folder}/beyond.json --suppress --set-to 1", "--suppress and --set-to exclude"),
        ("intervene -f {facts} -n {folder}/beyond.json --amplify nan", "finite"),
        ("intervene -f {facts} -n {folder}/beyond.json -o {folder}/beyond.json", "is the file that is read"),
        ("intervene -f {facts} -n {folder}/beyond.json -r P1376", "none of them among the 8 chosen"),
        ("demo --fact Ireland", "expected SUBJECT/RELATION"),
        ("demo --fact Irelnd/P36", "Did you mean 'Ireland'?"),
        ("data read {folder}/broken.jsonl", "broken.jsonl:2: not JSON"),
        ("data convert {facts} --out {facts}", "is the file that is read"),
    ],
)
def test_bad_input_is_one_clear_line(cli, folder, checkpoints, facts_file, arguments, message):
    (folder / "broken.jsonl").write_text('{"subject": "Ireland", "relation": "P36", "object": "Dublin"}\n{"subj')
    (folder / "odd.txt").write_text("")
    kn.NeuronSet.write_many(folder / "other.json", {"P36/Atlantis/Poseidonis": kn.NeuronSet([(0, 0)])})
    kn.NeuronSet.write_many(folder / "beyond.json", {"P36/Ireland/Dublin": kn.NeuronSet([(99, 0)])})
    names = {"folder": folder, "facts": facts_file, **checkpoints}
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    code, out, err = cli(*(argument.format(**names) for argument in arguments.split()))
    assert (code, out) == (2, "")
    assert err.startswith("kn-lens: error: ") and err.count("\n") == 1 and message in err
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_one_relation_alone_has_no_controls(cli, found, checkpoints, facts_file, tmp_path):
    single = tmp_path / "single.jsonl"
    kn.FactSet.from_jsonl(facts_file).of("P36").to_jsonl(single)
    path = tmp_path / "own.json"
    cli("find", "-m", checkpoints["bert"], "-f", single, "-o", path)
    code, _, err = cli("intervene", "-m", checkpoints["bert"], "-f", single, "-n", path)
    assert code == 2 and "--no-controls" in err
    assert len(intervene(cli, checkpoints, single, path, "--no-controls")["facts"]) == 8


def test_a_failure_leaves_the_old_file(cli, found, checkpoints, facts_file, monkeypatch):
    path, _ = found
    before = path.read_bytes()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(attribution, "attribute", interrupted)
    code, out, err = cli("find", "-m", checkpoints["bert"], "-f", facts_file, "-o", path)
    assert (code, out, err) == (130, "", "kn-lens: interrupted; nothing was written.\n")
    assert path.read_bytes() == before and [item.name for item in path.parent.iterdir()] == [path.name]


# --- data and models -----------------------------------------------------------


def test_data_read_counts(cli, facts_file):
    code, out, err = cli("data", "read", facts_file, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "") and document["format"] == "jsonl"
    assert (document["n_facts"], document["n_relations"], document["n_pairs"]) == (16, 2, 64)
    assert document["relations"]["P36"] == {"facts": 8, "templates": 4, "pairs": 32, "example": "Ireland: Dublin"}
    assert "16 facts of 2 relations, 64 pairs" in cli("data", "read", facts_file)[1]
    assert json.loads(cli("data", "read", facts_file, "-r", "P36", "-s", "Peru", "--json")[1])["n_facts"] == 1


def test_data_convert_is_lossless(cli, facts_file, tmp_path):
    facts = kn.FactSet.from_jsonl(facts_file)
    table, target = tmp_path / "facts.csv", tmp_path / "back.jsonl"
    frame = facts.to_frame()
    frame["templates"] = frame["templates"].map(lambda templates: json.dumps(list(templates)))
    frame.to_csv(table, index=False)
    assert cli("data", "convert", table, "--out", target)[::2] == (0, "")
    assert kn.FactSet.from_jsonl(target) == facts
    assert [fact.templates for fact in kn.FactSet.from_jsonl(target)] == [fact.templates for fact in facts]


def test_formats_are_told_from_the_contents(cli, tmp_path):
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


def test_templates_come_from_elsewhere(cli, tmp_path):
    (tmp_path / "facts.jsonl").write_text(json.dumps({"subject": "Peru", "relation": "P36", "object": "Lima"}))
    (tmp_path / "relations.jsonl").write_text(json.dumps({"relation": "P36", "template": CAPITAL[0]}))
    arguments = ("data", "read", tmp_path / "facts.jsonl", "--json")
    assert json.loads(cli(*arguments)[1])["n_pairs"] == 0
    assert json.loads(cli(*arguments, "--templates", tmp_path / "relations.jsonl")[1])["n_pairs"] == 1


def test_data_check_finds_what_is_wrong(cli, checkpoints, tmp_path):
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
    assert "3 prompts" in out and "Left out: 1 prompts (object not last)" in out


def test_models_lists_families_and_embedded_models(cli):
    code, out, err = cli("models", "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert {"BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM"} <= {
        one["architecture"] for one in document["families"]
    }
    names = {one["name"] for one in document["embedded"]}
    assert names == {"world-bert", "world-bert-plain", "world-gpt2", "world-gpt2-plain"}
    for one in document["embedded"]:
        assert min(one["recall"].values()) >= 0.95
    human = cli("models")[1]
    assert all(name in human for name in (*names, "Pythia", "mixture of experts"))


# --- demo -----------------------------------------------------------


@pytest.fixture(scope="module")
def demo_document():
    return {"command": "demo"} | dict(demo.story("world-bert", "Ireland/P36"))


def test_the_demo_shows_specific_neurons(demo_document):
    fact, evidence = demo_document["question"]["fact"], demo_document["neurons"]
    assert fact["object"] == "Dublin" and all(
        one["tokens"][0] == "Dublin" for one in demo_document["question"]["answers"]
    )
    assert evidence["neurons"] and evidence["n_unconverged"] == 0
    assert all(one["n_prompts"] >= 0.7 * evidence["n_prompts"] for one in evidence["neurons"])
    assert demo_document["changed"]["restored"]
    probability = {
        (row["condition"], one["templates"]): one["probability"]
        for row in demo_document["changed"]["conditions"]
        for one in row["measured"]
    }
    for scope in ("trained", "held-out"):
        clean = probability["unchanged", scope]
        off = clean - probability["knowledge neurons off", scope]
        assert off > 0.1 * clean and off > 10 * abs(clean - probability["random off", scope])
    ratio = {
        (label, row["neurons"], row["facts"]): row["change_ratio"]
        for label, rows in demo_document["specificity"]["effects"].items()
        for row in rows
    }
    own = ratio["off", "found", "own"]
    assert own < -0.1 and own < ratio["off", "activation", "own"]
    assert abs(own) > 5 * abs(ratio["off", "found", "other"]) and abs(own) > 10 * abs(ratio["off", "random", "own"])
    json.dumps(_terminal._plain(demo_document), allow_nan=False)


def test_the_demo_edits_and_undoes(demo_document):
    updated, erased = demo_document["updated"], demo_document["erased"]
    before = demo_document["question"]["answers"][1]
    assert updated["restored"] and {"templates": "held-out", **updated["after"]} == before
    assert updated["during"]["tokens"][0] != "Dublin" == updated["after"]["tokens"][0]
    rows = {(row["neurons"], row["asked"]): row for row in updated["effects"]}
    assert rows["found", "held out"]["lost"] == 1 and rows["random", "held out"]["lost"] == 0
    # This model's head does not read an embedding as its own token: what the demo then has to say.
    assert rows["found", "own wording"]["new_right_after"] == 0 and updated["embedding_rank"] > 0
    growth = {(row["neurons"], row["asked"]): row for row in erased["effects"] if row["measure"] == "perplexity_growth"}
    own = growth["found", "same relation"]
    assert erased["n_neurons"] == 20 and own["low"] > growth["found", "other relations"]["high"]
    assert own["low"] > growth["random", "same relation"]["high"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "Tokyo did not come"),
        ({"held out": (0, 1)}, "holds in wordings that were not used"),
        ({"own wording": (0, 1), "held out": (1, 0)}, "and not in the others"),
        ({"own wording": (1, 0), "held out": (1, 0)}, "Dublin is still the answer"),
        ({"held out": (0, 1), "inverse": (1, 0)}, "knows nothing of it"),
        ({"held out": (0, 1), "inverse": (0, 1)}, "the model follows"),
        ({"random": (0, 1)}, "Random neurons do the same"),
        ({}, "Of 119 other facts of the relation, 25% lose"),
    ],
)
def test_the_demo_says_what_became_of_an_update(changes, words):
    shares = {"own wording": (0, 0), "held out": (0, 0)} | changes
    effects = [{"neurons": "found", "asked": "same relation", "n_prompts": 119, "lost": 0.25}] + [
        {
            "neurons": "random" if asked == "random" else "found",
            "asked": "own wording" if asked == "random" else asked,
            "right_after": old,
            "new_right_after": new,
        }
        for asked, (old, new) in ({"random": (1, 0)} | shares).items()
    ]
    said = _story._verdict({"new_object": "Tokyo", "embedding_rank": 7, "effects": effects}, {"object": "Dublin"})
    assert words in said and ("7 other tokens" in said) == (shares["own wording"][1] == 0)


def test_the_demo_is_readable_at_eighty_columns(demo_document, monkeypatch):
    written = io.StringIO()
    console = Console(file=written, width=80, highlight=False)
    monkeypatch.setattr(_story, "out", console)
    for name in [name for name in demo_document if name != "command"]:
        _story.tell(name, demo_document)
    text = written.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert all(
        words in text
        for words in (
            "Dublin",
            "Error bar",
            "held-out",
            "other facts",
            "bit for bit",
            "undone:",
            "growth",
            "kn-lens find",
        )
    )


# --- progress -----------------------------------------------------------


@pytest.mark.parametrize(("terminal", "slow"), [(True, True), (True, False), (False, True)])
def test_progress_shows_on_a_terminal_when_it_takes_long(monkeypatch, terminal, slow):
    written = io.StringIO()
    monkeypatch.setattr(_terminal, "err", Console(file=written, force_terminal=terminal, width=100))
    monkeypatch.setattr(_terminal, "SHOW_AFTER", 0.01 if slow else 60)
    with _terminal.working("Attributing", unit="prompts") as show:
        for done in range(1, 5):
            show(done, 4)
            time.sleep(0.05)
    assert ("Attributing" in written.getvalue()) == (terminal and slow)
    assert ("prompts/s" in written.getvalue()) == (terminal and slow)


def test_numbers_that_json_cannot_hold_become_null(capsys):
    _terminal.print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": None}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_every_command_has_help(cli):
    names = [command.name or command.callback.__name__ for command in _app.app.registered_commands]
    assert {"compare", "demo", "find", "intervene", "models", "report", "reproduce", "study"} == set(names)
    for arguments in ([], *([name, "--help"] for name in names), ["data"], ["data", "check", "--help"]):
        code, out, err = cli(*arguments)
        assert (code, err) == (0, "") and "Usage: kn-lens" in out
    assert cli("--version")[1] == f"kn-lens {kn.__version__}\n"
