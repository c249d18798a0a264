"""The base of adapters for masked models whose parts are those of BERT, under other names."""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformer_lens.model_bridge.generalized_components import NormalizationBridge
from transformer_lens.model_bridge.supported_architectures.bert import BertArchitectureAdapter

Paths = Mapping[str, str | None]
"""By component of BERT's adapter, the path of the submodule, in the model or in the block; None for no such one."""


class BertLayersArchitectureAdapter(BertArchitectureAdapter):
    """TransformerLens' adapter for BERT, with the submodules at other paths."""

    paths: ClassVar[Paths] = {}

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        for path, name in self.paths.items():
            *parents, last = path.split(".")
            components: Any = self.component_mapping
            for parent in parents:
                components = components[parent].submodules
            if name is None:
                del components[last]
            else:
                components[last].name = name

    def norm(self, name: str) -> NormalizationBridge:
        """Return the component of a norm, computed by the module itself."""
        return NormalizationBridge(name=name, config=self.cfg, use_native_layernorm_autograd=True)


def embeddings_in(stem: str) -> Paths:
    """Return the paths of BERT's embeddings in a module of another name."""
    return {
        "embed": f"{stem}.embeddings.word_embeddings",
        "pos_embed": f"{stem}.embeddings.position_embeddings",
        "token_type_embed": f"{stem}.embeddings.token_type_embeddings",
        "embed_ln": f"{stem}.embeddings.LayerNorm",
    }


LM_HEAD = {
    "mlm_head": "lm_head.dense",
    "ln_final": "lm_head.layer_norm",
    "unembed": "lm_head.decoder",
}
"""The paths of the head of RoBERTa and its relatives."""
