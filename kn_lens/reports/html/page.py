"""The page of a run: its content, put into its template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

import kn_lens
from kn_lens._core.advice import NO_SUCCESS, has_no_success, one_relation_note
from kn_lens._core.intervals import FEWEST
from kn_lens._core.wording import with_article
from kn_lens.reports import figures
from kn_lens.reports.html.facts import FACTS_AT_ONCE, FactPages, as_columns
from kn_lens.reports.html.findings import findings
from kn_lens.reports.html.panels import OF_RECORDS, PANELS, table_below
from kn_lens.reports.html.template import figures_json, rendered
from kn_lens.reports.html.wording import cell_label, column_title, model_name, table_title
from kn_lens.reports.style import description_of
from kn_lens.runs.reader import RunRecords

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

CONTENT_OF_STAGES = {
    "facts": "which facts can be queried",
    "attributions": "how exact the attributions are",
    "neurons": "each fact's neurons, their layers and their overlap between relations",
    "effects": "the effects of suppressing and amplifying neurons",
    "doses": "the dose-response curve",
    "answers": "what the model knows",
    "texts": "the texts that activate the neurons",
    "updates": "the effects of updating facts",
    "erasures": "the effects of erasing relations",
    "stability": "how stable the neurons are",
    "methods": "the results of other attribution methods",
    "predictions": "each fact's predictions before and after suppression",
    "neuron_scores": "the scores of each fact's neurons, with error bars",
    "readouts": "the tokens that each neuron promotes",
    "answer_readouts": "how many neurons promote their fact's answer",
    "syntax": "the results of the same method for grammar",
}
"""Content of the report from each stage."""
BY_PHENOMENON = ("syntax",)
"""Stages with shards other than relations. They are complete if their table exists."""
HIDDEN = ("paper", "control", "why")
"""Columns of a table that are hidden if they are empty."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table on the page: its title, and whether its values are numbers."""

    title: str
    number: bool


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table on the page, as texts."""

    columns: list[Column]
    rows: list[list[str]]


def page(
    run: RunRecords,
    tables: "Mapping[str, pd.DataFrame]",
    run_figures: "Mapping[str, Figure]",
    facts: FactPages | None,
) -> str:
    """Return the page as HTML.

    Args:
        run: the run.
        tables: tables of the run by name.
        run_figures: figures of the run by name.
        facts: content of the pages of its facts.
    """
    heading = _heading(run)
    relations = run.relations()
    missing = [] if facts is None else _missing_stages(run, tables, relations)
    return rendered(
        "page.html",
        _data(run_figures, facts),
        title=f"Knowledge neurons in {heading} - kn_lens" if "model" in run.config else f"{heading} - kn_lens",
        heading=heading,
        about=_about(run, facts, relations),
        constructed=_is_constructed(run.config.get("model", "")),
        findings=findings(tables),
        n_resamples=run.config.get("n_resamples", 1000),
        fewest=FEWEST,
        missing=[_missing_entry(run, stage) for stage in missing],
        command=run.command(*missing),
        panels=_panel_entries(tables, run_figures),
        n_facts=0 if facts is None else len(facts.facts),
        has_readouts=facts is not None and "tokens" in facts.neurons,
        tables=_table_entries(tables),
        settings=_dotted_entries(run.config),
        provenance=_dotted_entries(run.provenance),
        run=run.path.resolve().name,
    )


def _heading(run: RunRecords) -> str:
    """Return the name of the run's model; its architecture where the model has no name."""
    if "model" not in run.config:
        return "Neurons found elsewhere"
    architecture = run.provenance.get("made_from", {}).get("model", {}).get("architecture", "")
    return model_name(run.config["model"]) or architecture or "a model without a name"


def _missing_stages(
    run: RunRecords,
    tables: "Mapping[str, pd.DataFrame]",
    relations: Sequence[str],
) -> list[str]:
    """Return the stages without complete records."""
    missing = []
    for stage in CONTENT_OF_STAGES:
        complete = stage in tables if stage in BY_PHENOMENON else run.is_complete(stage, relations)
        if not complete:
            missing.append(stage)
    return missing


def _missing_entry(run: RunRecords, stage: str) -> dict[str, Any]:
    is_partial = run.records(stage) is not None
    return {"stage": stage, "content": CONTENT_OF_STAGES[stage], "is_partial": is_partial}


def _panel_entries(
    tables: "Mapping[str, pd.DataFrame]",
    run_figures: "Mapping[str, Figure]",
) -> list[dict[str, Any]]:
    entries = []
    for panel in PANELS:
        if panel.name in run_figures:
            # Plotly builds the attributes of a layout at run time.
            layout = cast("Any", run_figures[panel.name].layout)
            entries.append(
                {
                    "name": panel.name,
                    "title": panel.title,
                    "caption": panel.caption,
                    "description": description_of(run_figures[panel.name]),
                    "height": layout.height,
                    "grid": grid(table_below(panel, tables), panel.source),
                }
            )
    return entries


