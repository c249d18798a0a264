"""DeBERTa v2 and v3: BERT's blocks, whose attention treats contents and relative positions apart.

The attention is the checkpoint's own, without hooks inside: its keys and queries are computed a second time from the
relative positions. Two kinds of heads exist. That of ``legacy=True`` is BERT's; the other multiplies by the word
embeddings without a module of its own, so that it gets one here.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kn_lens.hosts.adapters.bert_layers import BertLayersArchitectureAdapter, Paths, embeddings_in
from kn_lens.hosts.adapters.boot_tables import boots_masked


class _TiedDecoder(nn.Linear):
    """The product with the word embeddings at the end of the head, rounded as transformers rounds it."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__(weight.shape[1], weight.shape[0], device="meta")
        self.weight, self.bias = weight, bias

    def forward(self, input: Tensor) -> Tensor:
        return torch.matmul(input, self.weight.t()) + self.bias


class _HeadWithDecoder(nn.Module):
    """The head of ``legacy=False``, with the product in a module."""

    def __init__(self, head: Any, word_embeddings: Any) -> None:
        super().__init__()
        self.dense = head.dense
        self.transform_act_fn = head.transform_act_fn
        self.LayerNorm = head.LayerNorm
        self.bias = head.bias
        self.decoder = _TiedDecoder(word_embeddings.weight, head.bias)

    def forward(self, hidden_states: Tensor, word_embeddings: nn.Module) -> Tensor:
        return self.decoder(self.LayerNorm(self.transform_act_fn(self.dense(hidden_states))))


@boots_masked("DebertaV2ForMaskedLM")
class DebertaV2ArchitectureAdapter(BertLayersArchitectureAdapter):
    """Token types and absolute positions are parts of some checkpoints alone."""

    paths: ClassVar[Paths] = {
        **embeddings_in("deberta"),
        "blocks": "deberta.encoder.layer",
        "blocks.attn.q": None,
        "blocks.attn.k": None,
        "blocks.attn.v": None,
        "blocks.attn.o": None,
    }

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.positional_embedding_type = "relative"
        self.weight_processing_conversions = {}
        attention: Any = self.components["blocks"].submodules["attn"]
        attention.hook_aliases = {}

    def prepare_model(self, hf_model: Any) -> None:
        """Map the parts that this checkpoint has, and give its head a module for the unembedding."""
        super().prepare_model(hf_model)
        embeddings = hf_model.deberta.embeddings
        if embeddings.position_embeddings is None:
            del self.components["pos_embed"]
        if embeddings.token_type_embeddings is None:
            del self.components["token_type_embed"]
        if not hf_model.legacy:
            predictions = hf_model.lm_predictions
            predictions.lm_head = _HeadWithDecoder(predictions.lm_head, embeddings.word_embeddings).eval()
            self.components["mlm_head"].name = "lm_predictions.lm_head.dense"
            self.components["ln_final"].name = "lm_predictions.lm_head.LayerNorm"
            self.components["unembed"].name = "lm_predictions.lm_head.decoder"
