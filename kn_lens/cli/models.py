"""``kn-lens models``: what can be hosted, and what comes with the package."""

import json as json_module
from typing import Any

from kn_lens.cli import _options as options
from kn_lens.cli._tables import embedded_table, families_table, refused_table
from kn_lens.cli._terminal import out, print_json

REFUSED = {
    "mixture of experts": "a neuron is not one row of the one W_out of its layer; take a dense model",
    "encoder-decoder": "knowledge neurons are those of one stack; take a masked or causal model",
    "ALBERT": "its layers share one W_out; take a BERT or a RoBERTa",
    "ModernBERT, DeBERTa, MPNet": "TransformerLens has no adapter; take a BERT or a RoBERTa",
    "quantised weights": "rows can be neither read nor edited exactly; take the original weights",
    "a model in train mode": "dropout makes every pass another one; call model.eval()",
}
"""What `load_model` turns away, and what to do instead."""


def models(json: options.Json = False) -> None:
    """List the embedded models, the families that can be hosted, and what is refused."""
    from kn_lens.hosts import FAMILIES

    document = {
        "command": "models",
        "embedded": embedded(),
        "families": [
            {"name": one.name, "kind": one.kind, "architecture": one.architecture, "example": one.example}
            for one in FAMILIES
        ],
        "refused": REFUSED,
    }
    if json:
        print_json(document)
        return
    out.print(embedded_table(document["embedded"]))
    out.print(families_table(document["families"]))
    out.print("Other causal families work where TransformerLens has an adapter and every block a dense MLP.\n")
    out.print(refused_table(REFUSED))


def embedded() -> list[dict[str, Any]]:
    """Return what the record beside each embedded model says: how it was made, and what was measured of it."""
    from kn_lens._loading import EMBEDDED_DIR, embedded_models

    found = []
    for name in embedded_models():
        record = json_module.loads((EMBEDDED_DIR / name / "recipe.json").read_text(encoding="utf-8"))
        recipe = record["recipe"]
        found.append(
            {
                "name": name,
                "kind": "masked" if recipe["kind"] == "bert" else "causal",
                "constructed": recipe["sparsity"] > 0 or recipe["interchange"] > 0,
                **record["measured"],
            }
        )
    return found
