"""EuroBERT: the blocks of Llama, with attention to both sides."""

from typing import Any

from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    GatedMLPBridge,
    LinearBridge,
    RMSNormalizationBridge,
    RotaryEmbeddingBridge,
    UnembeddingBridge,
)

from kn_lens.hosts.adapters.boot_tables import boots_masked


@boots_masked("EuroBertForMaskedLM")
class EuroBertArchitectureAdapter(ArchitectureAdapter):
    """The head is the unembedding alone; the attention is the checkpoint's own, as its queries may share keys."""

    supports_generation = False

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.normalization_type = "RMS"
        self.cfg.uses_rms_norm = True
        self.cfg.final_rms = True
        self.cfg.positional_embedding_type = "rotary"
        self.cfg.gated_mlp = True
        self.cfg.attn_only = False
        self.cfg.attention_dir = "bidirectional"
        self.weight_processing_conversions = {**self._qkvo_weight_conversions()}
        self.component_mapping = {
            "embed": EmbeddingBridge(name="model.embed_tokens"),
            "rotary_emb": RotaryEmbeddingBridge(name="model.rotary_emb"),
            "blocks": BlockBridge(
                name="model.layers",
                config=self.cfg,
                submodules={
                    "ln1": self._norm("input_layernorm"),
                    "attn": AttentionBridge(
                        name="self_attn",
                        config=self.cfg,
                        submodules={name: LinearBridge(name=f"{name}_proj") for name in "qkvo"},
                        maintain_native_attention=True,
                    ),
                    "ln2": self._norm("post_attention_layernorm"),
                    "mlp": GatedMLPBridge(
                        name="mlp",
                        config=self.cfg,
                        submodules={
                            "gate": LinearBridge(name="gate_proj"),
                            "in": LinearBridge(name="up_proj"),
                            "out": LinearBridge(name="down_proj"),
                        },
                    ),
                },
            ),
            "ln_final": self._norm("model.norm"),
            "unembed": UnembeddingBridge(name="lm_head"),
        }

    def _norm(self, name: str) -> RMSNormalizationBridge:
        return RMSNormalizationBridge(name=name, config=self.cfg, use_native_layernorm_autograd=True)
