"""The plan of a run: the number of model passes that it would make, and their duration, estimated by timing a few."""

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

from kn_lens.attribution import PathPoints, attribute, budget_for, layer_contexts, resolve_output, sweep
from kn_lens.facts import Fact, FactSet
from kn_lens.hosts import Budget, HookedModel, Host
from kn_lens.interventions import Ticks, score_answers
from kn_lens.prompts import PromptBatch
from kn_lens.runs.context import RunContext, prepare_context
from kn_lens.runs.data import RunData, with_identifiers
from kn_lens.runs.directory import check_same, open_run
from kn_lens.runs.execute import no_prompts_error, run_stages, with_needs
from kn_lens.runs.passes import POINTS, Passes
from kn_lens.runs.settings import Settings
from kn_lens.runs.stage import Stage
from kn_lens.runs.stages.facts import FACTS
from kn_lens.runs.stages.syntax_pairs import SYNTAX_PAIRS

if TYPE_CHECKING:
    import pandas as pd

WITHOUT_PASSES = (FACTS, SYNTAX_PAIRS)
"""Stages that make no passes, but decide which prompts the others use."""
SECONDS = 12.0
"""Duration of all timings together, except for the first pass, without which nothing is known."""
SHARES = {
    "whole": 0.2,
    "resumed": 0.1,
    "gradient": 0.2,
    "head": 0.05,
    "bottom": 0.2,
    "layers": 0.25,
}
"""Largest share of ``SECONDS`` for each kind of pass."""
MOST_ROWS = 256
"""Largest number of rows to time."""
RELATIONS, LAYERS = 8, 5
"""Largest number of relations and of upper layers to time."""
MOST_POINTS = 129
"""Largest number of points of the adaptive quadrature for a (row, layer)."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Duration of one row by kind of pass, in seconds.

    Attributes:
        whole: through all layers.
        resumed: from the middle layer up.
        gradient: from the middle layer up, with a backward pass.
        head: through the unembedding alone.
        integral: one layer by the adaptive quadrature.
        points: number of points of such an integral.
    """

    whole: float
    resumed: float
    gradient: float
    head: float
    integral: float
    points: float = POINTS

    def seconds(self, passes: Passes) -> float:
        """Return the duration of passes."""
        return (
            passes.whole * self.whole
            + passes.resumed * self.resumed
            + (passes.gradients + 2 * passes.whole_gradients) * self.gradient
            + passes.integrals * self.integral
            + passes.heads * self.head
        )


def plan(
    model: HookedModel | Host,
    facts: FactSet,
    path: str | os.PathLike[str],
    settings: Settings,
    stages: Sequence[Stage],
    *,
    held_out: FactSet | None = None,
    memory_budget: float | None = None,
    force: bool = False,
) -> "pd.DataFrame":
    """Estimate what a run would compute and how long it would take; the run directory is only read.

    Passes are counted from the prompts, which are built for this, and from the records that exist; each kind of pass is
    timed on a few rows. Where a count depends on neurons that are not found yet, every fact is taken to have some. The
    time for drawing samples and writing files is not included. Cost: building the prompts, one pass, and ``SECONDS`` of
    further passes.

    Args:
        model: as for ``open_context``.
        facts: as for ``open_context``.
        path: as for ``open_context``.
        settings: as for ``open_context``.
        stages: the stages that would run.
        held_out: as for ``open_context``.
        memory_budget: as for ``open_context``.
        force: as for ``open_context``.

    Returns:
        One row for each ``stage``: the number of its ``shards`` and of those that are ``done``, and for the others the
        ``passes`` (rows that go through the model or a part of it) and the ``seconds``.

    Raises:
        ArgumentError: as ``open_context``.
        DataError: as ``open_context``, or no fact can be queried.
    """
    import pandas as pd

    settings = with_identifiers(settings, facts)
    data = RunData.of(facts, settings, held_out)
    begun = Path(path).is_dir()
    context, config, provenance = prepare_context(model, data, Path(path), settings, {}, memory_budget, identify=begun)
    if begun and not force:
        check_same(Path(path), config, provenance)
    with TemporaryDirectory() as scratch:
        counted = context
        first = [stage for stage in with_needs(stages) if stage in WITHOUT_PASSES]
        if not _are_current(context, first):
            counted, *_ = prepare_context(
                model, data, Path(scratch, "run"), settings, {}, memory_budget, identify=False
            )
            with open_run(counted.run.path, {}, {"made_from": {}}):
                run_stages(counted, first, lambda state: None)
        if not counted.relations():
            raise no_prompts_error(counted)
        plans = [_StagePlan.of(stage, context, counted) for stage in with_needs(stages)]
        total = sum((stage_plan.passes for stage_plan in plans), Passes())
        rates = measured(counted, adaptive=total.integrals > 0) if total.rows() else None
    rows = []
    for stage_plan in plans:
        passes = stage_plan.passes
        rows.append(
            {
                "stage": stage_plan.stage.name,
                "shards": stage_plan.n_shards,
                "done": stage_plan.n_done,
                "passes": round(passes.rows(POINTS if rates is None else rates.points)),
                "seconds": 0.0 if rates is None else rates.seconds(passes),
            }
        )
    return pd.DataFrame(rows)


