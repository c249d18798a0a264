"""From facts to their neurons in one call: the prompts, their attribution, and the refined sets.

    find(model, facts) = refine(attribute(model, make_prompts(model, facts)))

One text with its answer is a single prompt, and there are no other wordings to refine over. Its neurons are then its
coarse set, which holds neurons of the wording as well as of the fact.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack

from jaxtyping import Int
from torch import Tensor

from kn_lens._core import defaults
from kn_lens._core.checks import is_list_of, wrong_kind
from kn_lens._core.display import enumerated
from kn_lens._core.drawing import drawing
from kn_lens._core.names import POSITION_NAMES, PositionName
from kn_lens._core.wording import counted
from kn_lens.attribution import Attribution, AttributionKeywords, attribute
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact, FactSet
from kn_lens.hosts import HookedModel, Host, host_of
from kn_lens.neurons.neuron_set import NeuronSet
from kn_lens.neurons.refine import Refined, coarse_thresholds, prompts_by_fact, refine, refine_by_relation
from kn_lens.prompts import PromptBatch, make_prompts, text_fact

if TYPE_CHECKING:
    import pandas as pd

NAMES_SHOWN = 4
"""Number of neurons in the text of findings."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What ``find`` returns: the neurons of facts, with the scores that they come from.

    Attributes:
        attribution: scores of all neurons under all prompts, with their error bars.
        neurons_by_fact: the refined set of each fact; it may be empty.
        attr_threshold: ``t``: a prompt's coarse set holds the neurons from ``t`` times its largest score.
        share_threshold: ``p`` of each relation: at least this share of a fact's prompts has each of its neurons in the
            coarse set.
        min_prompts: the least number of prompts that have it.
    """

    attribution: Attribution
    neurons_by_fact: Refined
    attr_threshold: float
    share_threshold: Mapping[str, float]
    min_prompts: int

    @classmethod
    def of(
        cls,
        attribution: Attribution,
        *,
        attr_threshold: float = defaults.ATTR_THRESHOLD,
        share_threshold: float = defaults.SHARE_THRESHOLD,
        min_prompts: int = defaults.MIN_PROMPTS,
        by_relation: bool = False,
    ) -> "Findings":
        """Refine an attribution; see ``refine`` and, for ``by_relation``, ``refine_by_relation``.

        Raises:
            ArgumentError: as ``refine``.
        """
        if by_relation:
            refinement = refine_by_relation(
                attribution,
                attr_threshold=attr_threshold,
                share_threshold=share_threshold,
                min_prompts=min_prompts,
            )
            neurons_by_fact, shares = refinement.neurons, refinement.share_threshold
        else:
            neurons_by_fact = refine(
                attribution,
                attr_threshold=attr_threshold,
                share_threshold=share_threshold,
                min_prompts=min_prompts,
            )
            shares = dict.fromkeys((fact.relation for fact in neurons_by_fact), share_threshold)
        return cls(
            attribution=attribution,
            neurons_by_fact=neurons_by_fact,
            attr_threshold=attr_threshold,
            share_threshold=shares,
            min_prompts=min_prompts,
        )

    @property
    def prompts(self) -> PromptBatch:
        """The prompts of the facts."""
        return self.attribution.prompts

    @property
    def fact(self) -> Fact:
        """The fact, where there is only one.

        Raises:
            ArgumentError: there are several.
        """
        if len(self.neurons_by_fact) != 1:
            raise ArgumentError(
                f"There are neurons of {len(self.neurons_by_fact):,} facts; "
                "expected one fact, or the sets of each: findings.neurons_by_fact."
            )
        return next(iter(self.neurons_by_fact))

    @property
    def neurons(self) -> NeuronSet:
        """All neurons found: of one fact its set, of several facts the union of theirs."""
        return NeuronSet(neuron for neurons in self.neurons_by_fact.values() for neuron in neurons)

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row for each neuron of each fact: how often and how highly it scores.

        Returns:
            ``relation``, ``subject`` and ``object`` of the fact, and ``language`` where facts have one; ``neuron``, its
            name; ``layer``, ``index``, and between them ``expert`` where layers have experts;
            ``n_shared``, the number of the fact's prompts with the neuron in their coarse set, of ``n_prompts``; and
            ``score``, its mean score over them, in the unit of the output. In the order of facts, layers and indices.
        """
        import pandas as pd

        has_experts = self.attribution.layout.has_experts
        named = "neuron layer expert index" if has_experts else "neuron layer index"
        has_languages = any(fact.language for fact in self.neurons_by_fact)
        identity = "relation subject object language" if has_languages else "relation subject object"
        columns = f"{identity} {named} n_shared n_prompts score".split()
        rows: list[list[Any]] = []
        for fact, neurons in self.neurons_by_fact.items():
            if not neurons:
                continue
            attribution = self.attribution[fact]
            scores = attribution.scores_of(neurons)
            n_shared = (scores >= coarse_thresholds(attribution, self.attr_threshold)[:, None]).sum(0)
            means = scores.cpu().double().mean(0)
            for neuron, n, mean in zip(neurons, n_shared.tolist(), means.tolist(), strict=True):
                expert = [neuron.expert] if has_experts else []
                language = [fact.language] if has_languages else []
                names = [fact.relation, fact.subject, fact.object, *language]
                rows.append([*names, str(neuron), neuron.layer, *expert, neuron.index, n, len(attribution), mean])
        return pd.DataFrame(rows, columns=columns)

    def summary(self) -> "pd.DataFrame":
        """Return a table with one row for each fact: its neurons and its error bar.

        Returns:
            ``key``, ``subject``, ``relation``, ``relation_label``, ``object`` and ``language`` of the fact;
            ``n_prompts``; ``mean_output``, of the unaltered model; ``neurons``, its ``NeuronSet``; ``largest_gap``, the
            largest completeness gap of its (prompt, layer) pairs, in the output's unit, NaN for a method without a sum
            rule;
            ``n_unconverged``, how many of its ``n_pairs`` are above the tolerance; and ``mean_points``, evaluations of
            the model that a pair rests on. Where layers have experts also ``largest_routing_term``, in size.
        """
        import pandas as pd

        attribution = self.attribution
        gaps = attribution.completeness_gap.abs()
        unconverged = ~attribution.converged
        rows: list[dict[str, Any]] = []
        for fact, prompt_ids in self._prompts_of_facts():
            fact_gaps = gaps[prompt_ids]
            largest_gap = float("nan")
            if not fact_gaps.isnan().all():
                largest_gap = fact_gaps.nan_to_num(0).max().item()
            row = {
                "key": fact.key,
                "subject": fact.subject,
                "relation": fact.relation,
                "relation_label": fact.relation_label,
                "object": fact.object,
                "language": fact.language,
                "n_prompts": len(prompt_ids),
                "mean_output": attribution.clean[prompt_ids].mean().item(),
                "neurons": self.neurons_by_fact[fact],
                "largest_gap": largest_gap,
                "n_pairs": fact_gaps.numel(),
                "n_unconverged": int(unconverged[prompt_ids].sum()),
                "mean_points": attribution.n_points[prompt_ids].double().mean().item(),
            }
            if attribution.routing_term is not None:
                terms = attribution.routing_term[prompt_ids].abs()
                row["largest_routing_term"] = (
                    terms.nan_to_num(0).max().item() if terms.isfinite().any() else float("nan")
                )
            rows.append(row)
        return pd.DataFrame(rows)

    def _prompts_of_facts(self) -> Iterator[tuple[Fact, Int[Tensor, " prompt"]]]:
        for fact, prompt_ids in prompts_by_fact(self.prompts).items():
            if fact in self.neurons_by_fact:
                yield fact, prompt_ids.to(self.attribution.scores.device)

    def plot(self, fact: Fact | None = None, *, top: int = 20, seed: int = 0) -> Any:
        """Draw the neurons of highest mean score with 95% intervals, as a Plotly figure, the found ones in colour.

        Args:
            fact: whose prompts the mean is over, and whose neurons are coloured; None takes all facts.
            top: number of neurons.
            seed: of the bootstrap over prompts; with fewer than 8 prompts there are no intervals.

        Raises:
            ArgumentError: the fact has no neurons here, or no neuron has a score.
        """
        return drawing("findings_figure")(self, fact, top=top, seed=seed)

    def __repr__(self) -> str:
        return f"Findings({self._text()}; {self.attribution._gap_text().removeprefix('; ') or self.attribution.method})"

    def _text(self) -> str:
        """Return the numbers of facts, prompts and neurons, and what the neurons are."""
        n_facts = len(self.neurons_by_fact)
        text = f"{counted(n_facts, 'fact')}, {counted(len(self.prompts), 'prompt')}: "
        sizes = [len(neurons) for neurons in self.neurons_by_fact.values()]
        if n_facts == 1:
            text += counted(sizes[0], "neuron")
            names = enumerated(list(map(str, self.neurons)), NAMES_SHOWN)
            if names:
                text += f" ({names})"
        else:
            text += f"{min(sizes):,} to {max(sizes):,} neurons a fact"
        if len(self.prompts) == 1:
            return f"{text} from {self.attr_threshold:.0%} of the largest score: the coarse set, as there is one prompt"
        least, most = min(self.share_threshold.values()), max(self.share_threshold.values())
        share = f"{most:.0%}" if least == most else f"{least:.0%} to {most:.0%}"
        whose = "its" if n_facts == 1 else "the"
        return f"{text} that {share} of {whose} prompts share"

    def _repr_html_(self) -> str:
        return drawing("findings_html")(self)


