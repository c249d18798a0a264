"""Comparison of models on their common facts, from the records of their runs; no model is loaded.

    kn-lens compare run_a run_b size=runs/large --out comparison/

Facts are matched by key and by their templates. Neurons of different models are never matched: neurons with the same
index in two models are unrelated. Compared are the number of neurons of a fact, their depth, the number that facts
share, and the change of the answers when they are suppressed and amplified.

Sets of facts:

    shared          the same in all runs, and queried in all models
    known_by_all    those of them that all models know: at least half of the answers are correct
    known_by_both   those that both models of a pair know, if there are more than two models
    own             those that a model knows, whether the others do or not
    measured        the same in all runs, and measured in all by a stage that runs on request

Statistics. Each is the mean over relations, except those marked (*), which are over all facts together:

    accuracy            share of correct answers; control: always the most frequent object of the relation
    nll                 -log P(object) in nats, mean over prompts
    known (*)           share of facts known; control as for accuracy
    neurons_per_fact (*), shared_within (*), shared_across (*)     as in ``overlap_table``
    mean_depth          of facts with neurons, with equal weight: (l + 1/2) / L for layer l of L; control: 1/2
    suppress_own, suppress_other, amplify_own, amplify_other       change ratios, as in ``effect_table``

and of the stages on request, where all runs have them, of the facts ``measured``:

    suppress_at_subject     stage ``positions``: change ratio, neurons found and suppressed at the subject's last token
    circuit_nodes, circuit_at_read      stage ``circuits``: nodes that keep 80%, and their share at the read position
    faithfulness_100, completeness_100  the same stage: of circuits of 100 nodes; control: random nodes
    query_depth             stage ``queries``: depth of the query neurons; control: 1/2
    taken, degenerate (*)   stage ``degenerate``, half of the probability: known facts whose answer all neurons take;
                            with several subsets that each suffice
    smallest_set, smallest_suffices (*)     size of the smallest subset that takes the answer; whether it suffices
    consistent, wordings_jaccard (*)        stage ``consistency``: tested facts that are; Jaccard index of two prompts
    success_EDITOR, kept_EDITOR             stage ``editors``: new answer on top in held-out wordings; right answers to
                            other facts that stay right; control: the same rows of change in random places

Elsewhere the control is random neurons, as many as were found in each layer. The facts of each relation are drawn
anew, with replacement, identically for all models, so that differences are paired. The resulting intervals (95%) state
how much depends on the sample of facts, with models and relations given. There is none for fewer than 8 facts.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens._core import defaults, permutation
from kn_lens._core.atomic import write_whole
from kn_lens._core.checks import wrong_kind
from kn_lens._core.intervals import SHARE
from kn_lens._core.wording import counted
from kn_lens.errors import ArgumentError
from kn_lens.reports.compare.estimates import STATISTICS, Estimate, Estimates, Estimator, control_value
from kn_lens.reports.compare.requested import REQUESTED
from kn_lens.reports.compare.runs import ComparedRun, StrPath, read_runs
from kn_lens.runs.directory import PROVENANCE

if TYPE_CHECKING:
    import pandas as pd

RANKED = ("suppress_own", "amplify_own")
"""Effects whose ranks are compared between models."""

Row = dict[str, Any]
Pair = tuple[ComparedRun, ComparedRun]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Tables of a comparison. Every number has its ``n``, its 95% interval ``low`` to ``high``, and its ``control``.

    Attributes:
        runs: one row for each run: properties of the model, and numbers of compared facts.
        values: one row for each run, ``fact_set``, ``statistic`` and ``neuron_set``: ``value``; ``n``, facts or pairs
            of facts.
        depth: distribution of the found neurons over depth, for each run, ``fact_set`` and ``layer``: the share
            (``value``) of a fact's neurons in this layer or below, that is up to ``depth`` (0 to 1); control: an even
            spread.
        differences: for each pair of runs, ``fact_set`` and statistic: ``value``, that of ``run_b`` minus that of
            ``run_a``, for found neurons; ``control``, the same for random neurons. ``p_relations`` is a sign-flip
            test; its null hypothesis is that the values of a relation are equally likely to come from either model.
            The facts of a relation need not be independent: it is about other relations too. (For 11 relations it
            cannot be below 0.001; for fewer than 6 there is none, as it could not be below 0.05.) ``p`` is the same
            for facts, assumed to be independent. They are not where models differ by relation; ``p`` is then far too
            small. Sharing is between facts: it has no ``p``, and ``shared_across`` no ``p_relations``.
            ``p_relations_holm`` and ``p_holm`` are adjusted for all pairs of a statistic (Holm). ``differs_in``: the
            tags in which the two runs differ.
        distances: for each pair and ``fact_set``, the Wasserstein distance between the distributions of depth, in
            units of depth. Layer l of L stands for depths l/L to (l+1)/L; the depth within a layer is undefined, so
            that between models of different depth, distances below ``resolution`` have no meaning. The bootstrap
            interval lies above 0 even for equal distributions: use ``p_relations`` and the control, the mean distance
            when a fact's neurons are equally likely to come from either model.
        correlations: for each pair, ``fact_set`` and effect, the rank correlation, within relations, of the facts'
            change ratios in the two models: whether the same facts depend most on their neurons. ``p``: its null
            hypothesis is that the facts of a relation are paired at random.
        contrasts: differences of pairs of runs that differ in one tag only, ``of`` from one value ``to`` another:
            their mean, the ``smallest`` and the ``largest`` of ``n_pairs``; ``between_seeds``: the mean absolute
            difference of runs that differ in the tag ``seed`` only. The interval takes the models as given.
        notes: exclusions and their reasons.
    """

    runs: "pd.DataFrame"
    values: "pd.DataFrame"
    depth: "pd.DataFrame"
    differences: "pd.DataFrame"
    distances: "pd.DataFrame"
    correlations: "pd.DataFrame"
    contrasts: "pd.DataFrame"
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} ({len(table)})" for name, table in self.tables.items())
        return f"Comparison({counted(len(self.runs), 'run')}; rows of its tables: {numbers})"

    @property
    def tables(self) -> "dict[str, pd.DataFrame]":
        """The tables by name."""
        tables = {}
        for field in fields(self):
            if field.name != "notes":
                tables[field.name] = getattr(self, field.name)
        return tables

    def write_csv(self, folder: StrPath) -> None:
        """Write each table to ``NAME.csv`` in a folder, which is created if it does not exist.

        Raises:
            ArgumentError: The folder is a file, or a run directory.
        """
        folder = check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self.tables.items():
            write_whole(folder / f"{name}.csv", table.to_csv(index=False))


