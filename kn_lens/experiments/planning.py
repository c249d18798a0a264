"""What a run would do and how long it would take, told before it: passes are counted, and some of them timed."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from kn_lens._budget import Budget
from kn_lens._reading import Ticks, read
from kn_lens.attribution import attribute
from kn_lens.engine import budget_for, sites
from kn_lens.experiments import asking, phenomena
from kn_lens.experiments.passes import POINTS, Passes
from kn_lens.experiments.reproduction import Data, prepared
from kn_lens.experiments.run_directory import check_same, open_run
from kn_lens.experiments.running import nothing_to_ask, run, with_needs
from kn_lens.experiments.settings import Settings
from kn_lens.experiments.study import Stage, Study
from kn_lens.facts import Fact, FactSet
from kn_lens.hosts import Host
from kn_lens.outputs import resolve_output
from kn_lens.prompts import PromptBatch

if TYPE_CHECKING:
    import pandas as pd

WITHOUT_PASSES = (asking.STAGE, phenomena.STAGE)
"""Stages that say what is asked, on which the others' passes depend."""
SECONDS = 12.0
"""That all measurements may take together, the first pass excepted, without which nothing is known."""
SHARES = {"whole": 0.2, "resumed": 0.1, "gradient": 0.2, "head": 0.05, "bottom": 0.2, "layers": 0.25}
"""Of these seconds, at most, for each kind of pass."""
MOST_ROWS = 256
RELATIONS, LAYERS = 8, 5
"""At most, to measure with."""
MOST_POINTS = 129
"""The most that the adaptive quadrature takes for a (row, layer)."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How long a row takes, in seconds.

    Attributes:
        whole: from the first layer up.
        resumed: from the middle up.
        gradient: from the middle up, with a backward pass.
        head: through the head alone.
        integral: of a layer, by the adaptive quadrature.
        points: that this takes.
    """

    whole: float
    resumed: float
    gradient: float
    head: float
    integral: float
    points: float = POINTS

    def seconds(self, passes: Passes) -> float:
        """Return how long passes take."""
        return (
            passes.whole * self.whole
            + passes.resumed * self.resumed
            + (passes.gradients + 2 * passes.whole_gradients) * self.gradient
            + passes.integrals * self.integral
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
    some. Drawing samples and writing files is not counted. Cost: the prompts, and ``SECONDS`` of passes after the first
    one.

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
    """Time each kind of pass on prompts of the study, as the stages run it: of as many rows as time allows.

    What a measurement takes is foretold from the ones before; where that is more than is left, it is not made, and what
    was foretold is taken. So that all take ``SECONDS`` and the first pass, however slow the model is.

    Args:
        study: whose facts are known to be asked or not.
        adaptive: whether to time the adaptive quadrature too.
    """
    host, prompts = study.host, _some_prompts(study)
    timer = _Timer(host, SECONDS)
    per_row = len(prompts) / prompts.n_rows
    n_relation = sum(study.n_rows(relation) for relation in study.relations()) / len(study.relations())
    together = max(1, min(len(prompts), round(n_relation * per_row)))  # passes are of one relation
    budget = budget_for(host, prompts, study.memory_budget)
    at_once = budget.rows_per_pass(int(prompts.length.max()))

    def first(n: int) -> torch.Tensor:
        return torch.arange(n, device=host.device) % len(prompts)

    def whole_pass(n: int) -> None:
        read(host, prompts.select(first(n)), [], Budget.of(host, study.memory_budget), Ticks(None, 0))

    whole = timer.seconds("whole", whole_pass, len(prompts), foretold=0.0)
    resumed, gradient = whole / 2, 3 / 2 * whole
    if timer.left() >= whole:
        few = prompts.select(first(max(1, min(len(prompts), at_once, int(timer.left("resumed") / whole)))))
        with torch.no_grad():
            (site,) = sites(host, few, resolve_output("prob", has_contrast=False), [host.n_layers // 2], at_once)

        def changed(run: Callable[[torch.Tensor, torch.Tensor], Any], n: int) -> None:
            numbers = first(n) % len(few)
            run(numbers, site.post[few.rows_of(numbers)])

        resumed = timer.seconds("resumed", partial(changed, site.outputs), together, foretold=whole / 2)
        most = max(1, round(min(at_once, MOST_ROWS) * per_row))
        gradient = timer.seconds("gradient", partial(changed, site.gradients), most, foretold=3 * resumed)
    zeros = torch.zeros(MOST_ROWS, host.d_model, dtype=host.dtype, device=host.device)
    head = timer.seconds("head", lambda n: host.unembed(zeros[:n]), MOST_ROWS, foretold=whole / 10)
    integral, points = POINTS * gradient, POINTS
    if adaptive:
        integral, points = _integral(study, prompts, timer, whole, gradient, together)
    rates = {"whole": whole, "resumed": resumed, "gradient": gradient, "integral": integral}
    return Rates(**{name: took * per_row for name, took in rates.items()}, head=head, points=points)


class _Timer:
    """Times work of more and more, as long as what it may take lasts."""

    def __init__(self, host: Host, seconds: float) -> None:
        self.host, self.until, self.all = host, time.perf_counter() + seconds, seconds

    def left(self, kind: str | None = None) -> float:
        """Return how many seconds one kind of passes may take now, or all."""
        left = self.until - time.perf_counter()
        return left if kind is None else min(SHARES[kind] * self.all, left)

    def seconds(self, kind: str, run_some: Callable[[int], Any], most: int, *, foretold: float) -> float:
        """Return how long one of ``most`` takes, or of the most that time allows: the more at once, the shorter.

        Args:
            kind: of pass. One is run where all time that is left allows, more within the kind's share.
            run_some: runs so many.
            most: the largest number.
            foretold: what one takes, more or less; 0 where nothing is known yet, and the first is not counted.
        """
        end = time.perf_counter() + self.left(kind)
        one, n = foretold, 1
        if foretold:  # more or less: with half of the time there is room for less, and for a first pass that is slower
            n = max(1, min(most, int(self.left(kind) / 2 / foretold)))
        while n * one <= (self.left() if n == 1 else end - time.perf_counter()):
            took = self._took(run_some, n)
            if not one:
                self.until += took
                end += took
            one = took / n
            larger = most if not one else min(most, int((end - time.perf_counter()) / one))
            if larger < 2 * n:
                # What runs for the first time takes longer: memory is fetched.
                return min(one, self._took(run_some, n) / n) if n <= larger else one
            n = larger
        return one

    def _took(self, run_some: Callable[[int], Any], n: int) -> float:
        began = time.perf_counter()
        with torch.no_grad():
            run_some(n)
        if self.host.device.type == "cuda":
            torch.cuda.synchronize(self.host.device)
        return time.perf_counter() - began


def _some_prompts(study: Study) -> PromptBatch:
    """Return prompts of facts of some relations, all over the data; together, as in the passes of a run."""
    relations = study.relations()
    chosen = relations[:: -(-len(relations) // RELATIONS)]
    facts: list[Fact] = []
    for relation in chosen:
        n_rows = study.n_rows(relation) / len(study.asked_facts(relation))
        facts += study.asked_facts(relation)[: math.ceil(MOST_ROWS / len(chosen) / n_rows)]
    return study.ask(facts)


def _integral(
    study: Study, prompts: PromptBatch, timer: _Timer, whole: float, gradient: float, together: int
) -> tuple[float, float]:
    """Return how long the adaptive quadrature takes for a prompt and layer, and how many points.

    The lowest layer, which often takes more points than all others, and some of these are looked at.
    """
    n_layers, settings = study.host.n_layers, study.settings
    beside = whole + 2 * gradient  # the clean pass, and the gradients at the path's end
    n_others = min(LAYERS, n_layers - 1)
    others = [1 + (n_layers - 1) * (2 * place + 1) // (2 * n_others) for place in range(n_others)]

    def of(kind: str, layers: list[int], one_pass: float) -> tuple[float, float]:
        most = min(MOST_POINTS, int((timer.left(kind) - beside) / one_pass / len(layers)))
        points = [float(POINTS)]
        if most < 3:  # with which the quadrature begins
            return POINTS * one_pass, POINTS

        def attribute_some(n: int) -> None:
            attr = attribute(
                study.host.model, prompts.select(list(range(n))), layers=layers, tolerance=settings.tolerance,
                keep=settings.keep, max_points=most, memory_budget=study.memory_budget,
            )  # fmt: skip
            points.append(float(attr.n_points[:, layers].double().mean()))

        took = timer.seconds(kind, attribute_some, together, foretold=beside + len(layers) * most * one_pass)
        return max(took - beside, 0.0) / len(layers), points[-1]

    found = [of("bottom", [0], 2 * gradient)] + [of("layers", others, gradient)] * (n_layers > 1)
    weights = [1.0, n_layers - 1.0]
    seconds, points = (
        sum(weight * one for weight, one in zip(weights, ones, strict=False)) / n_layers
        for ones in zip(*found, strict=True)
    )
    return seconds, points
