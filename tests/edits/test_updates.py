"""Updates: the values of the rows, the neurons that are left out, and the updates that are refused."""

import functools
from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from kn_lens._core import defaults
from kn_lens.edits.updates import ActivationRecorder
from kn_lens.hosts import Budget, unwrap
from kn_lens.interventions import Ticks, score_answers
from tests.edit_cases import FACTS, IRELAND, NEURONS, UPDATE, bits, mean_embedding, same
from tests.effects import CAPITAL
from tests.tiny import D_MLP, N_LAYERS, loaded, tiny_model

NARROW = {"word_embed_proj_dim": 12}

ANY_FAMILY = pytest.mark.parametrize(
    "architecture, config",
    [
        ("BertForMaskedLM", {}),
        ("BertForMaskedLM", {"tie_word_embeddings": False}),
        ("ElectraForMaskedLM", {}),
        ("GPT2LMHeadModel", {}),
        ("LlamaForCausalLM", {}),
        ("Gemma2ForCausalLM", {}),
        ("OPTForCausalLM", NARROW),
    ],
)


def recorded(model, hook_name, prompts, hooks=()):
    """Return the value of a hook point in one pass, after other hooks."""
    values = []
    record = (hook_name, lambda value, hook: values.append(value.detach()))
    with torch.no_grad():
        model.run_with_hooks(prompts.tokens, attention_mask=prompts.attention_mask, fwd_hooks=[*hooks, record])
    (value,) = values
    return value


def mean_activations(model, fact, neurons):
    """Return each neuron's activation at the read position, averaged over rows within prompts, then over prompts."""
    prompts = kn.make_prompts(model, fact)
    means = dict.fromkeys(neurons, 0.0)
    for prompt in range(len(prompts)):
        part = prompts.select(torch.tensor([prompt]))
        for neuron in neurons:
            post = recorded(model, kn.host_of(model).hook_post(neuron.layer), part)
            total = 0.0
            for row in range(part.n_rows):
                total += float(post[row, part.read_pos[row], neuron.index])
            means[neuron] += total / part.n_rows / len(prompts)
    return means


def answer_tokens(model, answer):
    prompts = kn.make_prompts(model, kn.Fact("Ireland", "P36", answer, CAPITAL[:1]))
    return prompts.target_ids.tolist()


def test_recorded_activations_are_means_over_the_rows_of_a_prompt_and_then_over_prompts():
    model = loaded("BertForMaskedLM")
    host, fact = kn.host_of(model), kn.Fact("France", "P36", "Paris and Rome", CAPITAL)
    prompts = kn.make_prompts(model, [IRELAND, fact])
    assert prompts.n_rows > len(prompts) > 2
    neurons = {fact: NEURONS, IRELAND: kn.NeuronSet([(1, 7), (1, 9)])}
    recorder = ActivationRecorder.of(neurons, prompts)
    score_answers(host, prompts, [recorder], Budget.of(host, None), Ticks(None, 0))
    for recorded_fact, recorded in neurons.items():
        expected = mean_activations(model, recorded_fact, recorded)
        means = recorder.mean(recorded_fact, recorded).tolist()
        assert means == pytest.approx([expected[neuron] for neuron in recorded])
    some = kn.NeuronSet([(1, 7), (0, 3)])
    expected = mean_activations(model, fact, some)
    assert recorder.mean(fact, some).tolist() == pytest.approx([expected[neuron] for neuron in some])


@ANY_FAMILY
@pytest.mark.parametrize("scaling", ["norm", "plain"])
@pytest.mark.parametrize("new_object", ["Tokyo", "Paris and Rome"])
@pytest.mark.parametrize("signed", [True, False])
def test_an_update_equals_its_formula(architecture, config, scaling, new_object, signed):
    model = tiny_model(architecture, **config)
    before = bits(model)
    edit = kn.update_fact(
        model,
        IRELAND,
        new_object,
        NEURONS,
        lambdas=(0.5, 3),
        scaling=scaling,
        signed=signed,
        allow_unknown=True,
    )
    assert same(before, bits(model))
    old_tokens, new_tokens = answer_tokens(model, "Dublin"), answer_tokens(model, new_object)
    (step,) = edit.why
    assert (step["old_tokens"], step["new_tokens"]) == (old_tokens, new_tokens)
    if new_object != "Tokyo" and architecture in ("BertForMaskedLM", "ElectraForMaskedLM"):
        assert len(new_tokens) > 1
    means = mean_activations(model, IRELAND, NEURONS)
    n_negative = sum(mean < 0 for mean in means.values())
    assert step["signed"] == signed
    assert step["n_negative"] == (n_negative if signed else None)
    if architecture == "OPTForCausalLM":  # has ReLUs
        assert n_negative == 0
    if architecture == "LlamaForCausalLM":
        assert n_negative > 0
    for neuron, old, new in zip(edit.neurons, edit.old, edit.new, strict=True):
        row = kn.host_of(model).W_out(neuron.layer)[neuron.index]
        old_embedding, new_embedding = mean_embedding(model, old_tokens), mean_embedding(model, new_tokens)
        if scaling == "norm":
            length = row.square().sum().sqrt()
            old_embedding = length * old_embedding / old_embedding.square().sum().sqrt()
            new_embedding = length * new_embedding / new_embedding.square().sum().sqrt()
        sign = -1 if signed and means[neuron] < 0 else 1
        assert torch.equal(old, row)
        torch.testing.assert_close(new, row + sign * (3 * new_embedding - 0.5 * old_embedding), atol=1e-10, rtol=0)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma2ForCausalLM", "GPT2LMHeadModel"])
