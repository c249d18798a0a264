"""A study: a run for each model, fact set and seed, in one directory.

    study/study.toml            its configuration, resolved; kn-lens study reads it
    study/runs/NAME/            a run directory of kn-lens reproduce for each run: MODEL+FACTS+SEED
    study/failures/NAME.json    why a run failed; removed once the run is done
    study/tables/runs.csv       the model, fact set and seed of each run, and its outcome
    study/tables/*.csv          the tables of all completed runs, with the run's name in the first column
    study/lock                  locked by the process that writes

Running the same study again computes what is missing: after a kill, after a failure, after models were added.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kn_lens._core.atomic import read_whole
from kn_lens._core.checks import check_kind
from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts import FactSet
from kn_lens.runs.data import RunData
from kn_lens.runs.directory import CONFIG, PROVENANCE, RunDirectory, check_same, locked, open_run
from kn_lens.runs.execute import stages_named
from kn_lens.runs.provenance import versions
from kn_lens.runs.reader import read_table
from kn_lens.runs.stages.order import ON_REQUEST, STAGES
from kn_lens.runs.studies.config import StudyConfig, as_toml, differences, read_study
from kn_lens.runs.studies.mirror import Mirror, working_copy
from kn_lens.runs.workers.engine import Engine, InProcess, Job, OnProgress, Outcome

if TYPE_CHECKING:
    import pandas as pd

STUDY = "study.toml"
LONGEST_NAME = 200
"""Characters in the name of a run; names of files add to it."""


def run_study(
    config: StudyConfig,
    facts: Mapping[str, FactSet],
    out: str | Path,
    *,
    held_out: Mapping[str, FactSet] | None = None,
    engine: Engine | None = None,
    watch: OnProgress = lambda job, state: None,
    force: bool = False,
) -> "pd.DataFrame":
    """Run the stages of a reproduction on many models, and join their tables.

    Args:
        config: the study; see ``read_study``.
        facts: the fact sets, by the names that the configuration gives them.
        out: directory, new or to be resumed. For an address that fsspec knows (``s3://bucket/study``), the study runs
            in a temporary copy, and every file is stored at the address as soon as it is whole.
        held_out: by the same names, the facts in wordings that are not attributed but query updates.
        engine: computes the runs; None computes them in this process.
        watch: called with a job and its state whenever there is progress to show.
        force: resume a study of another configuration; what changes is computed again, and nothing is removed.

    Returns:
        One row a run: ``run`` (its directory), ``model``, ``fact_set``, ``seed``, ``state`` (done or failed),
        ``where`` and ``reason`` of a failure, and a column for each tag.

    Raises:
        ArgumentError: the configuration names something unknown, or the directory holds something else.
        DataError: the directory is of another study, or made with other versions; another process has locked it; it
            cannot be written; or the engine is not available. All but write errors come before any model is loaded.

    Example:
        >>> import tempfile
        >>> import kn_lens as kn
        >>> from kn_lens.runs import ModelEntry
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
            opener = _RunOpener(directory.path, mirror, force)
            for outcome in (engine or InProcess()).run(jobs, opener.open, watch):
                ended[outcome.job.name] = outcome
                _write_failure(directory, mirror, outcome)
            rows = _rows(jobs, ended)
            _join_tables(directory, rows)
            return rows


def jobs_of(config: StudyConfig, facts: Mapping[str, FactSet], held_out: Mapping[str, FactSet]) -> list[Job]:
    """Return the jobs of a study, those of one model together.

    Raises:
        ArgumentError: an unknown stage, relation or fact set, or a name too long for a directory.
        DataError: a relation whose name is too long for a file.
    """
    check_kind(config, StudyConfig, "a StudyConfig: kn_lens.read_study(path)", "config")
    check_kind(facts, Mapping, "fact sets by name: {'world': facts}", "facts")
    stages = [stage.name for stage in stages_named(STAGES, config.stages, ON_REQUEST)]
    missing = [entry.name for entry in config.facts if entry.name not in facts]
    if missing:
        raise ArgumentError(f"facts holds {', '.join(facts) or 'nothing'}; the study has {', '.join(missing)} too.")
    settings = {seed: config.settings_for(seed) for seed in config.seeds}
    data: dict[tuple[str, int], RunData] = {}
    for entry in config.facts:
        for seed in config.seeds:
            data[entry.name, seed] = RunData.of(facts[entry.name], settings[seed], held_out.get(entry.name))
    jobs: list[Job] = []
    for model, entry, seed in product(config.models, config.facts, config.seeds):
        names = {
            "model": model.model,
            "facts": entry.source,
            "format": entry.format,
            "templates": entry.templates,
            "split": entry.split,
        }
        job = Job(
            name=_run_name(model.name, entry.name, str(seed)),
            model=model,
            fact_set=entry.name,
            data=data[entry.name, seed],
            settings=settings[seed],
            stages=stages,
            names=names,
            threads=config.threads,
            memory_budget=None if config.memory is None else config.memory * 2**30,
        )
        jobs.append(job)
    return jobs


def _run_name(*parts: str) -> str:
    """Return the name of a run's directory.

    Raises:
        ArgumentError: it is too long for a directory.
    """
    name = "+".join(quote(part, safe="") for part in parts)
    if len(name) > LONGEST_NAME:
        raise ArgumentError(
            f"The run {name[:40]}... has a name of {len(name)} characters, more than {LONGEST_NAME}, which no "
            "directory can have; give its model or fact set a shorter name."
        )
    return name


@dataclass(frozen=True)
class _RunOpener:
    """Opens the run directories of a study; see ``OpenRunDirectory``."""

    path: Path
    mirror: Mirror
    force: bool

    @contextmanager
    def open(self, job: Job, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[RunDirectory]:
        self.mirror.fetch_run(f"runs/{job.name}")
        path = self.path / "runs" / job.name
        with open_run(path, config, provenance, force=self.force, on_written=self.mirror.store) as run:
            written = json.loads(read_whole(path / PROVENANCE))
            updated = {
                **written,
                "tags": provenance["tags"],
            }  # records do not depend on tags, so they may change
            run.write_text(PROVENANCE, json.dumps(updated, indent=2, ensure_ascii=False) + "\n")
            yield run


def _check_same(path: Path, config: StudyConfig, jobs: Sequence[Job]) -> None:
    """Check that the directory is of the same study and its runs of the same inputs, as far as these are known yet.

    A changed model is noticed once it is loaded.
    """
    if (path / CONFIG).exists():
        raise ArgumentError(f"--out {path} is a run of one model; a study of many needs a directory of its own.")
    if (path / STUDY).exists():
        try:
            earlier = read_study(path / STUDY)
        except DataError as error:
            raise DataError(f"{error} --force writes it anew and keeps every record that fits.") from error
        if differing := differences(earlier, config):
            raise DataError(
                f"{path} holds another study ({'; '.join(differing[:8])}{'; ...' if differing[8:] else ''}). Name "
                "another directory, or give --force to keep what the change does not touch and make the rest again."
            )
    for job in jobs:
        run = path / "runs" / job.name
        try:
            model = json.loads(read_whole(run / PROVENANCE))["made_from"]["model"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue  # not begun, or damaged, which opening it reports
        made_from = {"versions": versions(), "model": model, "data": job.data.digests()}
        check_same(run, {**job.names, **job.settings.as_dict()}, {"made_from": made_from})


def _write_failure(directory: RunDirectory, mirror: Mirror, outcome: Outcome) -> None:
    """Write the failure of a run, or remove that of an earlier attempt."""
    name = f"failures/{outcome.job.name}.json"
    if outcome.failure is None:
        (directory.path / name).unlink(missing_ok=True)
        mirror.remove(name)
        return
    content = {"run": outcome.job.name, "model": asdict(outcome.job.model), **asdict(outcome.failure)}
    directory.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _rows(jobs: Sequence[Job], ended: Mapping[str, Outcome]) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for job in jobs:
        failure = ended[job.name].failure
        row = {
            "run": job.name,
            "model": job.model.name,
            "fact_set": job.fact_set,
            "seed": job.settings.seed,
            "state": "done" if failure is None else "failed",
            "where": "" if failure is None else failure.where,
            "reason": "" if failure is None else failure.reason,
        }
        for name, value in job.model.tags.items():
            row[f"tag_{name}"] = value
        rows.append(row)
    return pd.DataFrame(rows)


def _join_tables(directory: RunDirectory, rows: "pd.DataFrame") -> None:
    """Join each table of the completed runs, with the run's name in the first column, and write it."""
    import pandas as pd

    tables: dict[str, list[pd.DataFrame]] = {"runs": [rows]}
    for run in rows["run"][rows["state"] == "done"]:
        for path in sorted((directory.path / "runs" / run / "tables").glob("*.csv")):
            table = read_table(path)
            table.insert(0, "run", run)
            tables.setdefault(path.stem, []).append(table)
    for name, parts in tables.items():
        joined = pd.concat(parts, ignore_index=True)
        directory.write_text(f"tables/{name}.csv", joined.to_csv(index=False))
