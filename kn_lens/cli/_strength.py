"""What commands say of the strength of updates: whether they reach their fact, and whether they disturb others."""

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kn_lens.cli._run import ask
from kn_lens.cli._terminal import err, working
from kn_lens.errors import PromptError
from kn_lens.facts import Fact, FactSet

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.weight_edits import WeightEdit

OTHERS, SEED = 100, 0
"""Other facts that an update is tried on, each in one wording, and what draws them."""

CURE = "kn_lens.choose_lambdas measures which strengths a model bears"


def trial(model: Any, edit: "WeightEdit", fact: Fact, new_object: str, source: FactSet) -> dict[str, Any]:
    """Return how many prompts of a fact an update of it reaches, and how many right answers to others it takes away."""
    from dataclasses import replace

    import torch

    from kn_lens.edit_questions import MAX_DISTURBED
    from kn_lens.effects import measure

    own = ask(model, FactSet([replace(fact, object=new_object)]), leave_out=True)
    about = (fact.relation, fact.subject)
    rest = FactSet(one for one in source if one.templates and (one.relation, one.subject) != about)
    with working("Trying the update", unit="prompts") as show:
        reached = measure(model, own, edit, progress=show)
        n_right = n_lost = 0
        with suppress(PromptError):  # the others cannot be asked, or there are none: then nothing is known of them
            prompts = ask(model, rest.sample(min(OTHERS, len(rest)), SEED), leave_out=True)
            seen = prompts.fact_index.tolist()
            first = torch.tensor([seen.index(one) for one in dict.fromkeys(seen)], device=prompts.tokens.device)
            others = measure(model, prompts.select(first), edit, progress=show)
            right = others["rank_before"] == 0
            n_right, n_lost = int(right.sum()), int((right & (others["rank_after"] != 0)).sum())
    disturbed = n_lost / n_right if n_right else float("nan")
    return {
        "n_prompts": len(reached),
        "success": float((reached["rank_after"] == 0).mean()),
        "n_others": n_right,
        "disturbed": disturbed,
        "disturbs": disturbed > MAX_DISTURBED,
        "max_disturbed": MAX_DISTURBED,
    }


def say_of_trial(tried: Mapping[str, Any]) -> None:
    """Say on stderr where an update reaches nothing, or disturbs more than it should."""
    if tried["success"] == 0:
        err.print(
            f"kn-lens: the new answer is on top in none of {tried['n_prompts']} prompts; try another --lambda-new, "
            f"such as half or twice. {CURE}.",
            soft_wrap=True,
        )
    if tried["disturbs"]:
        err.print(
            f"kn-lens: the edit takes away {tried['disturbed']:.0%} of {tried['n_others']} right answers to "
            f"other facts, more than {tried['max_disturbed']:.0%}; try a smaller --lambda-new. {CURE}.",
            soft_wrap=True,
        )


def say_of_updates(updated: "pd.DataFrame", table: "pd.DataFrame | None") -> None:
    """Say the same of all updates of a run: its tables ``updated`` and ``table6``."""
    from kn_lens.edit_questions import MAX_DISTURBED

    n, n_disturbing = (int(updated[name].sum()) for name in ("updated", "disturbing"))
    if n_disturbing:
        err.print(
            f"kn-lens: {n_disturbing} of {n} updates take away more than {MAX_DISTURBED:.0%} of the right answers to "
            f"other facts; try smaller lambdas. {CURE}.",
            soft_wrap=True,
        )
    if table is None:
        return
    own = table[(table["asked"] == "own wording") & (table["neurons"] == "found") & (table["measure"] == "success")]
    if len(own) and (own["value"] == 0).all():
        err.print(
            f"kn-lens: no update puts its new answer on top; try other lambdas, such as half or twice. {CURE}.",
            soft_wrap=True,
        )
