"""A study of many models: a run for each model, fact set and seed, in one directory.

    study/study.toml            what it is made of, resolved; kn-lens study takes it as it is
    study/runs/NAME/            a run directory of kn-lens reproduce for each run: MODEL+FACTS+SEED
    study/failures/NAME.json    why a run did not reach its end, until it does
    study/tables/runs.csv       what each run is of, and how it ended
    study/tables/*.csv          the tables of all runs that are done, with the run's name in front
    study/lock                  held by the process that writes

The same study taken up again makes what is missing: after a kill, after a failure, after models were added.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kn_lens._mirror import Mirror, working_copy
from kn_lens._run_records import read_table
from kn_lens._whole_files import read_whole
from kn_lens.engines import Engine, InProcess, Job, Outcome, Watch
from kn_lens.errors import ArgumentError, DataError
from kn_lens.experiments.reproduction import Data, versions
from kn_lens.experiments.run_directory import CONFIG, PROVENANCE, RunDirectory, check_same, locked, open_run
from kn_lens.experiments.running import named
from kn_lens.experiments.stages import STAGES
from kn_lens.facts import FactSet
from kn_lens.study_config import StudyConfig, as_toml, differences, read_study

if TYPE_CHECKING:
    import pandas as pd

STUDY = "study.toml"
LONGEST_NAME = 200
"""Characters in the name of a run; files are called so too, with something behind it."""


def run_study(
    config: StudyConfig,
    facts: Mapping[str, FactSet],
    out: str | Path,
    *,
    held_out: Mapping[str, FactSet] | None = None,
    engine: Engine | None = None,
    watch: Watch = lambda job, state: None,
    force: bool = False,
) -> "pd.DataFrame":
    """Run the stages of a reproduction on many models, and put the tables of all of them together.

    Args:
        config: what the study is; see ``read_study``.
        facts: the fact sets, by the names that the configuration gives them.
        out: directory: new, or to be taken up again. An address that fsspec knows (``s3://bucket/study``) is worked on
            in a temporary copy, and every file is stored there as soon as it is whole.
        held_out: by the same names, the facts in wordings that nothing is found with.
        engine: who computes; this process, unless given.
        watch: called whenever there is something new to show.
        force: take up a study of another configuration; what it changes is made again, and nothing is removed.

    Returns:
        One row a run: ``run`` (its directory), ``model``, ``fact_set``, ``seed``, ``state`` (done or failed),
        ``where`` and ``reason`` of a failure, and a column for each tag.

    Raises:
        ArgumentError: the configuration names what there is not, or the directory is something else's.
        DataError: the directory is of another study, or made with other versions; another process has it; it cannot
            be written; or the engine cannot be had. Before any model is loaded, except for the writing.

    Example:
        >>> import tempfile
        >>> import kn_lens as kn
        >>> from kn_lens.study_config import ModelEntry
        >>> models = [ModelEntry(name="bert", model="world-bert")]
        >>> config = kn.StudyConfig(models=models, stages=["facts"], settings={"limit": 1})
        >>> rows = kn.run_study(config, {"world": kn.FactSet.world()}, tempfile.mkdtemp())
        >>> rows[["run", "state"]].values.tolist()
        [['bert+world+0', 'done']]
    """
    jobs = jobs_of(config, facts, held_out or {})
    with working_copy(out, STUDY) as (path, mirror):
        mirror.fetch(STUDY)
        for job in jobs:
            for name in (CONFIG, PROVENANCE):
                mirror.fetch(f"runs/{job.name}/{name}")
        with locked(path, mirror.store) as directory:
            if not force:
                _check_same(directory.path, config, jobs)
            directory.write_text(STUDY, as_toml(config))
            ended: dict[str, Outcome] = {}
            for outcome in (engine or InProcess()).run(jobs, _Runs(directory.path, mirror, force).open, watch):
                ended[outcome.job.name] = outcome
                _note(directory, mirror, outcome)
            rows = _rows(jobs, ended)
            _put_together(directory, rows)
            return rows


def jobs_of(config: StudyConfig, facts: Mapping[str, FactSet], held_out: Mapping[str, FactSet]) -> list[Job]:
    """Return the runs of a study, those of one model together.

    Raises:
        ArgumentError: a stage, relation or fact set that there is not, or a name too long for a directory.
        DataError: a fact set of one relation only.
    """
    stages = [stage.name for stage in named(STAGES, config.stages)]
    if missing := [entry.name for entry in config.facts if entry.name not in facts]:
        raise ArgumentError(f"facts holds {', '.join(facts) or 'nothing'}; the study has {', '.join(missing)} too.")
    settings = {seed: config.settings_for(seed) for seed in config.seeds}
    data = {
        (entry.name, seed): Data.of(facts[entry.name], settings[seed], held_out.get(entry.name))
        for entry in config.facts
        for seed in config.seeds
    }
    jobs = [
        Job(
            name="+".join(quote(part, safe="") for part in (model.name, entry.name, str(seed))),
            model=model,
            fact_set=entry.name,
            data=data[entry.name, seed],
            settings=settings[seed],
            stages=stages,
            names={
                "model": model.model,
                "facts": entry.source,
                "format": entry.format,
                "templates": entry.templates,
                "split": entry.split,
            },
            threads=config.threads,
            memory_budget=None if config.memory is None else config.memory * 2**30,
        )
        for model in config.models
        for entry in config.facts
        for seed in config.seeds
    ]
    for job in jobs:
        if len(job.name) > LONGEST_NAME:
            raise ArgumentError(
                f"The run {job.name[:40]}... has a name of {len(job.name)} characters, more than {LONGEST_NAME}, which "
                "no directory can have; give its model or fact set a shorter name."
            )
    return jobs


@dataclass(frozen=True)
class _Runs:
    """Opens the run directories of a study; see ``Home``."""

    path: Path
    mirror: Mirror
    force: bool

    @contextmanager
    def open(self, job: Job, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[RunDirectory]:
        self.mirror.fetch_run(f"runs/{job.name}")
        path = self.path / "runs" / job.name
        with open_run(path, config, provenance, force=self.force, settled=self.mirror.store) as run:
            there = json.loads(read_whole(path / PROVENANCE))
            told = {**there, "tags": provenance["tags"]}  # which are no part of what a run is made from
            run.write_text(PROVENANCE, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
            yield run


def _check_same(path: Path, config: StudyConfig, jobs: Sequence[Job]) -> None:
    """Raise if the directory is of another study, or a run in it was made from something else, as far as is known yet.

    Whether a model is still the same is seen when it is loaded.
    """
    if (path / CONFIG).exists():
        raise ArgumentError(f"--out {path} is a run of one model; a study of many needs a directory of its own.")
    if (path / STUDY).exists():
        try:
            there = read_study(path / STUDY)
        except DataError as error:
            raise DataError(f"{error} --force writes it anew and keeps every record that fits.") from error
        if differing := differences(there, config):
            raise DataError(
                f"{path} holds another study ({'; '.join(differing[:8])}{'; ...' if differing[8:] else ''}). Name "
                "another directory, or give --force to keep what the change does not touch and make the rest again."
            )
    for job in jobs:
        run = path / "runs" / job.name
        try:
            there = json.loads(read_whole(run / PROVENANCE))["made_from"]["model"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue  # not begun, or damaged, which is told when it is opened
        made_from = {"versions": versions(), "model": there, "data": job.data.digests()}
        check_same(run, {**job.names, **job.settings.as_dict()}, {"made_from": made_from})


def _note(directory: RunDirectory, mirror: Mirror, outcome: Outcome) -> None:
    """Write down a failure, or that there is none any more."""
    name = f"failures/{outcome.job.name}.json"
    if outcome.failure is None:
        (directory.path / name).unlink(missing_ok=True)
        mirror.remove(name)
        return
    told = {"run": outcome.job.name, "model": asdict(outcome.job.model), **asdict(outcome.failure)}
    directory.write_text(name, json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def _rows(jobs: Sequence[Job], ended: Mapping[str, Outcome]) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for job in jobs:
        failure = ended[job.name].failure
        rows.append(
            {
                "run": job.name,
                "model": job.model.name,
                "fact_set": job.fact_set,
                "seed": job.settings.seed,
                "state": "done" if failure is None else "failed",
                "where": "" if failure is None else failure.where,
                "reason": "" if failure is None else failure.reason,
                **{f"tag_{name}": value for name, value in job.model.tags.items()},
            }
        )
    return pd.DataFrame(rows)


def _put_together(directory: RunDirectory, rows: "pd.DataFrame") -> None:
    """Write each table of the runs that are done as one, with the runs' names in front."""
    import pandas as pd

    tables: dict[str, list[pd.DataFrame]] = {"runs": [rows]}
    for run in rows["run"][rows["state"] == "done"]:
        for path in sorted((directory.path / "runs" / run / "tables").glob("*.csv")):
            table = read_table(path)
            table.insert(0, "run", run)
            tables.setdefault(path.stem, []).append(table)
    for name, parts in tables.items():
        directory.write_text(f"tables/{name}.csv", pd.concat(parts, ignore_index=True).to_csv(index=False))
