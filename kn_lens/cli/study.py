"""``kn-lens study``: the paper's study on many models, in one process, in several, or on Ray."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kn_lens._core.escape import escaped
from kn_lens._core.names import FACT_FORMATS, SPLITS
from kn_lens._core.redact import without_secrets
from kn_lens.cli import _options as options
from kn_lens.cli._facts import read_facts
from kn_lens.cli._options import RESULT, choice, flag, named_option, option
from kn_lens.cli._run import load
from kn_lens.cli._tables import table
from kn_lens.cli._terminal import Activity, duration, err, out, print_json, show_progress
from kn_lens.errors import ArgumentError, DataError, KNLensError

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from kn_lens.facts import FactSet
    from kn_lens.runs.execute import RunState
    from kn_lens.runs.studies.config import StudyConfig
    from kn_lens.runs.workers.engine import Engine, Job

ENGINES = ("in-process", "processes", "ray")
EXECUTION = "Execution"
RAY = "Ray (--engine ray)"


def study(
    config: Annotated[
        Path,
        typer.Argument(metavar="STUDY.TOML", help="Models, fact sets, stages, seeds and settings of the study."),
    ],
    to: Annotated[
        str,
        named_option(
            RESULT,
            "--out -o",
            "DIR",
            "Directory or address such as s3://...; new, or that of this study.",
        ),
    ],
    engine: Annotated[str, choice(ENGINES, "Engine of the computation", EXECUTION)] = "in-process",
    force: Annotated[
        bool,
        flag(EXECUTION, "--force", "Use of another study's directory; what differs is computed again."),
    ] = False,
    address: Annotated[
        str | None,
        option(RAY, "HOST", "Cluster: auto, HOST:PORT or ray://HOST:PORT; this machine by default."),
    ] = None,
    workers: Annotated[
        int | None,
        option(
            EXECUTION,
            "N",
            "Number of parallel runs with processes or ray; as many as fit by default.",
            min=1,
        ),
    ] = None,
    gpus: Annotated[float, option(RAY, "SHARE", "GPUs of each worker, such as 1 or 0.5.", min=0)] = 0.0,
    dry_run: Annotated[
        bool,
        flag(EXECUTION, "--dry-run", "Plan with estimated times; nothing is written."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Run the paper's study on many models, as configured in a study.toml (see docs/studies.md).

    The command can be stopped at any time; the same command resumes the study. A failed model is recorded, and the
    other models continue. Exit code 1: some runs failed.

    Example:
        kn-lens study study.toml --out study --dry-run
    """
    from kn_lens.runs.studies.config import read_study

    if engine != "ray" and (address or gpus):
        raise ArgumentError("--address and --gpus are for --engine ray.")
    if engine == "in-process" and workers:
        raise ArgumentError("--workers is for --engine processes and ray.")
    study_config = read_study(config)
    facts, held_out = _read_fact_sets(study_config)
    if dry_run:
        plan_rows = _plan(study_config, facts, held_out, to, force)
        if json:
            print_json({"command": "study", "out": without_secrets(to), "plan": plan_rows})
            return
        out.print(_plan_table(plan_rows))
        seconds = sum(row["seconds"] for row in plan_rows)
        out.print(f"Total: {duration(seconds)} of one process, estimated from a few passes; see docs/performance.md.")
        return

    from kn_lens.runs.studies.study import run_study

    try:
        with show_progress("Starting", unit="passes") as activity:
            runs = run_study(
                study_config,
                facts,
                to,
                held_out=held_out,
                engine=_engine(engine, address, workers, gpus),
                watch=_on_progress(activity),
                force=force,
            )
    except KeyboardInterrupt:
        directory = escaped(without_secrets(to))
        print(f"kn-lens: interrupted; the same command resumes {directory}.", file=sys.stderr)
        sys.exit(130)
    n_failed = int((runs["state"] == "failed").to_numpy().sum())
    directory = without_secrets(to)
    if json:
        print_json({"command": "study", "out": directory, "runs": runs.to_dict("records")})
    else:
        out.print(_runs_table(runs))
        out.print(
            f"Runs are in {directory}/runs, the joint tables in {directory}/tables.",
            soft_wrap=True,
        )
    if n_failed:
        err.print(
            f"{n_failed} of {len(runs)} runs failed; the same command repeats them.",
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _read_fact_sets(config: "StudyConfig") -> "tuple[dict[str, FactSet], dict[str, FactSet]]":
    """Return the fact sets by name, and those of the trained split again with held-out templates."""
    facts = {}
    held_out = {}
    for entry in config.facts:
        _check_known(entry.name, "split", entry.split, SPLITS)
        _check_known(entry.name, "format", entry.format, FACT_FORMATS)
        templates = None if entry.templates is None else Path(entry.templates)
        facts[entry.name] = read_facts(entry.source, entry.format, templates, entry.split)
        if entry.split == "trained":
            held_out[entry.name] = read_facts(entry.source, entry.format, templates, "held_out")
    return facts, held_out


def _check_known(facts: str, name: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise DataError(f"{name} of the facts {facts} is {value!r}; expected one of {', '.join(known)}.")


def _plan(
    config: "StudyConfig",
    facts: "dict[str, FactSet]",
    held_out: "dict[str, FactSet]",
    to: str,
    force: bool,
) -> list[dict[str, Any]]:
    """Return shards, passes and seconds of each run; for a run that would fail, the ``reason``."""
    from kn_lens.runs.execute import stages_named
    from kn_lens.runs.planning import plan
    from kn_lens.runs.stages.order import ON_REQUEST, STAGES
    from kn_lens.runs.studies.study import jobs_of
    from kn_lens.runs.workers.engine import torch_threads

    rows: list[dict[str, Any]] = []
    loaded_as, model = None, None
    for job in jobs_of(config, facts, held_out):
        row = {"run": job.name, "shards": 0, "done": 0, "passes": 0, "seconds": 0.0, "reason": ""}
        rows.append(row)
        try:
            entry = job.model
            if entry.loaded_as != loaded_as:
                loaded_as, model = None, None  # frees the previous model before the next is loaded
                model = load(entry.model, entry.device, entry.dtype, entry.revision)
                loaded_as = entry.loaded_as
            assert model is not None  # set together with loaded_as
            with show_progress(f"Counting the passes of {job.name}"), torch_threads(job.threads):
                stages = plan(
                    model,
                    facts[job.fact_set],
                    Path(to, "runs", job.name),
                    job.settings,
                    stages_named(STAGES, job.stages, ON_REQUEST),
                    held_out=held_out.get(job.fact_set),
                    memory_budget=job.memory_budget,
                    force=force,
                )
        except KNLensError as error:
            row["reason"] = str(error)
            continue
        for name in ("shards", "done", "passes", "seconds"):
            row[name] = stages[name].sum().item()
    return rows


def _plan_table(rows: list[dict[str, Any]]) -> "Table":
    numbers = ("shards", "done", "passes", "time")
    plan = table("Plan", "run", *numbers, "error", right=numbers)
    for row in rows:
        counts = [f"{row[name]:,}" for name in ("shards", "done", "passes")]
        plan.add_row(row["run"], *counts, duration(row["seconds"]), row["reason"])
    return plan


def _engine(name: str, address: str | None, workers: int | None, gpus: float) -> "Engine":
    if name == "ray":
        from kn_lens.runs.workers.ray_workers import RayEngine

        return RayEngine(address=address, workers=workers, gpus=gpus)
    if name == "processes":
        from kn_lens.runs.workers.processes import Processes

        return Processes(workers=workers)
    from kn_lens.runs.workers.engine import InProcess

    return InProcess()


def _on_progress(activity: Activity) -> "Callable[[Job, RunState | None], None]":
    """Return the progress callback of a study. It sums the passes of all runs that have started."""
    progress: dict[str, tuple[float, float]] = {}

    def on_progress(job: "Job", state: "RunState | None") -> None:
        description = f"{job.name}: loading"
        if state is not None:
            if state.note:
                err.print(f"{job.name}: {state.note}", soft_wrap=True)
            progress[job.name] = state.done, state.total
            description = f"{job.name}: {state.stage.name} ({state.shards_done}/{state.n_shards})"
        done = sum(run_done for run_done, _ in progress.values())
        total = sum(run_total for _, run_total in progress.values())
        activity(done, total, description)

    return on_progress


def _runs_table(runs: "pd.DataFrame") -> "Table":
    rows = table("Runs", "run", "state", "error")
    for run in runs.to_dict("records"):
        error = f"{run['where']}: {run['reason']}" if run["where"] else ""
        rows.add_row(run["run"], run["state"], error)
    return rows
