"""ERNIE 1 to 3: BERT, with an embedding of the task in some checkpoints."""

from typing import ClassVar

from kn_lens.hosts.adapters.bert_layers import BertLayersArchitectureAdapter, Paths, embeddings_in
from kn_lens.hosts.adapters.boot_tables import boots_masked


@boots_masked("ErnieForMaskedLM")
class ErnieArchitectureAdapter(BertLayersArchitectureAdapter):
    """The embedding of the task is that of task 0, as in transformers; it has no hook."""

    paths: ClassVar[Paths] = {**embeddings_in("ernie"), "blocks": "ernie.encoder.layer"}
