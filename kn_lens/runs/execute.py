"""Execution of stages: what is missing is computed, written and summarised in tables."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kn_lens._core.checks import wrong_kind
from kn_lens.errors import ArgumentError, DataError, did_you_mean
from kn_lens.hosts import release_memory
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.stage import Stage

if TYPE_CHECKING:
    import pandas as pd

RELATIONS_NAMED = 8
"""Relations that an error message names."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The progress of a run.

    Attributes:
        stage: the current stage.
        shard: its current shard; None before the first.
        shards_done: shards of the stage that are written, in this run or before.
        n_shards: shards of the stage.
        done: cost of what this run has computed, in forward passes of one row.
        total: cost of all that this run has to compute, as far as it is known.
        finished: whether the current shard is written.
        note: a message for the user.
    """

    stage: Stage
    shard: Shard | None = None
    shards_done: int
    n_shards: int
    done: float
    total: float
    finished: bool = False
    note: str = ""

    def where(self) -> str:
        """Return the current step, for error messages."""
        if self.shard is None:
            return self.stage.name
        return f"{self.stage.name} of {self.shard.name}"

    def after(self, shard: Shard, cost: float) -> "RunState":
        """Return the state once a shard of this cost is written."""
        return replace(
            self,
            shard=shard,
            shards_done=self.shards_done + 1,
            done=self.done + cost,
            finished=True,
            note="",
        )


def with_needs(stages: Iterable[Stage]) -> list[Stage]:
    """Return stages with all that they need, each after what it needs."""
    ordered: list[Stage] = []
    for stage in stages:
        for needed in [*with_needs(stage.needs), stage]:
            if needed not in ordered:
                ordered.append(needed)
    return ordered


def stages_named(stages: Sequence[Stage], names: Sequence[str], on_request: Sequence[Stage] = ()) -> list[Stage]:
    """Return the stages with these names; without names, all of them but those ``on_request``.

    Raises:
        ArgumentError: an unknown name.
    """
    if isinstance(names, str):
        raise wrong_kind(names, f"a list of stages: [{names!r}]", "stages")
    by_name = {stage.name: stage for stage in (*stages, *on_request)}
    for name in names:
        if name not in by_name:
            raise ArgumentError(
                f"{name!r} is no stage; expected some of {', '.join(by_name)}.{did_you_mean(name, by_name)}"
            )
    return [by_name[name] for name in names] if names else list(stages)


def run_stages(
    context: RunContext, stages: Sequence[Stage], on_state: Callable[[RunState], None]
) -> "dict[str, pd.DataFrame]":
    """Compute the missing records of stages and of those that they need, write all tables, and return them by name.

    Args:
        context: the model, the facts and the run directory.
        stages: the stages.
        on_state: called whenever there is progress to show.

    Raises:
        DataError: no fact can be queried, or a file cannot be written.
        ArgumentError: as the stages do.
    """
    tables: dict[str, pd.DataFrame] = {}
    stages = with_needs(stages)
    done = 0.0
    for index, stage in enumerate(stages):
        state, costs = start_stage(context, stages[index:], done)
        for shard, cost in costs.items():
            state = replace(state, shard=shard, finished=False)
            _compute_shard(context, state, cost, on_state)
            state = state.after(shard, cost)
            on_state(state)
        done = state.done
        tables |= write_tables(context, stage)
    return tables


def start_stage(context: RunContext, stages: Sequence[Stage], done: float = 0.0) -> tuple[RunState, dict[Shard, float]]:
    """Return the state of a run at the start of a stage, and the cost of each missing shard of the stage.

    The missing shards can be computed in any order, in any process.

    Args:
        context: the context of the run.
        stages: the stages left, this one first, each after what it needs.
        done: cost of what the run has computed before.

    Raises:
        DataError: no fact can be queried.
    """
    stage, *later_stages = stages
    shards = stage.shards(context)
    if not shards:
        raise no_prompts_error(context)
    costs = {}
    for shard in shards:
        if not context.is_current(stage, shard):
            costs[shard] = stage.cost(context, shard)
    total = done + sum(costs.values())
    for later_stage in later_stages:
        total += _missing_cost(context, later_stage)
    state = RunState(
        stage=stage,
        n_shards=len(shards),
        shards_done=len(shards) - len(costs),
        done=done,
        total=total,
    )
    return state, costs


def write_tables(context: RunContext, stage: Stage) -> "dict[str, pd.DataFrame]":
    """Write and return the tables of a stage whose shards are all written."""
    tables = dict(stage.tables(context))
    for name, table in tables.items():
        context.run.write_text(f"tables/{name}.csv", table.to_csv(index=False))
    release_memory()
    return tables


def damage_note(context: RunContext, stage: Stage, shard: Shard) -> str:
    """Return a message that the records of a shard are damaged; empty where they are not."""
    if not context.run.is_damaged(stage.name, shard):
        return ""
    return f"{context.run.record_path(stage.name, shard)} is damaged or missing, and made again."


def _compute_shard(context: RunContext, state: RunState, cost: float, on_state: Callable[[RunState], None]) -> None:
    """Compute and write the current shard of a state."""
    stage, shard = state.stage, state.shard
    assert shard is not None  # the state has a current shard
    on_state(replace(state, note=damage_note(context, stage, shard)))
    inputs = context.inputs(stage, shard)
    assert inputs is not None  # the stages that it needs are complete

    def on_progress(done: int, total: int) -> None:
        on_state(replace(state, done=state.done + cost * done / max(total, 1)))

    with context.run.writing(stage.name, shard, inputs, stage.version) as path:
        stage.write(context, shard, path, on_progress)


def _missing_cost(context: RunContext, stage: Stage) -> float:
    """Return the cost of a later stage; 0 while it is unknown which facts can be queried."""
    if not all(context.run.manifest("facts", Shard(relation)) for relation in context.facts.relations):
        return 0.0
    cost = 0.0
    for shard in stage.shards(context):
        if not context.is_current(stage, shard):
            cost += stage.cost(context, shard)
    return cost


def no_prompts_error(context: RunContext) -> DataError:
    """Return the error of a run none of whose facts can be queried, with the reason."""
    relations = ", ".join(context.facts.relations[:RELATIONS_NAMED])
    return DataError(f"No fact of {relations} can be queried: {_reason_without_prompts(context)}")


def _reason_without_prompts(context: RunContext) -> str:
    for relation in context.facts.relations:
        reason = context.fact_records(relation)["why"].iloc[0]
        if reason:
            return reason
    return f"none has {context.settings.min_prompts} prompts or more."
