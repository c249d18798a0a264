"""ESM-2, a masked model of proteins: norms before attention and MLP, and rotary positions.

Its tokens are amino acids. The word embeddings are scaled by the share of masked tokens in the prompt
(``token_dropout``), as transformers does it.
"""

from typing import Any, ClassVar

from kn_lens.hosts.adapters.bert_layers import LM_HEAD, BertLayersArchitectureAdapter, Paths, embeddings_in
from kn_lens.hosts.adapters.boot_tables import boots_masked


@boots_masked("EsmForMaskedLM")
class EsmArchitectureAdapter(BertLayersArchitectureAdapter):
    """``ln_final`` is the norm after the last block; ``mlm_ln`` is that of the head, whose bias has no hook."""

    paths: ClassVar[Paths] = {
        **embeddings_in("esm"),
        "token_type_embed": None,
        "pos_embed": None,
        "embed_ln": None,
        "blocks": "esm.encoder.layer",
        "blocks.ln1": "attention.LayerNorm",
        "blocks.ln2": "LayerNorm",
        **LM_HEAD,
        "ln_final": "esm.encoder.emb_layer_norm_after",
    }

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.positional_embedding_type = "rotary"
        self.components["mlm_ln"] = self.norm("lm_head.layer_norm")
