"""The one page of a report: what it shows, put into its template.

Everything that comes from data is either escaped by the template or packed (gzip, base64) and made text again in the
browser; control and format characters in it are shown as escapes, so that no name turns the text around it. The page's
policy lets it run the scripts below, by their digests, and nothing else, and load nothing at all.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import kn_lens
from kn_lens import figures
from kn_lens._draws import FEWEST
from kn_lens._figure_parts import KINDS
from kn_lens._report.facts import FACTS_AT_ONCE, FactPages, as_columns
from kn_lens._report.findings import findings
from kn_lens._report.panels import MAP, PANELS
from kn_lens._run_records import RunRecords
from kn_lens._shown import escaped, shown_in

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

SCRIPTS = ("data.js", "table.js", "plots.js", "facts.js", "page.js")

TITLES = {
    "answer_readouts": "Whether neurons say their fact's answer",
    "answer_readouts_by_relation": "Whether neurons say their fact's answer, by relation",
    "answers": "What the model answers",
    "answers_by_relation": "What the model answers, by relation",
    "activation_on_texts": "Activation on texts (Table 3)",
    "activation_on_texts_by_relation": "Activation on texts, by relation",
    "completeness": "Completeness gaps",
    "coverage": "Which facts were asked",
    "dose_response": "Dose response",
    "erased": "Neurons erased",
    "figure3": "Distribution over layers (Figure 3)",
    "figures4_5": "Suppressing and amplifying (Figures 4 and 5)",
    "figures4_5_by_relation": "Suppressing and amplifying, by relation",
    "methods": "Other attribution methods",
    "neuron_scores": "Scores of the neurons",
    "neuron_scores_by_relation": "Scores of the neurons, by relation",
    "stability": "Stability of the neurons",
    "syntax": "Grammar: what its neurons do",
    "syntax_against_facts": "Grammar beside facts",
    "syntax_by_phenomenon": "Grammar: what its neurons do, by phenomenon",
    "syntax_table2": "Grammar: neurons per form and shared",
    "table2": "Neurons per fact and shared (Table 2)",
    "table2_by_relation": "Neurons per fact and shared, by relation",
    "table5": "Erasing relations (Table 5)",
    "table5_by_relation": "Erasing relations, by relation",
    "table6": "Updating facts (Table 6)",
    "table6_by_relation": "Updating facts, by relation",
    "texts_of_most_and_least": "Texts of highest and lowest activation, for a fact of each relation",
    "updated": "Facts updated",
}
SHOWN_OF = {
    "facts": "which facts can be asked",
    "attributions": "how exact the attributions are",
    "neurons": "each fact's neurons, where they lie and what relations share",
    "effects": "what switching neurons off and up does",
    "doses": "the dose-response curve",
    "answers": "what the model knows",
    "texts": "which texts fire the neurons",
    "updates": "what updating facts does",
    "erasures": "what erasing relations does",
    "stability": "how stable the neurons are",
    "methods": "what other attribution methods find",
    "predictions": "each fact's predictions before and after",
    "neuron_scores": "the scores of each fact's neurons, with error bars",
    "readouts": "what each neuron writes to",
    "answer_readouts": "whether neurons write to their fact's answer",
    "syntax": "what the same method finds for grammar",
}
"""What the report shows of each stage."""
BY_PHENOMENON = ("syntax",)
"""Stages whose parts are no relations': they are complete when their table is there."""
HIDDEN = ("paper", "control")
"""Columns of a table that are not shown where they hold nothing."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table on the page: its title, and whether it holds numbers."""

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
    drawn: "Mapping[str, Figure]",
    facts: FactPages | None,
) -> str:
    """Return the page as HTML.

    Args:
        run: the run that it is about.
        tables: of the run, by name.
        drawn: its figures, by name.
        facts: what its facts' pages show.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    here = files("kn_lens._report")
    template, css = ((here / name).read_text(encoding="utf-8") for name in ("page.html", "page.css"))
    scripts = [get_plotlyjs(), *((here / name).read_text(encoding="utf-8") for name in SCRIPTS)]
    relations = run.relations()
    missing = [
        stage
        for stage in (SHOWN_OF if facts is not None else ())
        if not (stage in tables if stage in BY_PHENOMENON else run.is_complete(stage, relations))
    ]
    model = run.config.get("model", "")
    heading = f"Knowledge neurons in {model}" if model else "Neurons found by others"
    return (
        Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_finalized)
        .from_string(template)
        .render(
            policy=_policy(scripts),
            css=Markup(css),
            scripts=[Markup(script) for script in scripts],
            title=f"{heading} - kn_lens",
            heading=model or heading,
            about=_about(run, facts, relations),
            constructed=_constructed(model),
            findings=findings(tables),
            n_resamples=run.config.get("n_resamples", 1000),
            fewest=FEWEST,
            missing=[
                {"stage": stage, "shows": SHOWN_OF[stage], "partly": run.records(stage) is not None}
                for stage in missing
            ],
            command=run.command(*missing),
            panels=[
                {
                    "name": panel.name,
                    "title": panel.title,
                    "caption": panel.caption,
                    "height": drawn[panel.name].layout.height,
                    "grid": grid(tables[panel.source]),
                }
                for panel in PANELS
                if panel.name in drawn
            ],
            n_facts=0 if facts is None else len(facts.facts),
            has_readouts=facts is not None and "tokens" in facts.neurons,
            tables=[
                {"name": name, "title": TITLES.get(name, name.replace("_", " ")), "grid": grid(table)}
                for name, table in tables.items()
                if name != MAP
            ],
            settings=_pairs(run.config),
            provenance=_pairs(run.provenance),
            version=kn_lens.__version__,
            run=str(run.path),
            data=_data(drawn, facts),
        )
    )


def _finalized(value: Any) -> Any:
    """Return what the template puts in a place: texts of data without what turns the text around them."""
    return escaped(value, keep="\n") if type(value) is str else value  # Markup, the page's own, is another type


def _policy(scripts: Sequence[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    # Plotly writes style sheets and, to save a figure, draws an image of it.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _data(drawn: "Mapping[str, Figure]", facts: FactPages | None) -> dict[str, Any]:
    """Return the packed parts: ``core``, which the page starts with, and the details of some facts each."""
    core: dict[str, Any] = {"figures": {name: _figure(figure) for name, figure in drawn.items()}}
    parts: dict[str, Any] = {}
    if facts is not None:
        core |= {
            "facts": as_columns(facts.facts),
            "neurons": as_columns(facts.neurons.drop(columns="logits", errors="ignore")),
            "at_once": FACTS_AT_ONCE,
            "patterns": {name: _figure(figure) for name, figure in _patterns().items()},
        }
        parts = {f"facts-{number}": part for number, part in enumerate(facts.details())}
    return {name: _packed(value) for name, value in ({"core": core} | parts).items()}


def _packed(value: Any) -> Any:
    """Return data as a JSON text of base64 of gzip of JSON: letters that HTML has no meaning for."""
    from markupsafe import Markup

    text = json.dumps(shown_in(value, keep="\n"), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(f'"{base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()}"')


def _figure(figure: "Figure") -> Any:
    return json.loads(str(figure.to_json()))


def _patterns() -> "dict[str, Figure]":
    """Return the figures of a fact's page, whose rows the page puts in."""
    import pandas as pd

    row = {"layer": 0, "index": 0, "score": 0.0, "low": 0.0, "high": 0.0, "text": "", "before": 0.0, "after": 0.0}
    table = pd.DataFrame([row])
    return {"neuron_scores": figures.neuron_scores(table), "predictions": figures.predictions(table)}


