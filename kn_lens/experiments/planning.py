"""What a run would do and how long it would take, told before it: passes are counted, and one of each kind is timed."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from kn_lens.attribution import attribute
from kn_lens.engine import budget_for, sites
from kn_lens.experiments import asking, phenomena
from kn_lens.experiments.passes import POINTS, Passes
from kn_lens.experiments.reproduction import Data, prepared
from kn_lens.experiments.run_directory import check_same, open_run
from kn_lens.experiments.running import nothing_to_ask, run, with_needs
from kn_lens.experiments.settings import Settings
from kn_lens.experiments.study import Stage, Study
from kn_lens.facts import FactSet
from kn_lens.outputs import resolve_output
from kn_lens.prompts import PromptBatch

if TYPE_CHECKING:
    import pandas as pd

ENOUGH = 0.4
"""Seconds from which on a measurement is taken as it is; shorter ones are made again with more rows."""
MOST_ROWS = 256
WITHOUT_PASSES = (asking.STAGE, phenomena.STAGE)
"""Stages that say what is asked, on which the others' passes depend."""
PROMPTS = 8
"""Of different relations, to measure with."""
SECONDS_FOR_POINTS = 3.0
"""At most so long, more or less, the points of the adaptive quadrature are looked at."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How long a row takes.

    Attributes:
        whole: seconds of a row from the first layer up.
        resumed: from the middle up.
        gradient: from the middle up, with a backward pass.
        head: through the head alone.
        points: that the adaptive quadrature takes for a (row, layer).
    """

    whole: float
    resumed: float
    gradient: float
    head: float
    points: float = POINTS

    def seconds(self, passes: Passes) -> float:
        """Return how long passes take."""
        gradients = passes.gradients + 2 * passes.whole_gradients + (self.points - 1) * passes.integrals
        return (
            passes.whole * self.whole
            + passes.resumed * self.resumed
            + gradients * self.gradient
            + passes.heads * self.head
        )


def plan(
    model: Any,
    facts: FactSet,
    path: str | os.PathLike[str],
    settings: Settings,
    stages: Sequence[Stage],
    *,
    held_out: FactSet | None = None,
    memory_budget: float | None = None,
    force: bool = False,
) -> "pd.DataFrame":
    """Say what a run would do, and about how long it would take; the run directory is only read.

    Passes are counted from the prompts, which are written for that, and from what is in the run directory; each kind of
    pass is timed on a few rows. Where counts depend on neurons that are still to be found, every fact is taken to have
    some. Drawing samples and writing files is not counted. Cost: a handful of passes, of one row each where a row takes
    long.

    Args:
        model: as for ``open_study``.
        facts: as for ``open_study``.
        path: as for ``open_study``.
        settings: as for ``open_study``.
        stages: which would run.
        held_out: as for ``open_study``.
        memory_budget: as for ``open_study``.
        force: as for ``open_study``.

    Returns:
        One row for each ``stage``: its ``shards``, how many are ``done``, and for the others the ``passes`` (rows that
        go through the model, or through a part of it) and the ``seconds``.

    Raises:
        ArgumentError: as ``open_study``.
        DataError: as ``open_study``, or no fact can be asked.
    """
    import pandas as pd

    data = Data.of(facts, settings, held_out)
    begun = Path(path).is_dir()
    study, config, provenance = prepared(model, data, Path(path), settings, {}, memory_budget, identified=begun)
    if begun and not force:
        check_same(Path(path), config, provenance)
    with TemporaryDirectory() as scratch:
        counted = study
        first = [stage for stage in with_needs(stages) if stage in WITHOUT_PASSES]
        if not all(study.is_current(stage, shard) for stage in first for shard in stage.shards(study)):
            counted, *_ = prepared(model, data, Path(scratch, "run"), settings, {}, memory_budget, identified=False)
            with open_run(counted.run.path, {}, {"made_from": {}}):
                run(counted, first, lambda state: None)
        if not counted.relations():
            raise nothing_to_ask(counted)
        passes = {
            stage: {shard: stage.passes(counted, shard) for shard in stage.shards(counted)}
            for stage in with_needs(stages)
        }
        to_do: dict[Stage, list[Passes]] = {
            stage: [count for shard, count in of_stage.items() if not study.is_current(stage, shard)]
            for stage, of_stage in passes.items()
        }
        in_all = sum((count for counts in to_do.values() for count in counts), Passes())
        rates = measured(counted, adaptive=in_all.integrals > 0) if in_all.rows() else None
    rows = []
    for stage, counts in to_do.items():
        together = sum(counts, Passes())
        rows.append(
            {
                "stage": stage.name,
                "shards": len(passes[stage]),
                "done": len(passes[stage]) - len(counts),
                "passes": round(together.rows(POINTS if rates is None else rates.points)),
                "seconds": 0.0 if rates is None else rates.seconds(together),
            }
        )
    return pd.DataFrame(rows)


