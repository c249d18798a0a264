"""ModernBERT: norms before attention and MLP, rotary positions, and attention of some layers within a window."""

from typing import Any

from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    MLPBridge,
    NormalizationBridge,
    RotaryEmbeddingBridge,
    UnembeddingBridge,
)

from kn_lens.hosts.adapters.boot_tables import boots_masked


@boots_masked("ModernBertForMaskedLM")
class ModernBertArchitectureAdapter(ArchitectureAdapter):
    """One matrix computes queries, keys and values; one computes the gate and the values of the MLP.

    A neuron is a row of ``W_out``, with the activation ``act(gate) * up``.
    """

    supports_generation = False
    # The first block normalises nothing before its attention.
    supports_fold_ln = False
    supports_center_writing_weights = False

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.normalization_type = "LN"
        self.cfg.uses_rms_norm = False
        self.cfg.final_rms = False
        self.cfg.positional_embedding_type = "rotary"
        self.cfg.gated_mlp = False  # for the processing of weights: there is one matrix before W_out
        self.cfg.attn_only = False
        self.cfg.attention_dir = "bidirectional"
        self.weight_processing_conversions = {}
        self.component_mapping = {
            "embed": EmbeddingBridge(name="model.embeddings.tok_embeddings"),
            "embed_ln": self._norm("model.embeddings.norm"),
            "rotary_emb": RotaryEmbeddingBridge(name="model.rotary_emb"),
            "blocks": BlockBridge(
                name="model.layers",
                config=self.cfg,
                submodules={
                    "ln1": self._norm("attn_norm"),
                    "attn": AttentionBridge(
                        name="attn",
                        config=self.cfg,
                        submodules={"qkv": LinearBridge(name="Wqkv"), "o": LinearBridge(name="Wo")},
                        maintain_native_attention=True,
                        fused_qkv=True,
                    ),
                    "ln2": self._norm("mlp_norm"),
                    "mlp": MLPBridge(
                        name="mlp",
                        config=self.cfg,
                        submodules={"in": LinearBridge(name="Wi"), "out": LinearBridge(name="Wo")},
                    ),
                },
            ),
            "ln_final": self._norm("model.final_norm"),
            "mlm_head": LinearBridge(name="head.dense"),
            "mlm_ln": self._norm("head.norm"),
            "unembed": UnembeddingBridge(name="decoder"),
        }

    def _norm(self, name: str) -> NormalizationBridge:
        return NormalizationBridge(name=name, config=self.cfg, use_native_layernorm_autograd=True)
