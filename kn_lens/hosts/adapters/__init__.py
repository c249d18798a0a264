"""Adapters by which TransformerLens hosts masked models that it has no adapter for, one file for each family.

They are TransformerLens' own kind of class, an ``ArchitectureAdapter``, and import nothing else of kn_lens. Installed,
kn_lens offers them at the entry point ``transformer_lens.architectures``. `register_missing` registers those that no
entry point brought: where kn_lens runs from its source, or was installed before an adapter was added to it, and the
adapter for RoBERTa, which TransformerLens 4 has itself and warns of in entry points.
"""

from importlib import import_module
from typing import Any

ADAPTERS = {
    "RobertaForMaskedLM": "roberta:RobertaArchitectureAdapter",
    "XLMRobertaForMaskedLM": "roberta:RobertaArchitectureAdapter",
    "CamembertForMaskedLM": "roberta:RobertaArchitectureAdapter",
    "DistilBertForMaskedLM": "distilbert:DistilBertArchitectureAdapter",
    "ElectraForMaskedLM": "electra:ElectraArchitectureAdapter",
    "ModernBertForMaskedLM": "modernbert:ModernBertArchitectureAdapter",
    "EuroBertForMaskedLM": "eurobert:EuroBertArchitectureAdapter",
    "DebertaV2ForMaskedLM": "deberta_v2:DebertaV2ArchitectureAdapter",
    "MPNetForMaskedLM": "mpnet:MPNetArchitectureAdapter",
    "ErnieForMaskedLM": "ernie:ErnieArchitectureAdapter",
    "MegatronBertForMaskedLM": "megatron_bert:MegatronBertArchitectureAdapter",
    "NomicBertForMaskedLM": "nomic_bert:NomicBertArchitectureAdapter",
    "XLMRobertaXLForMaskedLM": "xlm_roberta_xl:XLMRobertaXLArchitectureAdapter",
    "AlbertForMaskedLM": "albert:AlbertArchitectureAdapter",
    "EsmForMaskedLM": "esm:EsmArchitectureAdapter",
}
"""By Hugging Face class: the module in this package, and the adapter in it."""

KNOWN_TO_VERSION_4 = frozenset({"RobertaForMaskedLM"})
"""Classes of `ADAPTERS` that TransformerLens 4 has an adapter for."""


def register_missing(registered: dict[str, Any]) -> None:
    """Add the adapters that are not in TransformerLens' registry, once it has loaded its entry points."""
    for architecture, target in ADAPTERS.items():
        if architecture not in registered:
            module, _, name = target.partition(":")
            registered[architecture] = getattr(import_module(f"{__name__}.{module}"), name)
