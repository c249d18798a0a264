"""Who computes the runs of a study: this process, others on this machine, or actors of Ray on one machine or many.

An engine takes jobs, each a model with facts and settings, and carries them to their ends. Whatever it is, it is this
process alone that writes run directories, and the records are the same. A job that fails is an outcome like any other,
with its reason.
"""

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from kn_lens._secrets import without_secrets
from kn_lens.experiments.reproduction import Data, prepared
from kn_lens.experiments.run_directory import RunDirectory
from kn_lens.experiments.running import State, run
from kn_lens.experiments.settings import Settings
from kn_lens.experiments.stages import STAGES
from kn_lens.experiments.study import Stage, Study
from kn_lens.hosts import load_model
from kn_lens.study_config import ModelEntry

if TYPE_CHECKING:
    import pandas as pd

LOADING = "loading the model"


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One run of a study, with all that is needed to make it.

    Attributes:
        name: of its run directory.
        model: to load.
        fact_set: what its facts are called.
        data: its facts.
        settings: see ``Settings``.
        stages: names of those wanted.
        names: what the user calls model and facts, for ``config.toml``.
        threads: that torch computes with.
        memory_budget: bytes that passes may take.
    """

    name: str
    model: ModelEntry
    fact_set: str
    data: Data
    settings: Settings
    stages: Sequence[str]
    names: Mapping[str, str | None]
    threads: int
    memory_budget: float | None

    def wanted(self) -> list[Stage]:
        """Return the stages wanted."""
        return [stage for stage in STAGES if stage.name in self.stages]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run did not reach its end.

    Attributes:
        where: what was being done.
        kind: class of the error.
        reason: its message.
        trace: where it came from.
    """

    where: str
    kind: str
    reason: str
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException, where: str) -> "Failure":
        """Return what is told of an error. The error itself would keep alive what its frames hold: a model."""
        reason = " ".join(str(error).split()) or type(error).__name__
        trace = "".join(traceback.format_exception(error))
        return cls(where=where, kind=type(error).__name__, reason=without_secrets(reason), trace=without_secrets(trace))


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """How a job ended.

    Attributes:
        job: which.
        failure: None when it is done.
        tables: of the stages that are done, by name.
    """

    job: Job
    failure: Failure | None = None
    tables: "Mapping[str, pd.DataFrame]" = field(default_factory=dict)


Watch = Callable[[Job, State | None], None]
"""Called whenever there is something new to show; without a state while the model is loaded."""

Home = Callable[[Job, Mapping[str, Any], Mapping[str, Any]], AbstractContextManager[RunDirectory]]
"""``home(job, config, provenance)`` opens the job's run directory for this process alone; see ``open_run``."""


class Engine(Protocol):
    """Something that computes runs."""

    def run(self, jobs: Sequence[Job], home: Home, watch: Watch) -> Iterator[Outcome]:
        """Carry jobs to their ends, yielding each as it ends; what is done already is not done again.

        Raises:
            DataError: the engine itself cannot be had.
        """
        ...


class InProcess:
    """The default engine: one run after another in this process, one model in memory at a time."""

    def run(self, jobs: Sequence[Job], home: Home, watch: Watch) -> Iterator[Outcome]:
        """See ``Engine``."""
        holder = ModelHolder()
        try:
            for _, same_model in groupby(jobs, key=lambda job: job.model):
                lost: Failure | None = None  # what keeps the model from being loaded; once is enough
                for job in same_model:
                    outcome = _run(job, holder, home, watch) if lost is None else Outcome(job=job, failure=lost)
                    lost = outcome.failure if outcome.failure and outcome.failure.where == LOADING else None
                    yield outcome
        finally:
            holder.free()


def _run(job: Job, holder: "ModelHolder", home: Home, watch: Watch) -> Outcome:
    where = LOADING

    def tell(state: State) -> None:
        nonlocal where
        where = place_of(state)
        watch(job, state)

    try:
        watch(job, None)
        with on_threads(job.threads):
            study, config, provenance = holder.prepared(job, Path())
            where = "opening the run directory"
            with home(job, config, provenance) as directory:
                tables = run(replace(study, run=directory), job.wanted(), tell)
    except Exception as error:
        return Outcome(job=job, failure=Failure.of(error, where))
    return Outcome(job=job, tables=tables)


class ModelHolder:
    """Holds one model at a time: the one before is freed before the next is loaded."""

    def __init__(self) -> None:
        self._entry: ModelEntry | None = None
        self._model: Any = None

    def prepared(self, job: Job, path: Path) -> tuple[Study, dict[str, Any], dict[str, Any]]:
        """Load a job's model, unless it is held already, and return ``prepared`` for it."""
        if self._entry != job.model:
            self.free()
            entry = job.model
            self._model = load_model(
                entry.model, revision=entry.revision, dtype=getattr(torch, entry.dtype), device=entry.device
            )
            self._entry = entry
        study, config, provenance = prepared(
            self._model, job.data, path, job.settings, job.names, job.memory_budget
        )  # fmt: skip
        return study, config, {**provenance, "tags": dict(job.model.tags)}

    def free(self) -> None:
        """Let go of the model, and give its memory back."""
        self._entry = self._model = None
        gc.collect()  # hooks and modules refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def place_of(state: State) -> str:
    """Return what is being done, for people."""
    return state.stage.name if state.shard is None else f"{state.stage.name} of {state.shard.name}"


@contextmanager
def on_threads(n: int) -> Iterator[None]:
    """Compute on so many threads inside, and on as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
