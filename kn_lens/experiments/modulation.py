"""Stages ``effects`` and ``doses``: switching neurons off and up; Figures 4 and 5, and a dose-response curve.

Each fact's neurons, the baseline's and random ones are multiplied, and the fact ("own") and a random fact of another
relation ("other") are read again: ``controlled_effects``. ``effects`` does so by 0 and by 2 for all facts, ``doses`` by
more factors for some facts of each relation.

Records: the rows of ``controlled_effects``, and ``factor``; ``neurons`` are kinds of the stage ``neurons``: ``found``,
``random``, and ``activation`` or ``baseline``, as the setting ``baseline`` says.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kn_lens.effects import controlled_effects, effect_table
from kn_lens.experiments import refining
from kn_lens.experiments.paper import CHANGE_RATIO
from kn_lens.experiments.passes import Passes
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import Shown, Stage, Study, Tick, write_records
from kn_lens.facts import Fact
from kn_lens.interventions import Amplify, Suppress

if TYPE_CHECKING:
    import pandas as pd

FACTORS = (0.0, 2.0)
"""Of ``effects``: suppressed and amplified."""

SCHEMA = pa.schema(
    [
        ("factor", pa.float64()),
        *((name, pa.string()) for name in ("relation", "key", "neurons", "facts", "measured")),
        *((name, pa.int32()) for name in ("n_neurons", "n_prompts")),
        *((name, pa.float64()) for name in ("before", "after")),
    ]
)


def _make_effects(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    _measure(study, shard.relation, study.asked_facts(shard.relation), FACTORS, path, tick)


def _make_doses(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    _measure(study, shard.relation, _dosed(study, shard.relation), study.settings.doses, path, tick)


def _dosed(study: Study, relation: str) -> list[Fact]:
    return study.some_facts(relation, study.settings.dose_facts, "doses")


def _measure(
    study: Study, relation: str, facts: Sequence[Fact], factors: Sequence[float], path: Path, tick: Tick
) -> None:
    baseline = "activation" if study.settings.baseline == "matched" else "baseline"
    sets = {kind: study.neurons(kind, relation) for kind in ("found", baseline)}
    found, active = ({fact: of_kind[fact] for fact in facts} for of_kind in sets.values())
    # Of those that can be asked, "other" facts are drawn.
    others = study.other_facts(relation, len(facts), "others", relation)
    effects = controlled_effects(
        study.host.model,
        study.ask([*facts, *others]),
        found,
        active,
        intervene={factor: partial(Amplify, factor=factor) if factor else Suppress for factor in factors},
        seed=study.settings.seed,
        memory_budget=study.memory_budget,
        progress=tick,
    )
    effects = effects.rename(columns={"intervention": "factor"}).replace({"neurons": {"activation": baseline}})
    write_records(path, {name: effects[name] for name in SCHEMA.names}, SCHEMA)


def _passes(study: Study, shard: Shard, facts: Sequence[Fact], n_factors: int) -> Passes:
    """Own and other facts as they are, and where there are neurons, for each factor under three kinds of them."""
    asked = study.asked(shard.relation)
    n_rows = dict(zip(asked["key"], asked["n_rows"], strict=True))
    changed = facts
    if study.run.noted(refining.STAGE.name, shard) is not None:
        found = study.neurons("found", shard.relation)
        changed = [fact for fact in facts if found[fact]]
    own, own_changed = (sum(n_rows[fact.key] for fact in some) for some in (facts, changed))
    # Each fact has a random other one, of as many, taken to have as many rows; two may have the same.
    others = own * (1 - (1 - 1 / max(1, len(facts))) ** len(facts))
    return Passes(whole=own + others, resumed=2 * own_changed * 3 * n_factors)


def _effect_tables(study: Study) -> "dict[str, pd.DataFrame]":
    effects = study.all_records(EFFECTS)
    return {
        "figures4_5": _summed_up(study, effects),
        "figures4_5_by_relation": _summed_up(study, effects, by_relation=True),
    }


def _dose_tables(study: Study) -> "dict[str, pd.DataFrame]":
    return {"dose_response": _summed_up(study, study.all_records(DOSES))}


def _summed_up(study: Study, effects: "pd.DataFrame", **how: Any) -> "pd.DataFrame":
    """Return change ratios by factor with their intervals, the random control and the paper's value beside them."""
    import pandas as pd

    settings = study.settings
    tables = []
    for factor, group in effects.groupby("factor"):
        table = effect_table(group, n_resamples=settings.n_resamples, seed=settings.seed, **how)
        table.insert(0, "factor", factor)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    same = ["factor", "facts", *(["relation"] if "relation" in table else [])]
    random = table.loc[table["neurons"] == "random", [*same, "change_ratio"]].rename(
        columns={"change_ratio": "control"}
    )
    table = table.merge(random, on=same, how="left").rename(columns={"change_ratio": "value", "n_facts": "n"})
    cells = zip(table["factor"], table["neurons"], table["facts"], strict=True)
    of_all = "relation" not in table
    table["paper"] = [
        CHANGE_RATIO.get((factor, kind), np.nan) if of_all and facts == "own" else np.nan
        for factor, kind, facts in cells
    ]
    return table


EFFECTS = Stage(
    name="effects",
    title="Suppressing and amplifying; Figures 4 and 5",
    make=_make_effects,
    tables=_effect_tables,
    shown={"figures4_5": Shown("Figures 4 and 5: change of P(answer), relative, with neurons off (0) and doubled (2)")},
    needs=(refining.STAGE,),
    settings=("baseline", "seed"),
    across=True,
    passes=lambda study, shard: _passes(study, shard, study.asked_facts(shard.relation), len(FACTORS)),
)
DOSES = Stage(
    name="doses",
    title="Dose-response curve",
    make=_make_doses,
    tables=_dose_tables,
    shown={"dose_response": Shown("Dose-response: the same with neurons multiplied by other factors")},
    needs=(refining.STAGE,),
    settings=("baseline", "seed", "doses", "dose_facts"),
    across=True,
    passes=lambda study, shard: _passes(study, shard, _dosed(study, shard.relation), len(study.settings.doses)),
)