def grid(table: "pd.DataFrame") -> Grid:
    """Return a table as texts: values with their intervals, and no columns that hold nothing.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"neurons": ["found"], "value": [0.5], "low": [0.25], "high": [0.75]})
    >>> grid(table).rows
    [['knowledge neurons', '0.5', '0.25 to 0.75']]
    """
    interval = {"low", "high"} <= set(table)
    names = [
        name for name in table if name not in ("low", "high") and not (name in HIDDEN and table[name].isna().all())
    ]
    columns, cells = [], []
    for name in names:
        values = table[name]
        number = values.dtype.kind in "if"
        columns.append(Column(title=str(name).replace("_", " "), number=number))
        kinds = KINDS if name == "neurons" else {}
        cells.append([_number(value) if number else kinds.get(value, str(value)) for value in values.tolist()])
        if name == "value" and interval:
            columns.append(Column(title="95% interval", number=True))
            ends = zip(table["low"].tolist(), table["high"].tolist(), strict=True)
            cells.append([f"{_number(low)} to {_number(high)}" if low == low else "" for low, high in ends])
    return Grid(columns=columns, rows=[list(row) for row in zip(*cells, strict=True)])


def _number(value: float) -> str:
    """Return a number as text: counts as they are, others with four digits, nothing for NaN."""
    if value != value:
        return ""
    text = f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _about(run: RunRecords, facts: FactPages | None, relations: Sequence[str]) -> str:
    """Return the line under the heading."""
    if facts is None:
        return "Neuron sets read from files, summed up without a model."
    model = run.provenance.get("model", {})
    n_facts, n_prompts = len(facts.facts), int(facts.facts["prompts"].sum())
    said = [f"{n_facts:,} facts of {len(relations)} relations, asked in {n_prompts:,} prompts"]
    if {"kind", "n_params", "n_layers", "d_mlp"} <= set(model):
        said.append(
            f"a {model['kind']} model of {model['n_params']:,} parameters, {model['n_layers']} layers of "
            f"{model['d_mlp']:,} MLP neurons"
        )
    return "; ".join(said) + "."


def _constructed(model: str) -> bool:
    """Return whether the facts of an embedded model were put into its MLPs by training."""
    models = {one.name: one for one in (files(kn_lens) / "world" / "models").iterdir()}
    if model not in models or not (record := models[model] / "recipe.json").is_file():
        return False
    recipe = json.loads(record.read_text(encoding="utf-8"))["recipe"]
    return recipe["sparsity"] > 0 or recipe["interchange"] > 0


def _pairs(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Return nested entries as pairs of a dotted name and a text."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _pairs(item, f"{path}.{key}" if path else str(key))]
    return [(path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
