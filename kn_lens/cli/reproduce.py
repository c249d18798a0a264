"""``kn-lens reproduce``: the paper's tables and figures for any model, resumed where it was stopped."""

import json as jsonlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kn_lens._shown import escaped
from kn_lens.cli import _options as options
from kn_lens.cli._facts import read_facts
from kn_lens.cli._options import FACTS, METHOD, RESULT, choice, option
from kn_lens.cli._results import result_table
from kn_lens.cli._run import described, in_bytes, load
from kn_lens.cli._strength import say_of_updates
from kn_lens.cli._tables import table
from kn_lens.cli._terminal import Work, duration, err, out, print_json, working
from kn_lens.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from kn_lens.experiments.running import State
    from kn_lens.experiments.study import Shown

PRESETS = ("kn_lens", "paper", "official")
STAGES, OTHERS = "What is run", "Neurons found by others"
RELATIONS_NAMED = 8


def reproduce(
    to: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Run directory: new, or to be taken up again.", rich_help_panel=RESULT
        ),
    ],
    model: options.Model = "world-bert",
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    memory: options.Memory = None,
    facts: options.Facts = "world",
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = "all",
    relations: Annotated[str | None, option(FACTS, "P36,...", "Only these relations.")] = None,
    limit: Annotated[int | None, option(FACTS, "N", "Facts of each relation at most, drawn at random.", min=1)] = None,
    seed: options.Seed = 0,
    preset: Annotated[str, choice(PRESETS, "Where ours, the paper and its code differ", METHOD)] = "kn_lens",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a setting of it; may be repeated.",
                     rich_help_panel=METHOD),
    ] = None,
    stages: Annotated[str | None, option(STAGES, "NAME,...", "Only these, and those that they need.")] = None,
    workers: Annotated[int, option(STAGES, "N", "Processes that share the work, each with the model.", min=1)] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and how long; write nothing.", rich_help_panel=STAGES)
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Take up a run of other settings, redoing what they change; take neurons of other models.",
            rich_help_panel=STAGES,
        ),
    ] = False,
    neurons: Annotated[
        list[Path] | None,
        typer.Option("--neurons", "-n", metavar="FILE", help="Neuron files; no model is run. May be repeated.",
                     rich_help_panel=OTHERS),
    ] = None,
    baseline: Annotated[
        list[Path] | None,
        typer.Option("--baseline", metavar="FILE", help="Those of the baseline beside them.", rich_help_panel=OTHERS),
    ] = None,
    n_layers: Annotated[int | None, option(OTHERS, "N", "Layers of their model.", min=1)] = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Run the paper's study on a model: attribution, refining, suppressing and amplifying, tables and figures.

    Stop it at any time; the same command takes it up again. Records, tables and figures are in the run directory.
    """
    if neurons:
        _found(neurons, baseline or [], facts, format, n_layers, to, seed, force, json)
        return
    if baseline or n_layers:
        raise ArgumentError("--baseline and --n-layers are for neurons found by others: name these with --neurons.")
    memory_budget = in_bytes(memory)
    chosen = _settings(preset, changes, seed=seed, limit=limit, relations=tuple(_listed(relations)))
    source = read_facts(facts, format, templates, split)
    held_out = read_facts(facts, format, templates, "held_out") if split == "trained" else None

    from torch import get_num_threads

    from kn_lens._processes import run_shared
    from kn_lens.engines import on_threads
    from kn_lens.experiments.planning import plan
    from kn_lens.experiments.reproduction import open_study
    from kn_lens.experiments.running import named, run
    from kn_lens.experiments.stages import STAGES as ALL_STAGES
    from kn_lens.report import write_figures
    from kn_lens.study_config import ModelEntry

    wanted = named(ALL_STAGES, _listed(stages))  # before the model is loaded, which takes longer
    loaded = load(model, device, dtype)
    how: dict[str, Any] = {"held_out": held_out, "memory_budget": memory_budget, "force": force}
    document = {"command": "reproduce", "model": described(loaded), "out": str(to), "settings": chosen.as_dict()}
    if dry_run:
        with working("Counting passes and timing some"), on_threads(max(1, get_num_threads() // workers)):
            planned = plan(loaded, source, to, chosen, wanted, **how)
        planned["seconds"] /= workers
        if json:
            print_json({**document, "plan": planned.to_dict("records")})
            return
        out.print(_plan_table(planned))
        out.print(
            f"In all {duration(planned['seconds'].sum())}, as a few passes take; docs/performance.md says how near."
        )
        return
    where = None if templates is None else str(templates)
    names = {"model": model, "facts": facts, "format": format, "templates": where, "split": split}
    try:
        with (
            on_threads(max(1, get_num_threads() // workers)),
            open_study(loaded, source, to, chosen, names=names, **how) as study,
        ):
            with working("Looking at what is there", unit="passes") as work:
                if workers == 1:
                    tables = run(study, wanted, _watch(work))
                else:
                    entry = ModelEntry(name=model, model=model, dtype=dtype, device=device)
                    tables = run_shared(study, wanted, entry, workers, _watch(work))
            with working("Drawing the figures"):
                write_figures(to)
        _print(document, tables, {name: how for stage in wanted for name, how in stage.shown.items()}, to, json)
    except KeyboardInterrupt:
        kept = escaped(str(to))
        print(
            f"kn-lens: interrupted; what was written to {kept} is kept, and the same command goes on from there.",
            file=sys.stderr,
        )
        sys.exit(130)


def _found(
    neurons: Sequence[Path], baseline: Sequence[Path], facts: str, format: str | None, n_layers: int | None, to: Path,
    seed: int, force: bool, json: bool,
) -> None:  # fmt: skip
    """Sum up neurons found by others: Table 2 and Figure 3 alone."""
    from kn_lens.experiments import refining
    from kn_lens.experiments.found_files import check_one_model, found_tables, read_found
    from kn_lens.experiments.run_directory import open_run
    from kn_lens.report import write_figures

    if (to / "records").is_dir():
        raise ArgumentError(
            f"--out {to} is a run on a model, whose settings and tables would be replaced; name another directory."
        )
    if not force:
        check_one_model([*neurons, *baseline])
    source = None if facts == "world" else read_facts(facts, format, None, "all")
    sets = {"found": read_found(neurons, source)}
    if baseline:
        sets["baseline"] = read_found(baseline, source, metric="base")
    tables = found_tables(sets, n_layers, seed=seed)
    files = [str(path) for path in (*neurons, *baseline)]
    with open_run(to, {"neurons": files, "seed": seed}, {"made_from": {}}, force=True) as run:
        for name, one in tables.items():
            run.write_text(f"tables/{name}.csv", one.to_csv(index=False))
        write_figures(to)
    _print({"command": "reproduce", "neurons": files, "out": str(to)}, tables, refining.STAGE.shown, to, json)


def _settings(preset: str, changes: Sequence[str] | None, **given: Any) -> Any:
    """Return the settings of a preset, with ``--set`` and the options of their own put in."""
    from kn_lens.experiments.settings import Settings

    changed: dict[str, Any] = {}
    for change in changes or ():
        name, equals, text = change.partition("=")
        try:
            value = jsonlib.loads(text)
        except (ValueError, RecursionError):
            value = text
        if not equals or name in (*given, "preset"):
            raise ArgumentError(f"--set {change!r}; expected NAME=VALUE, such as attr_threshold=0.3.")
        changed[name] = value
    return Settings.of(preset, **changed, **given)


def _listed(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def _watch(work: Work) -> "Callable[[State], None]":
    """Return what shows how far a run is."""

    def watch(state: "State") -> None:
        where = "" if state.shard is None else f" {state.shard.name}"
        if state.note:
            err.print(state.note, soft_wrap=True)
        work(state.done, state.total, f"{state.stage.name}{where} ({state.shards_done}/{state.n_shards})")

    return watch


def _print(
    document: Mapping[str, Any],
    tables: "Mapping[str, pd.DataFrame]",
    shown: "Mapping[str, Shown]",
    to: Path,
    json: bool,
) -> None:
    if "updated" in tables:
        say_of_updates(tables["updated"], tables.get("table6"))
    if json:
        print_json({**document, "tables": {name: one.to_dict("records") for name, one in tables.items()}})
        return
    for name, how in shown.items():
        if name in tables:
            out.print(result_table(tables[name], how, out))
    if "coverage" in tables:
        out.print(_covered(tables["coverage"]), soft_wrap=True)
    out.print(f"n: facts, or pairs of facts. All tables, also by relation, are in {to / 'tables'}.", soft_wrap=True)


def _covered(coverage: "pd.DataFrame") -> str:
    """Say how much of the data was asked."""
    facts, asked, prompts = (coverage[name].sum() for name in ("facts", "facts_asked", "prompts_asked"))
    without = coverage.loc[coverage["facts_asked"] == 0, "relation"].tolist()
    names = ", ".join(without[:RELATIONS_NAMED]) + (" ..." if without[RELATIONS_NAMED:] else "")
    relations = "relation" if len(without) == 1 else "relations"
    none = f"; no fact of {len(without)} {relations} ({names}; coverage.csv says why)" if without else ""
    return f"Asked: {asked:,} of {facts:,} facts, in {prompts:,} prompts{none}."


def _plan_table(rows: "pd.DataFrame") -> "Table":
    numbers = ("shards", "done", "passes", "time")
    shown = table("What would run", "stage", *numbers, right=numbers)
    for row in rows.to_dict("records"):
        shown.add_row(
            row["stage"], str(row["shards"]), str(row["done"]), f"{row['passes']:,}", duration(row["seconds"])
        )
    return shown
