"""How strong an update may be: chosen by a rule, on facts that are not to be edited.

How much a model bears differs from model to model: the lambdas that put a new answer on top in one leave little of what
another knows. So each strength of a grid is tried on some facts, kept for choosing, and measured:

    success    share of the prompts in held-out wordings that have the new answer on top; mean over these facts
    disturbed  share of the right answers to other facts that the update takes away; mean over these facts

The rule: of the strengths that disturb at most ``max_disturbed``, the one with the highest success; of equals the
weakest, that with the smallest ``|lambda_1| + |lambda_2|``. Where every strength disturbs more, the one that disturbs
least.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kn_lens._budget import Budget
from kn_lens._exclusive import exclusive
from kn_lens._reading import Progress
from kn_lens._request import Preset, check_share
from kn_lens.edit_effects import Trial, check_facts, checked_host, tried
from kn_lens.edit_forms import Scaling, checked_lambdas
from kn_lens.edit_questions import MAX_DISTURBED, OWN, reworded
from kn_lens.errors import ArgumentError
from kn_lens.facts import Fact
from kn_lens.neuron_sets import NeuronSet
from kn_lens.prompts import PromptBatch

if TYPE_CHECKING:
    import pandas as pd

GRID = ((0.25, 0.5), (0.5, 1.0), (1.0, 1.0), (1.0, 2.0), (1.0, 4.0), (1.0, 8.0))
"""Strengths that are tried unless others are given: that of the paper, and weaker ones."""

HELD_OUT = "held-out wording"


@dataclass(frozen=True, kw_only=True)
class LambdaChoice:
    """The strength that the rule chooses, and what it was chosen from.

    Attributes:
        lambdas: for ``update_fact`` and ``update_effects``.
        success: what they reach; 0 says that no strength allowed puts a new answer on top, and then they mean little.
        within: whether they disturb at most ``max_disturbed``; False where no strength of the grid is known to.
        max_disturbed: the share of other right answers that a strength may take away.
        table: a row for each strength, from weak to strong: ``lambda_old``, ``lambda_new``; ``success``, by which is
            chosen, and ``success_own``, that of own wordings; ``disturbed``; ``n_facts``.
    """

    lambdas: tuple[float, float]
    success: float
    within: bool
    max_disturbed: float
    table: "pd.DataFrame" = field(repr=False)

    @classmethod
    def of(cls, table: "pd.DataFrame", max_disturbed: float = MAX_DISTURBED) -> "LambdaChoice":
        """Choose by the rule, from ``lambda_old``, ``lambda_new``, ``success`` and ``disturbed`` of each strength.

        >>> import pandas as pd
        >>> measured = [(1, 2, 0.5, 0.01), (1, 4, 0.8, 0.04), (1, 8, 0.9, 0.68)]
        >>> table = pd.DataFrame(measured, columns=["lambda_old", "lambda_new", "success", "disturbed"])
        >>> LambdaChoice.of(table, max_disturbed=0.1)
        LambdaChoice(lambdas=(1.0, 4.0), success=0.8, within=True, max_disturbed=0.1)
        """
        strength = table["lambda_old"].abs() + table["lambda_new"].abs()
        table = table.loc[strength.sort_values(kind="stable").index].reset_index(drop=True)
        allowed = table["disturbed"] <= max_disturbed
        within = bool(allowed.any())
        if within:
            place = table["success"].where(allowed, -1.0).fillna(-1.0).argmax()  # the first of equals
        else:
            place = table["disturbed"].fillna(float("inf")).argmin()
        old, new, success = (float(table[name].iloc[place]) for name in ("lambda_old", "lambda_new", "success"))
        return cls(lambdas=(old, new), success=success, within=within, max_disturbed=max_disturbed, table=table)


@exclusive
def choose_lambdas(
    model: Any,
    new_objects: Mapping[Fact, str],
    neurons_by_fact: Mapping[Fact, NeuronSet],
    others: PromptBatch,
    *,
    held_out: Iterable[Fact] | None = None,
    grid: Sequence[tuple[float, float]] = GRID,
    max_disturbed: float = MAX_DISTURBED,
    preset: Preset | None = None,
    scaling: Scaling = "norm",
    signed: bool = True,
    tokenizer: Any = None,
    memory_budget: float | None = None,
    progress: Progress | None = None,
) -> LambdaChoice:
    """Choose the strength of updates on facts that are not to be edited; see the rule in ``LambdaChoice``.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        new_objects: facts to try strengths on, and a new object for each. What they show of a strength is fair only if
            they are other facts than those to be edited afterwards; eight of several relations are a good start.
        neurons_by_fact: the neurons of these facts.
        others: prompts of facts that should stay as they are, of the same and of other relations; a hundred facts in
            one wording each tell a tenth from a fifth.
        held_out: equal facts in wordings that nothing was found with, by which success is measured; without them it is
            that of the facts' own wordings, which says less.
        grid: the strengths to try, each the ``lambdas`` of ``update_fact``.
        max_disturbed: the share of the others' right answers that a strength may take away.
        preset: see ``update_fact``.
        scaling: see ``update_fact``.
        signed: see ``update_fact``.
        tokenizer: instead of the model's own.
        memory_budget: bytes that passes may take; see ``attribute``.
        progress: called with (done, total), counted in rows.

    Returns:
        The choice, with all that was measured in its ``table``. Cost: for each fact and strength a forward pass for
        each row of its prompts, own and held out, asked for both answers, and of ``others``; two more without edits.
        With six strengths, eight facts of ten prompts and a hundred others about 7,000 passes of one prompt.

    Raises:
        ArgumentError: no facts or strengths, a fact without neurons or held-out wording, numbers out of range.
        EditError: an update that cannot be made, see ``update_fact``.
        PromptError: a fact that cannot be asked of the model.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> trained, held_out = kn.FactSet.world("trained"), kn.FactSet.world("held_out")
        >>> facts = [trained.find(name, relation="P36") for name in ("Ireland", "Japan")]
        >>> found = kn.refine(kn.attribute(model, kn.make_prompts(model, facts)))
        >>> others = kn.make_prompts(model, held_out.of("P36", "P30").sample(20, seed=0), unknown_answers="leave_out")
        >>> grid = [(1, 1), (1, 2), (1, 4)]
        >>> kn.choose_lambdas(model, dict.fromkeys(facts, "Rome"), found, others, held_out=held_out, grid=grid)
        LambdaChoice(lambdas=(1.0, 1.0), success=1.0, within=True, max_disturbed=0.1)
    """
    import pandas as pd

    host = checked_host(model)
    check_facts(new_objects, neurons_by_fact, "neurons")
    check_share("max_disturbed", max_disturbed)
    if not len(grid):
        raise ArgumentError("grid is empty; expected at least one pair of lambdas, such as (1, 2).")
    strengths = [checked_lambdas(lambdas) for lambdas in grid]
    form: dict[str, Any] = {"preset": preset, "scaling": scaling, "signed": signed}
    trials = {
        fact: [Trial({"strength": number}, neurons_by_fact[fact], {**form, "lambdas": lambdas})
               for number, lambdas in enumerate(strengths)]
        for fact in new_objects
    }  # fmt: skip
    questions = {} if held_out is None else {HELD_OUT: reworded(held_out, new_objects)}
    effects = tried(
        model, host, Budget.of(host, memory_budget), new_objects, trials, questions, others, (1.0,), max_disturbed,
        tokenizer, progress,
    )  # fmt: skip
    rows = []
    for number, (lambda_old, lambda_new) in enumerate(strengths):
        mine = effects[effects["strength"] == number]
        own, asked = (mine[mine["asked"] == name] for name in (OWN, OWN if held_out is None else HELD_OUT))
        rows.append(
            {
                "lambda_old": lambda_old,
                "lambda_new": lambda_new,
                "success": asked["new_right_after"].mean(),
                "success_own": own["new_right_after"].mean(),
                "disturbed": own["disturbed"].mean(),  # each update's, in all its rows
                "n_facts": len(own),
            }
        )
    return LambdaChoice.of(pd.DataFrame(rows), max_disturbed)
