"""XLM-R-XL: RoBERTa with norms before attention and MLP, and one after the last block."""

from typing import Any, ClassVar

from kn_lens.hosts.adapters.bert_layers import LM_HEAD, Paths, embeddings_in
from kn_lens.hosts.adapters.boot_tables import boots_masked
from kn_lens.hosts.adapters.roberta import RobertaArchitectureAdapter


@boots_masked("XLMRobertaXLForMaskedLM")
class XLMRobertaXLArchitectureAdapter(RobertaArchitectureAdapter):
    """``ln_final`` is the norm after the last block; ``mlm_ln`` is that of the head."""

    paths: ClassVar[Paths] = {
        **embeddings_in("roberta"),
        "embed_ln": None,
        "blocks": "roberta.encoder.layer",
        "blocks.ln1": "attention.self_attn_layer_norm",
        "blocks.ln2": "LayerNorm",
        **LM_HEAD,
        "ln_final": "roberta.encoder.LayerNorm",
    }

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.components["mlm_ln"] = self.norm("lm_head.layer_norm")
