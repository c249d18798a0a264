"""Language-independent neurons: those that a fact has in several languages, beside shuffled facts.

A fact in several languages is several ``Fact``s, its *versions*, with one relation and one ``uid``. With S_l the
refined set of its version in language l, a neuron is

    language-independent     in S_l of at least k of its languages, by default of all
    language-specific        in S_l of one language alone

(Chen et al., AAAI 2024, "Journey to the Center of the Knowledge Neurons", take all). Two languages can share neurons
that have nothing to do with the fact: those of its relation, of numbers, of any answer at all. So the number of
language-independent neurons is compared with shuffled facts, whose versions are those of different facts of the
relation, drawn at random. A fact is *shared* if its number is above all but a share ``alpha`` of them:

    p = (1 + number of shuffled facts with at least this number) / (1 + number of shuffled facts)     shared: p <= alpha

With neurons that know nothing of facts at most a share alpha of the facts would be called shared.
"""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from kn_lens._core import defaults
from kn_lens._core.bootstrap import bootstrap_tables, fact_mean, fact_share
from kn_lens._core.checks import check_share
from kn_lens._core.display import ROWS_SHOWN, table_html
from kn_lens._core.wording import counted
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact, check_identity, versions_by_identity
from kn_lens.neurons.consistency import ALPHA, N_SHUFFLED, mean_jaccard
from kn_lens.neurons.neuron_set import Neuron, NeuronSet, SetsByFact, check_neurons_by_fact

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("relation", "subject", "object", "languages", "n_independent", "null_mean", "p", "shared")
"""Columns of the table that notebooks show."""

