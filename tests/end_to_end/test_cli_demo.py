"""``kn-lens demo``: its statements hold for the embedded model, and its output is readable."""

import io
import json
import re
import shutil

import pytest

from kn_lens.cli import _terminal, demo
from kn_lens.cli._terminal import EscapingConsole
from kn_lens.errors import DataError
from kn_lens.facts import WORLD, FactSet
from kn_lens.hosts import host_of, load_model
from kn_lens.neurons import NeuronSet
from tests.notebooks import agree
from tests.pages import ROOT

README = ROOT / "README.md"


@pytest.fixture(scope="module")
def demo_document():
    return {"command": "demo"} | dict(demo.sections("world-gpt2", "Ireland/P36"))


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
        (label, row["neuron_set"], row["scope"]): row["change_ratio"]
        for label, rows in demo_document["specificity"]["effects"].items()
        for row in rows
    }
    own = ratio["off", "found", "own"]
    assert own < -0.1 and own < ratio["off", "activation", "own"]
    assert abs(own) > 5 * abs(ratio["off", "found", "other"]) and abs(own) > 10 * abs(ratio["off", "random", "own"])
    json.dumps(_terminal._json_value(demo_document), allow_nan=False)


def test_the_demo_edits_and_undoes(demo_document):
    updated, erased = demo_document["updated"], demo_document["erased"]
    before = demo_document["question"]["answers"][1]
    assert updated["restored"] and {"templates": "held-out", **updated["after"]} == before
    edited, undone = (updated[when] for when in ("during", "after"))
    assert edited["tokens"][0] == updated["new_object"] and undone["tokens"][0] == "Dublin"
    rows = {(row["neuron_set"], row["question"]): row for row in updated["effects"]}
    assert rows["found", "held out"]["new_right_after"] == 1 and rows["random", "held out"]["new_right_after"] == 0
    assert updated["embedding_rank"] == 0
    default, released = updated["checks"]
    assert default["passed"] and default["success"] == 1 and default["disturbed"] < 0.05
    assert released["lambdas"] == [1, 8] and not released["passed"] and released["disturbed"] > 0.1
    growth = {
        (row["neuron_set"], row["question"]): row for row in erased["effects"] if row["measure"] == "perplexity_growth"
    }
    own = growth["found", "same relation"]
    assert erased["n_neurons"] == 20 and own["low"] > growth["found", "other relations"]["high"]
    assert own["low"] > growth["random", "same relation"]["high"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "Tokyo does not replace it"),
        ({"held out": (0, 1)}, "holds in templates that were not used"),
        ({"own wording": (0, 1), "held out": (1, 0)}, "but not in the others"),
        ({"own wording": (1, 0), "held out": (1, 0)}, "Dublin is still the answer"),
        ({"held out": (0, 1), "inverse": (1, 0)}, "inverse question does not change"),
        ({"held out": (0, 1), "inverse": (0, 1)}, "inverse question changes too"),
        ({"random": (0, 1)}, "Random neurons have the same effect"),
        ({}, "Of 119 other facts of the relation, 25% lose"),
    ],
)
def test_demo_states_the_result_of_an_update(changes, words):
    shares = {"own wording": (0, 0), "held out": (0, 0)} | changes
    effects = [{"neuron_set": "found", "question": "same relation", "n_prompts": 119, "lost": 0.25}] + [
        {
            "neuron_set": "random" if question == "random" else "found",
            "question": "own wording" if question == "random" else question,
            "right_after": old,
            "new_right_after": new,
        }
        for question, (old, new) in ({"random": (1, 0)} | shares).items()
    ]
    said = demo._verdict({"new_object": "Tokyo", "embedding_rank": 7, "effects": effects}, {"object": "Dublin"})
    assert words in said and ("7 other tokens" in said) == (shares["own wording"][1] == 0)


