"""``kn-lens study``: the paper's study on many models, one after another, in several processes, or on Ray."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kn_lens._secrets import without_secrets
from kn_lens._shown import escaped
from kn_lens.cli import _options as options
from kn_lens.cli._facts import read_facts
from kn_lens.cli._options import RESULT, choice, option
from kn_lens.cli._run import load
from kn_lens.cli._tables import table
from kn_lens.cli._terminal import Work, duration, err, out, print_json, working
from kn_lens.errors import ArgumentError, DataError, KNLensError

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.engines import Engine, Job
    from kn_lens.experiments.running import State
    from kn_lens.study_config import StudyConfig

ENGINES = ("in-process", "processes", "ray")
RUN, RAY = "What is run", "With --engine ray"


def study(
    config: Annotated[Path, typer.Argument(metavar="STUDY.TOML", help="Models, fact sets, stages, seeds, settings.")],
    to: Annotated[
        str,
        typer.Option("--out", "-o", metavar="DIR", help="Directory, or an address such as s3://...; new, or an earlier "
                     "one to be taken up again.", rich_help_panel=RESULT),
    ],
    engine: Annotated[str, choice(ENGINES, "Who computes", RUN)] = "in-process",
    force: Annotated[
        bool, typer.Option("--force", help="Take up another study's directory; redo what differs.", rich_help_panel=RUN)
    ] = False,
    address: Annotated[
        str | None,
        option(RAY, "HOST", "Of a cluster: auto, HOST:PORT or ray://HOST:PORT; this machine, unless given."),
    ] = None,
    workers: Annotated[
        int | None, option(RUN, "N", "Models at a time, with processes or ray; as many as fit, a run each.", min=1)
    ] = None,
    gpus: Annotated[float, option(RAY, "SHARE", "GPUs of each worker, such as 1 or 0.5.", min=0)] = 0.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and how long; write nothing.", rich_help_panel=RUN)
    ] = False,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Run the paper's study on many models, as a study.toml says; docs/studies.md describes it.

    Stop it at any time; the same command takes it up again. A model that fails is recorded, and the rest goes on. Exit
    code 1: some runs failed.
    """
    from kn_lens.study_config import read_study

    if engine != "ray" and (address or gpus):
        raise ArgumentError("--address and --gpus are for --engine ray.")
    if engine == "in-process" and workers:
        raise ArgumentError("--workers is for --engine processes and ray.")
    read = read_study(config)
    facts, held_out = _read_facts(read)
    if dry_run:
        rows = _planned(read, facts, held_out, to, force)
        if json:
            print_json({"command": "study", "out": without_secrets(to), "plan": rows})
        else:
            out.print(_plan_table(rows))
            seconds = sum(row["seconds"] for row in rows)
            out.print(f"In all {duration(seconds)} of one process, as a few passes take; see docs/performance.md.")
        return

    from kn_lens.study import run_study

    try:
        with working("Starting", unit="passes") as work:
            rows = run_study(
                read, facts, to, held_out=held_out, engine=_engine(engine, address, workers, gpus), watch=_watch(work),
                force=force,
            )  # fmt: skip
    except KeyboardInterrupt:
        print(f"kn-lens: interrupted; the same command takes {escaped(without_secrets(to))} up again.", file=sys.stderr)
        sys.exit(130)
    failed, place = rows[rows["state"] == "failed"], without_secrets(to)
    if json:
        print_json({"command": "study", "out": place, "runs": rows.to_dict("records")})
    else:
        out.print(_shown(rows))
        out.print(f"Runs are in {place}/runs, the tables of all together in {place}/tables.", soft_wrap=True)
    if len(failed):
        err.print(f"{len(failed)} of {len(rows)} runs failed; the same command tries them again.", soft_wrap=True)
        raise typer.Exit(1)


def _read_facts(config: "StudyConfig") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fact sets, and those in held-out wordings, by name."""
    facts, held_out = {}, {}
    for entry in config.facts:
        templates = None if entry.templates is None else Path(entry.templates)
        for name, known in (("split", options.SPLITS), ("format", options.FORMATS)):
            value = getattr(entry, name)
            if value is not None and value not in known:
                raise DataError(f"{name} of the facts {entry.name} is {value!r}; expected one of {', '.join(known)}.")
        facts[entry.name] = read_facts(entry.source, entry.format, templates, entry.split)
        if entry.split == "trained":
            held_out[entry.name] = read_facts(entry.source, entry.format, templates, "held_out")
    return facts, held_out


def _planned(
    config: "StudyConfig", facts: "dict[str, Any]", held_out: "dict[str, Any]", to: str, force: bool
) -> list[dict[str, Any]]:
    """Return what each run would take; its ``reason`` where the model cannot be had, as it would fail then."""
    from kn_lens.engines import on_threads
    from kn_lens.experiments.planning import plan
    from kn_lens.experiments.running import named
    from kn_lens.experiments.stages import STAGES
    from kn_lens.study import jobs_of

    rows: list[dict[str, Any]] = []
    last, model = None, None
    for job in jobs_of(config, facts, held_out):
        row = {"run": job.name, "shards": 0, "done": 0, "passes": 0, "seconds": 0.0, "reason": ""}
        rows.append(row)
        try:
            entry = job.model
            if entry.loaded_as != last:
                last, model = None, None  # before another is loaded
                model = load(entry.model, entry.device, entry.dtype, entry.revision)
                last = entry.loaded_as
            with working(f"Counting the passes of {job.name}"), on_threads(job.threads):
                planned = plan(
                    model, facts[job.fact_set], Path(to, "runs", job.name), job.settings, named(STAGES, job.stages),
                    held_out=held_out.get(job.fact_set), memory_budget=job.memory_budget, force=force,
                )  # fmt: skip
        except KNLensError as error:
            row["reason"] = str(error)
        else:
            row |= {name: planned[name].sum().item() for name in ("shards", "done", "passes", "seconds")}
    return rows


def _plan_table(rows: list[dict[str, Any]]) -> Any:
    numbers = ("shards", "done", "passes", "time")
    shown = table("What would run", "run", *numbers, "what would fail", right=numbers)
    for row in rows:
        counts = [f"{row[name]:,}" for name in ("shards", "done", "passes")]
        shown.add_row(row["run"], *counts, duration(row["seconds"]), row["reason"])
    return shown


def _engine(name: str, address: str | None, workers: int | None, gpus: float) -> "Engine":
    if name == "ray":
        from kn_lens._ray_engine import RayEngine

        return RayEngine(address=address, workers=workers, gpus=gpus)
    if name == "processes":
        from kn_lens._processes import Processes

        return Processes(workers=workers)
    from kn_lens.engines import InProcess

    return InProcess()


def _watch(work: Work) -> "Callable[[Job, State | None], None]":
    """Return what shows how far a study is: the runs begun are counted together."""
    begun: dict[str, tuple[float, float]] = {}

    def watch(job: "Job", state: "State | None") -> None:
        what = "loading"
        if state is not None:
            if state.note:
                err.print(f"{job.name}: {state.note}", soft_wrap=True)
            begun[job.name] = state.done, state.total
            what = f"{state.stage.name} ({state.shards_done}/{state.n_shards})"
        done, total = map(sum, zip((0.0, 0.0), *begun.values(), strict=True))
        work(done, total, f"{job.name}: {what}")

    return watch


def _shown(rows: "pd.DataFrame") -> Any:
    shown = table("Runs", "run", "state", "what failed")
    for row in rows.to_dict("records"):
        shown.add_row(row["run"], row["state"], f"{row['where']}: {row['reason']}" if row["where"] else "")
    return shown