def _are_current(context: RunContext, stages: Sequence[Stage]) -> bool:
    """Return whether all records of these stages are there."""
    for stage in stages:
        for shard in stage.shards(context):
            if not context.is_current(stage, shard):
                return False
    return True


@dataclass(frozen=True, kw_only=True)
class _StagePlan:
    """What a stage of a run would compute.

    Attributes:
        stage: the stage.
        n_shards: number of its shards.
        n_done: number of those whose records are there.
        passes: the passes of the others.
    """

    stage: Stage
    n_shards: int
    n_done: int
    passes: Passes

    @classmethod
    def of(cls, stage: Stage, context: RunContext, counted: RunContext) -> "_StagePlan":
        """Count the passes of a stage.

        Args:
            stage: the stage.
            context: the context of the run.
            counted: the same, or one whose stages without passes are complete.
        """
        n_shards = n_done = 0
        passes = Passes()
        for shard in stage.shards(counted):
            n_shards += 1
            if context.is_current(stage, shard):
                n_done += 1
            else:
                passes += stage.passes(counted, shard)
        return cls(stage=stage, n_shards=n_shards, n_done=n_done, passes=passes)


def measured(context: RunContext, *, adaptive: bool) -> Rates:
    """Time each kind of pass on prompts of the run, in batches as large as the stages use and time allows.

    The duration of each timing is predicted from those before it. Where it exceeds the time left, the prediction is
    taken in its place. So all timings together take ``SECONDS`` and the first pass, however slow the model is.

    Args:
        context: a context whose stage ``facts`` is complete.
        adaptive: whether to time the adaptive quadrature too.
    """
    host, prompts = context.host, _some_prompts(context)
    timer = _Timer(host, SECONDS)
    per_row = len(prompts) / prompts.n_rows
    relations = context.relations()
    n_relation = sum(map(context.n_rows, relations)) / len(relations)
    together = max(1, min(len(prompts), round(n_relation * per_row)))  # passes are of one relation
    budget = budget_for(host, prompts, context.memory_budget)
    at_once = budget.rows_per_pass(int(prompts.n_positions.max()))

    def first(n: int) -> torch.Tensor:
        return torch.arange(n, device=host.device) % len(prompts)

    def whole_pass(n: int) -> None:
        whole_budget = Budget.of(host, context.memory_budget)
        score_answers(host, prompts.select(first(n)), [], whole_budget, Ticks(None, 0))

    whole = timer.seconds("whole", whole_pass, len(prompts), predicted=0.0)
    resumed, gradient = whole / 2, 3 / 2 * whole
    if timer.left() >= whole:
        n_few = min(len(prompts), at_once, int(timer.left("resumed") / whole))
        few = prompts.select(first(max(1, n_few)))
        with torch.no_grad():
            output = resolve_output("prob", has_contrast=False)
            (middle,) = layer_contexts(host, few, output, [host.n_layers // 2], at_once)

        def run_changed(run: Callable[[torch.Tensor, torch.Tensor], Any], n: int) -> None:
            prompt_ids = first(n) % len(few)
            run(prompt_ids, middle.post[few.rows_of(prompt_ids)])

        run_outputs = partial(run_changed, middle.outputs)
        resumed = timer.seconds("resumed", run_outputs, together, predicted=whole / 2)

        def run_gradients(n: int) -> None:
            points = PathPoints(
                context=middle,
                moving=middle.post,
                prompts=first(n) % len(few),
                alpha=middle.post.new_ones(n),
            )
            sweep([points])

        most = max(1, round(min(at_once, MOST_ROWS) * per_row))
        gradient = timer.seconds("gradient", run_gradients, most, predicted=3 * resumed)
    zeros = torch.zeros(MOST_ROWS, host.d_model, dtype=host.dtype, device=host.device)
    head = 0.0
    if host.has_readouts:
        head = timer.seconds("head", lambda n: host.unembed(zeros[:n]), MOST_ROWS, predicted=whole / 10)
    integral, points = POINTS * gradient, POINTS
    if adaptive:
        integral, points = _integral(context, prompts, timer, whole, gradient, together)
    return Rates(
        whole=whole * per_row,
        resumed=resumed * per_row,
        gradient=gradient * per_row,
        integral=integral * per_row,
        head=head,
        points=points,
    )


class _Timer:
    """Times work in growing batches until its share of the time is used up."""

    def __init__(self, host: Host, seconds: float) -> None:
        self.host = host
        self.until = time.perf_counter() + seconds
        self.all = seconds

    def left(self, kind: str | None = None) -> float:
        """Return the seconds left for one kind of pass, or for all."""
        left = self.until - time.perf_counter()
        return left if kind is None else min(SHARES[kind] * self.all, left)

    def seconds(self, kind: str, run_some: Callable[[int], Any], most: int, *, predicted: float) -> float:
        """Return the seconds per item in a batch of ``most`` items, or of as many as time allows.

        Args:
            kind: kind of pass. A single item may use all the time that is left; a batch only the share of its kind.
            run_some: runs a batch of this size.
            most: largest batch size.
            predicted: approximate seconds of one item. 0: nothing is known yet, and the first item's time is free.
        """
        end = time.perf_counter() + self.left(kind)
        per_item, n = predicted, 1
        if predicted:  # approximate: half of the time leaves room for smaller batches and a slower first one
            n = max(1, min(most, int(self.left(kind) / 2 / predicted)))
        while n * per_item <= (self.left() if n == 1 else end - time.perf_counter()):
            took = self._took(run_some, n)
            if not per_item:
                self.until += took
                end += took
            per_item = took / n
            larger = most
            if per_item:
                larger = min(most, int((end - time.perf_counter()) / per_item))
            if n <= larger < 2 * n:  # the first batch of a size takes longer: its memory is allocated
                return min(per_item, self._took(run_some, n) / n)
            if larger < n:
                return per_item
            n = larger
        return per_item

    def _took(self, run_some: Callable[[int], Any], n: int) -> float:
        began = time.perf_counter()
        with torch.no_grad():
            run_some(n)
        if self.host.device.type == "cuda":
            torch.cuda.synchronize(self.host.device)
        return time.perf_counter() - began


def _some_prompts(context: RunContext) -> PromptBatch:
    """Return prompts of some facts of relations spread over the data, in one batch as in the passes of a run."""
    relations = context.relations()
    chosen = relations[:: -(-len(relations) // RELATIONS)]
    facts: list[Fact] = []
    for relation in chosen:
        n_rows = context.n_rows(relation) / len(context.queried_facts(relation))
        facts += context.queried_facts(relation)[: math.ceil(MOST_ROWS / len(chosen) / n_rows)]
    return context.make_prompts(facts)


def _integral(
    context: RunContext,
    prompts: PromptBatch,
    timer: _Timer,
    whole: float,
    gradient: float,
    together: int,
) -> tuple[float, float]:
    """Return the seconds and the number of points that the adaptive quadrature takes for a prompt and layer.

    Timed on the lowest layer, which often takes more points than any other, and on some of the others.
    """
    n_layers, settings = context.host.n_layers, context.settings
    overhead = whole + 2 * gradient  # the clean pass, and the gradients at the end of the path
    n_others = min(LAYERS, n_layers - 1)
    others = [1 + (n_layers - 1) * (2 * i + 1) // (2 * n_others) for i in range(n_others)]

    def time_layers(kind: str, layers: list[int], one_pass: float) -> tuple[float, float]:
        most = min(MOST_POINTS, int((timer.left(kind) - overhead) / one_pass / len(layers)))
        points = [float(POINTS)]
        if most < 3:  # the quadrature begins with three
            return POINTS * one_pass, POINTS

        def attribute_some(n: int) -> None:
            attr = attribute(
                context.host,
                prompts.select(list(range(n))),
                layers=layers,
                tolerance=settings.tolerance,
                keep=settings.keep,
                max_points=most,
                memory_budget=context.memory_budget,
            )
            points.append(float(attr.n_points[:, layers].double().mean()))

        predicted = overhead + len(layers) * most * one_pass
        took = timer.seconds(kind, attribute_some, together, predicted=predicted)
        return max(took - overhead, 0.0) / len(layers), points[-1]

    seconds, points = time_layers("bottom", [0], 2 * gradient)
    if n_layers == 1:
        return seconds, points
    seconds_above, points_above = time_layers("layers", others, gradient)
    n_above = n_layers - 1
    seconds += n_above * seconds_above
    points += n_above * points_above
    return seconds / n_layers, points / n_layers
