"""``kn-lens study``: the paper's study on many models, one after another, in several processes, or on Ray."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kn_lens._secrets import without_secrets
from kn_lens.cli import _options as options
from kn_lens.cli._facts import read_facts
from kn_lens.cli._options import RESULT, choice, option
from kn_lens.cli._tables import table
from kn_lens.cli._terminal import Work, err, out, print_json, working
from kn_lens.errors import ArgumentError, DataError

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

    from kn_lens.study import run_study

    try:
        with working("Starting", unit="passes") as work:
            rows = run_study(
                read, facts, to, held_out=held_out, engine=_engine(engine, address, workers, gpus), watch=_watch(work),
                force=force,
            )  # fmt: skip
    except KeyboardInterrupt:
        print(f"kn-lens: interrupted; the same command takes {without_secrets(to)} up again.", file=sys.stderr)
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
