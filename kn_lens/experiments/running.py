"""Running the stages of a study."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from kn_lens._budget import give_back_memory
from kn_lens.errors import ArgumentError, DataError, did_you_mean
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import Stage, Study

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a run is.

    Attributes:
        stage: that is running.
        shard: of it; None before the first.
        shards_done: shards of the stage that are done, now or before.
        n_shards: of the stage.
        done: cost done in this run, in forward passes.
        total: cost of all that is to be done in this run, as far as it is known.
        finished: whether the shard is done.
        note: something that people should be told.
    """

    stage: Stage
    shard: Shard | None = None
    shards_done: int
    n_shards: int
    done: float
    total: float
    finished: bool = False
    note: str = ""

    def after(self, shard: Shard, cost: float) -> "State":
        """Return how far the run is when a shard of that cost is done."""
        return replace(
            self, shard=shard, shards_done=self.shards_done + 1, done=self.done + cost, finished=True, note=""
        )


def with_needs(stages: Iterable[Stage]) -> list[Stage]:
    """Return stages with all that they need, each after what it needs."""
    ordered: list[Stage] = []
    for stage in stages:
        ordered += [one for one in [*with_needs(stage.needs), stage] if one not in ordered]
    return ordered


def named(stages: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
    """Return the stages with these names, all without any.

    Raises:
        ArgumentError: there is none of that name.
    """
    known = {stage.name: stage for stage in stages}
    for name in names:
        if name not in known:
            raise ArgumentError(
                f"{name!r} is no stage; expected some of {', '.join(known)}.{did_you_mean(name, known)}"
            )
    return [known[name] for name in names or known]


def run(study: Study, stages: Sequence[Stage], watch: Callable[[State], None]) -> "dict[str, pd.DataFrame]":
    """Make what is missing of the stages, and return their tables; both are in the run directory when done.

    Args:
        study: what they run on.
        stages: which, with or without those that they need.
        watch: called whenever there is something new to show.

    Raises:
        DataError: no fact can be asked, or something cannot be written.
        ArgumentError: as the stages do.
    """
    tables: dict[str, pd.DataFrame] = {}
    stages = with_needs(stages)
    done = 0.0
    for number, stage in enumerate(stages):
        state, costs = begun(study, stages[number:], done)
        for shard, cost in costs.items():
            state = replace(state, shard=shard, finished=False)
            _make(study, stage, shard, partial(_tell, watch, state, cost))
            state = state.after(shard, cost)
            watch(state)
        done = state.done
        tables |= summed_up(study, stage)
    return tables


def begun(study: Study, stages: Sequence[Stage], done: float = 0.0) -> tuple[State, dict[Shard, float]]:
    """Return where a run stands when the first of some stages begins, and what each of its missing shards costs.

    The missing shards can be made in any order, and anywhere.

    Args:
        study: what they run on.
        stages: those left, each after what it needs.
        done: cost done before.

    Raises:
        DataError: no fact can be asked.
    """
    stage, *others = stages
    shards = stage.shards(study)
    if not shards:
        raise nothing_to_ask(study)
    costs = {shard: stage.cost(study, shard) for shard in shards if not study.is_current(stage, shard)}
    state = State(
        stage=stage,
        n_shards=len(shards),
        shards_done=len(shards) - len(costs),
        done=done,
        total=done + sum(costs.values()) + sum(_cost(study, other) for other in others),
    )
    return state, costs


def summed_up(study: Study, stage: Stage) -> "dict[str, pd.DataFrame]":
    """Write and return the tables of a stage whose shards are all there."""
    tables = dict(stage.tables(study))
    for name, table in tables.items():
        study.run.write_text(f"tables/{name}.csv", table.to_csv(index=False))
    give_back_memory()
    return tables


def damage(study: Study, stage: Stage, shard: Shard) -> str:
    """Return what people should be told before a shard is made: that its records are there, but damaged."""
    damaged = study.run.damaged(stage.name, shard)
    return f"{study.run.record(stage.name, shard)} is damaged or missing, and made again." if damaged else ""


def _make(study: Study, stage: Stage, shard: Shard, tell: Callable[[int, int, str], None]) -> None:
    tell(0, 1, damage(study, stage, shard))
    inputs = study.inputs(stage, shard)
    assert inputs is not None  # the stages that it needs are done
    with study.run.writing(stage.name, shard, inputs, stage.version) as path:
        stage.write(study, shard, path, lambda done, total: tell(done, total, ""))


def _tell(watch: Callable[[State], None], state: State, cost: float, done: int, total: int, note: str) -> None:
    watch(replace(state, done=state.done + cost * done / max(total, 1), note=note))


def _cost(study: Study, stage: Stage) -> float:
    """Return what a later stage will cost; 0 while the facts that can be asked are not known."""
    if not all(study.run.noted("facts", Shard(relation)) for relation in study.facts.relations):
        return 0.0
    return sum(stage.cost(study, shard) for shard in stage.shards(study) if not study.is_current(stage, shard))


def nothing_to_ask(study: Study) -> DataError:
    """Return the error of a study none of whose facts can be asked, once that is known; it says why."""
    return DataError(f"No fact of {', '.join(study.facts.relations[:8])} can be asked: {_reason(study)}")


def _reason(study: Study) -> str:
    for relation in study.facts.relations:
        if why := study.asked(relation)["why"].iloc[0]:
            return why
    return f"none has {study.settings.min_prompts} prompts or more."
