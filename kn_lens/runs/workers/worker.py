"""A worker: holds one model, and computes shards of records with it.

It does not know how its methods are called, and writes only to a run directory of its own in a temporary folder.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from kn_lens.facts import FactSet
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.stages.order import ON_REQUEST, STAGES
from kn_lens.runs.workers.engine import LOADING, Failure, Job, ModelHolder

NO_FACTS = FactSet(())


@dataclass(frozen=True, kw_only=True)
class Record:
    """The records of one shard as they are on disk.

    Attributes:
        stage: name of the stage.
        shard: the shard.
        manifest: see ``RunDirectory.manifest``.
        content: bytes of the file.
    """

    stage: str
    shard: Shard
    manifest: Mapping[str, Any]
    content: bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class RunHandle:
    """A run that a worker has prepared, without the model and the facts, so that it can be sent to the driver.

    Attributes:
        context: the context without model and facts.
        config: for the run directory.
        provenance: for the run directory.
    """

    context: RunContext
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def context_with_facts(self, job: Job) -> RunContext:
        """Return the context with the facts of its job; the model stays in the worker."""
        data = job.data
        return replace(self.context, source=data.source, facts=data.facts, held_out=data.held_out)


class Worker:
    """Computes shards of one run at a time, with one model in memory."""

    def __init__(self, folder: str | None) -> None:
        self._holder = ModelHolder()
        self._folder = TemporaryDirectory(prefix="kn-lens-", dir=folder)
        self._context: RunContext | None = None

    def process_id(self) -> int:
        """Return the number of the process."""
        return os.getpid()

    def prepare_run(self, job: Job) -> RunHandle | Failure:
        """Load the model of a job, unless it is held already, and make its run the current one."""
        path = Path(self._folder.name, "run")
        self._context = None
        try:
            shutil.rmtree(path, ignore_errors=True)
            (path / "scratch").mkdir(parents=True)
            torch.set_num_threads(job.threads)
            context, config, provenance = self._holder.prepare_context(job, path)
        except Exception as error:
            return Failure.of(error, LOADING)
        self._context = context
        host = replace(context.host, model=None)
        sent = replace(context, host=host, source=NO_FACTS, facts=NO_FACTS, held_out=NO_FACTS)
        return RunHandle(context=sent, config=config, provenance=provenance)

    def compute_shard(self, stage: str, shard: Shard, inputs: str, needed: Sequence[Record]) -> bytes | Failure:
        """Return the records of a shard of the current run, as the bytes of their file.

        Args:
            stage: name of the stage.
            shard: the shard.
            inputs: digest of its inputs.
            needed: records that it reads and that this worker has neither computed nor received before.
        """
        context = self._context
        assert context is not None  # a run has been prepared
        try:
            for record in needed:
                manifest = record.manifest
                with context.run.writing(record.stage, record.shard, manifest["inputs"], manifest["version"]) as path:
                    path.write_bytes(record.content)
            (stage_to_run,) = (candidate for candidate in (*STAGES, *ON_REQUEST) if candidate.name == stage)
            with context.run.writing(stage, shard, inputs, stage_to_run.version) as path:
                stage_to_run.write(context, shard, path, lambda done, total: None)
            return context.run.record_path(stage, shard).read_bytes()
        except Exception as error:
            return Failure.of(error, f"{stage} of {shard.name}")

    def close(self) -> None:
        """Remove the temporary folder."""
        self._folder.cleanup()
