"""Stages ``attributions`` and ``activations``: the scores of all neurons under all prompts, above a threshold.

``attributions`` holds integrated gradients from ``keep`` times the prompt's largest score on, ``activations`` the
paper's baseline, from ``baseline_threshold`` on. The records are files of ``attribute_to_file``; ``read_attribution``
reads them with ``study.prompts(relation)``.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.experiments import asking
from kn_lens.experiments.passes import Passes, integrated
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import Stage, Study, Tick
from kn_lens.score_files import attribute_to_file, read_attribution

if TYPE_CHECKING:
    import pandas as pd


def _make(how: Callable[[Study], dict[str, Any]], study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    attribute_to_file(
        study.host.model, path, study.prompts(shard.relation), memory_budget=study.memory_budget, progress=tick,
        **how(study),
    )  # fmt: skip


def _gradients(study: Study) -> dict[str, Any]:
    settings = study.settings
    names = ("quadrature", "n_steps", "tolerance", "keep")
    return {name: getattr(settings, name) for name in names}


def passes_of(study: Study, rows: float) -> Passes:
    """Return the passes that attributing so many rows as the settings say takes."""
    return integrated(rows, study.host.n_layers, study.settings.quadrature, study.settings.n_steps)


def _tables(study: Study) -> "dict[str, pd.DataFrame]":
    """Return how exact the attributions are: completeness gaps and points by relation."""
    import pandas as pd

    rows = []
    for shard in ATTRIBUTIONS.shards(study):
        columns = ["layer", "clean", "expected", "total", "tolerance", "n_points"]
        records = pd.read_parquet(study.run.record("attributions", shard), columns=columns, partitioning=None)
        gap = (records["total"] - records["expected"]).abs()
        rows.append(
            {
                "relation": shard.relation,
                "n_pairs": len(records),
                "mean_output": float(records["clean"][records["layer"] == 0].mean()),
                "mean_gap": float(gap.mean()),
                "largest_gap": float(gap.max()),
                "above_tolerance": int((gap > records["tolerance"]).sum()),
                "mean_points": float(records["n_points"].mean()),
            }
        )
    return {"completeness": pd.DataFrame(rows)}


ATTRIBUTIONS = Stage(
    name="attributions",
    title="Attribution of every prompt",
    make=partial(_make, _gradients),
    tables=_tables,
    needs=(asking.STAGE,),
    settings=("quadrature", "n_steps", "tolerance", "keep"),
    passes=lambda study, shard: passes_of(study, study.n_rows(shard.relation)),
)
ACTIVATIONS = Stage(
    name="activations",
    title="Activations, the baseline",
    make=partial(_make, lambda study: {"method": "activation", "keep": study.settings.baseline_threshold}),
    needs=(asking.STAGE,),
    settings=("baseline_threshold",),
    passes=lambda study, shard: Passes(whole=study.n_rows(shard.relation)),
)


def scores(study: Study, stage: Stage, relation: str) -> Any:
    """Return the stored scores of a relation's prompts, as an ``Attribution``."""
    return read_attribution(study.run.record(stage.name, Shard(relation)), study.prompts(relation))
