"""XLM-R and CamemBERT, which are RoBERTas; and RoBERTa itself where TransformerLens has no adapter for it (3.9)."""

from typing import Any, ClassVar

from kn_lens.hosts.adapters.bert_layers import LM_HEAD, BertLayersArchitectureAdapter, Paths, embeddings_in
from kn_lens.hosts.adapters.boot_tables import boots_masked


@boots_masked("XLMRobertaForMaskedLM", "CamembertForMaskedLM")
class RobertaArchitectureAdapter(BertLayersArchitectureAdapter):
    """BERT's blocks, and positions that count from ``padding_idx + 1``."""

    paths: ClassVar[Paths] = {**embeddings_in("roberta"), "blocks": "roberta.encoder.layer", **LM_HEAD}

    def prepare_model(self, hf_model: Any) -> None:
        """Set the longest prompt: the rows of the table of positions that are not reserved."""
        super().prepare_model(hf_model)
        table = hf_model.roberta.embeddings.position_embeddings
        self.cfg.n_ctx = table.num_embeddings - (table.padding_idx or 0) - 1
