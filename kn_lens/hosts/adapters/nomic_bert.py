"""NomicBERT: BERT with gated MLPs and rotary positions."""

from typing import Any, ClassVar

from transformer_lens.model_bridge.generalized_components import GatedMLPBridge, LinearBridge

from kn_lens.hosts.adapters.bert_layers import BertLayersArchitectureAdapter, Paths, embeddings_in
from kn_lens.hosts.adapters.boot_tables import boots_masked


@boots_masked("NomicBertForMaskedLM")
class NomicBertArchitectureAdapter(BertLayersArchitectureAdapter):
    """The norms after attention and MLP stand beside them in the block."""

    paths: ClassVar[Paths] = {
        **embeddings_in("nomic_bert"),
        "pos_embed": None,
        "blocks": "nomic_bert.layers",
        "blocks.ln1": "post_attention_layernorm",
        "blocks.ln2": "post_mlp_layernorm",
        "blocks.attn": "self_attn",
        "blocks.attn.q": "q_proj",
        "blocks.attn.k": "k_proj",
        "blocks.attn.v": "v_proj",
        "blocks.attn.o": "o_proj",
        "ln_final": "cls.predictions.transform.layer_norm",
    }

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.positional_embedding_type = "rotary"
        self.cfg.gated_mlp = True
        blocks: Any = self.components["blocks"]
        blocks.submodules["mlp"] = GatedMLPBridge(
            name="mlp",
            config=self.cfg,
            submodules={
                "gate": LinearBridge(name="gate_proj"),
                "in": LinearBridge(name="up_proj"),
                "out": LinearBridge(name="down_proj"),
            },
        )
        blocks.hook_aliases = {**blocks.hook_aliases, "hook_mlp_out": "mlp.hook_out"}
