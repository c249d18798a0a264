"""Pairs of prompts: a clean one, and its counterfactual in the same template with another subject.

The two have the same tokens but for the subject's, which are as many, so that every position of one corresponds to the
same position of the other. The answer of the counterfactual is the contrast of the logit difference:

    m = logit of the clean answer - logit of the counterfactual's answer        at the read position
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.checks import wrong_kind
from kn_lens._core.wording import counted
from kn_lens.errors import ArgumentError, NoPromptError
from kn_lens.facts import Fact, FactSet
from kn_lens.hosts import Budget, HookedModel, Host, exclusive, host_of
from kn_lens.prompts import PromptBatch, Selection, make_prompts

T = TypeVar("T")

SEVERAL_TOKENS = "the answer has several tokens"
NO_COUNTERFACTUAL = "no other subject has as many tokens and another answer"


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptPairs:
    """Clean prompts and their counterfactuals, row by row.

    Attributes:
        clean: the clean prompts, one row each; ``contrast_ids`` are the counterfactuals' answers.
        counterfactual: the counterfactual prompts, aligned with them.
        left_out: number of prompts without a pair, by reason.

    Raises:
        ArgumentError: the two differ in number, length or read position, or a prompt has several rows.
    """

    clean: PromptBatch
    counterfactual: PromptBatch
    left_out: Mapping[str, int]

    def __post_init__(self) -> None:
        for name, prompts in (("clean", self.clean), ("counterfactual", self.counterfactual)):
            if prompts.n_rows != len(prompts):
                raise ArgumentError(f"A {name} prompt has several rows; expected answers of one token.")
        if len(self.clean) != len(self.counterfactual):
            raise ArgumentError(
                f"There are {len(self.clean)} clean and {len(self.counterfactual)} counterfactual prompts; "
                "expected one for each."
            )
        if self.clean.contrast_ids is None:
            raise ArgumentError("The clean prompts have no contrast_ids; expected the counterfactuals' answers.")
        differs = (self.clean.length != self.counterfactual.length) | (
            self.clean.read_pos != self.counterfactual.read_pos
        )
        if bool(differs.any()):
            number = int(differs.long().argmax())
            raise ArgumentError(
                f"Prompt {number} and its counterfactual have another length or read position; expected the same "
                "tokens but for a subject of as many tokens."
            )

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        left_out = f", {sum(self.left_out.values()):,} left out" if self.left_out else ""
        return f"PromptPairs({counted(len(self), 'pair')}{left_out}, first: {self.clean.text[0]!r})"

    def __getitem__(self, pairs: Selection) -> "PromptPairs":
        """Return some pairs: by number, slice, list of numbers, or fact.

        Raises:
            IndexError: no pair of that number.
            ArgumentError: a fact without pairs, or something else.
        """
        return self.select(self.clean.indices_of(pairs))

    def select(self, chosen: Iterable[int] | Int[Tensor, " chosen"]) -> "PromptPairs":
        """Return some pairs, in the order given.

        Raises:
            ArgumentError: no such pair, none at all, or something else than numbers.
        """
        if isinstance(chosen, (str, PromptBatch)) or not isinstance(chosen, Iterable):
            raise wrong_kind(chosen, "a list of numbers of pairs; a fact or a slice as pairs[...]", "chosen")
        numbers = chosen if isinstance(chosen, Tensor) else list(chosen)
        return replace(self, clean=self.clean.select(numbers), counterfactual=self.counterfactual.select(numbers))

    def cropped(self) -> "PromptPairs":
        """Return the pairs without the positions that are padding in all of them."""
        n_pos = int(self.clean.length.max())
        sides = {}
        for name in ("clean", "counterfactual"):
            side = getattr(self, name)
            sides[name] = replace(side, tokens=side.tokens[:, :n_pos], attention_mask=side.attention_mask[:, :n_pos])
        return replace(self, **sides)

    def fact(self, pair: int) -> Fact:
        """Return the fact of the clean prompt of a pair."""
        return self.clean.fact(pair)

    def logit_difference(self, logits: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, " pair"]:
        """Return the logit of each clean answer minus that of its contrast."""
        assert self.clean.contrast_ids is not None
        both = torch.stack([self.clean.target_ids, self.clean.contrast_ids], dim=1)
        answer, contrast = logits.gather(1, both).unbind(1)
        return answer - contrast


def map_pairs(
    budget: Budget,
    pairs: PromptPairs,
    rows_per_pair: int,
    run: Callable[[PromptPairs], T],
) -> Iterator[tuple[Int[Tensor, " chunk"], T]]:
    """Run all pairs in chunks that fit a memory budget, from long to short; see ``Budget.map_chunks``.

    Args:
        budget: the memory.
        pairs: the pairs.
        rows_per_pair: the rows that a pass has for each pair.
        run: called with the pairs of a chunk, cut to the longest of them.

    Yields:
        The numbers of the pairs of a chunk, and the result of ``run``.
    """
    n_rows = torch.full((len(pairs),), rows_per_pair, device=pairs.clean.tokens.device)
    chunks = budget.map_chunks(
        n_rows, pairs.clean.length, budget.rows_per_pass, lambda chosen: run(pairs.select(chosen).cropped())
    )
    yield from chunks


def logit_differences(host: Host, pairs: PromptPairs) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Return the logit difference of each pair under the clean and under the counterfactual prompt.

    Cost: two forward passes for each pair.
    """
    both = [pairs.clean.tokens.new_zeros(len(pairs), dtype=host.dtype) for _ in range(2)]

    def run(chunk: PromptPairs) -> list[Tensor]:
        values = []
        for prompts in (chunk.clean, chunk.counterfactual):
            with torch.no_grad():
                logits = host.logits_at_read_pos(prompts.tokens, prompts.attention_mask, prompts.read_pos)
            values.append(chunk.logit_difference(logits))
        return values

    for chosen, values in map_pairs(Budget.of(host, None), pairs, 1, run):
        for total, value in zip(both, values, strict=True):
            total[chosen] = value
    return both[0], both[1]


