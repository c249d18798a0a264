"""MPNet: BERT's blocks, whose attention adds a bias that depends on the distance of two tokens."""

from typing import Any, ClassVar

from transformer_lens.model_bridge.generalized_components import EmbeddingBridge

from kn_lens.hosts.adapters.bert_layers import LM_HEAD, BertLayersArchitectureAdapter, Paths, embeddings_in
from kn_lens.hosts.adapters.boot_tables import boots_masked


@boots_masked("MPNetForMaskedLM")
class MPNetArchitectureAdapter(BertLayersArchitectureAdapter):
    """One table of biases serves all blocks; positions count from ``padding_idx + 1``."""

    paths: ClassVar[Paths] = {
        **embeddings_in("mpnet"),
        "token_type_embed": None,
        "blocks": "mpnet.encoder.layer",
        "blocks.ln1": "attention.LayerNorm",
        "blocks.attn.q": "attn.q",
        "blocks.attn.k": "attn.k",
        "blocks.attn.v": "attn.v",
        "blocks.attn.o": "attn.o",
        **LM_HEAD,
    }

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.components["relative_bias"] = EmbeddingBridge(name="mpnet.encoder.relative_attention_bias")

    def prepare_model(self, hf_model: Any) -> None:
        """Set the longest prompt: the rows of the table of positions that are not reserved."""
        super().prepare_model(hf_model)
        table = hf_model.mpnet.embeddings.position_embeddings
        self.cfg.n_ctx = table.num_embeddings - (table.padding_idx or 0) - 1
