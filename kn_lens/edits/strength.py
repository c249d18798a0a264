"""The strength of updates, chosen by a rule on facts that are not to be edited.

Models tolerate different strengths: lambdas that put the new answers of one model on top destroy much of what another
knows. So each strength of a grid is tried on facts kept for the choice, with two measures:

    success    share of the prompts in held-out wordings with the new answer on top; mean over these facts
    disturbed  share of the right answers to other facts that the update takes away; mean over these facts

The rule: of the strengths that disturb at most ``max_disturbed``, take the one with the highest success; of equals the
weakest, which has the smallest ``|lambda_1| + |lambda_2|``. If every strength disturbs more, take the one that disturbs
least.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kn_lens._core import defaults
from kn_lens._core.checks import check_kind, check_share
from kn_lens._core.names import Scaling
from kn_lens._core.progress import draws_progress
from kn_lens.attribution import Preset
from kn_lens.edits.arguments import check_each_has_neurons, check_new_objects
from kn_lens.edits.effects import MAX_DISTURBED, UpdateMeasurement, UpdateTrial, measure_updates
from kn_lens.edits.questions import HELD_OUT, OWN, reworded
from kn_lens.edits.updates import checked_lambdas, resolve_form
from kn_lens.errors import ArgumentError
from kn_lens.facts import Fact
from kn_lens.hosts import Budget, HookedModel, Host, checked_host, exclusive
from kn_lens.interventions import Progress
from kn_lens.neurons import NeuronSet
from kn_lens.prompts import PromptBatch, check_prompts, host_for

if TYPE_CHECKING:
    import pandas as pd

GRID = ((0.25, 0.5), (0.5, 1.0), (1.0, 1.0), (1.0, 2.0), (1.0, 4.0), (1.0, 8.0))
"""The default grid of strengths: that of the paper, and weaker ones."""


@dataclass(frozen=True, kw_only=True)
class LambdaChoice:
    """The strength that the rule chooses, and the measures of all strengths.

    Attributes:
        lambdas: the chosen strength, for ``update_fact`` and ``update_effects``.
        success: its success. 0 means that no allowed strength puts a new answer on top; the choice then means little.
        within: whether it disturbs at most ``max_disturbed``; False if that is known of no strength of the grid.
        max_disturbed: the share of other right answers that a strength may take away.
        table: a row for each strength, from weak to strong: ``lambda_old``, ``lambda_new``; ``success``, the measure of
            the rule; ``success_own``, the success in own wordings; ``disturbed``; ``n_facts``.
    """

    lambdas: tuple[float, float]
    success: float
    within: bool
    max_disturbed: float
    table: "pd.DataFrame" = field(repr=False)

    @classmethod
    def of(
        cls,
        table: "pd.DataFrame",
        max_disturbed: float = MAX_DISTURBED,
    ) -> "LambdaChoice":
        """Apply the rule to ``lambda_old``, ``lambda_new``, ``success`` and ``disturbed`` of each strength.

        >>> import pandas as pd
        >>> measured = [(1, 2, 0.5, 0.01), (1, 4, 0.8, 0.04), (1, 8, 0.9, 0.68)]
        >>> table = pd.DataFrame(measured, columns=["lambda_old", "lambda_new", "success", "disturbed"])
        >>> LambdaChoice.of(table, max_disturbed=0.1)
        LambdaChoice(lambdas=(1.0, 4.0), success=0.8, within=True, max_disturbed=0.1)
        """
        strength = table["lambda_old"].abs() + table["lambda_new"].abs()
        order = strength.to_numpy().argsort(kind="stable")
        table = table.iloc[order].reset_index(drop=True)
        allowed = table["disturbed"] <= max_disturbed
        within = bool(allowed.any())
        if within:
            row = table["success"].where(allowed, -1.0).fillna(-1.0).argmax()  # the first of equals
        else:
            row = table["disturbed"].fillna(float("inf")).argmin()
        chosen = table.iloc[row]
        return cls(
            lambdas=(float(chosen["lambda_old"]), float(chosen["lambda_new"])),
            success=float(chosen["success"]),
            within=within,
            max_disturbed=max_disturbed,
            table=table,
        )


@exclusive
@draws_progress("Choosing the strength", "rows")
def choose_lambdas(
    model: HookedModel | Host,
    new_objects: Mapping[Fact, str],
    neurons_by_fact: Mapping[Fact, NeuronSet],
    others: PromptBatch,
    *,
    held_out: Iterable[Fact] | None = None,
    grid: Sequence[tuple[float, float]] = GRID,
    max_disturbed: float = MAX_DISTURBED,
    preset: Preset | None = None,
    scaling: Scaling = defaults.SCALING,
    signed: bool = defaults.SIGNED,
    tokenizer: Any = None,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> LambdaChoice:
    """Choose the strength of updates on facts that are not to be edited, by the rule of ``LambdaChoice``.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        new_objects: the facts on which strengths are tried, and the new object of each. The choice is fair only if the
            facts to be edited afterwards are others. Eight facts of several relations are a good start.
        neurons_by_fact: the neurons of these facts.
        others: prompts of facts that should stay the same, of the same and of other relations. A hundred facts in one
            wording each are enough to tell a tenth from a fifth.
        held_out: equal facts in wordings that were not used to find neurons; success is measured in these. Without
            them, success is that of the facts' own wordings, which is weaker evidence.
        grid: the strengths to try, each the ``lambdas`` of ``update_fact``.
        max_disturbed: the share of the others' right answers that a strength may take away.
        preset: see ``update_fact``.
        scaling: see ``update_fact``.
        signed: see ``update_fact``.
        tokenizer: the tokenizer to use instead of the model's own.
        memory_budget: bytes of memory for passes; see ``attribute``.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with (done, total), counted in
            rows.

    Returns:
        The choice, with all measures in its ``table``. Cost: for each fact and strength a forward pass for each row of
        its prompts, own and held out, with both answers, and of ``others``; two more without edits. With six strengths,
        eight facts of ten prompts and a hundred others, about 7,000 passes of one prompt.

    Raises:
        ArgumentError: no facts or strengths, a fact without neurons or held-out wording, numbers out of range, a wrong
            kind of argument.
        EditError: an update that cannot be made, see ``update_fact``.
        PromptError: a fact that gives no prompt for the model.
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

    host = checked_host(host_for(model, others))
    check_new_objects(new_objects)
    check_each_has_neurons(new_objects, neurons_by_fact, "neurons_by_fact", "neurons")
    check_prompts(others, "others")
    check_share("max_disturbed", max_disturbed)
    check_kind(grid, Sequence, "pairs of lambdas: [(1, 1), (1, 2)]", "grid")
    if not len(grid):
        raise ArgumentError("grid is empty; expected at least one pair of lambdas, such as (1, 2).")
    strengths = [checked_lambdas(lambdas) for lambdas in grid]
    trials: dict[Fact, list[UpdateTrial]] = {}
    for fact in new_objects:
        trials[fact] = []
        for number, lambdas in enumerate(strengths):
            form = resolve_form(lambdas, preset, scaling, signed)
            trials[fact].append(UpdateTrial({"strength": number}, neurons_by_fact[fact], form))
    measurement = UpdateMeasurement(
        questions={} if held_out is None else {HELD_OUT: reworded(held_out, new_objects)},
        others=others,
        budget=Budget.of(host, memory_budget),
        max_disturbed=max_disturbed,
        tokenizer=tokenizer,
        progress=progress,
    )
    effects = measure_updates(host, new_objects, trials, measurement)
    rows = []
    for number, (lambda_old, lambda_new) in enumerate(strengths):
        of_strength = effects[effects["strength"] == number]
        own = of_strength[of_strength["question"] == OWN]
        tested = own if held_out is None else of_strength[of_strength["question"] == HELD_OUT]
        rows.append(
            {
                "lambda_old": lambda_old,
                "lambda_new": lambda_new,
                "success": tested["new_right_after"].mean(),
                "success_own": own["new_right_after"].mean(),
                "disturbed": own["disturbed"].mean(),  # each update's, in all its rows
                "n_facts": len(own),
            }
        )
    return LambdaChoice.of(pd.DataFrame(rows), max_disturbed)
