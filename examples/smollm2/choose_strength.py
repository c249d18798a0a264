"""The strength of updates in a model, chosen on known facts that the run does not edit.

    python choose_strength.py MODEL FOLDER [--device cuda]

FOLDER is what ``select_facts.py`` wrote. Its spare facts are updated, each to the answer of a fact of the run in the
same relation; success is counted in their last two templates, which are not attributed, and damage in one template of
each fact of the run. The rule is that of ``kn.choose_lambdas``; the grid goes down to where updates do nothing.

Writes ``lambdas.csv``, all strengths that were tried, and ``lambdas.txt``, the choice.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import kn_lens as kn

GRID = [(0.0625, 0.125), (0.125, 0.25), (0.25, 0.5), (0.5, 1.0), (1.0, 2.0), (1.0, 8.0)]
N_HELD_OUT = 2


def read(folder: Path, kind: str) -> list[kn.Fact]:
    """Return the facts of both sources, with the source in the name of the relation."""
    facts = []
    for source in ("pararel", "world"):
        path = folder / f"{source}{kind}.jsonl"
        if path.read_text(encoding="utf-8"):
            for fact in kn.FactSet.from_jsonl(path):
                facts.append(replace(fact, relation=f"{fact.relation} ({source})"))
    return facts


def main() -> None:
    """Choose the lambdas and write them."""
    parser = argparse.ArgumentParser(description="Choose the lambdas of updates on held-out facts.")
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--limit", type=int, default=12, help="facts on which strengths are tried")
    given = parser.parse_args()
    model = kn.load_model(given.model, device=given.device)
    spare, of_run = read(given.folder, "_held_out")[: given.limit], read(given.folder, "")
    own = [replace(fact, templates=fact.templates[:-N_HELD_OUT]) for fact in spare]
    held_out = kn.FactSet(replace(fact, templates=fact.templates[-N_HELD_OUT:]) for fact in spare)
    found = kn.refine(kn.attribute(model, kn.make_prompts(model, own)))
    new_objects: dict[kn.Fact, str] = {}
    for fact in own:
        answers = [other.object for other in of_run if other.relation == fact.relation and other.object != fact.object]
        if answers and len(found[fact]):
            new_objects[fact] = answers[0]
    others = [replace(fact, templates=fact.templates[:1]) for fact in of_run]
    choice = kn.choose_lambdas(
        model,
        new_objects,
        {fact: found[fact] for fact in new_objects},
        kn.make_prompts(model, others),
        held_out=held_out,
        grid=GRID,
    )
    choice.table.to_csv(given.folder / "lambdas.csv", index=False)
    (given.folder / "lambdas.txt").write_text(f"[{choice.lambdas[0]},{choice.lambdas[1]}]\n")
    print(choice)
    print(choice.table.to_string())


if __name__ == "__main__":
    main()
