"""Keep a run of this folder, and write its tables into docs/real_models.md, and the figure that the README shows.

    python examples/smollm2/tables.py [RUN]

RUN is the folder of ``run.sh``: its facts, tables, settings and records are copied here. Without it the
page's tables are written again from what is here. The figure takes kaleido and a Chromium (kn-lens[figures]).
"""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

import kn_lens as kn

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "real_models.md"
FIGURE = HERE.parents[1] / "docs" / "_static" / "smollm2_effects.png"
RUNS = {"pararel": "ParaRel", "world": "embedded"}
"""The runs of the folder, and what the page calls their facts."""
MODEL = "smollm2-135m"
"""What the records call the model, wherever it was loaded from."""
KEPT = ("config.toml", "provenance.json", "tables", "records")
MIN_SHARE = 0.02
"""Layers with a smaller share of all kinds of neurons are not listed."""


def percent(row: "pd.Series[float]") -> str:
    """Return a relative change with its interval, if it has one."""
    if pd.isna(row["low"]):
        return f"{row['value']:+.1%}"
    return f"{row['value']:+.1%} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def number(row: "pd.Series[float]") -> str:
    """Return a number with its interval, if it has one."""
    if pd.isna(row["low"]):
        return f"{row['value']:.2f}"
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def grid(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read(run: str, name: str) -> pd.DataFrame | None:
    """Return a stored table of a run; None if there is none."""
    path = HERE / run / "tables" / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


def selection() -> str:
    """What was queried, known and taken."""
    table = pd.read_csv(HERE / "facts" / "selection.csv")
    columns = ["facts", "relations", "drawn", "answer in the subject", "queried", "answered right", "known"]
    columns += ["more than enough with one answer", "taken", "relations of these"]
    rows = []
    for source, group in table.groupby("facts_of", sort=False):
        right = (group["right"] * group["queried"]).sum() / group["queried"].sum()
        names = group.loc[group["taken"] > 0, "relation"].tolist()
        counts = [f"{group[name].sum():,}" for name in ("drawn", "copied", "queried")]
        row = [RUNS[str(source)], str(len(group)), *counts, f"{right:.1%}", str(group["known"].sum())]
        rows.append([*row, str(group["same_answer"].sum()), str(group["taken"].sum()), ", ".join(names) or "none"])
    return grid(columns, rows)


def effects(factors: tuple[float, ...]) -> str:
    """Relative changes of P(answer) for some factors, with all controls and the paper's values."""
    rows = []
    for run, label in RUNS.items():
        table = read(run, "dose_response")
        if table is None:
            continue
        for factor in factors:
            chosen = table[table["factor"] == factor].set_index(["neuron_set", "scope"])
            cells = [percent(chosen.loc[key]) for key in EFFECTS]
            paper = chosen.loc[("found", "own"), "paper"]
            rows.append([label, f"x{factor:g}", *cells, "" if pd.isna(paper) else f"{paper:+.1%}"])
            rows[-1].append(str(int(chosen.loc[("found", "own"), "n"])))
    columns = ["facts", "factor", "found: own fact", "found: another fact", "most active: own", "random: own"]
    return grid([*columns, "paper: own", "n"], rows) if rows else ""


EFFECTS = (("found", "own"), ("found", "other"), ("activation", "own"), ("random", "own"))


def table2() -> str:
    """Neurons of a fact, and how many are shared."""
    rows = []
    for run, label in RUNS.items():
        table = read(run, "table2")
        if table is None:
            continue
        for statistic in table["statistic"].unique():
            chosen = table[table["statistic"] == statistic].set_index("neuron_set")
            cells = [number(chosen.loc[kind]) for kind in ("found", "baseline", "random")]
            paper = [f"{chosen.loc[kind, 'paper']:.2f}" for kind in ("found", "baseline")]
            rows.append([label, STATISTICS[statistic], *cells, " and ".join(paper)])
    columns = ["facts", "", "found", "refined from activations", "random", "paper: found, from activations"]
    return grid(columns, rows) if rows else ""


STATISTICS = {
    "neurons_per_fact": "neurons of a fact",
    "shared_within": "shared by two facts of a relation",
    "shared_across": "shared by facts of two relations",
}


def figure3() -> str:
    """The layers that the neurons lie in."""
    rows = []
    for run, label in RUNS.items():
        table = read(run, "figure3")
        if table is None:
            continue
        shares = table.pivot(index="layer", columns="neuron_set", values="value")
        for layer, share in shares[shares[["found", "activation"]].max(axis=1) >= MIN_SHARE].iterrows():
            found = table[(table["neuron_set"] == "found") & (table["layer"] == layer)].iloc[0]
            interval = f"{found['value']:.0%} [{100 * found['low']:.0f}, {100 * found['high']:.0f}]"
            rows.append([label, str(layer), interval, f"{share['activation']:.0%}"])
    return grid(["facts", "layer", "found", "most active"], rows) if rows else ""


def completeness() -> str:
    """How exact the attributions are."""
    rows = []
    for run, label in RUNS.items():
        table = read(run, "completeness")
        if table is not None:
            n_pairs = table["n_pairs"].sum()
            gap = (table["mean_gap"] * table["n_pairs"]).sum() / n_pairs
            points = (table["mean_points"] * table["n_pairs"]).sum() / n_pairs
            cells = [f"{n_pairs:,}", f"{points:.1f}", f"{gap:.1e}", f"{table['largest_gap'].max():.3f}"]
            rows.append([label, *cells, str(table["above_tolerance"].sum())])
    columns = ["facts", "(prompt, layer) pairs", "points a pair", "mean gap", "largest gap", "above the tolerance"]
    return grid(columns, rows) if rows else ""


def lambdas() -> str:
    """The strengths that were tried on held-out facts."""
    table = pd.read_csv(HERE / "facts" / "lambdas.csv")
    rows = []
    for row in table.to_dict("records"):
        shares = [f"{row[name]:.0%}" for name in ("success", "success_own", "disturbed")]
        rows.append([f"({row['lambda_old']:g}, {row['lambda_new']:g})", *shares, str(row["n_facts"])])
    return grid(["lambdas", "success in held-out templates", "in own templates", "disturbed", "facts"], rows)


def edits(name: str) -> str:
    """A table of edits, with its kinds of neurons side by side."""
    blocks = []
    for run, label in RUNS.items():
        table = read(run, name)
        if table is None:
            continue
        table = table[table["question"].isin(QUESTIONS) & table["measure"].isin(MEASURES)]
        kinds = [kind for kind in KINDS if kind in set(table["neuron_set"])]
        rows = []
        for (question, measure), group in table.groupby(["question", "measure"], sort=False):
            chosen = group.set_index("neuron_set")
            paper = chosen.loc["found", "paper"]
            cells = [number(chosen.loc[kind]) for kind in kinds]
            cells.append("" if pd.isna(paper) else f"{paper:.3g}")
            rows.append([label, str(question), MEASURES[str(measure)], *cells, f"{chosen.loc['found', 'n']:.0f}"])
        columns = ["facts", "queries", "measure", *(KINDS[kind] for kind in kinds), "paper: found", "n"]
        blocks.append(grid(columns, rows))
    return "\n\n".join(blocks)


KINDS = {"found": "found", "activation": "most active", "random": "random"}
QUESTIONS = ("own wording", "held-out wording", "same relation", "other relations")
MEASURES = {
    "changed": "another answer is first",
    "success": "the new answer is first",
    "top5": "the new answer is among five",
    "accuracy_before": "right answers before",
    "accuracy_after": "right answers after",
    "perplexity_before": "perplexity before",
    "perplexity_after": "perplexity after",
}


def methods() -> str:
    """The effect of suppressing neurons that simpler scores choose."""
    rows = []
    for run, label in RUNS.items():
        table = read(run, "methods")
        if table is not None:
            for _, row in table.iterrows():
                name = str(row["neuron_set"]).replace("_", " ")
                rows.append([label, name, percent(row), f"{row['control']:+.1%}", f"{row['n']:.0f}"])
    columns = ["facts", "neurons by", "suppressed: own fact", "random neurons", "n"]
    return grid(columns, rows) if rows else ""


def stability() -> str:
    """The overlap of a fact's neurons with those found in another way."""
    rows = []
    for run, label in RUNS.items():
        table = read(run, "stability")
        if table is not None:
            for _, row in table.iterrows():
                rows.append([label, str(row["varied"]).replace("_", " "), number(row), f"{row['n']:.0f}"])
    return grid(["facts", "found with", "overlap (Jaccard) with the set as it is", "n"], rows) if rows else ""


BLOCKS: dict[str, Callable[[], str]] = {
    "selection": selection,
    "figures 4 and 5": lambda: effects((0.0, 2.0)),
    "doses": lambda: effects((0.0, 0.5, 1.5, 2.0, 2.5, 3.0)),
    "table 2": table2,
    "figure 3": figure3,
    "completeness": completeness,
    "lambdas": lambdas,
    "table 6": lambda: edits("table6"),
    "table 5": lambda: edits("table5"),
    "methods": methods,
    "stability": stability,
}


HEADINGS = {
    "table 6": "### Table 6: facts updated",
    "table 5": "### Table 5: a relation erased",
    "methods": "## Other methods",
    "stability": "## Stability",
}
"""The headings of blocks that are sections of their own. A section without records is left out."""


def with_tables(page: str) -> str:
    """Return the page with each block between its markers written anew; a block without records is empty."""
    for name, write in BLOCKS.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"The page must hold {begin!r} and {end!r} once.")
        parts = [begin]
        table = write()
        if table and name in HEADINGS:
            parts.append(HEADINGS[name])
        if table:
            parts.append(table)
        parts.append(end)
        block = "\n\n".join(parts)
        page = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _, block=block: block, page, flags=re.DOTALL)
    return page


def keep(run: Path) -> None:
    """Copy what the page and the notebook read."""
    for name in RUNS:
        shutil.rmtree(HERE / name, ignore_errors=True)
        (HERE / name).mkdir()
        for part in KEPT:
            source = run / name / part
            if source.is_dir():
                shutil.copytree(source, HERE / name / part)
            elif source.is_file():
                shutil.copy(source, HERE / name / part)
        config = HERE / name / "config.toml"
        text = config.read_text(encoding="utf-8")
        config.write_text(re.sub("^model = .*$", f'model = "{MODEL}"', text, flags=re.M), encoding="utf-8")
    for path in (run / "facts").iterdir():
        if path.name != "selection.csv":  # the one here has all relations
            shutil.copy(path, HERE / "facts" / path.name)


def write_figure() -> None:
    """Draw Figures 4 and 5 on ParaRel's facts."""
    doses = pd.read_csv(HERE / "pararel" / "tables" / "dose_response.csv")
    kn.figures.effects(doses[doses["factor"].isin((0.0, 2.0))]).write_image(FIGURE)


def main() -> None:
    """Keep a run if one is named, and write the page."""
    if len(sys.argv) > 1:
        keep(Path(sys.argv[1]))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    write_figure()


if __name__ == "__main__":
    main()
