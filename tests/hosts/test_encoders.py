"""The masked models that kn_lens has adapters for, against transformers: to the bit, and against plain loops.

Each is a random checkpoint with its tokenizer that goes to disk and comes back through ``load_model``. Attribution from
a layer up, effects and edits of these families are compared in ``tests/parity/test_architectures.py`` too.
"""

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import kn_lens as kn
from kn_lens.hosts import FAMILIES
from kn_lens.hosts.adapters import ADAPTERS
from tests import oracle
from tests.edit_cases import bits, same
from tests.tiny import TEXTS, equal, tiny_tokenizer

ROOT = Path(__file__).parents[2]
N_LAYERS, D_MODEL, D_MLP = 3, 16, 24
SIZES = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": D_MLP,
    "max_position_embeddings": 66,
}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_DEBERTA_V3 = {
    **_RELATIVE,
    "pos_att_type": "p2c|c2p",
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 8,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "legacy": False,
}
_ESM = {"position_embedding_type": "rotary", "token_dropout": True}
_MODERNBERT = {"local_attention": 8, "global_attn_every_n_layers": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ModernBERT": ("ModernBertForMaskedLM", _MODERNBERT),
    "EuroBERT": ("EuroBertForMaskedLM", {}),
    "DeBERTa v2": ("DebertaV2ForMaskedLM", _RELATIVE),
    "DeBERTa v2 with a convolution": ("DebertaV2ForMaskedLM", {**_RELATIVE, "conv_kernel_size": 3}),
    "DeBERTa v3": ("DebertaV2ForMaskedLM", _DEBERTA_V3),
    "MPNet": ("MPNetForMaskedLM", {}),
    "ERNIE": ("ErnieForMaskedLM", {"use_task_id": True}),
    "MegatronBERT": ("MegatronBertForMaskedLM", {}),
    "NomicBERT": ("NomicBertForMaskedLM", {}),
    "XLM-R-XL": ("XLMRobertaXLForMaskedLM", {}),
    "ALBERT": ("AlbertForMaskedLM", {"embedding_size": 12}),
    "ALBERT with three groups": ("AlbertForMaskedLM", {"embedding_size": 16, "num_hidden_groups": 3}),
    "ESM-2": ("EsmForMaskedLM", _ESM),
    "ESM-1b": ("EsmForMaskedLM", {"position_embedding_type": "absolute", "emb_layer_norm_before": True}),
}
LENGTHS = (14, 9, 5)  # the padding of the last is longer than the windows of ModernBERT
READ_POS = (5, 8, 1)


@dataclass(frozen=True)
class Case:
    """A checkpoint in transformers, in eager mode, and in TransformerLens; and prompts with a mask token in each."""

    model: Any
    reference: Any
    prompts: kn.PromptBatch

    @property
    def host(self) -> Any:
        return kn.host_of(self.model)

    def alone(self, row: int) -> Tensor:
        return self.prompts.tokens[row, : LENGTHS[row]]


def write_checkpoint(name: str, directory: Path | str, dtype: torch.dtype) -> None:
    architecture, settings = CASES[name]
    tokenizer = tiny_tokenizer("BertForMaskedLM")
    cls = getattr(transformers, architecture)
    special = {f"{key}_token_id": getattr(tokenizer, f"{key}_token_id") for key in ("pad", "mask", "cls", "sep")}
    special |= {"bos_token_id": special["cls_token_id"], "eos_token_id": special["sep_token_id"]}
    sizes = {key: size for key, size in SIZES.items() if hasattr(cls.config_class(), key)}
    hf_model = cls(cls.config_class(vocab_size=len(tokenizer), **sizes | special | settings)).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for weight in hf_model.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight.data = 0.3 * noise if weight.ndim > 1 else weight.data + 0.1 * noise
    hf_model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@cache