Versions = Mapping[str, Fact]
"""The versions of one fact, by language."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageNeurons:
    """Which neurons facts have in several languages.

    Attributes:
        table: one row for each fact with versions in at least two languages: ``relation``, ``uid``; ``subject``,
            ``object`` and ``key`` of its first version; ``languages``, separated by blanks; ``n_neurons``, the mean
            size of its sets; ``n_independent``, the number of language-independent neurons; ``null_mean``, the mean of
            that number over shuffled facts; ``p`` and ``shared``; ``jaccard``, the mean Jaccard index of its pairs of
            sets, and ``null_jaccard``, that of shuffled facts. Empty sets have no Jaccard index. In a relation with
            fewer facts than languages there are no shuffled facts, and ``p`` is NaN.
        pairs: one row for each two languages, ``language`` and ``other``: ``n_facts`` with neurons in both, the mean
            Jaccard index ``jaccard`` of their sets, and ``null_jaccard``, that of different facts of a relation.
        independent: the language-independent neurons of each version: the same ones for all versions of a fact.
        specific: the neurons that each version alone has.
        found: the sets that were compared.
        min_languages: the number k of languages of an independent neuron; None: all of the fact's.
        alpha: the level of the test of each fact.
    """

    table: "pd.DataFrame"
    pairs: "pd.DataFrame"
    independent: SetsByFact
    specific: SetsByFact
    found: SetsByFact
    min_languages: int | None
    alpha: float

    def __repr__(self) -> str:
        return f"LanguageNeurons({self._summary()})"

    def _repr_html_(self) -> str:
        rows = self.table[list(SHOWN)].head(ROWS_SHOWN).to_numpy().tolist()
        cells = [[f"{cell:.3g}" if isinstance(cell, float) else cell for cell in row] for row in rows]
        return table_html(self._summary(), SHOWN, cells, n_rows=len(self.table))

    def _summary(self) -> str:
        tested = int(np.isfinite(self.table["p"].to_numpy()).sum())
        shared = int(self.table["shared"].to_numpy().sum())
        return f"{counted(len(self.table), 'fact')}, {shared:,} of {tested:,} tested share neurons between languages"

    def of_language(self, language: str) -> SetsByFact:
        """Return for each version the set that was found in another language: what ``controlled_effects`` takes.

        So the neurons of a fact that one language finds are suppressed where it is asked in the others. Facts without
        a version in ``language`` are left out.

        Raises:
            ArgumentError: no set was found in this language.
        """
        by_identity = {(fact.relation, fact.uid): self.found[fact] for fact in self.found if fact.language == language}
        if not by_identity:
            known = list(dict.fromkeys(fact.language for fact in self.found))
            near = did_you_mean(language, known)
            raise ArgumentError(f"No neurons were found in {language!r}; there are {', '.join(known)}.{near}")
        sets = SetsByFact()
        for fact in self.found:
            if (fact.relation, fact.uid) in by_identity:
                sets[fact] = by_identity[fact.relation, fact.uid]
        return sets

    def by_layer(self) -> "pd.DataFrame":
        """Return how many neurons a version has in each layer, on average over versions.

        Returns:
            One row for each ``layer`` with neurons: ``found``, ``independent`` and ``specific``.
        """
        import pandas as pd

        kinds = {"found": self.found, "independent": self.independent, "specific": self.specific}
        counts = {}
        for name, sets in kinds.items():
            counts[name] = Counter(neuron.layer for neurons in sets.values() for neuron in neurons)
        layers = sorted(counts["found"])
        rows = []
        for layer in layers:
            rows.append({"layer": layer, **{name: count[layer] / len(self.found) for name, count in counts.items()}})
        return pd.DataFrame(rows, columns=["layer", *kinds])

    def summary(self, *, n_resamples: int = defaults.N_RESAMPLES, seed: int = 0) -> "pd.DataFrame":
        """Return statistics over the facts that were tested, then over relations, with bootstrap intervals over facts.

        Returns:
            A row for each ``measure`` with ``value, low, high, n, control``: ``shared``, the share of facts that share
            neurons, with ``alpha`` as its control; ``n_independent`` and ``jaccard``, with those of shuffled facts.
        """
        tested = self.table.loc[self.table["p"].notna()]
        tested = tested.assign(shared=tested["shared"].astype(float), of="facts")
        controls = {"n_independent": "null_mean", "jaccard": "null_jaccard"}
        statistics = {
            "shared": fact_share("shared"),
            "n_independent": fact_mean("n_independent"),
            "null_mean": fact_mean("null_mean"),
        }
        for name in ("jaccard", "null_jaccard"):
            has_index = tested[name].notna()
            tested = tested.assign(**{name: tested[name].fillna(0.0), f"has_{name}": has_index.astype(float)})
            statistics[name] = fact_share(name, f"has_{name}")
        summary = bootstrap_tables(tested, ["of"], statistics, n_resamples=n_resamples, seed=seed).drop(columns="of")
        value = dict(zip(summary["measure"], summary["value"], strict=True))
        kept = summary.loc[~summary["measure"].isin(list(controls.values()))].reset_index(drop=True)
        control = [value[controls[name]] if name in controls else self.alpha for name in kept["measure"]]
        return kept.assign(control=control)


def language_neurons(
    neurons_by_fact: Mapping[Fact, NeuronSet],
    *,
    min_languages: int | None = None,
    alpha: float = ALPHA,
    n_shuffled: int = N_SHUFFLED,
    seed: int = 0,
) -> LanguageNeurons:
    """Compare the neurons of facts between languages, beside those of shuffled facts.

    See ``kn_lens.neurons.languages`` for the definitions. No model runs.

    Args:
        neurons_by_fact: refined sets of facts in several languages, of one model: each fact with its ``language``, and
            a ``uid`` that its versions share. Shuffled facts are drawn from these facts, so that p cannot be small
            where a relation has few.
        min_languages: the number of languages, at least 2, in which a language-independent neuron is found; None is all
            in which the fact has a version.
        alpha: level of the test of each fact.
        n_shuffled: number of shuffled facts; p is at least 1 / (1 + this number).
        seed: of the shuffled facts; those of a relation do not depend on the other relations.

    Raises:
        ArgumentError: a fact without language or ``uid``, two versions in one language, no fact with versions in two
            languages, or a number out of range.

    Example:
        >>> import kn_lens as kn
        >>> english = kn.Fact("Austria", "P36", "Vienna", uid="AT", language="en")
        >>> german = kn.Fact("Österreich", "P36", "Wien", uid="AT", language="de")
        >>> sets = {english: kn.NeuronSet([(2, 5), (3, 1)]), german: kn.NeuronSet([(2, 5)])}
        >>> found = kn.language_neurons(sets)
        >>> found.independent[german], found.specific[english]
        (NeuronSet(['L2N5']), NeuronSet(['L3N1']))
    """
    import pandas as pd

    check_neurons_by_fact(neurons_by_fact)
    check_share("alpha", alpha)
    numbers_from = {"n_shuffled": (n_shuffled, 1)}
    if min_languages is not None:
        numbers_from["min_languages"] = (min_languages, 2)
    for name, (value, least) in numbers_from.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(f"{name}={value!r}; expected a whole number from {least}.")
    for fact in neurons_by_fact:
        check_identity(fact)
    by_identity = versions_by_identity(neurons_by_fact)
    compared = {identity: versions for identity, versions in by_identity.items() if len(versions) > 1}
    if not compared:
        raise ArgumentError(
            "No fact has versions in two languages; expected facts of one relation and uid in several, such as those "
            "of kn_lens.FactSet.world(languages=['en', 'de'])."
        )
    relations: dict[str, list[Versions]] = {}
    for (relation, _), versions in compared.items():
        relations.setdefault(relation, []).append(versions)
    independent, specific = SetsByFact(), SetsByFact()
    rows: dict[tuple[str, str], dict[str, object]] = {}
    for relation, of_relation in relations.items():
        shuffled = _Shuffled(relation, of_relation, neurons_by_fact, n_shuffled, min_languages, seed)
        for versions in of_relation:
            first = next(iter(versions.values()))
            sets = [frozenset(neurons_by_fact[fact]) for fact in versions.values()]
            n_found = Counter(neuron for neurons in sets for neuron in neurons)
            shared = _of_languages(n_found, min_languages or len(versions))
            for fact, neurons in zip(versions.values(), sets, strict=True):
                independent[fact] = NeuronSet(shared)
                specific[fact] = NeuronSet(neuron for neuron in neurons if n_found[neuron] == 1)
            numbers, indices = shuffled.of(tuple(versions))
            p = np.nan
            if len(numbers):
                p = float((1 + (numbers >= len(shared)).sum()) / (1 + len(numbers)))
            rows[relation, first.uid] = {
                "relation": relation,
                "uid": first.uid,
                "subject": first.subject,
                "object": first.object,
                "key": first.key,
                "languages": " ".join(versions),
                "n_neurons": float(np.mean([len(neurons) for neurons in sets])),
                "n_independent": len(shared),
                "null_mean": float(numbers.mean()) if len(numbers) else np.nan,
                "p": p,
                "shared": p <= alpha,
                "jaccard": _jaccard(sets),
                "null_jaccard": float(np.nanmean(indices)) if np.isfinite(indices).any() else np.nan,
            }
    found = SetsByFact()
    for versions in compared.values():
        for fact in versions.values():
            found[fact] = neurons_by_fact[fact]
    return LanguageNeurons(
        table=pd.DataFrame([rows[identity] for identity in compared]),
        pairs=_pairs(relations, neurons_by_fact),
        independent=independent,
        specific=specific,
        found=found,
        min_languages=min_languages,
        alpha=alpha,
    )


def _of_languages(n_found: Mapping[Neuron, int], min_languages: int) -> list[Neuron]:
    return [neuron for neuron, number in n_found.items() if number >= min_languages]


def _jaccard(sets: Sequence[frozenset[Neuron]]) -> float:
    """Return the mean Jaccard index of the sets that are not empty."""
    return mean_jaccard([neurons for neurons in sets if neurons])


def _pairs(relations: Mapping[str, Sequence[Versions]], neurons_by_fact: Mapping[Fact, NeuronSet]) -> "pd.DataFrame":
    """Return the mean Jaccard index of each two languages: of the same facts, and of different facts of a relation."""
    import pandas as pd

    languages: dict[str, None] = {}
    for of_relation in relations.values():
        for versions in of_relation:
            languages |= dict.fromkeys(versions)
    rows = []
    for language, other in combinations(languages, 2):
        same: list[float] = []
        different: list[float] = []
        for of_relation in relations.values():
            both = [versions for versions in of_relation if language in versions and other in versions]
            sets = [frozenset(neurons_by_fact[versions[language]]) for versions in both]
            other_sets = [frozenset(neurons_by_fact[versions[other]]) for versions in both]
            for number, neurons in enumerate(sets):
                for other_number, other_neurons in enumerate(other_sets):
                    if neurons and other_neurons:
                        indices = same if number == other_number else different
                        indices.append(mean_jaccard([neurons, other_neurons]))
        rows.append(
            {
                "language": language,
                "other": other,
                "n_facts": len(same),
                "jaccard": float(np.mean(same)) if same else np.nan,
                "null_jaccard": float(np.mean(different)) if different else np.nan,
            }
        )
    return pd.DataFrame(rows)


class _Shuffled:
    """Shuffled facts of a relation; facts with versions in the same languages have the same ones."""

    def __init__(
        self,
        relation: str,
        facts: Sequence[Versions],
        neurons_by_fact: Mapping[Fact, NeuronSet],
        n: int,
        min_languages: int | None,
        seed: int,
    ) -> None:
        self._relation = relation
        self._n = n
        self._min_languages = min_languages
        self._seed = seed
        self._sets: dict[str, dict[int, frozenset[Neuron]]] = {}
        for number, versions in enumerate(facts):
            for language, fact in versions.items():
                self._sets.setdefault(language, {})[number] = frozenset(neurons_by_fact[fact])
        self._drawn: dict[tuple[str, ...], tuple[Float[np.ndarray, " shuffled"], Float[np.ndarray, " shuffled"]]] = {}

    def of(self, languages: tuple[str, ...]) -> tuple[Float[np.ndarray, " shuffled"], Float[np.ndarray, " shuffled"]]:
        """Return the numbers of independent neurons and the Jaccard indices of shuffled facts in these languages."""
        languages = tuple(sorted(languages))
        if languages not in self._drawn:
            self._drawn[languages] = self._draw(languages)
        return self._drawn[languages]

    def _draw(
        self, languages: tuple[str, ...]
    ) -> tuple[Float[np.ndarray, " shuffled"], Float[np.ndarray, " shuffled"]]:
        if min(len(self._sets[language]) for language in languages) < len(languages):
            return np.empty(0), np.empty(0)
        names = "\n".join([self._relation, *languages])
        generator = np.random.default_rng([self._seed, zlib.crc32(names.encode())])
        numbers, indices = [], []
        for _ in range(self._n):
            drawn: dict[int, frozenset[Neuron]] = {}
            for language in languages:
                candidates = [number for number in self._sets[language] if number not in drawn]
                number = candidates[int(generator.integers(len(candidates)))]
                drawn[number] = self._sets[language][number]
            sets = list(drawn.values())
            n_found = Counter(neuron for neurons in sets for neuron in neurons)
            numbers.append(float(len(_of_languages(n_found, self._min_languages or len(languages)))))
            indices.append(_jaccard(sets))
        return np.array(numbers), np.array(indices)
