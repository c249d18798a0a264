"""The example of editors runs, with wordings and facts of an embedded model."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import kn_lens as kn

SCRIPT = Path(__file__).parents[2] / "examples" / "editors.py"


def test_parts_of_the_example():
    spec = importlib.util.spec_from_file_location("editors_example", SCRIPT)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model = kn.load_model("world-gpt2")
    templates = {fact.relation: fact.templates for fact in kn.FactSet.world() if fact.relation in example.WORDINGS}
    example.WORDINGS = {relation: wordings[:3] for relation, wordings in templates.items()}
    known = example.known_facts(model, "P36")
    assert len(known) > 10 and all(fact.templates == example.WORDINGS["P36"][:1] for fact in known)
    updates = example.updates_of(known, 2)
    assert all(fact.object != answer for fact, answer in updates.items()) and len(updates) == 2
    questions = {"held out": kn.reworded([replace(fact, templates=templates["P36"][1:3]) for fact in updates], updates)}
    others = kn.make_prompts(model, [*known[-5:], *example.known_facts(model, "P17")[-5:]])
    editors = [kn.KN(min_prompts=1), kn.KN(preset="easyedit")]
    effects = kn.compare_edits(model, updates, editors, questions=questions, others=others)
    table = example.summary(effects)
    assert list(table["editor"].unique()) == ["KN", "KN (EasyEdit)"] and len(table) == 6
    assert (
        table["same relation kept"].between(0, 1).all()
        and (table["s a fact"].notna() == (table["at"] == "found")).all()
    )
