"""What a worker does for a study: it holds a model, and makes shards of records with it.

It knows nothing of how it is asked, and writes nothing but a run directory of its own in a temporary place.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from kn_lens.engines import LOADING, Failure, Job, ModelHolder
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.stages import STAGES
from kn_lens.experiments.study import Study
from kn_lens.facts import FactSet

NO_FACTS = FactSet(())


@dataclass(frozen=True, kw_only=True)
class Record:
    """The records of a shard, as they are on disk.

    Attributes:
        stage: name of the stage.
        shard: of it.
        noted: of them; see ``RunDirectory.noted``.
        content: the file.
    """

    stage: str
    shard: Shard
    noted: Mapping[str, Any]
    content: bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Begun:
    """A run that a worker can make shards of, without what cannot travel or is there already.

    Attributes:
        study: without model and facts.
        config: for its directory.
        provenance: for its directory.
    """

    study: Study
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def completed(self, job: Job) -> Study:
        """Return the study with its facts; the model stays where it is."""
        data = job.data
        return replace(self.study, source=data.source, facts=data.facts, held_out=data.held_out)


class ShardMaker:
    """Makes shards of one run at a time, with one model in memory."""

    def __init__(self, folder: str | None) -> None:
        self._holder = ModelHolder()
        self._folder = TemporaryDirectory(prefix="kn-lens-", dir=folder)
        self._study: Study | None = None

    def process(self) -> int:
        """Return the number of the process."""
        return os.getpid()

    def begin(self, job: Job) -> Begun | Failure:
        """Load the model of a job, unless it is held already, and take up its run."""
        path = Path(self._folder.name, "run")
        self._study = None
        try:
            shutil.rmtree(path, ignore_errors=True)
            (path / "scratch").mkdir(parents=True)
            torch.set_num_threads(job.threads)
            study, config, provenance = self._holder.prepared(job, path)
        except Exception as error:
            return Failure.of(error, LOADING)
        self._study = study
        host = replace(study.host, model=None, tokenizer=None)
        travelling = replace(study, host=host, source=NO_FACTS, facts=NO_FACTS, held_out=NO_FACTS)
        return Begun(study=travelling, config=config, provenance=provenance)

    def make(self, stage: str, shard: Shard, inputs: str, needed: Sequence[Record]) -> bytes | Failure:
        """Return the records of a shard, as a file.

        Args:
            stage: name of the stage.
            shard: of it.
            inputs: digest of what it is made from.
            needed: records that it reads and that this worker has not made or been given before.
        """
        study = self._study
        assert study is not None  # a run has been begun
        try:
            for record in needed:
                noted = record.noted
                with study.run.writing(record.stage, record.shard, noted["inputs"], noted["version"]) as path:
                    path.write_bytes(record.content)
            (wanted,) = (one for one in STAGES if one.name == stage)
            with study.run.writing(stage, shard, inputs, wanted.version) as path:
                wanted.write(study, shard, path, lambda done, total: None)
            return study.run.record(stage, shard).read_bytes()
        except Exception as error:
            return Failure.of(error, f"{stage} of {shard.name}")

    def close(self) -> None:
        """Remove what is in the temporary place."""
        self._folder.cleanup()