def check_folder(folder: StrPath) -> Path:
    """Return a folder as a path, if the tables of a comparison may be written to it.

    Raises:
        ArgumentError: It is a file, or a run directory.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"{folder} is a file; expected a folder for tables.")
    if (folder / PROVENANCE).exists():
        raise ArgumentError(f"{folder} is a run directory; expected another folder for the tables of a comparison.")
    return folder


def compare_runs(
    runs: Sequence[StrPath] | Mapping[str, StrPath],
    *,
    n_resamples: int = defaults.N_RESAMPLES,
    n_permutations: int = defaults.N_PERMUTATIONS,
    seed: int = 0,
) -> Comparison:
    """Compare models on their common facts, from the directories of their finished runs.

    Args:
        runs: directories of ``kn-lens reproduce``, with the stages ``answers`` and ``effects`` complete; or
            directories by name.
        n_resamples: number of bootstrap samples.
        n_permutations: number of permutations of a test with too many patterns to enumerate.
        seed: of all random draws.

    Raises:
        ArgumentError: There are fewer than two runs, one is given twice, two have the same name, or a directory is
            not that of a run.
        DataError: A run is not finished (the message gives the command that finishes it), is damaged, or has another
            version than another; or the runs have no fact in common.

    Example:
        >>> import kn_lens as kn
        >>> comparison = kn.compare_runs({"masked": "run_a", "causal": "run_b"})   # doctest: +SKIP
        >>> comparison.differences.query("statistic == 'suppress_own'")            # doctest: +SKIP
    """
    if n_resamples < 1 or n_permutations < 1:
        raise ArgumentError(f"n_resamples={n_resamples}, n_permutations={n_permutations}; expected at least 1 of each.")
    if isinstance(runs, (str, os.PathLike)) or not isinstance(runs, (Sequence, Mapping)):
        raise wrong_kind(runs, "directories of runs, as a list or by name: ['run_a', 'run_b']", "runs")
    compared = tuple(read_runs(runs))
    return _compare(
        Estimator(
            runs=compared,
            n_resamples=n_resamples,
            n_permutations=n_permutations,
            seed=seed,
        )
    )


def _compare(estimator: Estimator) -> Comparison:
    runs = estimator.runs
    pairs = list(combinations(runs, 2))
    known_by_all = estimator.known_to(runs)
    of_all_runs = {
        "shared": estimator.answer_estimates(runs, estimator.queried_by(runs)),
        "known_by_all": estimator.estimates(runs, known_by_all),
        "measured": estimator.requested_estimates(),
    }

    values: list[Row] = []
    depths: list[Row] = []
    contrasts: list[Row] = []
    for fact_set, estimates in of_all_runs.items():
        values += _value_rows(fact_set, estimates)
        contrasts += _contrast_rows(fact_set, pairs, estimates)
    for run in runs:
        depths += _depth_rows(estimator, "known_by_all", run, known_by_all)
    for run in runs:
        own = estimator.known_to([run])
        values += _value_rows("own", estimator.estimates([run], own))
        depths += _depth_rows(estimator, "own", run, own)

    differences: list[Row] = []
    distances: list[Row] = []
    correlations: list[Row] = []
    for fact_set, estimates in of_all_runs.items():
        for pair in pairs:
            differences += _difference_rows(estimator, fact_set, pair, estimates)
    for pair in pairs:
        distances += _distance_rows(estimator, "known_by_all", pair, known_by_all)
        correlations += _correlation_rows(estimator, "known_by_all", pair, known_by_all)
    if len(runs) > 2:
        for pair in pairs:
            known_by_both = estimator.known_to(pair)
            estimates = estimator.estimates(pair, known_by_both)
            differences += _difference_rows(estimator, "known_by_both", pair, estimates)
            distances += _distance_rows(estimator, "known_by_both", pair, known_by_both)
            correlations += _correlation_rows(estimator, "known_by_both", pair, known_by_both)

    return Comparison(
        runs=_table(
            [_run_row(estimator, run) for run in runs],
            "run model architecture kind n_layers d_mlp n_params tags facts equal shared known_by_all own path",
        ),
        values=_table(values, "fact_set statistic run neuron_set value low high n control"),
        depth=_table(depths, "fact_set run layer depth value low high n control"),
        differences=_adjusted_table(
            differences,
            "fact_set statistic run_a run_b differs_in value low high n control p_relations p",
            family=["fact_set", "statistic"],
        ),
        distances=_adjusted_table(
            distances,
            "fact_set run_a run_b differs_in value low high n control resolution p_relations p",
            family=["fact_set"],
        ),
        correlations=_adjusted_table(
            correlations,
            "fact_set statistic run_a run_b differs_in value low high n control p",
            family=["fact_set", "statistic"],
        ),
        contrasts=_table(
            contrasts,
            "of from to fact_set statistic value low high n control n_pairs smallest largest between_seeds",
        ),
        notes=tuple(_notes(estimator)),
    )


# --- runs -------------------------------------------------------------------------------------------------


def _run_row(estimator: Estimator, run: ComparedRun) -> Row:
    """Return the properties of a run, and its numbers of compared facts."""
    model = run.provenance["model"]
    return {
        "run": run.name,
        "model": run.config.get("model", ""),
        "architecture": run.provenance["made_from"]["model"]["architecture"],
        "kind": model["kind"],
        "n_layers": model["n_layers"],
        "d_mlp": model["d_mlp"],
        "n_params": model["n_params"],
        "tags": ", ".join(f"{name}={value}" for name, value in run.tags.items()),
        "facts": len(run.facts),
        "equal": len(estimator.common),
        "shared": len(estimator.queried_by(estimator.runs)),
        "known_by_all": len(estimator.known_to(estimator.runs)),
        "own": len(estimator.known_to([run])),
        "path": str(run.path),
    }


def _notes(estimator: Estimator) -> list[str]:
    """Return what a reader of the tables should know."""
    runs = estimator.runs
    notes = []
    for run in runs:
        n_excluded = len(run.facts) - len(estimator.common)
        if n_excluded:
            notes.append(
                f"{run.name}: {n_excluded:,} of {len(run.facts):,} facts are not in all runs with the same templates."
            )
    if not estimator.known_to(runs):
        notes.append("No fact is known by all models: there are no rows of known_by_all.")

    for stage in REQUESTED:
        lacking = [run.name for run in runs if stage.name not in run.requested]
        if 0 < len(lacking) < len(runs):
            notes.append(f"The stage {stage.name} is not compared: it is missing in {', '.join(lacking)}.")

    keys = estimator.queried_by(runs)
    first_counts = runs[0].answers.loc[keys, "n_prompts"]
    means = []
    has_other_prompts = False
    for run in runs:
        counts = run.answers.loc[keys, "n_prompts"]
        means.append(f"{run.name} {counts.mean():.1f}")
        has_other_prompts |= bool((counts != first_counts).any())
    if has_other_prompts:
        notes.append(
            "The same facts have different prompts in different models, which accept different "
            f"ones (prompts per fact, on average: {', '.join(means)})."
        )

    origins = [run.provenance["made_from"] for run in runs]
    if _differ(origin["versions"] for origin in origins):
        notes.append(_precision_note("versions of libraries"))
    if _differ((origin["model"]["dtype"], origin["model"]["device"]) for origin in origins):
        notes.append(_precision_note("types of numbers or devices"))
    return notes


def _differ(values: Iterable[Any]) -> bool:
    first, *others = values
    return any(value != first for value in others)


def _precision_note(difference: str) -> str:
    return f"The runs were computed with different {difference}, which affects the last digits of numbers."


# --- one run ----------------------------------------------------------------------------------------------


def _value_rows(fact_set: str, estimates: Estimates) -> list[Row]:
    """Return the statistics of runs on a set of facts."""
    rows = []
    for (run, statistic, neuron_set), estimate in estimates.items():
        if neuron_set != "majority" and not _is_trivial(fact_set, statistic):
            rows.append(
                {
                    "fact_set": fact_set,
                    "statistic": statistic,
                    "run": run,
                    "neuron_set": neuron_set,
                    **estimate.row(),
                    "control": control_value(estimates, run, statistic, mean_depth=0.5),
                }
            )
    return sorted(rows, key=lambda row: STATISTICS.index(row["statistic"]))


def _with_neurons(keys: Sequence[str], runs: Sequence[ComparedRun]) -> list[str]:
    """Return the facts for which neurons were found in all of some runs."""
    keys = list(keys)
    for run in runs:
        keys = [key for key in keys if run.neurons["found"][key]]
    return keys


def _depth_rows(
    estimator: Estimator,
    fact_set: str,
    run: ComparedRun,
    keys: Sequence[str],
) -> list[Row]:
    """Return the share of the neurons of facts up to each layer."""
    keys = _with_neurons(keys, [run])
    if not keys:
        return []
    depths = np.arange(1, run.n_layers + 1) / run.n_layers
    shares = run.cumulative(keys, depths)
    drawn = estimator.ratios(shares, np.ones_like(shares), keys).drawn
    sizes = estimator.sizes(keys)
    rows = []
    for layer, depth in enumerate(depths.tolist()):
        estimate = Estimate(drawn=drawn[:, layer], sizes=sizes, bounds=SHARE, n=len(keys))
        rows.append(
            {
                "fact_set": fact_set,
                "run": run.name,
                "layer": layer,
                "depth": depth,
                **estimate.row(),
                "control": depth,
            }
        )
    return rows


# --- pairs of runs ----------------------------------------------------------------------------------------


def _difference_rows(
    estimator: Estimator,
    fact_set: str,
    pair: Pair,
    estimates: Estimates,
) -> list[Row]:
    """Return the differences of the statistics of two runs, with their tests."""
    rows: list[Row] = []
    tests: dict[tuple[str, int], list[tuple[Row, np.ndarray]]] = {}
    for statistic, neuron_set in _compared_statistics(fact_set, estimates):
        if (pair[1].name, statistic, neuron_set) not in estimates:
            continue
        names = pair[0].name, pair[1].name
        difference = _difference(estimates, names, statistic, neuron_set)
        row = {
            "fact_set": fact_set,
            "statistic": statistic,
            **_pair_columns(pair),
            **difference.row(),
            "control": _control_difference(estimates, names, statistic),
        }
        rows.append(row)
        for test, contributions in (("p_relations", difference.relations), ("p", difference.facts)):
            if contributions is not None:
                tests.setdefault((test, len(contributions)), []).append((row, contributions))
    # Contributions of the same length share their sign patterns.
    for (test, _), group in tests.items():
        contributions = np.stack([column for _, column in group], axis=1)
        p_values = permutation.sign_flip_p(
            contributions,
            n_permutations=estimator.n_permutations,
            seed=estimator.seed,
        )
        for (row, _), p in zip(group, p_values.tolist(), strict=True):
            row[test] = p
    return rows


def _distance_rows(
    estimator: Estimator,
    fact_set: str,
    pair: Pair,
    keys: Sequence[str],
) -> list[Row]:
    """Return the distance between the depth distributions of two models."""
    keys = _with_neurons(keys, pair)
    if not keys:
        return []
    a, b = pair
    edges_a = np.arange(a.n_layers + 1) / a.n_layers
    edges_b = np.arange(b.n_layers + 1) / b.n_layers
    depths = np.unique(np.concatenate([edges_a, edges_b]))
    difference = b.cumulative(keys, depths) - a.cumulative(keys, depths)
    bootstrap = estimator.ratios(difference, np.ones_like(difference), keys)
    control, p = permutation.distance_under_exchange(
        bootstrap.contributions,
        depths,
        n_permutations=estimator.n_permutations,
        seed=estimator.seed,
    )
    by_relation = estimator.by_relation(bootstrap.contributions, keys)
    _, p_relations = permutation.distance_under_exchange(
        by_relation,
        depths,
        n_permutations=estimator.n_permutations,
        seed=estimator.seed,
    )
    resolution = 0.0
    if a.n_layers != b.n_layers:
        resolution = (1 / a.n_layers + 1 / b.n_layers) / 2
    drawn = permutation.distance(bootstrap.drawn, depths)
    estimate = Estimate(drawn=drawn, sizes=estimator.sizes(keys), bounds=SHARE, n=len(keys))
    return [
        {
            "fact_set": fact_set,
            **_pair_columns(pair),
            **estimate.row(),
            "control": control,
            "resolution": resolution,
            "p_relations": p_relations,
            "p": p,
        }
    ]


def _correlation_rows(
    estimator: Estimator,
    fact_set: str,
    pair: Pair,
    keys: Sequence[str],
) -> list[Row]:
    """Return the rank correlations between the effects in two models."""
    rows: list[Row] = []
    if not keys:
        return rows
    a, b = pair
    for statistic in RANKED:
        found = a.change_ratios(keys, statistic, "found"), b.change_ratios(keys, statistic, "found")
        random = a.change_ratios(keys, statistic, "random"), b.change_ratios(keys, statistic, "random")
        defined = ~np.isnan([*found, *random]).any(0)
        relations = estimator.relations(keys)[defined]
        correlation = permutation.rank_correlation(
            found[0][defined],
            found[1][defined],
            relations,
            n_resamples=estimator.n_resamples,
            n_permutations=estimator.n_permutations,
            seed=estimator.seed,
        )
        control = permutation.rank_correlation(
            random[0][defined],
            random[1][defined],
            relations,
            n_resamples=estimator.n_resamples,
            n_permutations=1,  # the control is not tested
            seed=estimator.seed,
        )
        rows.append(
            {
                "fact_set": fact_set,
                "statistic": statistic,
                **_pair_columns(pair),
                **correlation,
                "n": int(defined.sum()),
                "control": control["value"],
            }
        )
    return rows


def _contrast_rows(fact_set: str, pairs: Sequence[Pair], estimates: Estimates) -> list[Row]:
    """Return the mean differences of pairs of runs that differ in one tag only."""
    groups: dict[tuple[str, Any, Any], list[tuple[str, str]]] = {}
    for pair in pairs:
        tags = _differing_tags(pair)
        if len(tags) == 1:
            tag = tags[0]
            a, b = sorted(pair, key=lambda run: _tag_order(run.tags.get(tag, "")))
            contrast = (tag, a.tags.get(tag, ""), b.tags.get(tag, ""))
            groups.setdefault(contrast, []).append((a.name, b.name))
    seed_pairs: list[tuple[str, str]] = []
    for (tag, _, _), group in groups.items():
        if tag == "seed":
            seed_pairs += group

    rows: list[Row] = []
    for contrast in sorted(groups, key=lambda contrast: list(map(_tag_order, contrast))):
        tag, start, end = contrast
        for statistic, neuron_set in _compared_statistics(fact_set, estimates):
            rows.append(
                {
                    "of": tag,
                    "from": start,
                    "to": end,
                    "fact_set": fact_set,
                    "statistic": statistic,
                    **_mean_difference(estimates, groups[contrast], statistic, neuron_set),
                    "between_seeds": _mean_size(estimates, seed_pairs, statistic, neuron_set),
                }
            )
    return rows


def _mean_difference(
    estimates: Estimates,
    pairs: Sequence[tuple[str, str]],
    statistic: str,
    neuron_set: str,
) -> Row:
    """Return the mean of a statistic's difference over pairs of runs, with its range."""
    differences = [_difference(estimates, names, statistic, neuron_set) for names in pairs]
    values = [difference.value for difference in differences]
    controls = [_control_difference(estimates, names, statistic) for names in pairs]
    mean = Estimate(
        drawn=np.mean([difference.drawn for difference in differences], axis=0),
        sizes=differences[0].sizes,
        n=differences[0].n,
    )
    return {
        **mean.row(),
        "control": float(np.mean(controls)),
        "n_pairs": len(pairs),
        "smallest": min(values),
        "largest": max(values),
    }


