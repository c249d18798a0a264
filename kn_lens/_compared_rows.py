"""The rows of the tables of a comparison; see ``kn_lens.compare``, which says what they mean."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens import _paired as paired
from kn_lens._compared_cells import STATISTICS, Cell, Cells, Estimator, control_of
from kn_lens._compared_runs import ComparedRun
from kn_lens._draws import SHARE

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
Pair = tuple[ComparedRun, ComparedRun]

RANKED = ("suppress_own", "amplify_own")
"""Effects whose ranks are compared between models."""


def run_row(by: Estimator, run: ComparedRun) -> Row:
    """Return what a run is, and how many of its facts are compared."""
    model = run.provenance["model"]
    return {
        "run": run.name,
        "model": run.config.get("model", ""),
        "architecture": run.provenance["made_from"]["model"]["architecture"],
        **{name: model[name] for name in ("kind", "n_layers", "d_mlp", "n_params")},
        "tags": ", ".join(f"{name}={value}" for name, value in run.tags.items()),
        "facts": len(run.facts),
        "equal": len(by.equal),
        "shared": len(by.asked_of(by.runs)),
        "known_by_all": len(by.known_to(by.runs)),
        "own": len(by.known_to([run])),
        "path": str(run.path),
    }


def notes(by: Estimator) -> Iterator[str]:
    """Yield what a reader of the tables should know."""
    for run in by.runs:
        if left := len(run.facts) - len(by.equal):
            yield f"{run.name}: {left:,} of {len(run.facts):,} facts are not in all runs with the same templates."
    if not by.known_to(by.runs):
        yield "No fact is known by all models: there are no rows of known_by_all."
    prompts = {run.name: run.answers.loc[by.asked_of(by.runs), "n_prompts"] for run in by.runs}
    first, *others = prompts.values()
    if any((one != first).any() for one in others):
        told = ", ".join(f"{name} {one.mean():.1f}" for name, one in prompts.items())
        yield f"The same facts are asked in other prompts, as models take different ones (a fact, on average: {told})."
    made = [run.provenance["made_from"] for run in by.runs]
    where = [[one["model"][name] for name in ("dtype", "device")] for one in made]
    for what, differing in (
        ("versions of libraries", [one["versions"] for one in made]),
        ("types of numbers or devices", where),
    ):
        if any(one != differing[0] for one in differing):
            yield f"The runs were made with different {what}: the last digits of numbers differ by that too."


def value_rows(facts: str, cells: Cells) -> list[Row]:
    """Return the statistics of runs on a set of facts."""
    rows = []
    for (run, statistic, kind), cell in cells.items():
        if kind != "majority" and not _is_given(facts, statistic):
            row = {"facts": facts, "statistic": statistic, "run": run, "neurons": kind, **cell.row()}
            rows.append({**row, "control": control_of(cells, run, statistic, even=0.5)})
    return sorted(rows, key=lambda row: STATISTICS.index(row["statistic"]))


def depth_rows(by: Estimator, facts: str, run: ComparedRun, keys: Sequence[str]) -> Iterator[Row]:
    """Yield how many of the neurons of facts lie in each layer or below."""
    keys = [key for key in keys if run.neurons["found"][key]]
    if keys:
        depths = np.arange(1, run.n_layers + 1) / run.n_layers
        shares = run.cumulative(keys, depths)
        drawn, sizes = by.means(shares, np.ones_like(shares), keys).drawn, by.sizes(keys)
        for layer, depth in enumerate(depths.tolist()):
            about = {"facts": facts, "run": run.name, "layer": layer, "depth": depth}
            cell = Cell(drawn=drawn[:, layer], sizes=sizes, within=SHARE, n=len(keys))
            yield {**about, **cell.row(), "control": depth}


def difference_rows(by: Estimator, facts: str, pair: Pair, cells: Cells) -> list[Row]:
    """Return the differences of the statistics of two runs, tested."""
    a, b = pair
    rows: list[Row] = []
    tested: dict[tuple[str, int], list[tuple[Row, np.ndarray]]] = {}
    for statistic, kind in _compared(facts, cells):
        if (b.name, statistic, kind) not in cells:
            continue
        apart = cells[b.name, statistic, kind].minus(cells[a.name, statistic, kind])
        control = _control_apart(cells, a.name, b.name, statistic)
        rows.append({"facts": facts, "statistic": statistic, **_about(pair), **apart.row(), "control": control})
        for test, parts in (("p_relations", apart.relations), ("p", apart.facts)):
            if parts is not None:
                tested.setdefault((test, len(parts)), []).append((rows[-1], parts))
    for (test, _), of_test in tested.items():
        parts = np.stack([part for _, part in of_test], axis=1)
        found = paired.sign_flip_p(parts, n_permutations=by.n_permutations, seed=by.seed)
        for (row, _), p in zip(of_test, found.tolist(), strict=True):
            row[test] = p
    return rows


def distance_rows(by: Estimator, facts: str, pair: Pair, keys: Sequence[str]) -> Iterator[Row]:
    """Yield the distance between two models' distributions of depth."""
    keys = [key for key in keys if all(run.neurons["found"][key] for run in pair)]
    if keys:
        a, b = pair
        depths = np.unique(np.concatenate([np.arange(run.n_layers + 1) / run.n_layers for run in pair]))
        apart = b.cumulative(keys, depths) - a.cumulative(keys, depths)
        found = by.means(apart, np.ones_like(apart), keys)
        how = {"n_permutations": by.n_permutations, "seed": by.seed}
        control, p = paired.distance_under_exchange(found.parts, depths, **how)
        _, p_relations = paired.distance_under_exchange(by.by_relation(found.parts, keys), depths, **how)
        resolution = 0.0 if a.n_layers == b.n_layers else (1 / a.n_layers + 1 / b.n_layers) / 2
        cell = Cell(drawn=paired.distance(found.drawn, depths), sizes=by.sizes(keys), within=SHARE, n=len(keys))
        tests = {"p_relations": p_relations, "p": p}
        yield {"facts": facts, **_about(pair), **cell.row(), "control": control, "resolution": resolution, **tests}