def find(
    model: HookedModel | Host,
    facts: Fact | Iterable[Fact] | str | Sequence[str],
    answer: str | None = None,
    *,
    subject: str | None = None,
    templates: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    tokenizer: Any = None,
    contrast: str | Mapping[Fact, str] | None = None,
    unknown_answers: Literal["error", "leave_out"] = "error",
    attr_threshold: float = defaults.ATTR_THRESHOLD,
    share_threshold: float = defaults.SHARE_THRESHOLD,
    min_prompts: int | None = None,
    by_relation: bool = False,
    position: PositionName = "read",
    **keywords: Unpack[AttributionKeywords],
) -> Findings:
    """Find the knowledge neurons of facts: ``make_prompts``, ``attribute`` and ``refine`` in one call.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        facts: one fact, several, or a ``FactSet``; or a text with its ``answer``. A causal model reads what precedes
            the answer, a masked one a sentence with its mask token (or ``[Y]``) in the answer's place, an
            encoder-decoder one with its mask token, ``<extra_id_0>`` or ``[Y]``. Several texts are wordings of one fact
            with the same answer.
        answer: the answer of the text, of any number of tokens. Facts have their own.
        subject: the words of the text that name its subject, for ``position="subject_last"``. Facts have their own.
        templates: as for ``make_prompts``.
        tokenizer: as for ``make_prompts``.
        contrast: as for ``make_prompts``.
        unknown_answers: as for ``make_prompts``.
        attr_threshold: ``t``: a neuron is in a prompt's coarse set from ``t`` times the largest score.
        share_threshold: ``p``: a neuron is a fact's if at least ``p`` of its prompts have it in their coarse sets.
        min_prompts: the least number of prompts that must have it; facts with fewer prompts are left out before the
            model runs. None: 3, or as many as there are texts if these are fewer. A single text has nothing to be
            refined over: its neurons are its coarse set.
        by_relation: whether to move ``share_threshold`` for each relation until its facts have 2 to 5 neurons each;
            see ``refine_by_relation``.
        position: where the neurons are: ``read``, or ``subject_last``, the last token of the fact's subject. The
            prompts of the findings are put there (``prompts.at``), so that interventions on them act there.
        **keywords: the other arguments of ``attribute``: ``progress=True`` draws a bar, ``keep=0.1`` keeps a few dozen
            scores a prompt, where all scores are more than memory holds; ``method``, ``output``, ``tolerance``, ...

    Returns:
        ``Findings``: ``.neurons``, ``.neurons_by_fact``, ``.prompts``, ``.attribution``. Cost: that of ``attribute``.

    Raises:
        ArgumentError: facts or answer of another kind, a text without its answer or without a place for it, a subject
            that the text does not name, or an argument out of range.
        PromptError: as ``make_prompts``.
        UnsupportedModelError: as ``attribute``.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> fact = kn.FactSet.world().find("Ireland", relation="capital")
        >>> kn.find(model, fact)
        Findings(1 fact, 20 prompts: 4 neurons (L2N89, L2N133, L2N296, L3N105) that 70% of its prompts share; ...)
        >>> kn.find(model, "The country Ireland has the capital", " Dublin")
        Findings(1 fact, 1 prompt: 3 neurons (...) from 20% of the largest score: the coarse set, as there is one ...)
        >>> text = "The country Ireland has the capital"
        >>> kn.find(model, text, " Dublin", subject="Ireland", position="subject_last").prompts.post_pos
        tensor([2])
    """
    host = host_of(model)
    if "positions" in keywords:
        raise ArgumentError(
            f"Got positions={keywords['positions']!r}; neurons are found at one position: position='subject_last'. "
            "For several: kn_lens.attribute(model, prompts, positions=...)."
        )
    if isinstance(position, str) and position not in POSITION_NAMES:
        hint = did_you_mean(position, POSITION_NAMES)
        raise ArgumentError(f"position={position!r}; expected {' or '.join(map(repr, POSITION_NAMES))}.{hint}")
    if answer is not None and templates is not None:
        raise ArgumentError("Got templates= beside a text, which is its own template; expected one of them.")
    queried, fewest = _queried_facts(host, facts, answer, subject, tokenizer)
    if position == "subject_last" and not all(fact.subject for fact in queried):
        raise ArgumentError(
            "position='subject_last' is the last token of a subject, which a text does not say; expected its words: "
            "kn_lens.find(model, 'The capital of France is', ' Paris', subject='France', position='subject_last')."
        )
    if min_prompts is None:
        min_prompts = fewest
    prompts = make_prompts(
        model,
        queried,
        tokenizer=tokenizer,
        templates=templates,
        contrast=contrast,
        unknown_answers=unknown_answers,
        min_prompts=min_prompts,
    )
    attribution = attribute(model, prompts.at(position), **keywords)
    return Findings.of(
        attribution,
        attr_threshold=attr_threshold,
        share_threshold=share_threshold,
        min_prompts=min_prompts,
        by_relation=by_relation,
    )


