"""Editors beside one another on facts that a pretrained model knows: does a new answer hold, and what does it cost?

    python examples/editors.py MODEL [FACTS] [OUT]

MODEL is a causal model, by name or folder; FACTS the number of facts, 30 unless given; OUT a folder for the records as
CSV, and for second moments. The table in docs/editing.md is that of SmolLM2-135M-Instruct. Facts are capitals and
countries of cities of the embedded world whose answer is one token and the most probable; each is given the answer of
another. An edit sees one wording. Two wordings are held out, and so are all other facts.

Passes of an edit are too small for several threads: processes of one thread each share the facts, one for each core.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

import kn_lens as kn

WORDINGS = {
    "P36": ("The capital of [X] is [Y].", "The capital city of [X] is called [Y].", "[X]'s capital is [Y]."),
    "P17": (
        "[X] is a city in the country of [Y].",
        "[X] is located in the country of [Y].",
        "The city of [X] lies in [Y].",
    ),
}
"""By relation, the wording of the edit and two held-out ones."""


def known_facts(model: object, relation: str) -> list[kn.Fact]:
    """Return the facts of a relation that are known in the wording of the edit."""
    facts = [fact for fact in kn.FactSet.world() if fact.relation == relation]
    prompts = kn.make_prompts(model, facts, templates=WORDINGS[relation][:1], unknown_answers="leave_out")
    single = prompts.select((prompts.rows_per_prompt == 1).nonzero().flatten())
    first = kn.predict(model, single, k=1)
    is_right = first["token_id"].to_numpy() == single.target_ids.cpu().numpy()
    return [replace(single.fact(number), templates=WORDINGS[relation][:1]) for number in np.flatnonzero(is_right)]


def updates_of(facts: Sequence[kn.Fact], n: int) -> dict[kn.Fact, str]:
    """Return new answers of some facts, each that of the next fact with another answer."""
    updates = {}
    for number, fact in enumerate(facts[:n]):
        later = [*facts[number + 1 :], *facts[:number]]
        updates[fact] = next(other.object for other in later if other.object != fact.object)
    return updates


def summary(effects: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each editor and control: what the new answer gained, and what other facts lost.

    ``from`` and ``to`` are the interval of the success in held-out wordings.
    """
    table = kn.edit_table(effects)
    rows = []
    for (editor, neuron_set), part in table.groupby(["editor", "neuron_set"], sort=False):
        cells = part.set_index(["question", "measure"])
        value, held_out = cells["value"], cells.loc[("held out", "success")]
        own = effects[(effects["editor"] == editor) & (effects["neuron_set"] == neuron_set)]
        once = own.drop_duplicates("key")
        rows.append(
            {
                "editor": editor,
                "at": neuron_set,
                "own wording": value["own wording", "success"],
                "held out": held_out["value"],
                "from": held_out["low"],
                "to": held_out["high"],
                "same relation kept": value["same relation", "accuracy_after"],
                "other relations kept": value["other relations", "accuracy_after"],
                "perplexity growth": value["other relations", "perplexity_growth"],
                "disturbing": once["disturbs"].mean(),
                "s a fact": once["seconds"].mean(),
            }
        )
    return pd.DataFrame(rows)


def compared(name: str, updates: Mapping[kn.Fact, str], others: Sequence[kn.Fact], folder: Path) -> pd.DataFrame:
    """Return the effects of all editors on some facts, in one thread; ``folder`` has the second moments."""
    torch.set_num_threads(1)
    model = kn.load_model(name)
    moments = kn.second_moments(model, cache=folder)
    editors = [
        kn.KN(min_prompts=1),
        kn.ROME(moments=moments),
        kn.MEMIT(moments=moments),
        kn.AlphaEdit(moments=moments),
        kn.FT(),
    ]
    held_out = [replace(fact, templates=WORDINGS[fact.relation][1:]) for fact in updates]
    questions = {"held out": kn.reworded(held_out, updates)}
    return kn.compare_edits(model, updates, editors, questions=questions, others=kn.make_prompts(model, others))


def compared_in_processes(
    name: str, updates: Mapping[kn.Fact, str], others: Sequence[kn.Fact], folder: Path
) -> pd.DataFrame:
    """Return the same, with the facts shared among processes."""
    n_processes = min(os.cpu_count() or 1, len(updates))
    parts = [dict(list(updates.items())[number::n_processes]) for number in range(n_processes)]
    with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as pool:
        done = [pool.submit(compared, name, part, others, folder) for part in parts]
        return pd.concat([effects.result() for effects in done], ignore_index=True)


def main() -> None:
    """Print the table."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    name = sys.argv[1]
    n_facts = int(sys.argv[2]) if len(sys.argv) > 2 else 30
    model = kn.load_model(name)
    capitals, countries = known_facts(model, "P36"), known_facts(model, "P17")
    n_capitals = min(n_facts // 2, len(capitals))
    updates = updates_of(capitals, n_capitals) | updates_of(countries, n_facts - n_capitals)
    print(f"known: {len(capitals)} capitals, {len(countries)} countries of cities; edited: {len(updates)}")
    with TemporaryDirectory() as temporary:
        folder = Path(sys.argv[3] if len(sys.argv) > 3 else temporary)
        folder.mkdir(parents=True, exist_ok=True)
        kn.second_moments(model, cache=folder)
        effects = compared_in_processes(name, updates, [*capitals[-5:], *countries[-5:]], folder)
        effects.to_csv(folder / "effects.csv", index=False)
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(summary(effects).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
