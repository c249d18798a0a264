"""The driver shares the runs of a study among workers: they hold models and compute shards, this process writes.

    this process                                     a worker, with one model at a time
    prepare a run                               ->   load its model, return what the run is made from
    compute a shard, with the records it needs  ->   return the records of the shard, as bytes
    write them; write the tables of complete stages

A worker stays with a run while it has shards to compute. Then it takes a job that nobody has begun, first one of the
model that it holds; when there is none, it helps with the run that has most shards left. A worker has ``IN_FLIGHT``
shards at most, so that no more results than twice the workers wait in memory. The costliest shards of a stage come
first, so that all workers end at about the same time.

When a worker dies, alone or with its machine, another one is started and its shards are computed again. A shard over
which ``ATTEMPTS`` workers die fails its run. So does a model over which as many die, if no living worker holds it.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kn_lens.errors import DataError
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.execute import RunState, damage_note, start_stage, with_needs, write_tables
from kn_lens.runs.stage import Stage
from kn_lens.runs.stages.facts import FACTS
from kn_lens.runs.workers.engine import (
    LOADING,
    OPENING,
    Failure,
    Job,
    OnProgress,
    OpenRunDirectory,
    Outcome,
)
from kn_lens.runs.workers.pool import WorkerDied, WorkerPool
from kn_lens.runs.workers.worker import Record, RunHandle, Worker

if TYPE_CHECKING:
    import pandas as pd

IN_FLIGHT = 2
"""Shards that a worker has at most: one that it computes, and one that it need not wait for."""
ATTEMPTS = 3
"""Workers that may die over the same work."""
START_WITHIN = 300.0
"""Seconds in which some worker must have started: a process that imports PyTorch."""


@dataclass(eq=False)
class _Run:
    """A run that was begun, and the progress of its current stage.

    Attributes:
        job: the job.
        context: the context, without the model.
        made_from: what the records are made from; every worker of the run must agree.
        stages: the stages left, the current one first.
        directory: holds the run directory open.
        state: progress, for the user; None before the first stage.
        waiting: shards of the current stage that no worker has.
        costs: of the missing shards of the current stage.
        in_flight: shards that workers have, with the digests of their inputs.
        deaths: of workers, by the shard that they computed.
        without_tables: stages whose shards are all written; their tables can wait until workers have new shards.
        tables: of the stages whose tables are written.
        n_lost_helpers: workers that died while they loaded its model to help.
        is_closed_to_helpers: whether its model could not be loaded a second time.
        is_over: whether it has an outcome.
    """

    job: Job
    context: RunContext
    made_from: Any
    stages: list[Stage]
    directory: ExitStack
    state: RunState | None = None
    waiting: deque[Shard] = field(default_factory=deque)
    costs: dict[Shard, float] = field(default_factory=dict)
    in_flight: dict[Shard, str] = field(default_factory=dict)
    deaths: Counter[Shard] = field(default_factory=Counter)
    without_tables: list[Stage] = field(default_factory=list)
    tables: "dict[str, pd.DataFrame]" = field(default_factory=dict)
    n_lost_helpers: int = 0
    is_closed_to_helpers: bool = False
    is_over: bool = False


@dataclass(eq=False)
class _WorkerState:
    """What the driver knows of a worker.

    Attributes:
        handle: the pool's.
        has_started: whether it has returned anything.
        run: the run that it computes shards of.
        model: the model that it holds or loads.
        received: (stage, shard) pairs whose records it has.
        tasks: its calls, by the reference to their results.
    """

    handle: Any
    has_started: bool = False
    run: _Run | None = None
    model: Any = None
    received: set[tuple[str, Shard]] = field(default_factory=set)
    tasks: "dict[Any, _Task]" = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Task:
    """A call of a worker.

    With a ``shard``, it computes that shard of ``run``. With a ``run`` alone, it loads that run's model to help; with
    a ``job``, it begins the job. With none of them, it only starts.
    """

    worker: _WorkerState
    job: Job | None = None
    run: _Run | None = None
    shard: Shard | None = None


class Driver:
    """Gives work to the workers of a pool, and writes the records that they return."""

    def __init__(
        self,
        pool: WorkerPool,
        jobs: Sequence[Job],
        open_run_dir: OpenRunDirectory,
        on_progress: OnProgress,
    ) -> None:
        self._pool = pool
        self._open_run_dir = open_run_dir
        self._on_progress = on_progress
        self._queue = deque(jobs)
        self._runs: list[_Run] = []
        self._ended: deque[Outcome] = deque()
        self._deaths: Counter[str] = Counter()  # of workers that had begun a job, by its name
        self._n_stillborn = 0
        self._workers = [self._start_worker() for _ in range(pool.n_workers)]

    def outcomes(self) -> Iterator[Outcome]:
        """Yield every job as it ends. The workers are stopped at the end, also when the iteration is abandoned."""
        try:
            yield from self._outcomes()
        finally:
            self._close()

    def _outcomes(self) -> Iterator[Outcome]:
        last_result = time.monotonic()
        while self._has_work():
            self._give_all()
            for run in list(self._runs):
                if run.without_tables:
                    self._write_tables(run)
            yield from self._pop_ended()
            refs = list(self._tasks())
            if refs:  # none where that was the end
                for ref in self._pool.wait(refs):
                    self._take(ref)
                    last_result = time.monotonic()
            yield from self._pop_ended()
            if not any(worker.has_started for worker in self._workers):
                self._check_start(last_result)
        yield from self._pop_ended()

    def _has_work(self) -> bool:
        begins_a_job = any(task.job is not None for task in self._tasks().values())
        return bool(self._queue or self._runs or begins_a_job)

    def _check_start(self, last_result: float) -> None:
        if time.monotonic() - last_result > START_WITHIN:
            raise DataError(
                f"No worker has started within {START_WITHIN:.0f} s; each needs {self._pool.needs}, and there "
                f"are {self._pool.resources()}."
            )

    def _close(self) -> None:
        """Stop the workers, and close the directories of unfinished runs."""
        for run in self._runs:
            run.directory.close()
        for worker in self._workers:
            self._pool.stop(worker.handle)

    def _pop_ended(self) -> Iterator[Outcome]:
        while self._ended:
            yield self._ended.popleft()

    def _tasks(self) -> dict[Any, _Task]:
        tasks = {}
        for worker in self._workers:
            tasks.update(worker.tasks)
        return tasks

    def _start_worker(self) -> _WorkerState:
        worker = _WorkerState(self._pool.start(Worker))
        worker.tasks[self._pool.submit(worker.handle, "process_id")] = _Task(worker)
        return worker

    # --- giving -----------------------------------------------------------------------------------

    def _give_all(self) -> None:
        """Give every worker as much as it may have: one task each, before any has a second one."""
        for n_tasks in range(1, IN_FLIGHT + 1):
            for worker in self._workers:
                while worker.has_started and len(worker.tasks) < n_tasks and self._give(worker):
                    pass

    def _give(self, worker: _WorkerState) -> bool:
        """Give a worker a task; return whether there was any."""
        if worker.run is not None and worker.run.waiting:
            self._submit_shard(worker, worker.run)
            return True
        if worker.tasks:
            return False  # when they are done, there may be more of this run
        worker.run = None
        waiting_runs = [run for run in self._runs if run.waiting]
        abandoned_runs = [run for run in waiting_runs if not self._has_workers(run)]
        open_runs = [run for run in waiting_runs if not run.is_closed_to_helpers]
        if abandoned_runs:
            self._submit_helper(worker, abandoned_runs[0])
        elif self._queue:
            self._submit_job(worker)
        elif open_runs:
            self._submit_helper(worker, max(open_runs, key=lambda run: len(run.waiting)))
        else:
            return False
        return True

    def _has_workers(self, run: _Run) -> bool:
        """Return whether a worker computes shards of a run, or is about to."""
        for worker in self._workers:
            if worker.run is run or any(task.run is run for task in worker.tasks.values()):
                return True
        return False

    def _submit_job(self, worker: _WorkerState) -> None:
        """Let a worker begin a job: of the model that it holds, else of one that no other holds, else any."""
        held = [other.model for other in self._workers]
        job = min(self._queue, key=lambda job: (job.model != worker.model, job.model in held))
        self._queue.remove(job)
        self._submit_preparation(worker, _Task(worker, job=job), job)
        self._on_progress(job, None)

    def _submit_helper(self, worker: _WorkerState, run: _Run) -> None:
        """Let a worker load the model of a run that was begun by another."""
        self._submit_preparation(worker, _Task(worker, run=run), run.job)

    def _submit_preparation(self, worker: _WorkerState, task: _Task, job: Job) -> None:
        worker.model = job.model
        worker.received.clear()
        worker.tasks[self._pool.submit(worker.handle, "prepare_run", job)] = task

    def _submit_shard(self, worker: _WorkerState, run: _Run) -> None:
        """Give a worker the next shard of its run, with the records that it needs and has not received."""
        shard, stage, context = run.waiting.popleft(), run.stages[0], run.context
        assert run.state is not None  # a stage has begun
        inputs = context.inputs(stage, shard)
        assert inputs is not None  # the stages that it needs are complete
        note = damage_note(context, stage, shard)
        self._on_progress(run.job, replace(run.state, shard=shard, finished=False, note=note))
        needed = []
        for pair in _needed_records(context, stage, shard):
            if pair not in worker.received:
                needed.append(pair)
        records = [_read_record(context, *pair) for pair in needed]
        worker.received.update(needed)
        run.in_flight[shard] = inputs
        ref = self._pool.submit(worker.handle, "compute_shard", stage.name, shard, inputs, records)
        worker.tasks[ref] = _Task(worker, run=run, shard=shard)

    # --- taking -----------------------------------------------------------------------------------

    def _take(self, ref: Any) -> None:
        """Take the result of a call, or notice that its worker died."""
        task = self._tasks().get(ref)
        if task is None:  # of a worker that was found dead meanwhile
            return
        result = self._pool.get(ref)
        if isinstance(result, WorkerDied):
            self._handle_worker_death(task.worker, result.reason)
            return
        del task.worker.tasks[ref]
        if task.shard is not None and task.run is not None:
            self._take_shard(task.worker, task.run, task.shard, result)
        elif task.run is not None:
            self._take_helper(task.worker, task.run, result)
        elif task.job is not None:
            self._take_job(task.worker, task.job, result)
        else:
            task.worker.has_started = True
            self._n_stillborn = 0

    def _take_job(self, worker: _WorkerState, job: Job, result: RunHandle | Failure) -> None:
        """Open the directory of a run whose model is loaded, or fail all jobs of a model that cannot be loaded."""
        if isinstance(result, Failure):
            worker.model = None
            jobs_of_model = [queued for queued in self._queue if queued.model == job.model]
            for failed in (job, *jobs_of_model):
                self._ended.append(Outcome(job=failed, failure=result))
            self._queue = deque(queued for queued in self._queue if queued not in jobs_of_model)
            return
        directory = ExitStack()
        try:
            run_dir = directory.enter_context(self._open_run_dir(job, result.config, result.provenance))
        except Exception as error:
            self._ended.append(Outcome(job=job, failure=Failure.of(error, OPENING)))
            return
        context = replace(result.context_with_facts(job), run=run_dir)
        made_from = result.provenance["made_from"]
        worker.run = _Run(job, context, made_from, with_needs(job.stages_to_run()), directory)
        self._runs.append(worker.run)
        self._start_stage(worker.run)

    def _take_helper(self, worker: _WorkerState, run: _Run, result: RunHandle | Failure) -> None:
        """Let a worker help with a run, if it has loaded the same model with the same libraries."""
        made_from = result.provenance["made_from"] if isinstance(result, RunHandle) else None
        if made_from == run.made_from:
            worker.run = run
        elif not run.is_over:
            run.is_closed_to_helpers, worker.model = True, None
            if not self._has_workers(run):
                failure = result if isinstance(result, Failure) else _difference(run.made_from, made_from)
                self._end(run, failure)

    def _take_shard(self, worker: _WorkerState, run: _Run, shard: Shard, result: bytes | Failure) -> None:
        """Write the records of a shard."""
        if run.is_over:
            return
        if isinstance(result, Failure):
            self._end(run, result)
            return
        stage, inputs = run.stages[0], run.in_flight.pop(shard)
        assert run.state is not None  # a stage has begun
        try:
            with run.context.run.writing(stage.name, shard, inputs, stage.version) as path:
                path.write_bytes(result)
        except Exception as error:
            self._end(run, Failure.of(error, f"{stage.name} of {shard.name}"))
            return
        worker.received.add((stage.name, shard))
        run.state = run.state.after(shard, run.costs[shard])
        self._on_progress(run.job, run.state)
        if not run.waiting and not run.in_flight:
            self._complete_stage(run)

    def _complete_stage(self, run: _Run) -> None:
        """Go on to the next stage; the tables of this one are written once its shards are given out."""
        run.without_tables.append(run.stages.pop(0))
        if run.stages:
            self._start_stage(run)

    def _start_stage(self, run: _Run) -> None:
        done = run.state.done if run.state else 0.0
        try:
            run.state, run.costs = start_stage(run.context, run.stages, done)
        except Exception as error:
            self._end(run, Failure.of(error, run.stages[0].name))
            return
        run.waiting.extend(sorted(run.costs, key=lambda shard: run.costs[shard], reverse=True))
        if not run.waiting:
            self._complete_stage(run)

    def _write_tables(self, run: _Run) -> None:
        """Write the tables of complete stages; after those of the last stage the run is done."""
        for stage in run.without_tables:
            try:
                run.tables |= write_tables(run.context, stage)
            except Exception as error:
                self._end(run, Failure.of(error, f"the tables of {stage.name}"))
                return
        run.without_tables.clear()
        if not run.stages:
            self._end(run, None)

    def _end(self, run: _Run, failure: Failure | None) -> None:
        run.is_over = True
        run.waiting.clear()
        run.directory.close()
        self._runs.remove(run)
        self._ended.append(Outcome(job=run.job, failure=failure, tables=run.tables))

    # --- deaths -----------------------------------------------------------------------------------

    def _handle_worker_death(self, worker: _WorkerState, reason: str) -> None:
        """Queue the tasks of a dead worker again, and start another worker in its place."""
        tasks = list(reversed(worker.tasks.values()))
        worker.run = None
        worker.tasks.clear()  # so that it is no longer counted among the workers of a run
        for task in tasks:
            if task.run is not None and task.run.is_over:
                continue
            if task.shard is not None and task.run is not None:
                self._requeue_shard(task.run, task.shard, reason)
            elif task.run is not None:
                self._lose_helper(task.run, reason)
            elif task.job is not None:
                self._requeue_job(task.job, reason)
            elif not worker.has_started:
                self._n_stillborn += 1
        self._pool.stop(worker.handle)
        if self._n_stillborn >= ATTEMPTS:
            raise DataError(
                f"{self._n_stillborn} workers died before they had started ({reason}); on a cluster, is kn_lens "
                "installed on every node, in the same version as here?"
            )
        self._workers[self._workers.index(worker)] = self._start_worker()

    def _requeue_job(self, job: Job, reason: str) -> None:
        self._deaths[job.name] += 1
        if self._deaths[job.name] < ATTEMPTS:
            self._queue.appendleft(job)
        else:
            self._ended.append(Outcome(job=job, failure=_too_many_deaths(LOADING, reason)))

    def _requeue_shard(self, run: _Run, shard: Shard, reason: str) -> None:
        del run.in_flight[shard]
        run.deaths[shard] += 1
        assert run.state is not None  # a stage has begun
        note = f"the worker that computed {shard.name} died ({reason}); its shards are computed again"
        self._on_progress(run.job, replace(run.state, finished=False, note=note))
        if run.deaths[shard] < ATTEMPTS:
            run.waiting.appendleft(shard)
        else:
            self._end(run, _too_many_deaths(f"{run.stages[0].name} of {shard.name}", reason))

    def _lose_helper(self, run: _Run, reason: str) -> None:
        """Close a run to helpers when its model has killed too many of them; end it if no worker is left."""
        run.n_lost_helpers += 1
        if run.n_lost_helpers >= ATTEMPTS:
            run.is_closed_to_helpers = True
            if not self._has_workers(run):
                self._end(run, _too_many_deaths(LOADING, reason))


def _needed_records(context: RunContext, stage: Stage, shard: Shard) -> list[tuple[str, Shard]]:
    """Return the (stage, shard) pairs of the records that computing a shard reads.

    These are the records of its needs, and those that say which facts are queried at all.
    """
    needed = context.needed_records(stage, shard)
    if stage is not FACTS:
        for other in FACTS.shards(context):
            needed.append((FACTS.name, other))
    return list(dict.fromkeys(needed))


def _read_record(context: RunContext, stage: str, shard: Shard) -> Record:
    manifest = context.run.manifest(stage, shard)
    assert manifest is not None  # a stage that is needed is complete
    content = context.run.record_path(stage, shard).read_bytes()
    return Record(stage=stage, shard=shard, manifest=manifest, content=content)


def _too_many_deaths(where: str, reason: str) -> Failure:
    message = f"{ATTEMPTS} workers died over it; it may need more memory than there is ({reason})."
    return Failure(where=where, kind="WorkerDied", reason=message)


def _difference(expected: Any, found: Any) -> Failure:
    reason = f"The workers differ: the run is made from {expected}, and a worker has {found}."
    return Failure(where=LOADING, kind="DataError", reason=reason)
