"""``kn-lens reproduce``: the tables and figures of the paper for any model, resumable."""

import json as json_module
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from rich.console import Console, Group
from rich.table import Table

from kn_lens._core import defaults
from kn_lens._core.advice import NO_SUCCESS, STRENGTH_ADVICE, has_no_success, one_relation_note
from kn_lens._core.escape import escaped
from kn_lens._core.intervals import WHY_NONE
from kn_lens.cli import _options as options
from kn_lens.cli._facts import read_facts
from kn_lens.cli._options import METHOD, RESULT, choice, flag, named_option, option
from kn_lens.cli._run import describe_model, load, memory_budget_of
from kn_lens.cli._tables import ROWS_SHOWN, is_missing, table
from kn_lens.cli._terminal import Activity, duration, err, out, print_json, show_progress
from kn_lens.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.runs.execute import RunState
    from kn_lens.runs.stage import TableDisplay

PRESETS = ("kn_lens", "paper", "official")
EXECUTION = "Execution"
OTHERS = "Neurons found elsewhere"
RELATIONS_SHOWN = 8


def reproduce(
    to: Annotated[
        Path,
        named_option(RESULT, "--out -o", "DIR", "Run directory: new, or that of a run to resume."),
    ],
    model: options.Model = "world-bert",
    device: options.Device = None,
    dtype: options.Dtype = defaults.DTYPE,
    memory: options.Memory = None,
    facts: options.Facts = "world",
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = defaults.SPLIT,
    relation: options.Relations = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    preset: Annotated[
        str,
        choice(PRESETS, "Settings of the library, the paper or its code", METHOD),
    ] = "kn_lens",
    changes: Annotated[
        list[str] | None,
        named_option(METHOD, "--set", "NAME=VALUE", "Changed setting of the preset; repeatable."),
    ] = None,
    stage: Annotated[
        list[str] | None,
        named_option(EXECUTION, "--stage", "NAME", "Stage, with those that it needs; repeatable, all by default."),
    ] = None,
    workers: Annotated[
        int,
        option(EXECUTION, "N", "Number of processes that share the work, each with the model.", min=1),
    ] = 1,
    dry_run: Annotated[
        bool,
        flag(EXECUTION, "--dry-run", "Plan with estimated times; nothing is written."),
    ] = False,
    force: Annotated[
        bool,
        flag(
            EXECUTION,
            "--force",
            "Use of a run with other settings, computing what they change again, or of neurons of other models.",
        ),
    ] = False,
    neurons: Annotated[
        list[Path] | None,
        named_option(OTHERS, "--neurons -n", "FILE", "Neuron file, summarised without a model; repeatable."),
    ] = None,
    baseline: Annotated[
        list[Path] | None,
        named_option(OTHERS, "--baseline", "FILE", "Neuron file of their baseline; repeatable."),
    ] = None,
    n_layers: Annotated[
        int | None,
        option(OTHERS, "N", "Number of layers of their model.", min=1),
    ] = None,
    json: options.Json = False,
) -> None:
    r"""Run the paper's study on a model: attribution, refining, suppression and amplification, tables and figures.

    The command can be stopped at any time; the same command resumes the run. The run directory contains records, tables
    and figures.

    Example:
        kn-lens reproduce --model world-bert --stage effects \
            --relation P36 --relation P30 --limit 20 --out run
    """
    if neurons:
        _summarise_neurons(neurons, baseline or [], facts, format, n_layers, to, seed, force, json)
        return
    if baseline or n_layers:
        raise ArgumentError("--baseline and --n-layers are for neurons found elsewhere, named with --neurons.")
    memory_budget = memory_budget_of(memory)
    settings = _settings(
        preset,
        changes,
        seed=seed,
        limit=limit,
        relations=tuple(relation or ()),
    )
    source = read_facts(facts, format, templates, split)
    held_out = None
    if split == "trained":
        held_out = read_facts(facts, format, templates, "held_out")

    from torch import get_num_threads

    from kn_lens.reports.report import write_figures
    from kn_lens.runs.context import open_context
    from kn_lens.runs.execute import run_stages, stages_named
    from kn_lens.runs.planning import plan
    from kn_lens.runs.stages.order import ON_REQUEST, STAGES
    from kn_lens.runs.studies.config import ModelEntry
    from kn_lens.runs.workers.engine import torch_threads
    from kn_lens.runs.workers.processes import run_shared

    # Raises for an unknown stage, before the model is loaded.
    chosen_stages = stages_named(STAGES, stage or (), ON_REQUEST)
    loaded = load(model, device, dtype)
    document = {
        "command": "reproduce",
        "model": describe_model(loaded),
        "out": str(to),
        "settings": settings.as_dict(),
    }
    n_threads = max(1, get_num_threads() // workers)
    run_options: dict[str, Any] = {
        "held_out": held_out,
        "memory_budget": memory_budget,
        "force": force,
    }
    if dry_run:
        with show_progress("Counting passes and timing some"), torch_threads(n_threads):
            planned = plan(loaded, source, to, settings, chosen_stages, **run_options)
        planned["seconds"] /= workers
        if json:
            print_json({**document, "plan": planned.to_dict("records")})
            return
        out.print(_plan_table(planned))
        total = duration(cast("float", planned["seconds"].sum()))
        out.print(f"Total: {total}, estimated from a few passes; see docs/performance.md.")
        return
    names = {
        "model": model,
        "facts": facts,
        "format": format,
        "templates": None if templates is None else str(templates),
        "split": split,
    }
    try:
        with (
            torch_threads(n_threads),
            open_context(loaded, source, to, settings, names=names, **run_options) as context,
        ):
            with show_progress("Checking existing records", unit="passes") as activity:
                if workers == 1:
                    tables = run_stages(context, chosen_stages, _on_progress(activity))
                else:
                    entry = ModelEntry(name=model, model=model, dtype=dtype, device=device)
                    tables = run_shared(
                        context,
                        chosen_stages,
                        entry,
                        workers,
                        _on_progress(activity),
                    )
            with show_progress("Drawing the figures"):
                write_figures(to)
        displays: dict[str, TableDisplay] = {}
        for chosen_stage in chosen_stages:
            displays |= chosen_stage.shown
        _print_results(document, tables, displays, to, json)
    except KeyboardInterrupt:
        print(
            f"kn-lens: interrupted; the results in {escaped(str(to))} are kept, and the same command resumes the run.",
            file=sys.stderr,
        )
        sys.exit(130)


def _settings(preset: str, changes: Sequence[str] | None, **given: Any) -> Any:
    """Return the settings of a preset, changed by ``--set`` and by the settings with options of their own."""
    from kn_lens.runs.settings import Settings

    changed: dict[str, Any] = {}
    for change in changes or ():
        name, equals, text = change.partition("=")
        if not equals or name in (*given, "preset"):
            raise ArgumentError(f"--set {change!r}; expected NAME=VALUE, such as attr_threshold=0.3.")
        try:
            changed[name] = json_module.loads(text)
        except (ValueError, RecursionError):
            changed[name] = text
    return Settings.of(preset, **changed, **given)


def _on_progress(activity: Activity) -> "Callable[[RunState], None]":
    """Return the progress callback of a run."""

    def on_progress(state: "RunState") -> None:
        if state.note:
            err.print(state.note, soft_wrap=True)
        description = state.stage.name
        if state.shard is not None:
            description += f" {state.shard.name}"
        activity(state.done, state.total, f"{description} ({state.shards_done}/{state.n_shards})")

    return on_progress


def _plan_table(rows: "pd.DataFrame") -> Table:
    numbers = ("shards", "done", "passes", "time")
    result = table("Plan", "stage", *numbers, right=numbers)
    for row in rows.to_dict("records"):
        result.add_row(
            row["stage"],
            str(row["shards"]),
            str(row["done"]),
            f"{row['passes']:,}",
            duration(row["seconds"]),
        )
    return result


def _summarise_neurons(
    neurons: Sequence[Path],
    baseline: Sequence[Path],
    facts: str,
    format: str | None,
    n_layers: int | None,
    to: Path,
    seed: int,
    force: bool,
    json: bool,
) -> None:
    """Compute Table 2 and Figure 3 from neuron files alone."""
    from kn_lens.reports.report import write_figures
    from kn_lens.runs.directory import open_run
    from kn_lens.runs.found_files import check_one_model, found_tables, read_found
    from kn_lens.runs.stages.neurons import NEURONS

    if (to / "records").is_dir():
        raise ArgumentError(
            f"--out {to} is a run on a model, whose settings and tables would be replaced. Name another directory."
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
        for name, rows in tables.items():
            run.write_text(f"tables/{name}.csv", rows.to_csv(index=False))
        write_figures(to)
    document = {"command": "reproduce", "neurons": files, "out": str(to)}
    _print_results(document, tables, NEURONS.shown, to, json)


# --- results ----------------------------------------------------------------------------------------------


def _print_results(
    document: Mapping[str, Any],
    tables: "Mapping[str, pd.DataFrame]",
    displays: "Mapping[str, TableDisplay]",
    to: Path,
    json: bool,
) -> None:
    if "updated" in tables:
        _warn_about_updates(tables["updated"], tables.get("table6"))
    if json:
        records = {name: rows.to_dict("records") for name, rows in tables.items()}
        print_json({**document, "tables": records})
        return
    for name, display in displays.items():
        if name in tables:
            out.print(_result_table(tables[name], display, out, one_relation_note(name, tables[name])))
    if "coverage" in tables:
        out.print(_coverage_line(tables["coverage"]), soft_wrap=True)
    out.print(
        f"n: facts, or pairs of facts. All tables, also by relation, are in {to / 'tables'}.",
        soft_wrap=True,
    )


def _warn_about_updates(updated: "pd.DataFrame", table6: "pd.DataFrame | None") -> None:
    """Warn on stderr about updates with large side effects, or all without effect."""
    from kn_lens.edits import MAX_DISTURBED

    n_updates = int(cast("float", updated["n_updated"].sum()))
    n_disturbing = int(cast("float", updated["n_disturbing"].sum()))
    if n_disturbing:
        err.print(
            f"kn-lens: {n_disturbing} of {n_updates} updates remove more than {MAX_DISTURBED:.0%} "
            f"of the correct answers to other facts; try smaller lambdas. {STRENGTH_ADVICE}.",
            soft_wrap=True,
        )
    if has_no_success(table6):
        err.print(f"kn-lens: {NO_SUCCESS[0].lower()}{NO_SUCCESS[1:]}", soft_wrap=True)


def _coverage_line(coverage: "pd.DataFrame") -> str:
    """Return the numbers of queried facts and prompts, and the relations without a queried fact."""
    n_facts = coverage["n_facts"].sum()
    n_queried = coverage["n_queried"].sum()
    n_prompts = coverage["n_prompts"].sum()
    line = f"Queried: {n_queried:,} of {n_facts:,} facts, in {n_prompts:,} prompts"
    without = coverage.loc[coverage["n_queried"] == 0, "relation"].tolist()
    if not without:
        return f"{line}."
    names = ", ".join(without[:RELATIONS_SHOWN])
    if len(without) > RELATIONS_SHOWN:
        names += " ..."
    relations = "relation" if len(without) == 1 else "relations"
    return f"{line}; no fact of {len(without)} {relations} ({names}; the reasons are in coverage.csv)."


# --- tables of a run --------------------------------------------------------------------------------------
# The neuron sets become columns, so that found neurons stand beside their controls: the found ones with their
# intervals, the others with theirs if the terminal is wide enough, each followed by the paper's value if there is one.

FOUND = "found"
RANDOM = "random"

Row = dict[str, Any]
Lines = dict[tuple[Any, ...], dict[str, Row]]
"""The rows of each line by its labels, then by neuron set; the key is "" in a table without neuron sets."""


def _result_table(rows: "pd.DataFrame", display: "TableDisplay", console: Console, note: str = "") -> Group:
    """Return a table of a run in the widest layout that fits the console, with a note below it."""
    if display.measures:
        rows = rows.loc[rows["measure"].isin(display.measures)]
    by_neuron_set = "neuron_set" in rows and FOUND in set(rows["neuron_set"])
    labels = list(rows.columns[: rows.columns.get_loc("value")])
    if by_neuron_set:
        labels.remove("neuron_set")
    lines = _lines(rows, labels, by_neuron_set, display.measures)
    labels = [name for name in labels if cast("pd.Series", rows[name]).nunique() > 1]
    unlimited = console.options.update(max_width=1000)
    drawn = Table()
    for all_intervals, gap in ((True, 1), (False, 1), (False, 0)):
        drawn = _layout(display.caption, labels, lines, all_intervals, gap)
        if console.measure(drawn, options=unlimited).maximum <= console.width:
            break
    notes = [note] if note else []
    n_hidden = len(lines) - ROWS_SHOWN
    if n_hidden > 0:
        notes.append(f"{n_hidden:,} more rows are not shown.")
    for row in rows.to_dict("records"):
        if _has(row, "value") and "low" in row and not _has(row, "low"):
            notes.append(WHY_NONE)
            break
    if notes:
        notes.append("")
    return Group(drawn, *notes)


def _lines(
    rows: "pd.DataFrame",
    labels: list[str],
    by_neuron_set: bool,
    measures: tuple[str, ...],
) -> Lines:
    """Return the lines of a table, in order of first appearance of each label; measures in their given order."""
    ranks = []
    for name in labels:
        values = measures if measures and name == "measure" else rows[name].unique()
        ranks.append({value: rank for rank, value in enumerate(values)})
    lines: Lines = {}
    for row in rows.to_dict("records"):
        key = tuple(row[name] for name in labels)
        lines.setdefault(key, {})[row["neuron_set"] if by_neuron_set else ""] = row

    def order(key: tuple[Any, ...]) -> list[int]:
        return [rank[value] for rank, value in zip(ranks, key, strict=True)]

    return {key: lines[key] for key in sorted(lines, key=order)}


def _layout(
    caption: str,
    labels: list[str],
    lines: Lines,
    all_intervals: bool,
    gap: int,
) -> Table:
    present: set[str] = set()
    with_paper: set[str] = set()
    with_control = False
    for line in lines.values():
        present.update(line)
        with_paper.update(neuron_set for neuron_set, row in line.items() if _has(row, "paper"))
        with_control |= _has_own_control(line)
    neuron_sets = sorted(present, key=_column_order)

    result = table(caption)
    result.padding = (0, gap, 0, 0)
    for name in labels:
        longest_word = 0
        for line in lines.values():
            for row in line.values():
                longest_word = max(longest_word, *map(len, _label(row[name]).split()), 0)
        result.add_column(name.replace("_", " "), min_width=longest_word, overflow="fold")
    heads = []
    for neuron_set in neuron_sets:
        heads.append(neuron_set or "value")
        if neuron_set in with_paper:
            heads.append("paper")
    if with_control:
        heads.append("control")
    heads.append("n")
    for head in heads:
        result.add_column(head, justify="right", no_wrap=True)

    for line in list(lines.values())[:ROWS_SHOWN]:
        first = line[min(line, key=_column_order)]
        cells = [_label(first[name]) for name in labels]
        for neuron_set in neuron_sets:
            row = line.get(neuron_set)
            cells.append(_value(row, with_interval=all_intervals or neuron_set in ("", FOUND)))
            if neuron_set in with_paper:
                cells.append(_number(row, "paper"))
        if with_control:
            cells.append(_number(first, "control"))
        cells.append(f"{first['n']:,}")
        result.add_row(*cells)
    return result


def _column_order(neuron_set: str) -> tuple[bool, bool, str]:
    return neuron_set != FOUND, neuron_set == RANDOM, neuron_set


def _has_own_control(line: dict[str, Row]) -> bool:
    """Return whether a line has a control that is not the value of its random neurons."""
    random = line.get(RANDOM, {}).get("value")
    return any(_has(row, "control") and row["control"] != random for row in line.values())


def _has(row: Row | None, name: str) -> bool:
    return row is not None and not is_missing(row.get(name))


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def _value(row: Row | None, *, with_interval: bool) -> str:
    value = _number(row, "value")
    if row is None or not with_interval or not _has(row, "value") or "low" not in row:
        return value
    if not _has(row, "low"):
        return f"{value} [-]"
    return f"{value} [{_number(row, 'low', 'value')}, {_number(row, 'high', 'value')}]"


def _number(row: Row | None, name: str, like: str = "") -> str:
    """Return a number with at least three digits, as many as that of the column ``like``; a dash if it is missing."""
    if row is None or not _has(row, name):
        return "-"
    magnitude = abs(row[like or name])
    decimals = 3
    if magnitude >= 100:
        decimals = 0
    elif magnitude >= 10:
        decimals = 1
    elif magnitude >= 1:
        decimals = 2
    return f"{row[name]:,.{decimals}f}"