def _table_entries(tables: "Mapping[str, pd.DataFrame]") -> list[dict[str, Any]]:
    entries = []
    for name, table in tables.items():
        if name not in OF_RECORDS:
            notes = [NO_SUCCESS] if name == "table6" and has_no_success(table) else []
            notes.append(one_relation_note(name, table))
            note = " ".join(filter(None, notes))
            entries.append({"name": name, "title": table_title(name), "grid": grid(table, name), "note": note})
    return entries


def _data(run_figures: "Mapping[str, Figure]", facts: FactPages | None) -> dict[str, Any]:
    """Return the data of the scripts: ``core``, and the details of groups of facts."""
    core: dict[str, Any] = {"figures": figures_json(run_figures)}
    if facts is None:
        return {"core": core}
    core["facts"] = as_columns(facts.facts.drop(columns="relation").rename(columns={"relation_name": "relation"}))
    core["neurons"] = as_columns(facts.neurons.drop(columns="logits", errors="ignore"))
    core["facts_at_once"] = FACTS_AT_ONCE
    core["patterns"] = figures_json(_fact_figures())
    data: dict[str, Any] = {"core": core}
    for number, part in enumerate(facts.details()):
        data[f"facts-{number}"] = part
    return data


def _fact_figures() -> "dict[str, Figure]":
    """Return the figures of a fact's page, in which the page replaces the rows."""
    import pandas as pd

    row = {
        "layer": 0,
        "index": 0,
        "score": 0.0,
        "low": 0.0,
        "high": 0.0,
        "text": "",
        "before": 0.0,
        "after": 0.0,
    }
    table = pd.DataFrame([row])
    return {"neuron_scores": figures.neuron_scores(table), "predictions": figures.predictions(table)}


def grid(table: "pd.DataFrame", name: str = "") -> Grid:
    """Return a table with this name as texts: values with their intervals, without empty columns of controls.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"neuron_set": ["found"], "value": [0.5], "low": [0.25], "high": [0.75]})
    >>> grid(table).rows
    [['knowledge neurons', '0.5', '0.25 to 0.75']]
    """
    columns = []
    cells = []
    has_interval = {"low", "high"} <= set(table)
    for column in map(str, table):
        if column in ("low", "high") or (column in HIDDEN and _is_empty(table[column].tolist())):
            continue
        values = table[column]
        is_number = values.dtype.kind in "if"
        columns.append(Column(title=column_title(column, name), number=is_number))
        if is_number:
            cells.append(list(map(_number, values.tolist())))
        else:
            cells.append([cell_label(column, value) for value in values.tolist()])
        if column == "value" and has_interval:
            columns.append(Column(title="95% interval", number=True))
            cells.append(list(map(_interval, table["low"].tolist(), table["high"].tolist())))
    return Grid(columns=columns, rows=list(map(list, zip(*cells, strict=True))))


def _is_empty(cells: Sequence[Any]) -> bool:
    """Return whether all cells of a column are NaN or empty texts."""
    return all(cell == "" or cell != cell for cell in cells)


def _interval(low: float, high: float) -> str:
    if low != low:  # NaN
        return ""
    return f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    """Return a number as text: counts as they are, others with four digits, nothing for NaN."""
    if value != value:
        return ""
    if value == 0:
        return "0"  # also where it is the negative zero
    is_count = float(value).is_integer() and abs(value) < 1e15
    text = f"{value:,.0f}" if is_count else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _about(run: RunRecords, facts: FactPages | None, relations: Sequence[str]) -> str:
    """Return the line under the heading."""
    if facts is None:
        return "Neuron sets read from files, summarised without a model."
    model = run.provenance.get("model", {})
    n_facts = len(facts.facts)
    n_prompts = int(cast("float", facts.facts["prompts"].sum()))
    line = f"{n_facts:,} facts of {len(relations)} relations, queried in {n_prompts:,} prompts"
    if {"kind", "n_params", "n_layers", "d_mlp"} <= set(model):
        layers = f"{model['side']} layers" if "side" in model else "layers"
        line += (
            f"; {with_article(model['kind'])} model of {model['n_params']:,} parameters, {model['n_layers']} "
            f"{layers} of {model['d_mlp']:,} MLP neurons"
        )
    return f"{line}."


def _is_constructed(model: str) -> bool:
    """Return whether a model is an embedded one whose training put the facts into its MLPs."""
    for folder in (files(kn_lens) / "world" / "models").iterdir():
        record = folder / "recipe.json"
        if folder.name == model and record.is_file():
            recipe = json.loads(record.read_text(encoding="utf-8"))["recipe"]
            return recipe["sparsity"] > 0 or recipe["interchange"] > 0
    return False


def _dotted_entries(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Return nested entries as pairs of a dotted name and a text."""
    if isinstance(value, Mapping):
        entries = []
        for key, item in value.items():
            entries += _dotted_entries(item, f"{path}.{key}" if path else str(key))
        return entries
    return [(path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
