"""The paper's study of one model in one call: ``kn-lens reproduce`` in this process.

Each stage computes records from model, facts and settings. Tables and figures are computed from the records. All are in
one run directory.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kn_lens._core.checks import check_kind
from kn_lens.facts import FactSet
from kn_lens.hosts import HookedModel, Host, exclusive, host_of
from kn_lens.reports.report import write_figures
from kn_lens.runs.context import open_context
from kn_lens.runs.execute import RunState, run_stages, stages_named
from kn_lens.runs.settings import Settings
from kn_lens.runs.stages.order import ON_REQUEST, STAGES

if TYPE_CHECKING:
    import pandas as pd


@exclusive
def reproduce(
    model: HookedModel | Host,
    facts: FactSet,
    out: str | os.PathLike[str],
    *,
    stages: Sequence[str] = (),
    preset: str = "kn_lens",
    held_out: FactSet | None = None,
    memory_budget: float | None = None,
    watch: Callable[[RunState], None] = lambda state: None,
    force: bool = False,
    **settings: Any,
) -> "dict[str, pd.DataFrame]":
    """Run the paper's study on a model, as a whole or in part; the same call resumes an incomplete run.

    Args:
        model: a TransformerLens model in evaluation mode. It is not changed.
        facts: all facts; ``settings`` choose from them. With a single relation, effects on facts of another are left
            out.
        out: run directory: new, or that of a run to resume.
        stages: names of stages, computed with those that they need; all by default. ``effects`` computes Figures 3, 4
            and 5 and Table 2.
        preset: ``kn_lens``, ``paper`` or ``official``: the initial settings.
        held_out: the same facts with templates that are not used to find neurons. Updates are queried in them too.
        memory_budget: bytes for forward passes; see ``attribute``.
        watch: progress callback, called with the state of the run.
        force: accept a directory of other settings; what they change is computed again.
        **settings: changed settings: ``limit=20`` (facts of each relation), ``relations=["P36", "continent"]``,
            ``seed=1``, or any other of ``kn_lens.runs.settings``.

    Returns:
        The tables of the stages by name, as in ``tables/`` of the directory. ``kn_lens.reports.figures`` draws them,
        ``write_report`` writes the page of the directory.

    Raises:
        ArgumentError: A stage, preset, setting or relation is unknown, or the directory is not that of a run.
        DataError: None of the facts can be queried, or the directory belongs to another model, other facts, settings or
            versions, is in use, or cannot be written.
        UnsupportedModelError: The model cannot be hosted, is in train mode, or has NaN weights.

    Example:
        >>> import tempfile
        >>> import kn_lens as kn
        >>> facts = kn.FactSet.world("held_out")
        >>> tables = kn.reproduce(kn.load_model("world-bert"), facts, tempfile.mkdtemp(), stages=["answers"], limit=1)
        >>> sorted(tables)
        ['answers', 'answers_by_relation', 'coverage']
    """
    check_kind(facts, FactSet, "a FactSet: kn_lens.FactSet(facts)", "facts")
    chosen_stages = stages_named(STAGES, stages, ON_REQUEST)
    chosen_settings = Settings.of(preset, **settings)
    with open_context(
        model,
        facts,
        out,
        chosen_settings,
        held_out=held_out,
        names={"model": host_of(model).name},
        memory_budget=memory_budget,
        force=force,
    ) as context:
        tables = run_stages(context, chosen_stages, watch)
        write_figures(out)
    return tables