@pytest.mark.parametrize("columns", [60, 80])
def test_the_demo_is_readable_on_a_terminal(demo_document, monkeypatch, columns):
    written = io.StringIO()
    console = EscapingConsole(file=written, width=columns, height=40, force_terminal=True, color_system=None)
    monkeypatch.setattr(demo, "out", console)
    for name in [name for name in demo_document if name != "command"]:
        demo.print_section(name, demo_document)
    text = written.getvalue()
    longer = [line for line in text.splitlines() if len(line) > columns]
    assert all(line.startswith(("  kn-lens ", "    pip install ")) for line in longer) and "…" not in text
    assert all(
        words in text
        for words in (
            "Dublin",
            "Error bar",
            "held-out",
            "other facts",
            "passed",
            "failed",
            "bit for bit",
            "undone:",
            "growth",
            "kn-lens find",
        )
    )


def test_the_readme_shows_a_section_as_it_is_printed(demo_document, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(demo, "out", EscapingConsole(file=written, width=120, color_system=None))
    demo.print_section("changed", demo_document)
    (excerpt,) = re.findall(r"```text\n( P\(Dublin\).*?)\n```", README.read_text(encoding="utf-8"), re.DOTALL)
    shown = [line.strip() for line in excerpt.splitlines()]
    printed = [line.strip() for line in written.getvalue().splitlines()]
    start = printed.index(shown[0])
    assert len(shown) == 7 and agree("\n".join(shown), "\n".join(printed[start : start + 7]))


def test_a_model_that_is_not_embedded_is_shown_on_the_facts_that_it_knows(tmp_path):
    shutil.copytree(WORLD / "models" / "world-gpt2", tmp_path / "model")
    document = dict(demo.sections(str(tmp_path / "model")))
    described, known = document["model"], document["specificity"]
    assert described["constructed"] is None
    assert described["n_queried"] == 66 and 40 < described["n_facts"] <= 66
    fact = document["question"]["fact"]
    assert all(answer["tokens"][0].startswith(fact["object"][:3]) for answer in document["question"]["answers"])
    assert document["neurons"]["n_prompts"] == demo.PRETRAINED.templates_of_one_fact
    assert known["n_facts"] == demo.PRETRAINED.n_facts
    assert known["n_prompts"] <= demo.PRETRAINED.n_facts * demo.PRETRAINED.templates_per_fact
    assert document["changed"]["restored"] and document["updated"]["restored"]
    assert document["erased"]["relation"] == fact["relation"]


@pytest.mark.parametrize("n_empty", [0, 2, demo.FACTS_TRIED])
def test_the_demo_shows_the_first_known_fact_with_neurons(tmp_path, monkeypatch, n_empty):
    shutil.copytree(WORLD / "models" / "world-gpt2", tmp_path / "model")
    attributed = []

    def found_neurons(model, fact, extent):
        attributed.append(fact)
        attr, found = original(model, fact, extent)
        return attr, NeuronSet() if len(attributed) <= n_empty else found

    original = demo._found_neurons
    monkeypatch.setattr(demo, "_found_neurons", found_neurons)
    document: dict = {}
    for name, section in demo.sections(str(tmp_path / "model")):
        document[name] = section
        if name == "neurons":
            break
    shown = attributed[min(n_empty, demo.FACTS_TRIED - 1)]
    assert attributed[-1] == shown and document["question"]["fact"]["subject"] == shown.subject
    assert document["neurons"]["n_without_neurons"] == attributed.index(shown)
    assert bool(document["neurons"]["neurons"]) == (n_empty < demo.FACTS_TRIED)


def test_a_model_that_knows_none_of_the_facts_is_told(tmp_path):
    shutil.copytree(WORLD / "models" / "world-gpt2", tmp_path / "model")
    model = load_model(tmp_path / "model")
    for layer in range(4):
        host_of(model).W_out(layer).data.zero_()
    with pytest.raises(DataError, match=r"gives the true answer of none of 66 embedded facts"):
        demo._known_facts(model, FactSet.world("trained"))