def test_every_neuron_of_an_update_writes_towards_the_new_answer(architecture):
    """In one prompt, the output of each neuron gains along e(t'), whatever its sign; without signs, some lose."""
    model = loaded(architecture)
    host, fact = kn.host_of(model), replace(IRELAND, templates=CAPITAL[:1])
    prompts = kn.make_prompts(model, fact)
    activations = mean_activations(model, fact, NEURONS)  # of one row
    assert {activation < 0 for activation in activations.values()} == {True, False}
    for neuron in NEURONS:
        for signed in (True, False):
            edit = kn.update_fact(
                model, fact, "Tokyo", kn.NeuronSet([neuron]), lambdas=(0, 3), signed=signed, allow_unknown=True
            )
            direction = mean_embedding(model, edit.why[0]["new_tokens"])
            mlp_out = host.hook_mlp_out(neuron.layer)
            before = recorded(model, mlp_out, prompts)
            after = recorded(model, mlp_out, prompts, edit.hooks(model))
            gain = float((after - before)[0, prompts.read_pos[0]] @ direction)
            assert (gain > 0) == (signed or activations[neuron] > 0)


def test_hooks_of_a_signed_update_equal_the_applied_edit():
    model = loaded("LlamaForCausalLM")
    edit = kn.update_fact(model, **UPDATE)
    assert 0 < edit.why[0]["n_negative"] < len(NEURONS)
    prompts = kn.make_prompts(model, IRELAND)
    hooked = kn.measure(model, prompts, edit)
    with edit.applied(model):
        applied = kn.measure(model, prompts, [])
    hooked_scores = torch.tensor(hooked.log_prob_after.to_numpy())
    applied_scores = torch.tensor(applied.log_prob_after.to_numpy())
    torch.testing.assert_close(hooked_scores, applied_scores)
    assert (hooked.change.abs() > 0).all()


def test_presets_equal_the_unsigned_form_bit_for_bit():
    model = loaded("LlamaForCausalLM")
    rows = kn.update_fact(model, **UPDATE).old
    for preset, scaling in (("paper", "plain"), ("official", "norm")):
        edit = kn.update_fact(model, **UPDATE, preset=preset)
        old_embedding = mean_embedding(model, edit.why[0]["old_tokens"])
        new_embedding = mean_embedding(model, edit.why[0]["new_tokens"])
        if scaling == "norm":
            lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            old_embedding = lengths * (old_embedding / old_embedding.norm())
            new_embedding = lengths * (new_embedding / new_embedding.norm())
        assert torch.equal(edit.new, rows - 1.0 * old_embedding + 8.0 * new_embedding)
        assert edit.digest == kn.update_fact(model, **UPDATE, lambdas=(1, 8), scaling=scaling, signed=False).digest
        assert [edit.why[0][name] for name in ("lambdas", "scaling", "signed")] == [[1, 8], scaling, False]
        weaker = kn.update_fact(model, **UPDATE, lambdas=(1, 4), preset=preset)
        assert weaker.digest == kn.update_fact(model, **UPDATE, lambdas=(1, 4), scaling=scaling, signed=False).digest


def test_updates_have_the_default_strength():
    model = loaded("LlamaForCausalLM")
    for scaling in ("norm", "plain"):
        edit = kn.update_fact(model, **UPDATE, scaling=scaling)
        assert tuple(edit.why[0]["lambdas"]) == defaults.LAMBDAS
        assert edit.digest == kn.update_fact(model, **UPDATE, scaling=scaling, lambdas=defaults.LAMBDAS).digest


def test_without_negative_activations_signs_change_nothing():
    """After a ReLU no activation is negative, and exactly zero counts as positive."""
    model = loaded("OPTForCausalLM")
    signed = kn.update_fact(model, **UPDATE, signed=True)
    unsigned = kn.update_fact(model, **UPDATE, signed=False)
    assert any(mean == 0 for mean in mean_activations(model, IRELAND, NEURONS).values())
    assert torch.equal(signed.new, unsigned.new) and signed.why[0]["n_negative"] == 0


