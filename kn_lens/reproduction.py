"""The paper's study of one model in one call: what ``kn-lens reproduce`` does, in this process.

Model, facts and settings become records, stage by stage, and these tables and figures, all in one run directory.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kn_lens._exclusive import exclusive
from kn_lens.experiments.reproduction import open_study
from kn_lens.experiments.running import State, named, run
from kn_lens.experiments.settings import Settings
from kn_lens.experiments.stages import STAGES
from kn_lens.facts import FactSet
from kn_lens.hosts import host_of
from kn_lens.report import write_figures

if TYPE_CHECKING:
    import pandas as pd


@exclusive
def reproduce(
    model: Any,
    facts: FactSet,
    out: str | os.PathLike[str],
    *,
    stages: Sequence[str] = (),
    preset: str = "kn_lens",
    held_out: FactSet | None = None,
    memory_budget: float | None = None,
    watch: Callable[[State], None] = lambda state: None,
    force: bool = False,
    **settings: Any,
) -> "dict[str, pd.DataFrame]":
    """Run the paper's study on a model, whole or in part; the same call takes up what is missing.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        facts: of two relations or more; ``settings`` choose from them.
        out: run directory: new, or to be taken up again.
        stages: which, by name, with those that they need; all unless given. ``effects`` makes Figures 3, 4 and 5 and
            Table 2.
        preset: ``kn_lens``, ``paper`` or ``official``: what the settings start from.
        held_out: the same facts in wordings that nothing is found with; updates are asked in them too.
        memory_budget: bytes that passes may take; see ``attribute``.
        watch: called whenever there is something new to show, with how far the run is.
        force: take up a directory of other settings; what they change is made again.
        **settings: those to change: ``limit=20`` (facts of each relation), ``relations=["P36", "P30"]``, ``seed=1``,
            or any other of ``kn_lens.experiments.settings``.

    Returns:
        The tables of the stages by name, as in ``tables/`` of the directory; ``kn_lens.figures`` draws them,
        ``write_report`` makes a page of the directory.

    Raises:
        ArgumentError: a stage, preset, setting or relation that there is not, or a directory of something else.
        DataError: facts of one relation only, none that can be asked, or a directory that was made with another model,
            other facts, settings or versions, is in use, or cannot be written.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights.

    Example:
        >>> import tempfile
        >>> import kn_lens as kn
        >>> facts = kn.FactSet.world("held_out")
        >>> tables = kn.reproduce(kn.load_model("world-bert"), facts, tempfile.mkdtemp(), stages=["answers"], limit=1)
        >>> sorted(tables)
        ['answers', 'answers_by_relation', 'coverage']
    """
    wanted = named(STAGES, stages)
    chosen = Settings.of(preset, **settings)
    names = {"model": host_of(model).name}
    with open_study(
        model, facts, out, chosen, held_out=held_out, names=names, memory_budget=memory_budget, force=force
    ) as study:
        tables = run(study, wanted, watch)
        write_figures(out)
    return tables
