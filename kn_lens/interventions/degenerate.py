"""Degenerate sets: subsets of a fact's neurons each of which suffices for the answer.

Chen et al. (AAAI 2024, "Journey to the Center of the Knowledge Neurons") call neurons degenerate that hold one fact
together: the model answers without any of them, and no longer without all. Let N be the neurons of a fact, and *given*
a truth value for each subset S of N that is suppressed. With the criterion of the answer, given(S) is

    rank 0 in at least half of the prompts                          the answer stays the most probable one
    mean P(answer | S suppressed) >= share * mean P(answer)         with ``share``: the answer keeps this share

The answer is *taken* by S if it is given without any suppression, and not given(S). A subset S *suffices* if the answer
is given with N - S suppressed: of the neurons of the fact, S alone are left. Then

    smallest      the smallest subset that takes the answer; of several of this size the one that leaves it least
                  probable. If it suffices too, it is all that the answer needs of N.
    sufficient    as many subsets as possible that suffice, with no neuron in common; of several such families one with
                  the fewest neurons. Only where N takes the answer: where it does not, the answer needs none of N.
    degenerate    a fact of which two or more such subsets are found

With up to ``enumerate_up_to`` neurons all subsets are measured, and both answers are exact. With more the search is
greedy: it adds the neuron that brings the answer closest to the goal until the goal is reached, and then drops those
that are not needed. Such a set takes the answer, or suffices, and none of its neurons can be left out; but there may be
smaller ones, and more that suffice. Nothing is assumed of given: suppressing more may also bring an answer back.

The controls are found by the same search, among as many random neurons of the same layers, and among as many of highest
activation. So they have the same choice of subsets.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens._core import defaults
from kn_lens._core.bootstrap import bootstrap_tables, fact_mean, fact_share
from kn_lens._core.checks import check_share
from kn_lens._core.display import ROWS_SHOWN, table_html
from kn_lens._core.progress import draws_progress
from kn_lens._core.wording import counted
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import Budget, HookedModel, Host, checked_host, exclusive
from kn_lens.interventions.effects import check_facts, fact_columns, random_controls
from kn_lens.interventions.hooks import Suppress
from kn_lens.interventions.scoring import Change, Progress, Ticks, is_known, score_answers_under
from kn_lens.neurons import NeuronSet, check_neurons_by_fact, prompts_by_fact
from kn_lens.prompts import PromptBatch, check_prompts, host_for

if TYPE_CHECKING:
    import pandas as pd

ENUMERATE_UP_TO = 8
"""Number of neurons up to which all subsets are measured by default: 256 of them."""
ENUMERATE_AT_MOST = 16
"""Largest number of neurons whose subsets may all be measured."""
ITEMS_AT_ONCE = 1 << 14
"""Pairs of a prompt and a subset that are measured in one call, roughly."""


# --- search -----------------------------------------------------------------------------------------------
# A subset of n neurons is a number of n bits. A search yields subsets to suppress and is sent what is measured.


class Measured(NamedTuple):
    """What a subset leaves of the answer when it is suppressed.

    Attributes:
        prob: the mean probability of the answer over the prompts.
        given: whether the answer is still given.
    """

    prob: float
    given: bool


class Found(NamedTuple):
    """The subsets of a search; ``smallest`` is None where no subset takes the answer."""

    smallest: int | None
    sufficient: tuple[int, ...]


Search = Generator[Sequence[int], Sequence[Measured], Found]


def enumerate_subsets(n: int) -> Search:
    """Measure all subsets of n neurons, in one round."""
    subsets = range(1 << n)
    measured = yield subsets
    whole = len(subsets) - 1
    if not measured[0].given:
        return Found(None, ())
    taking = [subset for subset in subsets if not measured[subset].given]
    smallest = min(taking, key=lambda subset: (subset.bit_count(), measured[subset].prob), default=None)
    sufficient = ()
    if not measured[whole].given:
        sufficient = most_disjoint([whole ^ subset for subset in subsets if measured[subset].given], n)
    return Found(smallest, sufficient)


def grow_subsets(n: int) -> Search:
    """Find subsets greedily, in about n^2 / 2 measurements for each at most, and fewer where they are small."""
    whole = (1 << n) - 1
    clean, silent = yield [0, whole]
    if not clean.given or silent.given:
        return Found(None, ())
    smallest = yield from _grow(whole, 0, given=False)
    yield [whole ^ smallest]  # for the result
    sufficient: list[int] = []
    left = whole
    while left:
        (alone,) = yield [whole ^ left]
        if not alone.given:
            break
        chosen = yield from _grow(left, whole, given=True)
        sufficient.append(chosen)
        left ^= chosen
    return Found(smallest, tuple(sufficient))


def _grow(candidates: int, others: int, *, given: bool) -> Generator[Sequence[int], Sequence[Measured], int]:
    """Return some of the candidates that reach a goal together, none of which can be left out.

    Args:
        candidates: neurons that reach the goal all together.
        others: suppressed are the chosen neurons (0), or all neurons but these (all neurons).
        given: the goal: whether the answer is given.
    """

    def best(measured: Sequence[Measured]) -> tuple[int, bool]:
        """Return which of some measurements is closest to the goal, or the furthest beyond, and whether it is there."""
        order = [(one.given == given, one.prob if given else -one.prob) for one in measured]
        position = max(range(len(order)), key=order.__getitem__)
        return position, order[position][0]

    chosen = 0
    reached = False
    while not reached:
        bits = list(_bits(candidates & ~chosen))
        position, reached = best((yield [(chosen | bit) ^ others for bit in bits]))
        chosen |= bits[position]
    while chosen & (chosen - 1):  # more than one
        bits = list(_bits(chosen))
        position, reached = best((yield [(chosen ^ bit) ^ others for bit in bits]))
        if not reached:
            break
        chosen ^= bits[position]
    return chosen


def most_disjoint(subsets: Sequence[int], n: int) -> tuple[int, ...]:
    """Return as many subsets of n neurons as possible without a common neuron; of those, with the fewest neurons.

    >>> most_disjoint([0b011, 0b110, 0b100, 0b111], n=3)
    (3, 4)
    """
    minimal: list[int] = []
    for subset in sorted(subsets, key=int.bit_count):
        if not any(smaller & subset == smaller for smaller in minimal):
            minimal.append(subset)
    by_lowest: dict[int, list[int]] = {}
    for subset in minimal:
        by_lowest.setdefault(subset & -subset, []).append(subset)
    # The best family within each set of neurons, which may leave out its lowest neuron, or has one subset with it.
    best: list[tuple[int, ...]] = [()]
    for within in range(1, 1 << n):
        lowest = within & -within
        families = [best[within ^ lowest]]
        for subset in by_lowest.get(lowest, ()):
            if subset & within == subset:
                families.append((subset, *best[within ^ subset]))
        best.append(max(families, key=lambda family: (len(family), -sum(map(int.bit_count, family)))))
    return best[-1]


def _bits(subset: int) -> Iterator[int]:
    while subset:
        lowest = subset & -subset
        yield lowest
        subset ^= lowest


# --- results ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Degeneracy:
    """The subsets of one fact's neurons.

    Attributes:
        fact: the fact.
        neuron_set: ``found``, ``activation`` or ``random``: which neurons.
        neurons: all of them.
        n_prompts: number of prompts of the fact.
        exact: whether all subsets were measured.
        known: whether the answer is given with nothing suppressed. Where it is not, nothing can take it.
        taken: whether all neurons together take the answer.
        smallest: the smallest subset that takes the answer; None where there is none.
        smallest_suffices: whether this subset suffices too; None where there is none.
        sufficient: subsets without a common neuron each of which suffices.
        before: mean probability of the answer over the prompts.
        after: with all neurons suppressed.
        without_smallest: with the smallest subset suppressed; NaN where there is none.
        smallest_alone: with all neurons but the smallest subset suppressed; NaN where there is none.
    """

    fact: Fact
    neuron_set: str
    neurons: NeuronSet
    n_prompts: int
    exact: bool
    known: bool
    taken: bool
    smallest: NeuronSet | None
    smallest_suffices: bool | None
    sufficient: tuple[NeuronSet, ...]
    before: float
    after: float
    without_smallest: float
    smallest_alone: float

    @property
    def degenerate(self) -> bool:
        """Whether two or more subsets, without a common neuron, each suffice."""
        return len(self.sufficient) > 1


@dataclass(frozen=True, kw_only=True)
class DegenerateSets:
    """The subsets of the neurons of facts, and of their controls.

    Attributes:
        results: one for each fact and kind of neurons.
        share: the share of its probability that the answer has to keep; None: it has to stay the most probable one.
    """

    results: tuple[Degeneracy, ...]
    share: float | None = None

    def __getitem__(self, fact: Fact) -> Degeneracy:
        """Return the subsets of a fact's own neurons.

        Raises:
            ArgumentError: a fact that is not among them.
        """
        own = {one.fact: one for one in self.results if one.neuron_set == "found"}
        if fact not in own:
            key = fact.key if isinstance(fact, Fact) else str(fact)
            raise ArgumentError(f"There are no sets of {key}.{did_you_mean(key, (one.key for one in own))}")
        return own[fact]

    def __repr__(self) -> str:
        return f"DegenerateSets({self._summary()})"

    def _repr_html_(self) -> str:
        table = self.table()
        shown = table.loc[table["neuron_set"] == "found", list(SHOWN)]
        rows = shown.head(ROWS_SHOWN).to_numpy().tolist()
        return table_html(self._summary(), SHOWN, rows, n_rows=len(shown))

    def _summary(self) -> str:
        own = [one for one in self.results if one.neuron_set == "found"]
        known = [one for one in own if one.known]
        taken = sum(one.taken for one in known)
        degenerate = sum(one.degenerate for one in known)
        return (
            f"{counted(len(own), 'fact')}, {len(known):,} known: all neurons take the answer of {taken:,}, "
            f"{degenerate:,} of these degenerate"
        )

    def table(self) -> "pd.DataFrame":
        """Return a row for each fact and kind of neurons.

        The columns are the fields of ``Degeneracy``, with sets of neurons as their names, ``n_neurons``,
        ``n_smallest`` (NaN where there is no such subset), ``n_sufficient`` and ``degenerate``.
        """
        import pandas as pd

        rows = []
        for one in self.results:
            smallest = one.smallest
            rows.append(
                {
                    "key": one.fact.key,
                    "neuron_set": one.neuron_set,
                    "n_neurons": len(one.neurons),
                    "n_prompts": one.n_prompts,
                    "exact": one.exact,
                    "known": one.known,
                    "taken": one.taken,
                    "n_smallest": np.nan if smallest is None else float(len(smallest)),
                    "smallest": "" if smallest is None else " ".join(map(str, smallest)),
                    "smallest_suffices": bool(one.smallest_suffices),
                    "n_sufficient": len(one.sufficient),
                    "sufficient": " | ".join(" ".join(map(str, subset)) for subset in one.sufficient),
                    "degenerate": one.degenerate,
                    "before": one.before,
                    "after": one.after,
                    "without_smallest": one.without_smallest,
                    "smallest_alone": one.smallest_alone,
                }
            )
        columns = fact_columns([one.fact for one in self.results])
        return pd.concat([pd.DataFrame(columns), pd.DataFrame(rows)], axis=1)

    def summary(
        self,
        *,
        n_resamples: int = defaults.N_RESAMPLES,
        seed: int = 0,
    ) -> "pd.DataFrame":
        """Return what is true of how many facts, with bootstrap intervals over facts; see ``degeneracy_table``."""
        return degeneracy_table(self.table(), n_resamples=n_resamples, seed=seed)


SHOWN = ("relation", "subject", "object", "n_neurons", "taken", "smallest", "n_sufficient")
"""Columns of the table that notebooks show."""

OF_KNOWN = {"taken": fact_share("taken"), "degenerate": fact_share("degenerate")}
"""Statistics of all known facts."""
OF_TAKEN = {"smallest": fact_mean("n_smallest"), "smallest_suffices": fact_share("smallest_suffices")}
"""Statistics of the known facts with a subset that takes the answer."""


def degeneracy_table(table: "pd.DataFrame", *, n_resamples: int, seed: int) -> "pd.DataFrame":
    """Return statistics of the table of ``DegenerateSets``, means over facts and then over relations.

    Args:
        table: ``relation``, ``neuron_set``, ``known``, and the columns of the statistics.
        n_resamples: number of bootstrap draws.
        seed: of the draws.

    Returns:
        A row for each measure and kind of neurons with ``value, low, high, n``. Of the known facts: ``taken``, the
        share whose answer all neurons take together; ``degenerate``, the share with two or more subsets that each
        suffice. Of the known facts with a subset that takes the answer: ``smallest``, the mean size of the smallest;
        ``smallest_suffices``, the share in which it suffices too.
    """
    import pandas as pd

    known = table.loc[table["known"].to_numpy(dtype=bool)]
    with_smallest = known.loc[known["n_smallest"].notna()]
    parts = []
    for statistics, rows in ((OF_KNOWN, known), (OF_TAKEN, with_smallest)):
        parts.append(bootstrap_tables(rows, ["neuron_set"], statistics, n_resamples=n_resamples, seed=seed))
    order = [*OF_KNOWN, *OF_TAKEN]
    summary = pd.concat(parts).sort_values("measure", key=lambda column: column.map(order.index), kind="stable")
    summary = summary.reset_index(drop=True)
    return pd.DataFrame(summary, columns=["measure", "neuron_set", "value", "low", "high", "n"])


# --- measurement ------------------------------------------------------------------------------------------


@exclusive
@draws_progress("Searching subsets", "sets")
def degenerate_sets(
    model: HookedModel | Host,
    prompts: PromptBatch,
    neurons_by_fact: Mapping[Fact, NeuronSet],
    activation_neurons: Mapping[Fact, NeuronSet] | None = None,
    *,
    share: float | None = None,
    enumerate_up_to: int = ENUMERATE_UP_TO,
    controls: bool = True,
    seed: int = 0,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> DegenerateSets:
    """Search each fact's neurons for subsets that take its answer, and for subsets each of which suffices for it.

    A fact is degenerate in its neurons if all of them together take the answer, and two or more subsets without a
    common neuron each suffice: see ``kn_lens.interventions.degenerate`` for the definitions, after Chen et al. (2024).

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        prompts: prompts of the facts; neurons are suppressed where these are put (``prompts.at``).
        neurons_by_fact: the neurons of each fact, from ``refine`` or given. Every fact needs prompts.
        activation_neurons: as many of highest activation, from ``kn_lens.activation_neurons``; None leaves this control
            out.
        share: None: the answer is given where it is the most probable one in at least half of the prompts. A share: it
            is given where its mean probability is at least this share of what it is with nothing suppressed.
        enumerate_up_to: largest number of neurons of which all subsets are measured, at most 16.
        controls: whether to search random neurons of the same layers too.
        seed: of the random neurons; those of a fact do not depend on the other facts.
        memory_budget: bytes that passes may take; see ``attribute``.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with (done, total), counted in
            sets of neurons.

    Returns:
        The subsets of each fact and kind of neurons. Cost, for each fact, kind and prompt: 2^n passes for n neurons up
        to ``enumerate_up_to``; for more about k n for a subset of k neurons, once for the smallest that takes the
        answer and once for each that suffices. Passes start at the lowest layer that they change; each round of the
        greedy search adds a whole pass.

    Raises:
        ArgumentError: no facts, a fact without prompts or without activation neurons, neurons that the model does not
            have, a number out of range, or a budget of no memory.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights or answers.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> fact = kn.FactSet.world().find("Ireland", relation="P36")
        >>> prompts = kn.make_prompts(model, fact)
        >>> neurons = kn.refine(kn.attribute(model, prompts))
        >>> sets = kn.degenerate_sets(model, prompts, neurons, share=0.9)
        >>> sets[fact].taken, sets[fact].smallest
        (True, NeuronSet(['L2N89']))
    """
    host = checked_host(host_for(model, prompts))
    check_prompts(prompts)
    check_neurons_by_fact(neurons_by_fact)
    if activation_neurons is not None:
        check_neurons_by_fact(activation_neurons, "activation_neurons")
    if share is not None:
        check_share("share", share)
    if isinstance(enumerate_up_to, bool) or not isinstance(enumerate_up_to, int) or enumerate_up_to < 0:
        raise ArgumentError(f"enumerate_up_to={enumerate_up_to!r}; expected a number of neurons.")
    if enumerate_up_to > ENUMERATE_AT_MOST:
        raise ArgumentError(
            f"enumerate_up_to={enumerate_up_to}; expected at most {ENUMERATE_AT_MOST}: n neurons have 2^n subsets. "
            "Of more neurons the subsets are found greedily."
        )
    prompts.check_for(host)
    Budget.of(host, memory_budget)  # before any work
    prompts_of = prompts_by_fact(prompts)
    facts = list(neurons_by_fact)
    check_facts(facts, prompts_of, activation_neurons)
    sets_by_kind: dict[str, Mapping[Fact, NeuronSet]] = {"found": neurons_by_fact}
    if activation_neurons is not None:
        sets_by_kind["activation"] = activation_neurons
    if controls:
        sets_by_kind["random"] = random_controls(host, neurons_by_fact, seed)
    tasks = []
    for fact in facts:
        for kind, sets in sets_by_kind.items():
            sets[fact].check(host)
            exact = len(sets[fact]) <= enumerate_up_to
            tasks.append(_Task(fact, kind, sets[fact], prompts_of[fact], exact))
    meter = _Meter(host, prompts, share, memory_budget)
    results: list[Degeneracy] = []
    for group in _groups(tasks):
        results += _searched(group, meter)
        if callable(progress):
            progress(len(results), len(tasks))
    return DegenerateSets(results=tuple(results), share=share)


@dataclass(frozen=True)
class _Task:
    """The neurons of one kind of a fact, and its prompts."""

    fact: Fact
    neuron_set: str
    neurons: NeuronSet
    prompt_ids: Int[Tensor, " prompt"]
    exact: bool

    def search(self) -> Search:
        n = len(self.neurons)
        return enumerate_subsets(n) if self.exact else grow_subsets(n)

    def subset(self, number: int) -> NeuronSet:
        return NeuronSet(neuron for position, neuron in enumerate(self.neurons) if number >> position & 1)

    @property
    def n_items(self) -> int:
        """Largest number of pairs of a prompt and a subset that a round measures."""
        n = len(self.neurons)
        return len(self.prompt_ids) * (1 << n if self.exact else n)

    def result(self, found: Found, measured: Mapping[int, Measured]) -> Degeneracy:
        """Return the subsets that were found.

        Args:
            found: the subsets.
            measured: what the subsets of the search left of the answer.
        """
        whole = (1 << len(self.neurons)) - 1
        clean, silent = measured[0], measured[whole]
        smallest, without, alone = None, None, None
        if found.smallest is not None:
            smallest = self.subset(found.smallest)
            without = measured[found.smallest]
            alone = measured[whole ^ found.smallest]
        return Degeneracy(
            fact=self.fact,
            neuron_set=self.neuron_set,
            neurons=self.neurons,
            n_prompts=len(self.prompt_ids),
            exact=self.exact,
            known=clean.given,
            taken=clean.given and not silent.given,
            smallest=smallest,
            smallest_suffices=None if alone is None else alone.given,
            sufficient=tuple(map(self.subset, found.sufficient)),
            before=clean.prob,
            after=silent.prob,
            without_smallest=np.nan if without is None else without.prob,
            smallest_alone=np.nan if alone is None else alone.prob,
        )


def _groups(tasks: Sequence[_Task]) -> Iterator[list[_Task]]:
    """Yield tasks in groups whose rounds fill a call."""
    group: list[_Task] = []
    n_items = 0
    for task in tasks:
        if group and n_items + task.n_items > ITEMS_AT_ONCE:
            yield group
            group, n_items = [], 0
        group.append(task)
        n_items += task.n_items
    if group:
        yield group


def _searched(tasks: Sequence[_Task], meter: "_Meter") -> list[Degeneracy]:
    """Return the results of some searches, whose rounds go through the model together."""
    searches = [task.search() for task in tasks]
    requests = {number: next(search) for number, search in enumerate(searches)}
    measured: list[dict[int, Measured]] = [{} for _ in tasks]
    found: dict[int, Found] = {}
    while requests:
        answers = meter.measure([(tasks[number], subsets) for number, subsets in requests.items()])
        following = {}
        for (number, subsets), answer in zip(requests.items(), answers, strict=True):
            measured[number].update(zip(subsets, answer, strict=True))
            try:
                following[number] = searches[number].send(answer)
            except StopIteration as end:
                found[number] = end.value
        requests = following
    return [task.result(found[number], measured[number]) for number, task in enumerate(tasks)]


@dataclass(frozen=True)
class _Meter:
    """Measures the answers of facts with subsets of their neurons suppressed."""

    host: Host
    prompts: PromptBatch
    share: float | None
    memory_budget: float | None
    ticks: Ticks = field(default_factory=lambda: Ticks(None, 0))

    def measure(self, requests: Sequence[tuple[_Task, Sequence[int]]]) -> list[list[Measured]]:
        """Return what each subset of each task leaves of the answer."""
        measured: list[list[Measured]] = [[] for _ in requests]
        part: list[tuple[int, _Task, int]] = []
        n_items = 0
        for number, (task, subsets) in enumerate(requests):
            for subset in subsets:
                part.append((number, task, subset))
                n_items += len(task.prompt_ids)
                if n_items >= ITEMS_AT_ONCE:
                    self._measure(part, measured)
                    part, n_items = [], 0
        if part:
            self._measure(part, measured)
        return measured

    def _measure(self, part: Sequence[tuple[int, _Task, int]], measured: list[list[Measured]]) -> None:
        """Append what some subsets leave of the answer to the list of their request."""
        chosen: list[Tensor] = []
        sets: list[NeuronSet] = []
        for _, task, subset in part:
            chosen.append(task.prompt_ids)
            sets += [task.subset(subset)] * len(task.prompt_ids)
        prompt_ids = torch.cat(chosen).to(self.prompts.tokens.device)
        change = Change.of(self.host, prompt_ids, self.prompts.select(prompt_ids), Suppress(sets))
        clean, (after,) = score_answers_under(self.host, self.prompts, [change], self.memory_budget, self.ticks)
        before = clean.prob
        prob, is_right = after.prob, after.rank == 0
        start = 0
        for number, task, _ in part:
            items = slice(start, start + len(task.prompt_ids))
            start = items.stop
            mean = float(prob[items].mean())
            if self.share is None:
                given = is_known(int(is_right[items].sum()), len(task.prompt_ids))
            else:
                given = mean >= self.share * float(before[task.prompt_ids.numpy()].mean())
            measured[number].append(Measured(mean, bool(given)))
