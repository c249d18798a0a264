r"""Where paths start: the activation of a layer at alpha = 0.

A path leads from a start ``w0`` to the clean activation ``w``, and the scores say what it brings:

    Attr_i = (w_i - w0_i) * integral_0^1 dP(w0 + alpha (w - w0)) / dw_i  d alpha,     sum_i Attr_i = P(w) - P(w0)

``zero`` is the start of the paper. An MLP that writes nothing is far from all that the model has seen in training, and
where a norm follows ``W_out`` it is not even a limit: the norm of ``alpha w`` does not depend on alpha, until it jumps
at 0. The other starts are activations that the model has. ``mean`` is the mean over other subjects: the scores say what
tells this fact from others of its relation. A counterfactual is the activation under one other prompt (as in EAP-IG:
Hanna et al. 2024). Scores from several starts are averaged (as in AMIG: Chen et al. 2024).

In a layer with experts, a start says where the neurons begin that are on; those that are off stay off.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, cast, get_args, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.checks import wrong_kind
from kn_lens._core.names import StartName
from kn_lens._core.wording import counted
from kn_lens.attribution.layer_context import LayerContext
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import Host
from kn_lens.prompts import PromptBatch, Role, check_prompts, roles_of

RelationRole = tuple[str, Role | None]
"""A relation, and a role of tokens; None for all roles."""


@dataclass(frozen=True)
class SubjectRole:
    """What a prompt is put at.

    Attributes:
        relation: of its fact.
        subject: of its fact.
        role: of the token.
    """

    relation: str
    subject: str
    role: Role | None

    @property
    def keys(self) -> tuple[RelationRole, RelationRole]:
        """What sums over prompts are kept by."""
        return (self.relation, self.role), (self.relation, None)


@dataclass(frozen=True, eq=False)
class MeanStart:
    """The mean activation over the other subjects of a fact's relation, as the start of paths.

    For each attributed prompt it is the mean over those of ``prompts`` that have the relation of its fact and another
    subject, each prompt counting once, at the position where the activation moves.

    Attributes:
        prompts: the prompts that the mean is over; None takes the attributed prompts themselves, as ``"mean"`` does.

    >>> import kn_lens as kn
    >>> model = kn.load_model("world-bert")
    >>> facts = kn.FactSet.world().of("P36")[:5]
    >>> start = kn.MeanStart(kn.make_prompts(model, facts[1:]))
    >>> kn.attribute(model, kn.make_prompts(model, facts[:1]), start=start).start
    'mean'
    """

    prompts: PromptBatch | None = None

    def __post_init__(self) -> None:
        if self.prompts is not None:
            check_prompts(self.prompts)


Start = StartName | MeanStart | PromptBatch
"""A start: its name, the mean over stated prompts, or a counterfactual prompt for each prompt."""

StartRows = Callable[[LayerContext], Float[Tensor, "row d_mlp"] | None]
"""The start of each row of a layer under some prompts; None for zero."""

Activations = Callable[[PromptBatch], Iterator[tuple[Int[Tensor, " part"], Float[Tensor, "part n_layers n_neurons"]]]]
"""Runs prompts, and yields numbers of some of them with their mean activations over the rows of their answers."""


@runtime_checkable
class PathStart(Protocol):
    """Where the paths of all prompts start."""

    name: str

    def check(self, host: Host, prompts: PromptBatch) -> None:
        """Raise if the start does not go with a model or the attributed prompts, before any model runs."""
        ...

    def rows(self, chunk: PromptBatch, numbers: Int[Tensor, " chunk"], run: "StartPasses") -> StartRows:
        """Return the starts of some of the attributed prompts.

        Args:
            chunk: the prompts.
            numbers: their numbers among all attributed prompts.
            run: runs other prompts for their activations.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class StartPasses:
    """The passes by which starts learn activations of other prompts.

    Attributes:
        activations: see `Activations`.
        contexts: returns the contexts of the layers under prompts that fit into memory together.
    """

    activations: Activations
    contexts: Callable[[PromptBatch], Sequence[LayerContext]]