@exclusive
def counterfactual_pairs(
    model: HookedModel | Host,
    facts: Fact | Iterable[Fact],
    *,
    others: Iterable[Fact] | None = None,
    tokenizer: Any = None,
    templates: Any = None,
    known: bool = False,
) -> PromptPairs:
    """Pair each prompt of some facts with the prompt of another fact of its relation, in the same template.

    The other fact is the first, from the fact on in the order of ``others`` and around, whose prompt has the same
    number of tokens and whose answer begins with another token.

    Args:
        model: the TransformerLens model that the prompts are for.
        facts: one fact or many.
        others: the facts that counterfactuals are taken from; None for ``facts`` themselves.
        tokenizer: see ``make_prompts``.
        templates: see ``make_prompts``.
        known: keep the pairs alone in which the model prefers, under both prompts, the prompt's own answer to the
            other's.

    Returns:
        The pairs, in the order of the prompts. Cost: none beyond ``make_prompts``, with ``known`` a forward pass for
        each prompt.

    Raises:
        NoPromptError: no prompt has a pair.
        PromptError: as ``make_prompts``.

    >>> import kn_lens as kn
    >>> model = kn.load_model("world-gpt2")
    >>> facts = [fact for fact in kn.FactSet.world() if fact.relation == "P36"]
    >>> pairs = counterfactual_pairs(model, facts[:1], others=facts)
    >>> pairs.clean.text[0], pairs.counterfactual.text[0]
    ('The country China has the capital', 'The country Pakistan has the capital')
    """
    host = host_of(model)
    wanted = FactSet([facts] if isinstance(facts, Fact) else facts)
    pool = wanted if others is None else FactSet(others)
    everything = list(dict.fromkeys([*pool, *wanted]))
    options = {"tokenizer": tokenizer, "templates": templates, "unknown_answers": "leave_out"}
    prompts = make_prompts(model, everything, **options)
    single = (prompts.rows_per_prompt == 1).tolist()
    length, read_pos = prompts.length.tolist(), prompts.read_pos.tolist()
    first_row = (prompts.rows_per_prompt.cumsum(0) - prompts.rows_per_prompt).tolist()
    fact_of = prompts.fact_index.tolist()
    allowed = {number for number, fact in enumerate(prompts.facts) if fact in set(pool)}
    by_form: dict[tuple[Any, ...], list[int]] = defaultdict(list)

    def form(prompt: int) -> tuple[Any, ...]:
        relation = prompts.fact(prompt).relation
        return relation, prompts.template[prompt], length[prompt], read_pos[first_row[prompt]]

    for prompt in range(len(prompts)):
        if single[prompt] and fact_of[prompt] in allowed:
            by_form[form(prompt)].append(prompt)
    left_out: Counter[str] = Counter()
    clean: list[int] = []
    counterfactual: list[int] = []
    targets = prompts.target_ids.tolist()
    wanted_facts = set(wanted)
    for prompt in range(len(prompts)):
        if prompts.fact(prompt) not in wanted_facts:
            continue
        if not single[prompt]:
            left_out[SEVERAL_TOKENS] += 1
            continue
        candidates = by_form[form(prompt)]
        later = [other for other in candidates if other > prompt]
        earlier = [other for other in candidates if other < prompt]
        answer = targets[first_row[prompt]]
        other = next((other for other in [*later, *earlier] if targets[first_row[other]] != answer), None)
        if other is None:
            left_out[NO_COUNTERFACTUAL] += 1
            continue
        clean.append(prompt)
        counterfactual.append(other)
    if not clean:
        raise NoPromptError(
            f"None of {counted(sum(left_out.values()), 'prompt')} has a counterfactual ({', '.join(left_out)}); "
            "expected another fact of the same relation with a subject of as many tokens: give more facts as others=."
        )
    other_prompts = prompts.select(counterfactual)
    pairs = PromptPairs(
        clean=replace(prompts.select(clean), contrast_ids=other_prompts.target_ids),
        counterfactual=other_prompts,
        left_out=dict(left_out),
    )
    return _known(host, pairs) if known else pairs


def _known(host: Host, pairs: PromptPairs) -> PromptPairs:
    """Return the pairs in which the model prefers each prompt's own answer to the other's."""
    clean, counterfactual = logit_differences(host, pairs)
    is_known = (clean > 0) & (counterfactual < 0)
    if not bool(is_known.any()):
        raise NoPromptError(
            f"The model prefers the right answer under both prompts in none of {counted(len(pairs), 'pair')}; expected "
            "facts that it knows."
        )
    unknown = int((~is_known).sum())
    left_out = {**pairs.left_out, "the model prefers the wrong answer": unknown} if unknown else pairs.left_out
    return replace(pairs.select(is_known.nonzero().flatten()), left_out=left_out)