def correlation_rows(by: Estimator, facts: str, pair: Pair, keys: Sequence[str]) -> Iterator[Row]:
    """Yield the rank correlations of the effects on facts in one model with those in another."""
    n_permutations = {"found": by.n_permutations, "random": 1}  # the control is not tested
    for statistic in RANKED if keys else ():
        ratios = {kind: [run.change_ratios(keys, statistic, kind) for run in pair] for kind in n_permutations}
        there = ~np.isnan([one for both in ratios.values() for one in both]).any(0)
        relations = by.relations(keys)[there]
        found, random = (
            paired.rank_correlation(
                x[there], y[there], relations, n_resamples=by.n_resamples, n_permutations=n, seed=by.seed
            )
            for (x, y), n in zip(ratios.values(), n_permutations.values(), strict=True)
        )
        about = {"facts": facts, "statistic": statistic, **_about(pair)}
        yield {**about, **found, "n": int(there.sum()), "control": random["value"]}


def contrast_rows(facts: str, pairs: Sequence[Pair], cells: Cells) -> Iterator[Row]:
    """Yield the mean differences of pairs of runs that differ in one tag alone."""
    groups: dict[tuple[str, Any, Any], list[tuple[str, str]]] = {}
    for pair in pairs:
        if len(tags := _differing(pair)) == 1:
            a, b = sorted(pair, key=lambda run: _order(run.tags.get(tags[0], "")))
            groups.setdefault((tags[0], a.tags.get(tags[0], ""), b.tags.get(tags[0], "")), []).append((a.name, b.name))
    seeds = [names for (tag, *_), of_group in groups.items() for names in of_group if tag == "seed"]
    for tag, start, to in sorted(groups, key=lambda group: [_order(one) for one in group]):
        of_group = groups[tag, start, to]
        for statistic, kind in _compared(facts, cells):
            apart = [_apart(cells, names, statistic, kind) for names in of_group]
            values = [one.value for one in apart]
            between = [abs(_apart(cells, names, statistic, kind).value) for names in seeds]
            drawn = np.mean([one.drawn for one in apart], axis=0)
            mean = Cell(drawn=drawn, sizes=apart[0].sizes, n=apart[0].n)
            yield {
                **{"of": tag, "from": start, "to": to, "facts": facts, "statistic": statistic},
                **mean.row(),
                "control": float(np.mean([_control_apart(cells, *names, statistic) for names in of_group])),
                **{"n_pairs": len(apart), "smallest": min(values), "largest": max(values)},
                "between_seeds": float(np.mean(between)) if between else np.nan,
            }


def table(rows: Sequence[Mapping[str, Any]], columns: str) -> "pd.DataFrame":
    """Return rows as a table with these columns, also where there is none."""
    import pandas as pd

    return pd.DataFrame(rows, columns=columns.split())


def with_holm(rows: Sequence[Mapping[str, Any]], columns: str, family: Sequence[str]) -> "pd.DataFrame":
    """Return a table in which each ``p`` has another beside it that holds for all pairs of a family together."""
    made = table(rows, columns)
    for name in [name for name in ("p_relations", "p") if name in made]:
        adjusted = made.groupby(list(family), sort=False)[name].transform(lambda p: paired.holm(p.tolist()))
        made.insert(list(made).index(name) + 1, f"{name}_holm", adjusted)
    return made


def _is_given(facts: str, statistic: str) -> bool:
    """Return whether a statistic says nothing, as the facts were chosen by it."""
    return statistic == "known" and facts != "shared"


def _compared(facts: str, cells: Cells) -> list[tuple[str, str]]:
    """Return the statistics that are compared, of found neurons where they are of neurons."""
    there = dict.fromkeys((statistic, kind) for _, statistic, kind in cells if kind in ("", "found"))
    return sorted(
        (one for one in there if not _is_given(facts, one[0])), key=lambda one: STATISTICS.index(one[0])
    )  # fmt: skip


def _apart(cells: Cells, names: tuple[str, str], statistic: str, kind: str) -> Cell:
    a, b = names
    return cells[b, statistic, kind].minus(cells[a, statistic, kind])


def _control_apart(cells: Cells, a: str, b: str, statistic: str) -> float:
    """Return the difference of the controls of two runs."""
    return control_of(cells, b, statistic, even=0.0) - control_of(cells, a, statistic, even=0.0)


def _order(value: Any) -> tuple[bool, float, str]:
    """Return what values of tags are sorted by: numbers first, as numbers."""
    return (isinstance(value, str), 0.0 if isinstance(value, str) else value, str(value))


def _differing(pair: Pair) -> list[str]:
    a, b = pair
    return [name for name in dict.fromkeys([*a.tags, *b.tags]) if a.tags.get(name) != b.tags.get(name)]


def _about(pair: Pair) -> dict[str, str]:
    return {"run_a": pair[0].name, "run_b": pair[1].name, "differs_in": ", ".join(_differing(pair))}
