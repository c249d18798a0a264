"""The older model classes of TransformerLens 3 as hosts: the same numbers as on a TransformerBridge."""

import importlib.metadata
from dataclasses import replace

import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.errors import ArgumentError, DataError, EditError, UnsupportedModelError
from kn_lens.hosts.partial_forward import run_clean
from tests.public_calls import CALLS, FACTS, SOME, Case
from tests.tiny import tiny_checkpoint, tiny_hf_model, tiny_model, tiny_tokenizer

VERSION = importlib.metadata.version("transformer-lens")
older = pytest.mark.skipif(not VERSION.startswith("3."), reason="TransformerLens 4 has these classes no longer")
CLASSES = {"GPT2LMHeadModel": "HookedTransformer", "BertForMaskedLM": "HookedEncoder"}
ATOL = 1e-12


@pytest.mark.skipif(VERSION.startswith("3."), reason="TransformerLens 3 has these classes")
def test_version_4_says_what_replaced_them():
    with pytest.raises(
        ArgumentError, match=f"needs TransformerLens 3; in the installed {VERSION} TransformerBridge has"
    ):
        kn.load_model(tiny_hf_model("GPT2LMHeadModel"), host="hooked")


def test_hosts_are_named():
    with pytest.raises(ArgumentError, match=r"host='hookd'; expected one of bridge, hooked. Did you mean 'hooked'"):
        kn.load_model("world-bert", host="hookd")


@pytest.fixture(scope="module", params=CLASSES)
def both(request):
    """A random model as a bridge and of the older class, with prompts of mixed lengths."""
    bridge = tiny_model(request.param)
    hooked = kn.load_model(tiny_hf_model(request.param), host="hooked")
    assert type(hooked).__name__ == CLASSES[request.param]
    return bridge, hooked, prompts_of(bridge)


def prompts_of(model):
    host = kn.host_of(model)
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor([4, 7, 5, 7, 6, 4])
    tokens = torch.randint(5, host.d_vocab, (len(length), 7), generator=generator)
    mask = (torch.arange(7) < length[:, None]).long()
    read_pos = length - 1 if host.kind == "causal" else torch.tensor([1, 3, 4, 6, 2, 0])
    facts = [kn.Fact(f"s{i}", f"P{i % 2}", "o") for i in range(3)]
    return kn.PromptBatch.from_tokens(
        tokens * mask, attention_mask=mask, read_pos=read_pos, target_ids=tokens[:, 0], facts=facts,
        fact_index=torch.arange(6) % 3,
    )  # fmt: skip


@older
@pytest.mark.parametrize(
    "how",
    [{}, {"preset": "paper"}, {"quadrature": "gauss-legendre", "n_steps": 7, "output": "log_prob"}]
    + [{"method": method} for method in ("activation", "gradient_x_activation", "ablation")],
    ids=str,
)
def test_scores_agree(both, how):
    bridge, hooked, prompts = both
    expected, found = (kn.attribute(model, prompts, **how) for model in (bridge, hooked))
    torch.testing.assert_close(found.scores, expected.scores, atol=ATOL, rtol=0)
    assert expected.scores.abs().max() > 1e-4


@older
def test_what_is_kept_of_clean_passes_agrees(both):
    bridge, hooked, prompts = both
    states = [
        run_clean(kn.host_of(model), prompts.tokens, prompts.attention_mask, prompts.read_pos, [0, 1])
        for model in (bridge, hooked)
    ]
    torch.testing.assert_close(states[1].logits, states[0].logits, atol=ATOL, rtol=0)
    for layer in (0, 1):
        torch.testing.assert_close(states[1].post[layer], states[0].post[layer], atol=ATOL, rtol=0)
        torch.testing.assert_close(states[1].mlp_out[layer], states[0].mlp_out[layer], atol=ATOL, rtol=0)


@older
def test_interventions_and_edits_agree(both):
    bridge, hooked, prompts = both
    neurons = kn.NeuronSet([(0, 3), (1, 5), (1, 7)])
    for one in (kn.Suppress(neurons), kn.Amplify(neurons, 2.5), kn.SetTo(neurons, 0.3)):
        expected, found = (kn.measure(model, prompts, one)["after"].to_numpy() for model in (bridge, hooked))
        assert found == pytest.approx(expected, abs=ATOL)
    before = {name: value.clone() for name, value in hooked.state_dict().items()}
    erased = [kn.erase_neurons(model, neurons) for model in (bridge, hooked)]
    for name in ("old", "new"):
        assert getattr(erased[0], name).equal(getattr(erased[1], name))
    after = []
    for model in (bridge, hooked):
        with erased[0].applied(model):
            assert not kn.host_of(model).W_out(1)[5].any()
            after.append(kn.measure(model, prompts, kn.Suppress(kn.NeuronSet()))["after"].to_numpy())
    assert after[1] == pytest.approx(after[0], abs=ATOL)
    assert all(value.equal(before[name]) for name, value in hooked.state_dict().items())
    assert not any(point.fwd_hooks or point.bwd_hooks for point in hooked.hook_dict.values())


@pytest.fixture(scope="module", params=CLASSES)
def cases(request):
    """A bridge and a model of the older class, with what every public function needs to be called on them."""
    hooked = kn.load_model(tiny_hf_model(request.param), tokenizer=tiny_tokenizer(request.param), host="hooked")
    return [case_of(model) for model in (tiny_model(request.param), hooked)]


