"""Models compared on the facts that they have in common, from the records of their runs; no model is loaded.

    kn-lens compare run_a run_b size=runs/large --out comparison/

Facts are matched by key and by their templates. Neurons of different models are never matched: the neuron of one index
has nothing to do with that of another model. What is compared is how many neurons facts have, how deep they lie, how
many facts share, and what becomes of the answers when they are switched off and up.

Which facts:

    shared          equal in all runs, and asked of all models
    known_by_all    those of them that all models know: right in at least half of the prompts
    known_by_both   those that both models of a pair know, where there are more than two
    own             those that a model knows, whether the others do or not

Statistics, each the mean over relations but for those marked (*), which are over all facts together:

    accuracy            share of prompts answered rightly; control: to give always the relation's most frequent object
    nll                 -log P(object) in nats, mean over prompts
    known (*)           share of facts known; control as for accuracy
    neurons_per_fact (*), shared_within (*), shared_across (*)     as in ``overlap_table``
    mean_depth          of facts with neurons, each counting alike: (l + 1/2) / L for layer l of L; control: 1/2
    suppress_own, suppress_other, amplify_own, amplify_other       change ratios, as in ``effect_table``

Elsewhere the control is random neurons, as many as found in each layer. Intervals (95%) come from drawing each
relation's facts anew, with replacement, alike for all models, so that differences are paired: they say how much depends
on which facts were taken, models and relations being given. There is none of fewer than 8 facts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from kn_lens import _compared_rows as rows
from kn_lens._compared_cells import Estimator
from kn_lens._compared_runs import StrPath, read_runs
from kn_lens._whole_files import write_whole
from kn_lens.errors import ArgumentError
from kn_lens.experiments.run_directory import PROVENANCE

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Tables of a comparison. Every number has its ``n``, its 95% interval ``low`` to ``high``, and its ``control``.

    Attributes:
        runs: a row for each run: what its model is, and how many of its facts are compared.
        values: a row for each run, set of ``facts``, ``statistic`` and kind of ``neurons``: ``value``; ``n``, facts or
            pairs of them.
        depth: where the found neurons lie: for each run, set of facts and ``layer``, the share (``value``) of a fact's
            neurons in this layer or below, that is down to ``depth`` (0 to 1); control: an even spread.
        differences: for each pair of runs, set of facts and statistic: ``value``, that of ``run_b`` minus that of
            ``run_a``, for found neurons; ``control``, the same for random ones. ``p_relations``: a sign-flip test; the
            null hypothesis is that it is chance which of the two models a relation's values came from, whose facts
            need not be independent: what would hold for other relations too. (For 11 relations it cannot be below
            0.001; for fewer than 6 there is none, as it could not be below 0.05.) ``p``: the same for facts, taken
            to be independent of each other. They are not where models differ by relation: it is then far too small.
            Sharing is between facts: it has no ``p``, and ``shared_across`` neither. ``p_relations_holm`` and
            ``p_holm`` hold for all pairs of a statistic together (Holm). ``differs_in``: the tags that tell the two
            apart.
        distances: for each pair and set of facts, the Wasserstein distance between the distributions of depth, in
            units of depth. Layer l of L stands for depths l/L to (l+1)/L; what lies within is not known, so that for
            models of different depth distances below ``resolution`` mean nothing. The bootstrap's interval lies above 0
            even for equal distributions: judge by ``p_relations`` and by the control, the mean distance if it were
            chance which model a fact's neurons are of.
        correlations: for each pair, set of facts and effect, the rank correlation, within relations, of the facts'
            change ratios in one model with those in the other: whether the same facts depend on their neurons most.
            ``p``: within a relation it is chance which fact goes with which.
        contrasts: differences of pairs of runs that differ in one tag alone, ``of`` from one value ``to`` another:
            their mean, the ``smallest`` and the ``largest`` of ``n_pairs``; ``between_seeds``: the mean size of the
            difference of runs that differ in the tag ``seed`` alone. The interval takes the models as given.
        notes: what was left out, and why.
    """

    runs: "pd.DataFrame"
    values: "pd.DataFrame"
    depth: "pd.DataFrame"
    differences: "pd.DataFrame"
    distances: "pd.DataFrame"
    correlations: "pd.DataFrame"
    contrasts: "pd.DataFrame"
    notes: tuple[str, ...]

    @property
    def tables(self) -> "dict[str, pd.DataFrame]":
        """The tables by name."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "notes"}

    def write_csv(self, folder: StrPath) -> None:
        """Write each table to ``NAME.csv`` of a folder, which is made if need be.

        Raises:
            ArgumentError: the folder is a file, or a run directory.
        """
        folder = check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self.tables.items():
            write_whole(folder / f"{name}.csv", table.to_csv(index=False))


def check_folder(folder: StrPath) -> Path:
    """Return the folder as a path, if tables can go there.

    Raises:
        ArgumentError: it is a file, or a run directory.
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
    n_resamples: int = 1000,
    n_permutations: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare models on the facts that they have in common, from the directories of their finished runs.

    Args:
        runs: directories of ``kn-lens reproduce``, with the stages ``answers`` and ``effects`` done; or names for them.
        n_resamples: bootstrap samples.
        n_permutations: of tests, where the patterns are too many to go through all.
        seed: of what is drawn.

    Raises:
        ArgumentError: fewer than two runs, one given twice, two of one name, or a directory of something else.
        DataError: a run is not finished (the command that ends it is named), damaged, or of another version than
            another; or the runs have no fact in common.

    Example:
        >>> import kn_lens as kn
        >>> comparison = kn.compare_runs({"masked": "run_a", "causal": "run_b"})   # doctest: +SKIP
        >>> comparison.differences.query("statistic == 'suppress_own'")            # doctest: +SKIP
    """
    if n_resamples < 1 or n_permutations < 1:
        raise ArgumentError(f"n_resamples={n_resamples}, n_permutations={n_permutations}; expected 1 or more of each.")
    by = Estimator(runs=tuple(read_runs(runs)), n_resamples=n_resamples, n_permutations=n_permutations, seed=seed)
    return _compared(by)


def _compared(by: Estimator) -> Comparison:
    runs, pairs = by.runs, list(combinations(by.runs, 2))
    common = by.known_to(runs)
    of_all = {
        "shared": by.cells(runs, by.asked_of(runs), answered=True),
        "known_by_all": by.cells(runs, common),
    }
    own = {run: by.known_to([run]) for run in runs}
    cells = {(facts, pair): of_set for facts, of_set in of_all.items() for pair in pairs}
    known = {("known_by_all", pair): common for pair in pairs}
    if len(runs) > 2:
        both = {("known_by_both", pair): by.known_to(pair) for pair in pairs}
        cells |= {(facts, pair): by.cells(pair, keys) for (facts, pair), keys in both.items()}
        known |= both
    of_own = [row for run, keys in own.items() for row in rows.value_rows("own", by.cells([run], keys))]
    depth = [("known_by_all", run, common) for run in runs] + [("own", run, keys) for run, keys in own.items()]
    return Comparison(
        runs=rows.table(
            [rows.run_row(by, run) for run in runs],
            "run model architecture kind n_layers d_mlp n_params tags facts equal shared known_by_all own path",
        ),
        values=rows.table(
            [*(row for facts, of_set in of_all.items() for row in rows.value_rows(facts, of_set)), *of_own],
            "facts statistic run neurons value low high n control",
        ),
        depth=rows.table(
            [row for facts, run, keys in depth for row in rows.depth_rows(by, facts, run, keys)],
            "facts run layer depth value low high n control",
        ),
        differences=rows.with_holm(
            [row for (facts, pair), of_set in cells.items() for row in rows.difference_rows(by, facts, pair, of_set)],
            "facts statistic run_a run_b differs_in value low high n control p_relations p",
            ["facts", "statistic"],
        ),
        distances=rows.with_holm(
            [row for (facts, pair), keys in known.items() for row in rows.distance_rows(by, facts, pair, keys)],
            "facts run_a run_b differs_in value low high n control resolution p_relations p",
            ["facts"],
        ),
        correlations=rows.with_holm(
            [row for (facts, pair), keys in known.items() for row in rows.correlation_rows(by, facts, pair, keys)],
            "facts statistic run_a run_b differs_in value low high n control p",
            ["facts", "statistic"],
        ),
        contrasts=rows.table(
            [row for facts, of_set in of_all.items() for row in rows.contrast_rows(facts, pairs, of_set)],
            "of from to facts statistic value low high n control n_pairs smallest largest between_seeds",
        ),
        notes=tuple(rows.notes(by)),
    )
