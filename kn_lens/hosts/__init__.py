"""Hosts: the models of TransformerLens that kn_lens works on. No other room imports it, or transformers.

``loading`` has ``load_model``, from a name to a model, and ``host_of``, from a model to a ``Host``. ``bridge`` is the
host over a ``TransformerBridge``, ``hooked`` over the older ``HookedTransformer`` and ``HookedEncoder``;
``model_protocol`` is the interface that all three share. ``families`` lists the checkpoints that can be hosted and
``checkpoints`` reads them, those in ``gguf`` files and with ``peft_adapters`` too. ``adapters`` are those by which
TransformerLens hosts families that it does not know.
``tokenizers`` keeps the checkpoint's own tokenizer beside that of TransformerLens.
``logit_check`` compares logits with those of transformers.
``encoder_decoder`` has what is particular to models of an encoder and a decoder.
``experts`` is what layers with experts need beside that.
``linearized`` runs a model with its norms held, for the direct effects of neurons and heads;
``analysis_nodes`` are TransformerLens' own nodes of circuits.
``partial_forward`` runs a model from a layer on, by ``overrides`` of its modules and a ``kv_prefix``; ``memory`` bounds
the rows of a pass. ``exclusive`` gives each call its model alone; ``identity`` tells models apart; ``unwrap`` returns
the Hugging Face model inside. TransformerLens and transformers are imported late, because that takes seconds.
"""

from kn_lens.hosts.analysis_nodes import analysis_node, is_analysis_node
from kn_lens.hosts.bridge import FOR_ONE_BATCH, ActivationSource, Host
from kn_lens.hosts.checkpoints import EMBEDDED_DIR, embedded_models, import_model_libraries
from kn_lens.hosts.encoder_decoder import DecoderForm, EncoderInput
from kn_lens.hosts.exclusive import exclusive, exclusively
from kn_lens.hosts.experts import ActiveExperts
from kn_lens.hosts.families import FAMILIES, Family, Kind, adapter_state
from kn_lens.hosts.gguf import PACKAGED_MODELS, PackagedModel
from kn_lens.hosts.identity import ModelIdentity
from kn_lens.hosts.linearized import (
    ComponentInput,
    ComponentValues,
    LinearizedPass,
    check_components,
    hook_z,
    is_gated,
    run_components,
    run_linearized,
    run_with_gradients,
)
from kn_lens.hosts.loading import check_host, checked_host, host_of, host_on_side, is_hosted, load_model
from kn_lens.hosts.logit_check import LogitCheck
from kn_lens.hosts.memory import SHARE_OF_FREE, Budget, free_memory, release_memory
from kn_lens.hosts.model_protocol import HookedModel, HookFn
from kn_lens.hosts.partial_forward import (
    Additions,
    CleanState,
    MLPActivation,
    Replacement,
    last_block_hooks,
    recomputes_last_token_only,
    run_clean,
)
from kn_lens.hosts.tokenizers import check_beginning, check_tokenizer, fingerprint
from kn_lens.hosts.unwrap import token_embeddings, unwrap_model

__all__ = [
    "EMBEDDED_DIR",
    "FAMILIES",
    "FOR_ONE_BATCH",
    "PACKAGED_MODELS",
    "SHARE_OF_FREE",
    "ActivationSource",
    "ActiveExperts",
    "Additions",
    "Budget",
    "CleanState",
    "ComponentInput",
    "ComponentValues",
    "DecoderForm",
    "EncoderInput",
    "Family",
    "HookFn",
    "HookedModel",
    "Host",
    "Kind",
    "LinearizedPass",
    "LogitCheck",
    "MLPActivation",
    "ModelIdentity",
    "PackagedModel",
    "Replacement",
    "adapter_state",
    "analysis_node",
    "check_beginning",
    "check_components",
    "check_host",
    "check_tokenizer",
    "checked_host",
    "embedded_models",
    "exclusive",
    "exclusively",
    "fingerprint",
    "free_memory",
    "hook_z",
    "host_of",
    "host_on_side",
    "import_model_libraries",
    "is_analysis_node",
    "is_gated",
    "is_hosted",
    "last_block_hooks",
    "load_model",
    "recomputes_last_token_only",
    "release_memory",
    "run_clean",
    "run_components",
    "run_linearized",
    "run_with_gradients",
    "token_embeddings",
    "unwrap_model",
]