@dataclass(frozen=True)
class Zero:
    """No activation."""

    name = "zero"

    def check(self, host: Host, prompts: PromptBatch) -> None:
        """Accept every model and prompt."""

    def rows(self, chunk: PromptBatch, numbers: Int[Tensor, " chunk"], run: StartPasses) -> StartRows:
        """Return no start for any layer."""
        return lambda context: None


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanOfOtherSubjects:
    """The mean activation under prompts of other subjects: see `MeanStart`.

    Where activations move at several positions, a prompt is compared with those that are put at a token of the same
    role; with all of them where the other subjects have no such token.

    The sums of all relations are held, computed once. What a subject itself adds to them is computed where it is
    needed, so that memory does not grow with the number of facts.

    Attributes:
        prompts: the prompts that the mean is over.
    """

    name = "mean"
    prompts: PromptBatch
    _sums: dict[RelationRole, Float[Tensor, "n_layers n_neurons"]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def queries(self) -> list[SubjectRole]:
        """The relation, the subject and the role of each of these prompts."""
        return _queries(self.prompts)

    @cached_property
    def sizes(self) -> Mapping[RelationRole, int]:
        """The number of prompts of each relation and role."""
        return Counter(key for query in self.queries for key in query.keys)

    @cached_property
    def numbers_by_subject(self) -> Mapping[tuple[str, str], Sequence[int]]:
        """The numbers of the prompts of each relation and subject."""
        numbers: dict[tuple[str, str], list[int]] = {}
        for number, query in enumerate(self.queries):
            numbers.setdefault((query.relation, query.subject), []).append(number)
        return numbers

    def check(self, host: Host, prompts: PromptBatch) -> None:
        """Raise unless every attributed fact has another subject to compare with.

        Raises:
            ArgumentError: names the first fact without one, and the cure.
        """
        if self.prompts is not prompts:
            self.prompts.check_for(host)
        lonely = self.without_others(prompts)
        if lonely:
            raise ArgumentError(
                f"start='mean' is the mean activation under other subjects of a relation, and the prompts have none "
                f"beside {lonely[0].key}{_and_more(lonely)}. Name prompts of other facts of the relation: "
                "start=kn.MeanStart(kn.make_prompts(model, other_facts)); or take start='zero'."
            )

    def without_others(self, prompts: PromptBatch) -> list[Fact]:
        """Return the attributed facts of whose relation there is no other subject."""
        subjects: dict[str, set[str]] = {}
        for relation, subject in self.numbers_by_subject:
            subjects.setdefault(relation, set()).add(subject)
        lonely = []
        for number in prompts.fact_index.unique().tolist():
            fact = prompts.facts[number]
            if not subjects.get(fact.relation, set()) - {_subject(fact)}:
                lonely.append(fact)
        return lonely

    def rows(self, chunk: PromptBatch, numbers: Int[Tensor, " chunk"], run: StartPasses) -> StartRows:
        """Return the means over the other subjects of each prompt's relation."""
        if not self._sums:
            self._sums.update(_sums_by_role(self.prompts, self.queries, run.activations))
        queries = _queries(chunk)
        own: list[int] = []
        for relation, subject in dict.fromkeys((query.relation, query.subject) for query in queries):
            own += self.numbers_by_subject.get((relation, subject), ())
        own_queries = [self.queries[number] for number in own]
        own_sizes = Counter((key, query.subject) for query in own_queries for key in query.keys)
        own_sums: dict[Any, Tensor] = {}
        if own:
            own_sums = _sums_by_role(self.prompts.select(own), own_queries, run.activations, by_subject=True)
        means: dict[SubjectRole, Tensor] = {}
        for query in queries:
            # The role where other subjects have it, or else all of them.
            key = next(key for key in query.keys if self.sizes.get(key, 0) > own_sizes[key, query.subject])
            others = self._sums[key] - own_sums.get((key, query.subject), 0)
            means[query] = others / (self.sizes[key] - own_sizes[key, query.subject])
        place = {query: number for number, query in enumerate(means)}
        mean_of_prompt = torch.tensor([place[query] for query in queries])
        mean_of_row = mean_of_prompt[chunk.prompt_index.cpu()]
        stacked = torch.stack(list(means.values()))

        def of_layer(context: LayerContext) -> Float[Tensor, "row d_mlp"]:
            return context.neurons.entries(stacked[mean_of_row, context.layer].to(context.post))

        return of_layer


@dataclass(frozen=True, kw_only=True, eq=False)
class Counterfactual:
    """The activation under another prompt for each prompt, row by row.

    Attributes:
        prompts: as many as there are attributed prompts, in their order, with as many answer tokens each.
    """

    name = "counterfactual"
    prompts: PromptBatch

    def check(self, host: Host, prompts: PromptBatch) -> None:
        """Raise unless there is a counterfactual prompt with as many rows for each prompt.

        Raises:
            ArgumentError: names the first prompt without one, and the cure.
        """
        self.prompts.check_for(host)
        check_counterfactuals(self.prompts, prompts)

    def rows(self, chunk: PromptBatch, numbers: Int[Tensor, " chunk"], run: StartPasses) -> StartRows:
        """Return the activations under the counterfactual prompts."""
        activations: dict[int, Tensor] = {}
        for context in run.contexts(self.prompts.select(numbers)):
            activations[context.layer] = context.neurons.dense(context.post)
        return lambda context: context.neurons.entries(activations[context.layer])


def check_counterfactuals(counterfactuals: PromptBatch, prompts: PromptBatch) -> None:
    """Raise unless there is a counterfactual prompt with as many rows for each prompt.

    Raises:
        ArgumentError: names the first prompt without one, and the cure.
    """
    if len(counterfactuals) != len(prompts):
        raise ArgumentError(
            f"start= has {counted(len(counterfactuals), 'counterfactual prompt')} for "
            f"{counted(len(prompts), 'prompt')}; expected one for each, in the same order. "
            "For the mean over prompts: start=kn.MeanStart(prompts)."
        )
    differs = counterfactuals.rows_per_prompt != prompts.rows_per_prompt
    if bool(differs.any()):
        number = int(differs.long().argmax())
        raise ArgumentError(
            f"The counterfactual prompt {counterfactuals.text[number]!r} has an answer of "
            f"{counted(int(counterfactuals.rows_per_prompt[number]), 'token')}, and the prompt "
            f"{prompts.text[number]!r} one of {int(prompts.rows_per_prompt[number])}: an answer is read token by "
            "token. Give both the same answer: the fact with another subject, and its own object."
        )


def resolve_starts(
    start: object,
    host: Host,
    prompts: PromptBatch,
    *,
    norm_needs_mean: bool,
) -> tuple[PathStart, ...]:
    """Return the starts that the argument ``start`` of ``attribute`` names, checked.

    Args:
        start: None for the default: ``zero``; or ``mean`` where a norm follows ``W_out``, ``norm_needs_mean`` holds,
            and every fact has a subject, and another subject of its relation among the prompts.
        host: the model.
        prompts: the attributed prompts.
        norm_needs_mean: whether the path is one that ends in nothing where a norm follows ``W_out``.

    Raises:
        ArgumentError: an unknown start, or one that does not go with the prompts.
    """
    if start is None:
        if not norm_needs_mean or not all(prompts.facts[number].subject for number in set(prompts.fact_index.tolist())):
            return (Zero(),)
        mean = MeanOfOtherSubjects(prompts=prompts)
        return (mean,) if host.norm_after_mlp and not mean.without_others(prompts) else (Zero(),)
    several = list(start) if isinstance(start, (list, tuple)) else [start]
    if not several:
        raise ArgumentError("start=[]; expected at least one start, such as 'zero'.")
    starts = []
    for one in several:
        resolved = _resolved(one, prompts)
        resolved.check(host, prompts)
        starts.append(resolved)
    return tuple(starts)


def _resolved(start: object, prompts: PromptBatch) -> PathStart:
    if isinstance(start, PromptBatch):
        return Counterfactual(prompts=start)
    if isinstance(start, MeanStart):
        return MeanOfOtherSubjects(prompts=prompts if start.prompts is None else start.prompts)
    if not isinstance(start, str):
        raise wrong_kind(start, "'zero', 'mean', kn.MeanStart(prompts), counterfactual prompts, or a list", "start")
    names = get_args(StartName)
    if start not in names:
        raise ArgumentError(
            f"Unknown start {start!r}; expected {', '.join(names)}, kn.MeanStart(prompts), or a counterfactual prompt "
            f"for each prompt.{did_you_mean(start, names)}"
        )
    return Zero() if cast("StartName", start) == "zero" else MeanOfOtherSubjects(prompts=prompts)


def _subject(fact: Fact) -> str:
    """Return what tells a fact's subject from others; facts of tokens alone have no name for it."""
    return fact.subject or fact.key


def _queries(prompts: PromptBatch) -> list[SubjectRole]:
    """Return the relation and the subject of each prompt, and the role of the token that it is put at."""
    n_rows = prompts.rows_per_prompt
    moved_pos = prompts.post_pos[n_rows.cumsum(0) - n_rows]
    queries = []
    for number, (role,) in zip(prompts.fact_index.tolist(), roles_of(prompts, moved_pos[:, None]), strict=True):
        fact = prompts.facts[number]
        queries.append(SubjectRole(fact.relation, _subject(fact), role))
    return queries


def _sums_by_role(
    prompts: PromptBatch,
    queries: Sequence[SubjectRole],
    activations: Activations,
    *,
    by_subject: bool = False,
) -> dict[Any, Float[Tensor, "n_layers n_neurons"]]:
    """Return the sums of activations over the prompts of each relation and role, in float64 on the processor.

    Args:
        prompts: the prompts.
        queries: what each of them is.
        activations: runs them.
        by_subject: whether subjects have sums of their own: keys then are pairs of a key and a subject.
    """
    keys_of_prompt: list[list[Any]] = []
    for query in queries:
        keys_of_prompt.append([(key, query.subject) if by_subject else key for key in query.keys])
    sums: dict[Any, Tensor] = {}
    for numbers, part in activations(prompts):
        members: dict[Any, list[int]] = {}
        for place, number in enumerate(numbers.tolist()):
            for key in keys_of_prompt[number]:
                members.setdefault(key, []).append(place)
        for key, places in members.items():
            of_part = part[places].sum(0).cpu().double()
            sums[key] = sums[key] + of_part if key in sums else of_part
    return sums


def _and_more(facts: Sequence[Fact]) -> str:
    return f" and {len(facts) - 1:,} more" if len(facts) > 1 else ""
