"""DistilBERT: BERT's blocks without token types, with names of its own."""

from typing import ClassVar

from kn_lens.hosts.adapters.bert_layers import BertLayersArchitectureAdapter, Paths, embeddings_in
from kn_lens.hosts.adapters.boot_tables import boots_masked


@boots_masked("DistilBertForMaskedLM")
class DistilBertArchitectureAdapter(BertLayersArchitectureAdapter):
    """The norm after the attention stands beside the attention in the block, not inside it."""

    paths: ClassVar[Paths] = {
        **embeddings_in("distilbert"),
        "token_type_embed": None,
        "blocks": "distilbert.transformer.layer",
        "blocks.ln1": "sa_layer_norm",
        "blocks.ln2": "output_layer_norm",
        "blocks.attn.q": "q_lin",
        "blocks.attn.k": "k_lin",
        "blocks.attn.v": "v_lin",
        "blocks.attn.o": "out_lin",
        "blocks.mlp.in": "ffn.lin1",
        "blocks.mlp.out": "ffn.lin2",
        "mlm_head": "vocab_transform",
        "ln_final": "vocab_layer_norm",
        "unembed": "vocab_projector",
    }
