"""An engine computes the runs of a study: in this process, in others on this machine, or on Ray.

An engine takes jobs and yields an outcome for each; a job that fails is an outcome with its reason. With every engine
this process alone writes the run directories, and the records are the same. To add an engine, write a class with the
method ``run`` of ``Engine``; where it shares work among workers, a ``WorkerPool`` is enough, and ``Driver`` does the
rest.
"""

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from kn_lens._core.precision import product_precision, weight_dtype
from kn_lens._core.redact import without_secrets
from kn_lens.hosts import load_model
from kn_lens.runs.context import RunContext, prepare_context
from kn_lens.runs.data import RunData
from kn_lens.runs.directory import RunDirectory
from kn_lens.runs.execute import RunState, run_stages
from kn_lens.runs.settings import Settings
from kn_lens.runs.stage import Stage
from kn_lens.runs.stages.order import ON_REQUEST, STAGES
from kn_lens.runs.studies.config import ModelEntry

if TYPE_CHECKING:
    import pandas as pd

LOADING = "loading the model"
"""Where a job failed, if its model cannot be loaded."""
OPENING = "opening the run directory"
"""Where a job failed, if its directory cannot be opened."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One run of a study, with all that an engine needs to compute it.

    Attributes:
        name: name of the run directory.
        model: the model to load.
        fact_set: name of the fact set.
        data: its facts.
        settings: see ``Settings``.
        stages: names of the stages to compute.
        names: how the user names and reads the model and the facts, for ``config.toml``.
        threads: threads that torch computes with.
        memory_budget: bytes that passes may take.
    """

    name: str
    model: ModelEntry
    fact_set: str
    data: RunData
    settings: Settings
    stages: Sequence[str]
    names: Mapping[str, str | None]
    threads: int
    memory_budget: float | None

    def stages_to_run(self) -> list[Stage]:
        """Return the stages named by ``stages``, in their order."""
        return [stage for stage in (*STAGES, *ON_REQUEST) if stage.name in self.stages]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run was not completed.

    Attributes:
        where: the step that failed.
        kind: class of the error.
        reason: its message, without secrets.
        trace: its traceback, without secrets.
    """

    where: str
    kind: str
    reason: str
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException, where: str) -> "Failure":
        """Describe an error as text: the error itself would keep alive what its frames refer to, such as a model."""
        reason = " ".join(str(error).split()) or type(error).__name__
        trace = "".join(traceback.format_exception(error))
        return cls(
            where=where,
            kind=type(error).__name__,
            reason=without_secrets(reason),
            trace=without_secrets(trace),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """How a job ended.

    Attributes:
        job: the job.
        failure: why it failed; None for a completed run.
        tables: the tables of the completed stages, by name.
    """

    job: Job
    failure: Failure | None = None
    tables: "Mapping[str, pd.DataFrame]" = field(default_factory=dict)


OnProgress = Callable[[Job, RunState | None], None]
"""Called whenever there is progress to show; the state is None while the model is loaded."""

OpenRunDirectory = Callable[[Job, Mapping[str, Any], Mapping[str, Any]], AbstractContextManager[RunDirectory]]
"""``open_run_dir(job, config, provenance)`` opens the job's run directory for this process; see ``open_run``."""


class Engine(Protocol):
    """Computes runs."""

    def run(self, jobs: Sequence[Job], open_run_dir: OpenRunDirectory, on_progress: OnProgress) -> Iterator[Outcome]:
        """Compute jobs, skipping what is written already, and yield the outcome of each as it ends.

        Raises:
            DataError: the engine itself is not available.
        """
        ...


class InProcess:
    """The default engine: one run after another in this process, with one model in memory at a time."""

    def run(self, jobs: Sequence[Job], open_run_dir: OpenRunDirectory, on_progress: OnProgress) -> Iterator[Outcome]:
        """See ``Engine``."""
        holder = ModelHolder()
        try:
            for _, jobs_of_model in groupby(jobs, key=lambda job: job.model):
                loading_failure: Failure | None = None  # a model that cannot be loaded is tried once
                for job in jobs_of_model:
                    if loading_failure is None:
                        outcome = _run_job(job, holder, open_run_dir, on_progress)
                    else:
                        outcome = Outcome(job=job, failure=loading_failure)
                    if outcome.failure is not None and outcome.failure.where == LOADING:
                        loading_failure = outcome.failure
                    yield outcome
        finally:
            holder.free()


def _run_job(job: Job, holder: "ModelHolder", open_run_dir: OpenRunDirectory, on_progress: OnProgress) -> Outcome:
    where = LOADING

    def on_state(state: RunState) -> None:
        nonlocal where
        where = state.where()
        on_progress(job, state)

    try:
        on_progress(job, None)
        with torch_threads(job.threads):
            context, config, provenance = holder.prepare_context(job, Path())
            where = OPENING
            with open_run_dir(job, config, provenance) as directory:
                tables = run_stages(replace(context, run=directory), job.stages_to_run(), on_state)
    except Exception as error:
        return Outcome(job=job, failure=Failure.of(error, where))
    return Outcome(job=job, tables=tables)


class ModelHolder:
    """Holds one model at a time: it frees the last one before it loads the next."""

    def __init__(self) -> None:
        self._entry: ModelEntry | None = None
        self._model: Any = None
        self._precision = ExitStack()

    def prepare_context(self, job: Job, path: Path) -> tuple[RunContext, dict[str, Any], dict[str, Any]]:
        """Load a job's model, unless it is held already; return context, configuration and provenance of its run."""
        if self._entry != job.model:
            self.free()
            entry = job.model
            dtype = weight_dtype(entry.dtype)
            self._model = load_model(entry.model, revision=entry.revision, dtype=dtype, device=entry.device)
            self._precision.enter_context(product_precision(entry.dtype))
            self._entry = entry
        context, config, provenance = prepare_context(
            self._model, job.data, path, job.settings, job.names, job.memory_budget
        )
        return context, config, {**provenance, "tags": dict(job.model.tags)}

    def free(self) -> None:
        """Release the model and its memory, and take products in the precision of before."""
        self._precision.close()
        self._entry = self._model = None
        gc.collect()  # hooks and modules refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Compute with ``n`` torch threads inside the block, and with as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
