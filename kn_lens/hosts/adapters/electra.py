"""The generator of ELECTRA: BERT's blocks, with embeddings that may be narrower than the residual stream."""

from typing import ClassVar

from kn_lens.hosts.adapters.bert_layers import BertLayersArchitectureAdapter, Paths, embeddings_in
from kn_lens.hosts.adapters.boot_tables import boots_masked


@boots_masked("ElectraForMaskedLM")
class ElectraArchitectureAdapter(BertLayersArchitectureAdapter):
    """The head returns to the width of the embeddings before the unembedding."""

    paths: ClassVar[Paths] = {
        **embeddings_in("electra"),
        "blocks": "electra.encoder.layer",
        "mlm_head": "generator_predictions.dense",
        "ln_final": "generator_predictions.LayerNorm",
        "unembed": "generator_lm_head",
    }
