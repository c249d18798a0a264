"""Parts of an attribution: which prompts go together, and the parts joined."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.attribution.result import Attribution
from kn_lens.prompts import PromptBatch

Together = Literal["fact", "relation"]
"""Whose prompts a part holds whole."""

SCORES_PER_PART = 1 << 27
"""Scores of a part of whole facts: half a gigabyte in single precision, whatever the number of facts."""


def whole_parts(
    prompts: PromptBatch,
    together: Together,
    scores_per_prompt: int,
) -> Iterator[Int[Tensor, " part"]]:
    """Yield the numbers of the prompts of each part of whole facts or relations, in order.

    A part takes facts as long as they have at most ``SCORES_PER_PART`` scores together, one fact or relation at least.

    Args:
        prompts: the prompts.
        together: ``fact`` or ``relation``.
        scores_per_prompt: number of scores of a prompt.
    """
    prompts_per_fact = torch.bincount(prompts.fact_index, minlength=len(prompts.facts)).tolist()
    order = list(range(len(prompts.facts)))
    if together == "relation":
        order.sort(key=lambda number: prompts.facts[number].relation)
    part_of_fact = torch.zeros(len(order), dtype=torch.long)
    n_parts = room = 0
    last_relation = None
    for number in order:
        relation = prompts.facts[number].relation
        n_scores = prompts_per_fact[number] * scores_per_prompt
        continues = together == "relation" and relation == last_relation
        if n_scores > room and not continues:
            n_parts += 1
            room = SCORES_PER_PART
        part_of_fact[number] = n_parts
        room -= n_scores
        last_relation = relation
    part_of_prompt = part_of_fact.to(prompts.fact_index.device)[prompts.fact_index]
    for part in part_of_prompt.unique().tolist():
        yield (part_of_prompt == part).nonzero().squeeze(1)


class PartsJoin:
    """The parts of an attribution, joined in the order of the prompts as they come.

    Args:
        prompts: the prompts of all parts together.
    """

    _DENSE = ("total", "clean", "expected", "n_points", "tolerance")
    _LABELS = ("method", "output", "quadrature", "keep", "layout", "start")

    def __init__(self, prompts: PromptBatch) -> None:
        self.prompts = prompts
        self._joined: dict[str, Tensor] = {}
        self._indices: list[Int[Tensor, "3 score"]] = []
        self._values: list[Float[Tensor, " score"]] = []
        self._shape: tuple[int, ...] | None = None  # of sparse scores
        self._labels: dict[str, Any] = {}

    def add(self, numbers: Int[Tensor, " part"], part: Attribution) -> None:
        """Add the attribution of the prompts with these numbers."""
        names = self._DENSE
        if part.scores.is_sparse:
            prompt, layer, index = part.scores.indices()
            self._indices.append(torch.stack([numbers[prompt], layer, index]))
            self._values.append(part.scores.values())
            self._shape = (len(self.prompts), *part.scores.shape[1:])
        else:
            names = (*names, "scores")
        for name in ("routing_term", "start_gaps"):
            if getattr(part, name) is not None:
                names = (*names, name)
        for name in names:
            value = getattr(part, name)
            if name not in self._joined:
                self._joined[name] = value.new_empty(len(self.prompts), *value.shape[1:])
            self._joined[name][numbers] = value
        for name in self._LABELS:
            self._labels[name] = getattr(part, name)

    def result(self) -> Attribution:
        """Return the attribution of all prompts, each of which must have been added."""
        joined = dict(self._joined)
        if self._shape is not None:
            scores = torch.sparse_coo_tensor(
                torch.cat(self._indices, 1),
                torch.cat(self._values),
                self._shape,
                check_invariants=False,
            )
            joined["scores"] = scores.coalesce()
        return Attribution(prompts=self.prompts, **joined, **self._labels)