def test_answers_and_signs_come_from_one_pass():
    model = loaded("LlamaForCausalLM")
    prompts = kn.make_prompts(model, IRELAND)
    n_rows = []
    count = (kn.host_of(model).hook_post(0), lambda post, hook: n_rows.append(len(post)))
    for options, expected in (({}, prompts.n_rows), ({"signed": False}, 0)):
        n_rows.clear()
        with model.hooks(fwd_hooks=[count]):
            kn.update_fact(model, **UPDATE, **options)
        assert sum(n_rows) == expected
    n_rows.clear()
    with model.hooks(fwd_hooks=[count]), pytest.raises(kn.EditError, match="does not know"):
        kn.update_fact(model, **UPDATE | {"allow_unknown": False})
    assert sum(n_rows) == prompts.n_rows


def test_neurons_shared_by_the_relation_are_not_updated():
    model = loaded("BertForMaskedLM")
    common, own = kn.Neuron(0, 1), kn.Neuron(2, 2)
    neurons_by_fact = {fact: kn.NeuronSet([(1, i)]) for i, fact in enumerate(FACTS)}
    neurons_by_fact[FACTS[0]] |= [common, own]
    neurons_by_fact[FACTS[1]] |= [common]
    other = kn.Fact("Dublin", "P1376", "Ireland", ())  # of another relation: not counted
    neurons_by_fact[other] = kn.NeuronSet([own])
    update = functools.partial(kn.update_fact, model, FACTS[0], "Tokyo", neurons_by_fact[FACTS[0]], allow_unknown=True)
    assert update().neurons == kn.NeuronSet([(1, 0), common, own])
    filtered = update(neurons_by_fact=neurons_by_fact)
    assert filtered.neurons == kn.NeuronSet([(1, 0), own]) and filtered.why[0]["n_shared"] == 1
    assert update(neurons_by_fact=neurons_by_fact, max_share=0.25).neurons == update().neurons
    # 0.57 * 100 is a little less than 57: so many of a hundred are not more than that share.
    many = {kn.Fact(str(i), "P36", "Dublin"): kn.NeuronSet([common] if i < 56 else []) for i in range(99)}
    assert update(neurons_by_fact=many | {FACTS[0]: kn.NeuronSet([common])}, max_share=0.57).neurons == update().neurons
    with pytest.raises(kn.EditError, match="All 1 neurons of P36/Ireland/Dublin are in more than 10% of the 8 facts"):
        kn.update_fact(
            model, FACTS[0], "Tokyo", kn.NeuronSet([common]), neurons_by_fact=neurons_by_fact, allow_unknown=True
        )


def test_only_what_the_model_knows_is_updated_unless_asked_for():
    model = loaded("BertForMaskedLM")
    top = kn.predict(model, kn.make_prompts(model, IRELAND), k=1)
    tokenizer = kn.host_of(model).tokenizer
    (template, said) = next((t, i) for t, i in zip(CAPITAL, top.token_id, strict=True) if i > 4)  # no special token
    word = tokenizer.decode([said])
    wrong = [t for t, i in zip(CAPITAL, top.token_id, strict=True) if i != said]

    def fact(*templates):
        return kn.Fact("Ireland", "P36", word, templates)

    assert kn.make_prompts(model, fact(template)).target_ids.tolist() == [said]
    known = kn.update_fact(model, fact(template, wrong[0]), "Tokyo", NEURONS)  # half of the prompts
    assert known.why[0]["old_tokens"] == [said]
    with pytest.raises(kn.EditError, match=r"does not know P36/Ireland/.* 1 of 3 prompts.*allow_unknown=True"):
        kn.update_fact(model, fact(template, *wrong), "Tokyo", NEURONS)
    kn.update_fact(model, fact(template, *wrong), "Tokyo", NEURONS, allow_unknown=True)


def test_an_answer_is_written_as_in_most_prompts():
    model = loaded("GPT2LMHeadModel")
    tight, spaced = "[X]:[Y]", (CAPITAL[2], "The capital of [X] is [Y]")

    def tokens(*templates):
        edit = kn.update_fact(model, replace(IRELAND, templates=templates), "Tokyo", NEURONS, allow_unknown=True)
        return edit.why[0]["old_tokens"]

    assert tokens(tight) != tokens(*spaced) == tokens(tight, *spaced)
    assert tokens(tight, spaced[0]) == tokens(tight)  # of equals the first


# --- refusals --------------------------------------------------------------------------------------------

