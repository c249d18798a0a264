"""MegatronBERT: BERT with norms before attention and MLP, and one after the last block."""

from typing import Any, ClassVar

from kn_lens.hosts.adapters.bert_layers import BertLayersArchitectureAdapter, Paths
from kn_lens.hosts.adapters.boot_tables import boots_masked


@boots_masked("MegatronBertForMaskedLM")
class MegatronBertArchitectureAdapter(BertLayersArchitectureAdapter):
    """``ln_final`` is the norm after the last block; ``mlm_ln`` is that of the head."""

    paths: ClassVar[Paths] = {
        "embed_ln": None,
        "blocks.ln1": "attention.ln",
        "blocks.ln2": "ln",
        "ln_final": "bert.encoder.ln",
    }

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.components["mlm_ln"] = self.norm("cls.predictions.transform.LayerNorm")