def _mean_size(
    estimates: Estimates,
    pairs: Sequence[tuple[str, str]],
    statistic: str,
    neuron_set: str,
) -> float:
    """Return the mean absolute difference of a statistic over pairs of runs; NaN without pairs."""
    if not pairs:
        return np.nan
    sizes = []
    for names in pairs:
        sizes.append(abs(_difference(estimates, names, statistic, neuron_set).value))
    return float(np.mean(sizes))


def _is_trivial(fact_set: str, statistic: str) -> bool:
    """Return whether the selection of the facts fixes a statistic."""
    return statistic == "known" and fact_set != "shared"


def _compared_statistics(fact_set: str, estimates: Estimates) -> list[tuple[str, str]]:
    """Return the compared statistics with their neuron sets, which are the found neurons or none."""
    compared: dict[tuple[str, str], None] = {}
    for _, statistic, neuron_set in estimates:
        if neuron_set in ("", "found") and not _is_trivial(fact_set, statistic):
            compared[statistic, neuron_set] = None
    return sorted(compared, key=lambda name: STATISTICS.index(name[0]))


def _difference(
    estimates: Estimates,
    names: tuple[str, str],
    statistic: str,
    neuron_set: str,
) -> Estimate:
    a, b = names
    return estimates[b, statistic, neuron_set].minus(estimates[a, statistic, neuron_set])