def case_of(model):
    prompts = kn.make_prompts(model, FACTS, unknown_answers="leave_out")
    rows = torch.full((len(SOME), kn.host_of(model).d_model), 0.25)
    return Case(model=model, prompts=prompts, edit=kn.WeightEdit.of(model, SOME, rows), folder=None)


ELSEWHERE = (
    "check_host",
    "host_of",
    "load_model",
    "export",
    "reproduce",
    "reference_attribution",
    "direct_effects",
    "find_circuits",
    "query_neurons",
)
"""Tested apart, as attribution and hooks are. The reference does not take a ``HookedEncoder``, and direct effects, with
norms that are held, none of these classes."""


@older
@pytest.mark.parametrize(
    "name",
    [name for name in CALLS if name not in ELSEWHERE and not name.startswith("attribute") and "hooks" not in name],
)
def test_every_public_function_does_the_same(cases, name, tmp_path):
    for call in CALLS[name]:
        assert_alike(*(call(replace(case, folder=tmp_path)) for case in cases))


@older
def test_a_study_finds_the_same(cases, tmp_path):
    """And its run directory says that the models are not the same, bit by bit."""
    how = {"preset": "paper", "stages": ["effects"], "n_resamples": 3, "attr_threshold": 0.5, "min_prompts": 1}
    tables = [kn.reproduce(case.model, FACTS, tmp_path / str(number), **how) for number, case in enumerate(cases)]
    assert len(tables[0]) > 3 and any(len(table) for table in tables[0].values())
    assert_alike(*tables)
    with pytest.raises(DataError, match=r"other settings \(model.weights"):
        kn.reproduce(cases[0].model, FACTS, tmp_path / "1", **how)


def assert_alike(one, other):
    """Numbers to rounding, everything else equal; what has neither is looked at no further."""
    assert type(one) is type(other)
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, rtol=1e-6, atol=1e-9)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-6, equal_nan=True)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, kn.WeightEdit):
        assert_alike(one.old, other.old)
        assert_alike(one.new, other.new)


@older
def test_unembed_is_the_head(both):
    bridge, hooked, _ = both
    resid = torch.randn(3, kn.host_of(bridge).d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, found = (kn.host_of(model).unembed(resid) for model in (bridge, hooked))
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)
    torch.testing.assert_close(kn.host_of(hooked).W_E.detach(), kn.host_of(bridge).W_E.detach(), atol=0, rtol=0)


@older
def test_directories_and_names_load_with_their_tokenizer(tmp_path):
    for architecture in CLASSES:
        tiny_checkpoint(architecture, tmp_path / architecture)
        model = kn.load_model(tmp_path / architecture, host="hooked", dtype=torch.float64)
        assert kn.host_of(model).tokenizer is not None and kn.host_of(model).raw
    facts = kn.FactSet.world("held_out").of("P36")[:3]
    for name in ("world-gpt2", "world-bert"):
        models = [kn.load_model(name, dtype=torch.float64, **how) for how in ({}, {"host": "hooked"})]
        scores = [kn.attribute(model, kn.make_prompts(model, facts)).scores for model in models]
        torch.testing.assert_close(*scores, atol=ATOL, rtol=0)


@older
@pytest.mark.parametrize("fold_ln", [True, False])
def test_processed_weights_give_the_same_scores_and_erasures(fold_ln):
    raw, processed = (kn.load_model(tiny_hf_model("GPT2LMHeadModel"), host="hooked") for _ in range(2))
    processed.process_weights_(fold_ln=fold_ln)
    assert kn.host_of(raw).raw and not kn.host_of(processed).raw
    prompts = prompts_of(raw)
    expected, found = (kn.attribute(model, prompts).scores for model in (raw, processed))
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.max()), rtol=0)  # it processes in float32

    neurons = kn.NeuronSet([(0, 3), (1, 5), (1, 7)])
    edit = kn.erase_neurons(processed, neurons)
    assert not edit.checkpoint.raw
    after = [kn.measure(processed, prompts, kn.Suppress(neurons, position="all"))["after"].to_numpy()]
    with edit.applied(processed), kn.erase_neurons(raw, neurons).applied(raw):
        assert not kn.host_of(processed).raw  # as told by weights that no edit changes
        nothing = kn.Suppress(kn.NeuronSet())
        after += [kn.measure(model, prompts, nothing)["after"].to_numpy() for model in (processed, raw)]
    assert after[0] == pytest.approx(after[1], abs=ATOL) and after[1] == pytest.approx(after[2], abs=1e-5)
    with pytest.raises(EditError, match="processed by TransformerLens"):
        kn.erase_neurons(raw, neurons).apply_(processed)


@older
def test_what_cannot_be_mapped_is_refused():
    with pytest.raises(UnsupportedModelError, match="takes GPT2LMHeadModel and BertForMaskedLM"):
        kn.load_model(tiny_hf_model("OPTForCausalLM"), host="hooked")
    with pytest.raises(UnsupportedModelError, match="computes other logits than transformers: they differ by"):
        kn.load_model(tiny_hf_model("BertForMaskedLM", hidden_act="relu"), host="hooked")
    model = kn.load_model(tiny_hf_model("GPT2LMHeadModel"), host="hooked")
    assert kn.check_host(model, tiny_hf_model("GPT2LMHeadModel")).difference < 1e-5
    with pytest.raises(EditError, match="does not hold the checkpoint"):
        kn.export(model, kn.erase_neurons(model, kn.NeuronSet([(0, 3)])), "nowhere")
