"""Adapters that a user or a package registered with TransformerLens are used like its own."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from transformer_lens.factories import architecture_adapter_factory
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory

import kn_lens as kn
from kn_lens.errors import UnsupportedModelError
from kn_lens.hosts.adapters.bert_layers import LM_HEAD, BertLayersArchitectureAdapter, Paths, embeddings_in
from tests.parity.full_passes import assert_scores_of_full_passes, prompts_for
from tests.tiny import equal, tiny_tokenizer


class Data2VecAdapter(BertLayersArchitectureAdapter):
    """The text model of data2vec is a RoBERTa under another name."""

    paths: ClassVar[Paths] = {**embeddings_in("data2vec_text"), "blocks": "data2vec_text.encoder.layer", **LM_HEAD}


@pytest.fixture(autouse=True)
def registry() -> Iterator[type[ArchitectureAdapterFactory]]:
    """TransformerLens' registry of adapters, which a test may add to."""
    with pytest.MonkeyPatch.context() as patch:
        adapters = dict(ArchitectureAdapterFactory._adapters)
        adapters.pop("Data2VecTextForMaskedLM", None)  # a page of the documentation registers one too
        patch.setattr(ArchitectureAdapterFactory, "_adapters", adapters)
        yield ArchitectureAdapterFactory


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A class for which neither TransformerLens nor kn_lens has an adapter."""
    settings = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.Data2VecTextConfig(**settings, intermediate_size=24, max_position_embeddings=66)
    hf_model = transformers.Data2VecTextForMaskedLM(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    for weight in hf_model.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight.data = 0.3 * noise if weight.ndim > 1 else weight.data + 0.1 * noise
    hf_model.save_pretrained(tmp_path)
    return tmp_path


def load(checkpoint: Path) -> Any:
    tokenizer = tiny_tokenizer("BertForMaskedLM")
    return kn.load_model(checkpoint, tokenizer=tokenizer, dtype=torch.float64, device="cpu")


def test_a_masked_model_works_by_the_adapter_of_a_user(
    checkpoint: Path, registry: Any, float64_throughout: None
) -> None:
    with pytest.raises(UnsupportedModelError, match=r"has no adapter in TransformerLens .*register_adapter"):
        load(checkpoint)
    registry.register_adapter("Data2VecTextForMaskedLM", Data2VecAdapter)
    model = load(checkpoint)
    host = kn.host_of(model)
    assert (host.kind, host.has_linear_hooks, host.whole_passes) == ("masked", True, False)
    reference = transformers.Data2VecTextForMaskedLM.from_pretrained(checkpoint, dtype=torch.float64).eval()
    prompts = prompts_for(model, [7, 5], [3, 2])
    with torch.no_grad():
        logits = host.logits(prompts.tokens, prompts.attention_mask)
        for row, n_tokens in enumerate((7, 5)):
            equal(logits[row, :n_tokens], reference(prompts.tokens[[row], :n_tokens]).logits[0])
    assert_scores_of_full_passes(model, prompts, 1e-10)


def test_a_package_registers_an_adapter_by_an_entry_point(
    checkpoint: Path, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = "transformer_lens.architectures"
    point = EntryPoint("Data2VecTextForMaskedLM", f"{__name__}:Data2VecAdapter", group)
    monkeypatch.setattr(registry, "_entry_points_discovered", False)
    monkeypatch.setattr(architecture_adapter_factory, "entry_points", lambda group: [point])
    assert kn.host_of(load(checkpoint)).architecture == "Data2VecTextForMaskedLM"