def _control_difference(estimates: Estimates, names: tuple[str, str], statistic: str) -> float:
    a, b = names
    control_of_a = control_value(estimates, a, statistic, mean_depth=0.0, consistent=0.0)
    control_of_b = control_value(estimates, b, statistic, mean_depth=0.0, consistent=0.0)
    return control_of_b - control_of_a


def _pair_columns(pair: Pair) -> dict[str, str]:
    a, b = pair
    return {"run_a": a.name, "run_b": b.name, "differs_in": ", ".join(_differing_tags(pair))}


def _differing_tags(pair: Pair) -> list[str]:
    a, b = pair
    differing = []
    for name in dict.fromkeys([*a.tags, *b.tags]):
        if a.tags.get(name) != b.tags.get(name):
            differing.append(name)
    return differing


def _tag_order(value: Any) -> tuple[bool, float, str]:
    """Return the sort key of a tag's value: numbers first, as numbers."""
    if isinstance(value, str):
        return True, 0.0, value
    return False, value, str(value)


# --- tables -----------------------------------------------------------------------------------------------


def _table(rows: Sequence[Mapping[str, Any]], columns: str) -> "pd.DataFrame":
    """Return rows as a table with the given columns, also if there are no rows."""
    import pandas as pd

    return pd.DataFrame(rows, columns=columns.split())


def _adjusted_table(
    rows: Sequence[Mapping[str, Any]],
    columns: str,
    *,
    family: Sequence[str],
) -> "pd.DataFrame":
    """Return a table in which each ``p`` is followed by one adjusted for all pairs of a family (Holm)."""
    table = _table(rows, columns)
    for name in ("p_relations", "p"):
        if name in table:
            groups = table.groupby(list(family), sort=False)[name]
            adjusted = groups.transform(lambda p: permutation.holm(p.tolist()))
            table.insert(list(table).index(name) + 1, f"{name}_holm", adjusted)
    return table