WITHOUT_TEMPLATES = replace(IRELAND, templates=())


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"new_object": "Dublin"}, kn.EditError, "is the old one"),
        ({"new_object": "東京"}, kn.EditError, "cannot be an answer"),
        ({"new_object": " "}, kn.ArgumentError, "without blanks"),
        ({"neurons": kn.NeuronSet()}, kn.EditError, "set of neurons is empty"),
        (
            {"neurons": kn.NeuronSet([(1, D_MLP)])},
            kn.ArgumentError,
            f"no neuron L1N{D_MLP}; expected layers 0 to {N_LAYERS - 1} and indices 0 to {D_MLP - 1}",
        ),
        ({"lambdas": (1,)}, kn.ArgumentError, "two finite numbers"),
        ({"lambdas": (1, float("inf"))}, kn.ArgumentError, "two finite numbers"),
        ({"scaling": "nrom"}, kn.ArgumentError, "Did you mean 'norm'"),
        ({"max_share": 2}, kn.ArgumentError, "max_share"),
        ({"preset": "papr"}, kn.ArgumentError, "Did you mean 'paper'"),
        ({"preset": "paper", "signed": False}, kn.ArgumentError, "fixes the form"),
        ({"preset": "paper", "scaling": "plain"}, kn.ArgumentError, "fixes the form"),
        ({"signed": "no"}, kn.ArgumentError, "expected True or False"),
        ({"neurons_by_fact": {}}, kn.ArgumentError, "no facts of P36"),
        ({"fact": WITHOUT_TEMPLATES}, kn.PromptError, "no templates"),
    ],
)
def test_an_update_that_cannot_be_made_is_refused(changes, error, message):
    model = loaded("BertForMaskedLM")
    before = bits(model)
    with pytest.raises(error, match=message):
        kn.update_fact(model, **UPDATE | changes)
    assert same(before, bits(model))


def test_rows_that_overflow_are_refused():
    model = tiny_model("GPT2LMHeadModel", dtype=torch.float16)
    with pytest.raises(kn.EditError, match=r"new row of L0N3 is not finite in float16.* Smaller lambdas"):
        kn.update_fact(model, **UPDATE, lambdas=(1, 1e6))


def test_embeddings_of_another_width_without_a_projection_are_refused(monkeypatch):
    model = loaded("ElectraForMaskedLM")
    monkeypatch.setattr(unwrap, "_PROJECTIONS", ("elsewhere",))
    with pytest.raises(kn.EditError, match="have 12 numbers and the rows of W_out 16"):
        kn.update_fact(model, **UPDATE)


def test_an_update_by_norm_of_rows_that_were_erased_is_refused():
    """A row of length zero does not change, whatever the lambdas."""
    model = tiny_model()
    first = next(iter(NEURONS))
    with kn.erase_neurons(model, NEURONS).applied(model):
        with pytest.raises(kn.EditError, match=rf"All {len(NEURONS)} rows .* are zero.*scaling='plain'"):
            kn.update_fact(model, **UPDATE)
        assert kn.update_fact(model, **UPDATE, scaling="plain").new.any(-1).all()
    with kn.erase_neurons(model, kn.NeuronSet([first])).applied(model):
        edit = kn.update_fact(model, **UPDATE)
    assert edit.why[0]["n_zero"] == 1 and not edit.new[0].any() and edit.new[1:].any(-1).all()
    assert kn.update_fact(model, **UPDATE).why[0]["n_zero"] == 0


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_the_signs_are_those_of_activations_where_the_neurons_were_found(architecture):
    model = loaded(architecture)
    prompts = kn.make_prompts(model, IRELAND).at("subject_last")
    activations = kn.attribute(model, prompts, method="activation").scores.mean(0)
    at_read = kn.attribute(model, prompts.at("read"), method="activation").scores.mean(0)
    differs = ((activations < 0) != (at_read < 0)).nonzero()[:3].tolist()
    neurons = kn.NeuronSet([kn.Neuron(*pair) for pair in differs])
    assert len(neurons) == 3
    there = kn.update_fact(model, IRELAND, "Tokyo", neurons, position="subject_last", allow_unknown=True)
    here = kn.update_fact(model, IRELAND, "Tokyo", neurons, allow_unknown=True)
    n_negative = sum(bool(activations[neuron.layer, neuron.index] < 0) for neuron in neurons)
    assert there.why[0]["n_negative"] == n_negative == 3 - here.why[0]["n_negative"]
    assert there.why[0]["position"] == "subject_last" and "position" not in here.why[0]
    effects = kn.update_effects(model, {IRELAND: "Tokyo"}, {IRELAND: neurons}, position="subject_last")
    with there.applied(model):
        expected = kn.measure(model, prompts, [])
    found = effects.query("neuron_set == 'found' and question == 'own wording'")
    assert abs(float(found.nll_after.iloc[0]) + expected.log_prob_before.mean()) < 1e-9
