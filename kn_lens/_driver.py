"""The runs of a study on workers: they hold models and make shards, this process alone writes.

    this process                              a worker: one model at a time
    begin a run                          ->   load its model, say what the run is made from
    a shard, with the records it needs   ->   the records of the shard, as bytes
    write them; sum up finished stages

A worker stays with a run while it has shards to make, then takes one that nobody has begun, one of the model that it
holds first, and at last helps with another's. It has ``IN_FLIGHT`` shards at most, so that no more results than twice
the workers wait in memory; the costliest come first, so that all are done at about the same time. When a worker dies,
with its machine or alone, another one is started and its shards are done again; a shard that takes ``ATTEMPTS`` workers
with it fails its run, and so do as many that die over a model which nobody holds any more.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kn_lens._cluster import Cluster, Died
from kn_lens._shard_maker import Begun, Record, ShardMaker
from kn_lens.engines import LOADING, Failure, Home, Job, Outcome, Watch
from kn_lens.errors import DataError
from kn_lens.experiments import asking
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.running import State, begun, damage, summed_up, with_needs
from kn_lens.experiments.study import ALL, Stage, Study

if TYPE_CHECKING:
    import pandas as pd

IN_FLIGHT = 2
"""Shards of a worker: one that it makes, and one that it need not wait for."""
ATTEMPTS = 3
"""Workers that may die over the same work."""
START_WITHIN = 300.0
"""Seconds in which a worker must have started: a process that imports PyTorch."""


@dataclass(eq=False)
class _Run:
    """A run that was begun, and what of its present stage is to be made."""

    job: Job
    study: Study
    made_from: Any
    stages: list[Stage]
    directory: ExitStack
    state: State | None = None
    waiting: deque[Shard] = field(default_factory=deque)
    costs: dict[Shard, float] = field(default_factory=dict)
    busy: dict[Shard, str] = field(default_factory=dict)
    """Shards that workers have, with the digests of their inputs."""
    deaths: Counter[Shard] = field(default_factory=Counter)
    made: list[Stage] = field(default_factory=list)
    """Stages whose shards are all there, to be summed up while workers make the next ones."""
    tables: "dict[str, pd.DataFrame]" = field(default_factory=dict)
    """Of the stages that are summed up."""
    lost_helpers: int = 0
    """Workers that died over its model, which another had loaded."""
    alone: bool = False
    """Whether nobody else could load its model."""
    over: bool = False


@dataclass(eq=False)
class _Worker:
    """A worker, and what it has been given."""

    handle: Any
    started: bool = False
    run: _Run | None = None
    model: Any = None
    has: set[tuple[str, Shard]] = field(default_factory=set)
    tasks: "dict[Any, _Task]" = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Task:
    """What a worker was asked to do: to start (nothing), to begin a job, or to make a shard of a run."""

    worker: _Worker
    job: Job | None = None
    run: _Run | None = None
    shard: Shard | None = None


class Driver:
    """Gives work to workers, and writes down what they return."""

    def __init__(self, cluster: Cluster, jobs: Sequence[Job], home: Home, watch: Watch) -> None:
        self._cluster, self._home, self._watch = cluster, home, watch
        self._queue = deque(jobs)
        self._runs: list[_Run] = []
        self._ended: deque[Outcome] = deque()
        self._deaths: Counter[str] = Counter()  # of workers that had begun a job, by its name
        self._stillborn = 0
        self._workers = [self._new() for _ in range(cluster.n_workers)]

    def outcomes(self) -> Iterator[Outcome]:
        """Yield every job as it ends; at the end, or when that is given up, the workers are stopped."""
        try:
            yield from self._outcomes()
        finally:
            self._close()

    def _outcomes(self) -> Iterator[Outcome]:
        since = time.monotonic()
        while self._queue or self._runs or any(task.job for task in self._tasks().values()):
            for n_tasks in range(1, IN_FLIGHT + 1):  # one for each, before any has another
                for worker in self._workers:
                    while worker.started and len(worker.tasks) < n_tasks and self._give(worker):
                        pass
            for run in [run for run in self._runs if run.made]:
                self._sum_up(run)
            yield from self._all_ended()
            refs = list(self._tasks())
            for ref in self._cluster.wait(refs) if refs else ():  # none where that was the end
                self._take(ref)
                since = time.monotonic()
            yield from self._all_ended()
            if not any(worker.started for worker in self._workers) and time.monotonic() - since > START_WITHIN:
                raise DataError(
                    f"No worker has started within {START_WITHIN:.0f} s; each needs {self._cluster.needs}, and there "
                    f"are {self._cluster.resources()}."
                )
        yield from self._all_ended()

    def _close(self) -> None:
        """Stop the workers, and close the directories of runs that did not reach their ends."""
        for run in self._runs:
            run.directory.close()
        for worker in self._workers:
            self._cluster.stop(worker.handle)

    def _all_ended(self) -> Iterator[Outcome]:
        while self._ended:
            yield self._ended.popleft()

    def _tasks(self) -> dict[Any, _Task]:
        return {ref: task for worker in self._workers for ref, task in worker.tasks.items()}

    def _new(self) -> _Worker:
        worker = _Worker(self._cluster.start(ShardMaker))
        worker.tasks[self._cluster.ask(worker.handle, "process")] = _Task(worker)
        return worker

    # --- giving -----------------------------------------------------------------------------------

    def _give(self, worker: _Worker) -> bool:
        """Give a worker something to do; return whether there was anything."""
        if worker.run is not None and worker.run.waiting:
            self._ask(worker, worker.run)
            return True
        if worker.tasks:
            return False  # once they are done, there may be more of this run
        worker.run = None
        if orphans := [run for run in self._runs if run.waiting and not self._attended(run)]:
            self._join(worker, orphans[0])
        elif self._queue:
            self._begin(worker)
        elif helped := [run for run in self._runs if run.waiting and not run.alone]:
            self._join(worker, max(helped, key=lambda run: len(run.waiting)))
        else:
            return False
        return True

    def _attended(self, run: _Run) -> bool:
        """Return whether a worker works on a run, or is about to."""
        return any(one.run is run or any(task.run is run for task in one.tasks.values()) for one in self._workers)

    def _begin(self, worker: _Worker) -> None:
        """Give a worker a job: of the model that it holds, else of one that no other holds, else any."""
        held = [other.model for other in self._workers]
        job = min(self._queue, key=lambda job: (job.model != worker.model, job.model in held))
        self._queue.remove(job)
        self._load(worker, _Task(worker, job=job), job)

    def _join(self, worker: _Worker, run: _Run) -> None:
        self._load(worker, _Task(worker, run=run), run.job)

    def _load(self, worker: _Worker, task: _Task, job: Job) -> None:
        worker.model = job.model
        worker.has.clear()
        worker.tasks[self._cluster.ask(worker.handle, "begin", job)] = task
        if task.run is None:
            self._watch(job, None)

    def _ask(self, worker: _Worker, run: _Run) -> None:
        """Give a worker the next shard of its run, with the records that it needs and has not."""
        shard, stage, study = run.waiting.popleft(), run.stages[0], run.study
        assert run.state is not None  # a stage has begun
        inputs = study.inputs(stage, shard)
        assert inputs is not None  # the stages that it needs are done
        self._watch(run.job, replace(run.state, shard=shard, finished=False, note=damage(study, stage, shard)))
        needed = [one for one in _needed(study, stage, shard) if one not in worker.has]
        records = [_record(study, *one) for one in needed]
        worker.has.update(needed)
        run.busy[shard] = inputs
        ref = self._cluster.ask(worker.handle, "make", stage.name, shard, inputs, records)
        worker.tasks[ref] = _Task(worker, run=run, shard=shard)

    # --- taking -----------------------------------------------------------------------------------

    def _take(self, ref: Any) -> None:
        """Take what a worker returned, or notice that it died."""
        task = self._tasks().get(ref)
        if task is None:  # of a worker that was found dead meanwhile
            return
        result = self._cluster.get(ref)
        if isinstance(result, Died):
            self._bury(task.worker, result.reason)
            return
        del task.worker.tasks[ref]
        if task.shard is not None and task.run is not None:
            self._took_shard(task.worker, task.run, task.shard, result)
        elif task.job is not None or task.run is not None:
            self._took_begun(task, result)
        else:
            task.worker.started, self._stillborn = True, 0

    def _took_begun(self, task: _Task, result: Begun | Failure) -> None:
        worker, run = task.worker, task.run
        if run is not None:  # begun before, by another
            made_from = result.provenance["made_from"] if isinstance(result, Begun) else None
            if made_from == run.made_from:
                worker.run = run
            elif not run.over:
                run.alone, worker.model = True, None
                if not self._attended(run):
                    differing = _differing(run.made_from, made_from)
                    self._end(run, result if isinstance(result, Failure) else differing)
            return
        assert task.job is not None
        if isinstance(result, Failure):
            worker.model = None
            same = [job for job in self._queue if job.model == task.job.model]
            for job in (task.job, *same):
                self._ended.append(Outcome(job=job, failure=result))
            self._queue = deque(job for job in self._queue if job not in same)
            return
        directory = ExitStack()
        try:
            opened = directory.enter_context(self._home(task.job, result.config, result.provenance))
        except Exception as error:
            self._ended.append(Outcome(job=task.job, failure=Failure.of(error, "opening the run directory")))
            return
        study = replace(result.completed(task.job), run=opened)
        made_from = result.provenance["made_from"]
        worker.run = _Run(task.job, study, made_from, with_needs(task.job.wanted()), directory)
        self._runs.append(worker.run)
        self._next_stage(worker.run)

    def _took_shard(self, worker: _Worker, run: _Run, shard: Shard, result: Any) -> None:
        if run.over:
            return
        if isinstance(result, Failure):
            self._end(run, result)
            return
        stage, inputs = run.stages[0], run.busy.pop(shard)
        assert run.state is not None
        try:
            with run.study.run.writing(stage.name, shard, inputs, stage.version) as path:
                path.write_bytes(result)
        except Exception as error:
            self._end(run, Failure.of(error, f"{stage.name} of {shard.name}"))
            return
        worker.has.add((stage.name, shard))
        run.state = run.state.after(shard, run.costs[shard])
        self._watch(run.job, run.state)
        if not run.waiting and not run.busy:
            self._stage_made(run)

    def _stage_made(self, run: _Run) -> None:
        """Go on with the next stage; the tables of this one can wait until its work is given out."""
        run.made.append(run.stages.pop(0))
        if run.stages:
            self._next_stage(run)

    def _next_stage(self, run: _Run) -> None:
        try:
            run.state, run.costs = begun(run.study, run.stages, run.state.done if run.state else 0.0)
        except Exception as error:
            self._end(run, Failure.of(error, run.stages[0].name))
            return
        run.waiting.extend(sorted(run.costs, key=lambda shard: run.costs[shard], reverse=True))
        if not run.waiting:
            self._stage_made(run)

    def _sum_up(self, run: _Run) -> None:
        """Write the tables of stages that are made; after those of the last stage, the run is done."""
        for stage in run.made:
            try:
                run.tables |= summed_up(run.study, stage)
            except Exception as error:
                self._end(run, Failure.of(error, f"the tables of {stage.name}"))
                return
        run.made.clear()
        if not run.stages:
            self._end(run, None)

    def _end(self, run: _Run, failure: Failure | None) -> None:
        run.over = True
        run.waiting.clear()
        run.directory.close()
        self._runs.remove(run)
        self._ended.append(Outcome(job=run.job, failure=failure, tables=run.tables))

    # --- deaths -----------------------------------------------------------------------------------

    def _bury(self, worker: _Worker, reason: str) -> None:
        """Take back what a dead worker had, and start another."""
        tasks = list(reversed(worker.tasks.values()))
        worker.run = None
        worker.tasks.clear()  # it attends to nothing any more
        for task in tasks:
            if task.run is not None and task.run.over:
                continue
            if task.shard is not None and task.run is not None:
                self._put_back(task.run, task.shard, reason)
            elif task.run is not None:
                self._lost_helper(task.run, reason)
            elif task.job is not None:
                self._deaths[task.job.name] += 1
                if self._deaths[task.job.name] < ATTEMPTS:
                    self._queue.appendleft(task.job)
                else:
                    self._ended.append(Outcome(job=task.job, failure=_died(LOADING, reason)))
            elif not worker.started:
                self._stillborn += 1
        self._cluster.stop(worker.handle)
        if self._stillborn >= ATTEMPTS:
            raise DataError(
                f"{self._stillborn} workers died before they had started ({reason}); on a cluster, is kn_lens "
                "installed on every node, in the same version as here?"
            )
        self._workers[self._workers.index(worker)] = self._new()

    def _put_back(self, run: _Run, shard: Shard, reason: str) -> None:
        del run.busy[shard]
        run.deaths[shard] += 1
        assert run.state is not None  # a stage has begun
        note = f"the worker that made {shard.name} is lost ({reason}); what it had is made again"
        self._watch(run.job, replace(run.state, finished=False, note=note))
        if run.deaths[shard] < ATTEMPTS:
            run.waiting.appendleft(shard)
        else:
            self._end(run, _died(f"{run.stages[0].name} of {shard.name}", reason))

    def _lost_helper(self, run: _Run, reason: str) -> None:
        """Leave a run to those that work on it when its model killed too many others; without any, it failed."""
        run.lost_helpers += 1
        if run.lost_helpers >= ATTEMPTS:
            run.alone = True
            if not self._attended(run):
                self._end(run, _died(LOADING, reason))


def _needed(study: Study, stage: Stage, shard: Shard) -> list[tuple[str, Shard]]:
    """Return the records that making a shard reads: those of its needs, and which facts are asked at all."""
    needed = [
        (need.name, other)
        for need in stage.needs
        for other in need.shards(study)
        if shard.relation in (ALL, other.relation)
    ]
    if stage is not asking.STAGE:
        needed += [(asking.STAGE.name, other) for other in asking.STAGE.shards(study)]
    return list(dict.fromkeys(needed))


def _record(study: Study, stage: str, shard: Shard) -> Record:
    noted = study.run.noted(stage, shard)
    assert noted is not None  # a stage that is needed is done
    return Record(stage=stage, shard=shard, noted=noted, content=study.run.record(stage, shard).read_bytes())


def _died(where: str, reason: str) -> Failure:
    told = f"{ATTEMPTS} workers died over it; it may need more memory than there is ({reason})."
    return Failure(where=where, kind="WorkerDied", reason=told)


def _differing(here: Any, there: Any) -> Failure:
    reason = f"The workers differ: the run is made from {here}, and a worker has {there}."
    return Failure(where=LOADING, kind="DataError", reason=reason)