def case_of(name: str, dtype: torch.dtype = torch.float64) -> Case:
    with TemporaryDirectory() as directory:
        write_checkpoint(name, directory, dtype)
        cls = getattr(transformers, CASES[name][0])
        reference = cls.from_pretrained(directory, dtype=dtype, attn_implementation="eager").eval()
        model = kn.load_model(directory, dtype=dtype, device="cpu")
    tokenizer = kn.host_of(model).tokenizer
    generator = torch.Generator().manual_seed(1)
    lengths, read_pos = torch.tensor(LENGTHS), torch.tensor(READ_POS)
    tokens = torch.randint(8, 100, (len(LENGTHS), max(LENGTHS)), generator=generator)
    tokens[torch.arange(len(LENGTHS)), read_pos] = tokenizer.mask_token_id
    mask = (torch.arange(max(LENGTHS)) < lengths[:, None]).long()
    prompts = kn.PromptBatch.from_tokens(
        torch.where(mask.bool(), tokens, tokenizer.pad_token_id),
        attention_mask=mask,
        read_pos=read_pos,
        target_ids=torch.tensor([20, 30, 40]),
    )
    return Case(model, reference, prompts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_are_those_of_transformers_to_the_bit(name: str, dtype: torch.dtype) -> None:
    """Of each prompt alone, and of a padded batch as transformers runs it."""
    case = case_of(name, dtype)
    for row in range(len(LENGTHS)):
        tokens = case.alone(row)[None]
        assert torch.equal(case.host.logits(tokens, torch.ones_like(tokens)), case.reference(tokens).logits)
    tokens, mask = case.prompts.tokens, case.prompts.attention_mask
    shortest = LENGTHS[0] - (case.host.longest_padding or LENGTHS[0])
    rows = torch.tensor([row for row, length in enumerate(LENGTHS) if length >= shortest])
    found = case.host.logits(tokens[rows], mask[rows])
    expected = case.reference(tokens[rows], attention_mask=mask[rows]).logits
    assert torch.equal(found[mask[rows].bool()], expected[mask[rows].bool()])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_prompt_has_the_same_scores_in_a_batch_and_alone(name: str) -> None:
    """Also beside prompts that are longer by more than a window of local attention."""
    case = case_of(name)
    predictions = kn.predict(case.model, case.prompts, k=1)
    attr = kn.attribute(case.model, case.prompts, quadrature="gauss-legendre", n_steps=2)
    for row in range(len(LENGTHS)):
        probabilities = case.reference(case.alone(row)[None]).logits[0, READ_POS[row]].softmax(-1)
        assert predictions["probability"][row] == pytest.approx(float(probabilities.max()), rel=1e-9)
        alone = case.prompts.select(torch.tensor([row]))
        scores = kn.attribute(case.model, alone, quadrature="gauss-legendre", n_steps=2).scores[0]
        equal(attr.scores[row], scores, 1e-9)


@pytest.mark.parametrize("name", [name for name in CASES if name != "ALBERT with three groups"])
def test_scores_are_those_of_a_loop_over_the_plain_model(name: str) -> None:
    case = case_of(name)
    nodes, weights = [0.211324865405187, 0.788675134594813], [0.5, 0.5]
    attr = kn.attribute(case.model, case.prompts, quadrature="gauss-legendre", n_steps=2)
    for layer in range(N_LAYERS):
        for row in range(len(LENGTHS)):
            target = int(case.prompts.target_ids[row])
            expected = oracle.integrated_gradients(
                case.reference, case.alone(row), READ_POS[row], target, layer, nodes, weights
            )
            error = (attr.scores[row, layer] - expected).abs().max()
            assert error <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_scores_add_up_to_the_change_that_they_explain(name: str) -> None:
    case = case_of(name)
    attr = kn.attribute(case.model, case.prompts, tolerance=1e-4)
    assert not len(attr.unconverged)
    for layer in range(N_LAYERS):
        every_neuron = kn.NeuronSet([(layer, index) for index in range(D_MLP)])
        effect = kn.measure(case.model, case.prompts, kn.Suppress(every_neuron))
        change = torch.tensor((effect["before"] - effect["after"]).to_numpy())
        equal(attr.scores[:, layer].sum(-1), change, 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_an_edit_is_undone_and_exported_to_the_bit(name: str, tmp_path: Path) -> None:
    case = case_of(name)
    before = bits(case.model)
    neurons = kn.NeuronSet([(0, 3), (1, 7), (2, 11)])
    new = torch.randn(len(neurons), D_MODEL, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    edit = kn.WeightEdit.of(case.model, neurons, new)
    by_hooks = kn.measure(case.model, case.prompts, edit)["after"].to_numpy()
    exported = kn.export(case.model, edit, tmp_path / "edited")
    with torch.no_grad(), edit.applied(case.model):
        by_weights = kn.measure(case.model, case.prompts, kn.Suppress(kn.NeuronSet()))["after"].to_numpy()
        tokens = case.alone(0)[None]
        logits = case.host.logits(tokens, torch.ones_like(tokens))
    assert by_hooks == pytest.approx(by_weights, rel=1e-9)
    assert same(before, bits(case.model))

    cls = type(case.reference)
    edited = cls.from_pretrained(exported, dtype=torch.float64, attn_implementation="eager").eval()
    weights, edited_weights = case.reference.state_dict(), edited.state_dict()
    assert weights.keys() == edited_weights.keys()
    n_changed = sum(not torch.equal(weights[key], edited_weights[key]) for key in weights)
    assert n_changed == (1 if name == "ALBERT" else N_LAYERS)
    with torch.no_grad():
        assert torch.equal(edited(tokens).logits, logits)
    read_back = kn.load_model(exported, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        assert torch.equal(kn.host_of(read_back).logits(tokens, torch.ones_like(tokens)), logits)


# --- shared layers ---------------------------------------------------------------------------------------


def test_a_neuron_of_albert_is_a_row_at_a_depth_and_an_edit_acts_at_all() -> None:
    case = case_of("ALBERT")
    host = case.host
    assert host.layers_with_rows_of(1) == [0, 1, 2]
    assert case_of("MPNet").host.layers_with_rows_of(1) == [1]
    edit = kn.erase_neurons(case.model, kn.NeuronSet([(1, 5)]))
    everywhere = kn.Suppress(kn.NeuronSet([(0, 5), (1, 5), (2, 5)]), position="all")
    at_one_depth = kn.Suppress(kn.NeuronSet([(1, 5)]), position="all")
    effects = [kn.measure(case.model, case.prompts, change)["after"].to_numpy() for change in (everywhere, edit)]
    assert effects[1] == pytest.approx(effects[0], rel=1e-9)
    assert kn.measure(case.model, case.prompts, at_one_depth)["after"].to_numpy() != pytest.approx(effects[0], rel=1e-3)

    before = bits(case.model)
    twice = kn.erase_neurons(case.model, kn.NeuronSet([(0, 5), (2, 5)]))
    with twice.applied(case.model):
        assert not host.W_out(1)[5].any()
    assert same(before, bits(case.model))


def test_two_values_for_one_row_of_albert_are_refused() -> None:
    case = case_of("ALBERT")
    edit = kn.WeightEdit.of(case.model, [(0, 5), (2, 5)], torch.randn(2, D_MODEL, dtype=torch.float64))
    before = bits(case.model)
    with pytest.raises(kn.EditError, match=r"L0N5 and L2N5 are one row of .*gives them two values"):
        edit.apply_(case.model)
    assert same(before, bits(case.model))


# --- where TransformerLens finds the adapters ------------------------------------------------------------


def entry_points() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project["entry-points"]["transformer_lens.architectures"]


def test_every_adapter_is_an_entry_point_and_a_family() -> None:
    """But RoBERTa: TransformerLens 4 has an adapter of its own, and warns where an entry point has another."""
    targets = {name: f"kn_lens.hosts.adapters.{target}" for name, target in ADAPTERS.items()}
    del targets["RobertaForMaskedLM"]
    assert entry_points() == targets
    assert {*ADAPTERS} <= {family.architecture for family in FAMILIES}
    assert {architecture for architecture, _ in CASES.values()} <= {*ADAPTERS}


BOOT = """
import sys
import torch
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge

ArchitectureAdapterFactory.discover_entry_points()
torch.set_grad_enabled(False)
for folder in sys.argv[1:]:
    model = TransformerBridge.boot_transformers(folder, dtype=torch.float64, device="cpu")
    logits = model(torch.arange(8, 14)[None])
    print(type(model.original_model).__name__, [float(value) for value in logits[0, 2, :3]])
"""


def test_transformer_lens_alone_boots_the_families(tmp_path: Path, softmax_of_torch: None) -> None:
    """A script that imports TransformerLens, where an installation of kn_lens offers the entry points."""
    metadata = tmp_path / "packages" / "kn_lens-0.dist-info"
    metadata.mkdir(parents=True)
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: kn-lens\nVersion: 0\n")
    lines = [f"{name} = {target}" for name, target in entry_points().items()]
    metadata.joinpath("entry_points.txt").write_text("\n".join(["[transformer_lens.architectures]", *lines]))
    names = ("ModernBERT", "ALBERT")
    folders = [str(tmp_path / name) for name in names]
    for name, folder in zip(names, folders, strict=True):
        write_checkpoint(name, folder, torch.float64)
    path = os.pathsep.join((str(metadata.parent), str(ROOT), *filter(None, sys.path)))
    command = [sys.executable, "-W", "error::UserWarning", "-c", BOOT, *folders]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert run.returncode == 0, run.stderr
    for name, line in zip(names, run.stdout.splitlines(), strict=True):
        case = case_of(name)
        expected = case.reference(torch.arange(8, 14)[None]).logits[0, 2, :3].tolist()
        assert line == f"{CASES[name][0]} {expected}"


def test_a_deberta_with_the_newer_head_is_read_with_it(tmp_path: Path) -> None:
    """Published configurations do not say ``legacy``, which transformers then takes for true."""
    write_checkpoint("DeBERTa v3", tmp_path, torch.float64)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.legacy = True
    config.save_pretrained(tmp_path)
    model = kn.load_model(tmp_path, dtype=torch.float64, device="cpu")
    tokens = torch.arange(8, 14)[None]
    with torch.no_grad():
        expected = case_of("DeBERTa v3").reference(tokens).logits
        assert torch.equal(kn.host_of(model).logits(tokens, torch.ones_like(tokens)), expected)


@pytest.mark.parametrize("local_attention", [4, 2])
def test_a_window_narrower_than_the_padding_of_the_check_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_attention: int
) -> None:
    architecture, settings = CASES["ModernBERT"]
    monkeypatch.setitem(CASES, "narrow", (architecture, {**settings, "local_attention": local_attention}))
    write_checkpoint("narrow", tmp_path, torch.float64)
    host = kn.host_of(kn.load_model(tmp_path, dtype=torch.float64, device="cpu"))
    assert host.longest_padding == local_attention // 2
    plain = transformers.ModernBertForMaskedLM.from_pretrained(
        tmp_path, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    tokens = torch.arange(8, 22)[None]
    with torch.no_grad():
        assert torch.equal(host.logits(tokens, torch.ones_like(tokens)), plain(tokens).logits)


def test_facts_are_found_in_a_modernbert_by_its_texts(tmp_path: Path) -> None:
    write_checkpoint("ModernBERT", tmp_path, torch.float64)
    model = kn.load_model(tmp_path, dtype=torch.float64, device="cpu")
    fact = kn.Fact("Peru", "P36", "Lima", ("The capital of [X] is [Y].", "[Y] is the capital of [X]."))
    prompts = kn.make_prompts(model, [fact])
    assert all(text.replace("[MASK]", "Lima") in TEXTS for text in prompts.text)
    neurons = kn.refine(kn.attribute(model, prompts), min_prompts=2)
    assert isinstance(neurons[fact], kn.NeuronSet)