def measured(study: Study, *, adaptive: bool) -> Rates:
    """Time each kind of pass on prompts of the study: the engine's own, of as many rows as take a while.

    Args:
        study: whose facts are known to be asked or not.
        adaptive: whether to look at how many points the adaptive quadrature takes too, where passes are short enough.
    """
    host, prompts = study.host, _some_prompts(study)
    output, middle = resolve_output("prob", has_contrast=False), [host.n_layers // 2]
    at_once = budget_for(host, prompts, study.memory_budget).rows_per_pass(int(prompts.length.max()))

    def numbers(n: int) -> torch.Tensor:
        return torch.arange(n, device=host.device) % len(prompts)

    whole = _seconds(study, at_once, lambda n: sites(host, prompts.select(numbers(n)), output, middle, at_once))
    (site,) = sites(host, prompts, output, middle, at_once)  # what the others start from

    def written(n: int) -> torch.Tensor:
        return site.mlp_out[prompts.rows_of(numbers(n))]

    resumed = _seconds(study, at_once, lambda n: site.outputs(numbers(n), written(n)))
    gradient = _seconds(study, at_once, lambda n: site.gradients(numbers(n), written(n)))
    head = _seconds(study, at_once, lambda n: host.unembed(torch.zeros_like(written(n))))
    per_row = len(prompts) / prompts.n_rows
    rates = {"whole": whole, "resumed": resumed, "gradient": gradient, "head": head}
    points = _points(study, prompts, gradient * per_row) if adaptive else POINTS
    return Rates(**{name: took * per_row for name, took in rates.items()}, points=points)


def _seconds(study: Study, at_once: int, run_some: Callable[[int], Any]) -> float:
    """Return how long one of so many takes, the more at once the shorter it takes."""
    n = 1
    while True:
        began = time.perf_counter()
        with torch.no_grad():
            run_some(n)
        if study.host.device.type == "cuda":
            torch.cuda.synchronize(study.host.device)
        took = time.perf_counter() - began
        most = min(at_once, MOST_ROWS)
        if took >= ENOUGH or n >= most:
            return took / n
        n = min(most, max(2 * n, round(1.5 * n * ENOUGH / max(took, 1e-9))))


def _some_prompts(study: Study) -> PromptBatch:
    """Return one prompt of a fact in each of some relations, all over the data."""
    relations = study.relations()
    chosen = relations[:: -(-len(relations) // PROMPTS)]
    prompts = study.ask(study.asked_facts(relation)[0] for relation in chosen)
    last = {fact: number for number, fact in enumerate(prompts.fact_index.tolist())}
    return prompts.select(list(last.values()))


def _points(study: Study, prompts: PromptBatch, gradient: float) -> float:
    """Return the mean number of points of some prompts in layers all over the model; ``POINTS`` where it takes long."""
    n_layers, settings = study.host.n_layers, study.settings
    for n in (len(prompts), 4, 2, 1):
        some = prompts.select(list(range(min(n, len(prompts)))))
        n_chosen = min(n_layers, int(SECONDS_FOR_POINTS / (2 * POINTS * gradient * some.n_rows)))
        if n_chosen >= min(3, n_layers):
            layers = [n_layers * (2 * place + 1) // (2 * n_chosen) for place in range(n_chosen)]
            attr = attribute(
                study.host.model, some, layers=layers, tolerance=settings.tolerance, memory_budget=study.memory_budget
            )
            return float(attr.n_points[:, layers].double().mean())
    return POINTS