def _queried_facts(
    host: Host,
    facts: Any,
    answer: Any,
    subject: Any,
    tokenizer: Any,
) -> tuple[FactSet, int]:
    """Return the facts to query, and the default of ``min_prompts`` for them."""
    if isinstance(facts, str) or is_list_of(str, facts):
        texts = [facts] if isinstance(facts, str) else facts
        if answer is None:
            text = f"the text {facts!r}" if isinstance(facts, str) else f"{counted(len(texts), 'text')}"
            place = {
                "masked": "The capital of France is [MASK].",
                "causal": "The capital of France is",
                "encoder-decoder": "The capital of France is [Y].",
            }[host.kind]
            raise ArgumentError(
                f"Got {text} without an answer; expected kn_lens.find(model, {place!r}, ' Paris'), "
                "or a Fact, which has its answer: facts.find('Ireland', 'P36')."
            )
        fact = text_fact(host, facts, answer, subject="" if subject is None else subject, tokenizer=tokenizer)
        return FactSet([fact]), min(defaults.MIN_PROMPTS, len(fact.templates))
    if isinstance(facts, PromptBatch):
        raise wrong_kind(facts, "facts, or, of prompts: kn_lens.refine(kn_lens.attribute(model, prompts))", "facts")
    if answer is not None:
        raise ArgumentError(
            f"Got answer={answer!r} beside facts, which have their own: expected kn_lens.find(model, facts), "
            "or a text: kn_lens.find(model, 'The capital of France is', ' Paris')."
        )
    if subject is not None:
        raise ArgumentError(
            f"Got subject={subject!r} beside facts, which have their own: expected kn_lens.find(model, facts), "
            "or a text: kn_lens.find(model, 'The capital of France is', ' Paris', subject='France')."
        )
    if isinstance(facts, Fact):
        facts = [facts]
    return facts if isinstance(facts, FactSet) else FactSet(facts), defaults.MIN_PROMPTS
