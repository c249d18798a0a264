"""Stages ``attributions`` and ``activations``: the scores of all neurons under all prompts, above a threshold.

``attributions`` stores the integrated gradients that are at least ``keep`` times the largest score of their prompt.
``activations`` stores the activations (the paper's baseline method) in the same way, with ``baseline_threshold``.
The records are files of ``attribute_to_file``; ``read_scores`` reads them. The table ``completeness`` states how exact
the integrals are.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from kn_lens.attribution import Attribution, attribute_to_file, read_attribution
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.passes import Passes, integrated
from kn_lens.runs.stage import Progress, Stage
from kn_lens.runs.stages.facts import FACTS

if TYPE_CHECKING:
    import pandas as pd


def _make_attributions(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    settings = context.settings
    attribute_to_file(
        context.host,
        path,
        context.prompts(shard.relation),
        quadrature=settings.quadrature,
        n_steps=settings.n_steps,
        tolerance=settings.tolerance,
        start=context.start(shard.relation),
        keep=settings.keep,
        memory_budget=context.memory_budget,
        progress=progress,
    )


def _make_activations(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    attribute_to_file(
        context.host,
        path,
        context.prompts(shard.relation),
        method="activation",
        keep=context.settings.baseline_threshold,
        memory_budget=context.memory_budget,
        progress=progress,
    )


def read_scores(context: RunContext, stage: Stage, relation: str) -> Attribution:
    """Return the stored scores of the prompts of a relation; those below the stored threshold are 0."""
    path = context.run.record_path(stage.name, Shard(relation))
    return read_attribution(path, context.prompts(relation))


def attribution_passes(context: RunContext, n_rows: float) -> Passes:
    """Return the passes that the attribution of so many rows takes with the quadrature of the settings."""
    settings = context.settings
    return integrated(n_rows, context.host.n_layers, settings.quadrature, settings.n_steps)


def _tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return the exactness of the integrals of each relation: completeness gaps and numbers of quadrature points."""
    import pandas as pd

    rows = []
    for shard in ATTRIBUTIONS.shards(context):
        columns = ["layer", "clean", "expected", "total", "tolerance", "n_points"]
        path = context.run.record_path("attributions", shard)
        records = pd.read_parquet(path, columns=columns, partitioning=None)
        output = records.loc[records["layer"] == 0, "clean"].to_numpy()
        gap = (records["total"] - records["expected"]).abs().to_numpy()
        rows.append(
            {
                "relation": shard.relation,
                "start": context.start_name(shard.relation),
                "n_pairs": len(records),
                "mean_output": float(output.mean()),
                "mean_gap": float(gap.mean()),
                "largest_gap": float(gap.max()),
                "above_tolerance": int((gap > records["tolerance"].to_numpy()).sum()),
                "mean_points": float(records["n_points"].to_numpy().mean()),
            }
        )
    return {"completeness": pd.DataFrame(rows)}


def _attribution_passes(context: RunContext, shard: Shard) -> Passes:
    return attribution_passes(context, context.n_rows(shard.relation))


def _activation_passes(context: RunContext, shard: Shard) -> Passes:
    return Passes(whole=context.n_rows(shard.relation))


ATTRIBUTIONS = Stage(
    name="attributions",
    title="Attribution of every prompt",
    make=_make_attributions,
    tables=_tables,
    needs=(FACTS,),
    settings=("quadrature", "n_steps", "tolerance", "start", "keep"),
    passes=_attribution_passes,
)
"""Integrated gradients of all neurons; records of each (prompt, layer), table ``completeness``."""

ACTIVATIONS = Stage(
    name="activations",
    title="Activations, the baseline",
    make=_make_activations,
    needs=(FACTS,),
    settings=("baseline_threshold",),
    passes=_activation_passes,
)
"""Activations of all neurons, the baseline method; records of each (prompt, layer), no table."""
