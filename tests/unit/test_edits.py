"""Updating and erasing: the rows that they write, and what is refused."""

import functools
from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from kn_lens import _original
from kn_lens.edit_forms import CHOSEN_LAMBDAS
from tests.edits import FACTS, IRELAND, NEURONS, UPDATE, bits, random_edit, same
from tests.effects import CAPITAL
from tests.tiny import D_MLP, D_MODEL, N_LAYERS, loaded, tiny_model

NARROW = {"OPTForCausalLM": {"word_embed_proj_dim": 12}}


# --- updating --------------------------------------------------------------------------------------------


def mean_embedding(model, ids):
    """By hand, with the projection of the two families that have one."""
    modules = dict(model.original_model.named_modules())
    found = sum(model.embed.W_E[i] for i in ids) / len(ids)
    for name in ("electra.embeddings_project", "model.decoder.project_in"):
        found = found @ modules[name].weight.T if name in modules else found
    return found.detach()


ANY_FAMILY = pytest.mark.parametrize(
    "architecture, config",
    [
        ("BertForMaskedLM", {}),
        ("BertForMaskedLM", {"tie_word_embeddings": False}),
        ("ElectraForMaskedLM", {}),
        ("GPT2LMHeadModel", {}),
        ("LlamaForCausalLM", {}),
        ("Gemma2ForCausalLM", {}),
        ("OPTForCausalLM", NARROW["OPTForCausalLM"]),
    ],
)


def mean_activations(model, fact, neurons):
    """Each neuron's at the read position, prompt by prompt: over the rows of its answer, then over the prompts."""
    prompts = kn.make_prompts(model, fact)
    means = dict.fromkeys(neurons, 0.0)
    for prompt in range(len(prompts)):
        part = prompts.select(torch.tensor([prompt]))
        for neuron in neurons:
            seen = []
            keep = (kn.host_of(model).hook_post(neuron.layer), lambda post, hook, seen=seen: seen.append(post.detach()))
            with torch.no_grad():
                model.run_with_hooks(part.tokens, attention_mask=part.attention_mask, fwd_hooks=[keep])
            rows = [float(seen[0][row, part.read_pos[row], neuron.index]) for row in range(part.n_rows)]
            means[neuron] += sum(rows) / len(rows) / len(prompts)
    return means


@ANY_FAMILY
@pytest.mark.parametrize("scaling", ["norm", "plain"])
@pytest.mark.parametrize("new_object", ["Tokyo", "Paris and Rome"])
@pytest.mark.parametrize("signed", [True, False])
def test_an_update_is_the_formula(architecture, config, scaling, new_object, signed):
    model = tiny_model(architecture, **config)
    before = bits(model)
    edit = kn.update_fact(
        model, IRELAND, new_object, NEURONS, lambdas=(0.5, 3), scaling=scaling, signed=signed, allow_unknown=True
    )
    assert same(before, bits(model))
    tokens = {}
    for name, answer in (("old", "Dublin"), ("new", new_object)):
        prompts = kn.make_prompts(model, kn.Fact("Ireland", "P36", answer, CAPITAL[:1]))
        tokens[name] = prompts.target_ids.tolist()
    (step,) = edit.why
    assert (step["old_tokens"], step["new_tokens"]) == (tokens["old"], tokens["new"])
    assert (
        len(tokens["new"]) > 1 or new_object == "Tokyo" or architecture not in ("BertForMaskedLM", "ElectraForMaskedLM")
    )
    means = mean_activations(model, IRELAND, NEURONS)
    n_negative = sum(mean < 0 for mean in means.values())
    assert (step["signed"], step["n_negative"]) == ((True, n_negative) if signed else (False, None))
    assert n_negative == 0 or architecture != "OPTForCausalLM"  # which has ReLUs
    assert n_negative > 0 or architecture != "LlamaForCausalLM"
    for neuron, old, new in zip(edit.neurons, edit.old, edit.new, strict=True):
        row = kn.host_of(model).W_out(neuron.layer)[neuron.index]
        e, f = (mean_embedding(model, tokens[name]) for name in ("old", "new"))
        if scaling == "norm":
            e, f = (row.square().sum().sqrt() * e / e.square().sum().sqrt() for e in (e, f))
        sign = -1 if signed and means[neuron] < 0 else 1
        assert torch.equal(old, row)
        torch.testing.assert_close(new, row + sign * (3 * f - 0.5 * e), atol=1e-10, rtol=0)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma2ForCausalLM", "GPT2LMHeadModel"])
def test_every_neuron_of_an_update_writes_towards_the_new_answer(architecture):
    """In a prompt, what one neuron writes gains along e(t'), whatever the sign it fires with; unsigned, some lose."""
    model = loaded(architecture)
    host, prompt = kn.host_of(model), replace(IRELAND, templates=CAPITAL[:1])
    prompts = kn.make_prompts(model, prompt)
    gains = {}
    for signed in (True, False):
        for neuron in NEURONS:
            edit = kn.update_fact(
                model, prompt, "Tokyo", kn.NeuronSet([neuron]), lambdas=(0, 3), signed=signed, allow_unknown=True
            )
            towards = mean_embedding(model, edit.why[0]["new_tokens"])
            post = mean_activations(model, prompt, [neuron])[neuron]  # of one row
            written = {}
            for name, hooks in (("before", []), ("after", edit.hooks(model))):
                seen = []
                keep = (host.hook_mlp_out(neuron.layer), lambda out, hook, seen=seen: seen.append(out.detach()))
                with torch.no_grad():
                    model.run_with_hooks(
                        prompts.tokens, attention_mask=prompts.attention_mask, fwd_hooks=[*hooks, keep]
                    )
                written[name] = seen[0][0, prompts.read_pos[0]] @ towards
            gains[signed, neuron] = float(written["after"] - written["before"]), post
    assert {post < 0 for _, post in gains.values()} == {True, False}
    for (signed, _), (gain, post) in gains.items():
        assert gain > 0 if signed else (gain > 0) == (post > 0)


def test_hooks_of_a_signed_update_are_the_applied_edit():
    model = loaded("LlamaForCausalLM")
    edit = kn.update_fact(model, **UPDATE)
    assert 0 < edit.why[0]["n_negative"] < len(NEURONS)
    prompts = kn.make_prompts(model, IRELAND)
    hooked = kn.measure(model, prompts, edit)
    with edit.applied(model):
        applied = kn.measure(model, prompts, [])
    torch.testing.assert_close(*(torch.tensor(one.log_prob_after.to_numpy()) for one in (hooked, applied)))
    assert (hooked.change.abs() > 0).all()


def test_presets_are_the_form_without_signs_to_the_bit():
    model = loaded("LlamaForCausalLM")
    rows = kn.update_fact(model, **UPDATE).old
    for preset, scaling in (("paper", "plain"), ("official", "norm")):
        edit = kn.update_fact(model, **UPDATE, preset=preset)
        e, f = (mean_embedding(model, edit.why[0][f"{name}_tokens"]) for name in ("old", "new"))
        if scaling == "norm":
            length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            e, f = (length * (e / e.norm()) for e in (e, f))
        assert torch.equal(edit.new, rows - 1.0 * e + 8.0 * f)
        assert edit.digest == kn.update_fact(model, **UPDATE, lambdas=(1, 8), scaling=scaling, signed=False).digest
        assert [edit.why[0][name] for name in ("lambdas", "scaling", "signed")] == [[1, 8], scaling, False]
        weaker = kn.update_fact(model, **UPDATE, lambdas=(1, 4), preset=preset)
        assert weaker.digest == kn.update_fact(model, **UPDATE, lambdas=(1, 4), scaling=scaling, signed=False).digest


def test_updates_have_the_chosen_strength_unless_told():
    model = loaded("LlamaForCausalLM")
    for scaling in ("norm", "plain"):
        edit = kn.update_fact(model, **UPDATE, scaling=scaling)
        assert tuple(edit.why[0]["lambdas"]) == CHOSEN_LAMBDAS
        assert edit.digest == kn.update_fact(model, **UPDATE, scaling=scaling, lambdas=CHOSEN_LAMBDAS).digest


def test_without_negative_activations_signs_change_nothing():
    """Behind ReLUs: an activation of exactly zero counts as positive."""
    model = loaded("OPTForCausalLM")
    signed, unsigned = (kn.update_fact(model, **UPDATE, signed=one) for one in (True, False))
    assert any(mean == 0 for mean in mean_activations(model, IRELAND, NEURONS).values())
    assert torch.equal(signed.new, unsigned.new) and signed.why[0]["n_negative"] == 0


def test_what_the_model_knows_and_signs_come_from_one_pass():
    model = loaded("LlamaForCausalLM")
    prompts = kn.make_prompts(model, IRELAND)
    n_rows = []
    count = (kn.host_of(model).hook_post(0), lambda post, hook: n_rows.append(len(post)))
    for how, expected in (({}, prompts.n_rows), ({"signed": False}, 0)):
        n_rows.clear()
        with model.hooks(fwd_hooks=[count]):
            kn.update_fact(model, **UPDATE, **how)
        assert sum(n_rows) == expected
    n_rows.clear()
    with model.hooks(fwd_hooks=[count]), pytest.raises(kn.EditError, match="does not know"):
        kn.update_fact(model, **UPDATE | {"allow_unknown": False})
    assert sum(n_rows) == prompts.n_rows


def test_neurons_of_the_relation_are_left_alone():
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


# --- erasing ---------------------------------------------------------------------------------------------


def test_a_relation_is_erased_by_its_most_frequent_neurons():
    model = loaded("BertForMaskedLM")
    found = {fact: kn.NeuronSet([(i % 3, j) for j in range(i + 1)]) for i, fact in enumerate(FACTS)}
    counts = {}
    for neurons in found.values():
        for neuron in neurons:
            counts[neuron] = counts.get(neuron, 0) + 1
    ranked = sorted(counts, key=lambda neuron: (-counts[neuron], neuron))
    assert kn.erase_relation(model, found).neurons == kn.NeuronSet(ranked[:20])
    assert kn.erase_relation(model, found, top=3).neurons == kn.NeuronSet(ranked[:3])
    often = kn.NeuronSet(neuron for neuron in ranked if counts[neuron] >= 2)
    edit = kn.erase_relation(model, found, min_facts=2)
    assert edit.neurons == often and not edit.new.any()
    rule = {"relation": "P36", "n_facts": 8, "top": None, "min_facts": 2}
    assert edit.why == ({"kind": "erase", **rule, "value": "zero", "token_id": None},)


@pytest.mark.parametrize("architecture, unknown", [("BertForMaskedLM", "[UNK]"), ("ElectraForMaskedLM", "[UNK]")])
def test_rows_are_set_to_the_embedding_of_a_token(architecture, unknown):
    model = loaded(architecture)
    vocabulary = kn.host_of(model).tokenizer.get_vocab()
    for value, token_id in (("unk", vocabulary[unknown]), ("Dublin", vocabulary["Dublin"]), (7, 7)):
        edit = kn.erase_neurons(model, NEURONS, value=value)
        assert edit.why[0]["token_id"] == token_id
        for row in edit.new:
            torch.testing.assert_close(row, mean_embedding(model, [token_id]), atol=1e-12, rtol=0)


# --- what is refused -------------------------------------------------------------------------------------

BARE = replace(IRELAND, templates=())
OTHERS = {fact: NEURONS for fact in (IRELAND, kn.Fact("Dublin", "P1376", "Ireland"))}


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda m: kn.update_fact(m, **UPDATE | {"new_object": "Dublin"}), kn.EditError, "is the old one"),
        (lambda m: kn.update_fact(m, **UPDATE | {"new_object": "東京"}), kn.EditError, "cannot be an answer"),
        (lambda m: kn.update_fact(m, **UPDATE | {"new_object": " "}), kn.ArgumentError, "without blanks"),
        (lambda m: kn.update_fact(m, **UPDATE | {"neurons": kn.NeuronSet()}), kn.EditError, "set of neurons is empty"),
        (
            lambda m: kn.update_fact(m, **UPDATE | {"neurons": kn.NeuronSet([(1, D_MLP)])}),
            kn.ArgumentError,
            f"no neuron L1N{D_MLP}; expected layers 0 to {N_LAYERS - 1} and indices 0 to {D_MLP - 1}",
        ),
        (lambda m: kn.update_fact(m, **UPDATE, lambdas=(1,)), kn.ArgumentError, "two finite numbers"),
        (lambda m: kn.update_fact(m, **UPDATE, lambdas=(1, float("inf"))), kn.ArgumentError, "two finite numbers"),
        (lambda m: kn.update_fact(m, **UPDATE, scaling="nrom"), kn.ArgumentError, "Did you mean 'norm'"),
        (lambda m: kn.update_fact(m, **UPDATE, max_share=2), kn.ArgumentError, "max_share"),
        (lambda m: kn.update_fact(m, **UPDATE, preset="papr"), kn.ArgumentError, "Did you mean 'paper'"),
        (lambda m: kn.update_fact(m, **UPDATE, preset="paper", signed=False), kn.ArgumentError, "fixes the form"),
        (lambda m: kn.update_fact(m, **UPDATE, preset="paper", scaling="plain"), kn.ArgumentError, "fixes the form"),
        (lambda m: kn.update_fact(m, **UPDATE, signed="no"), kn.ArgumentError, "expected True or False"),
        (lambda m: kn.update_fact(m, **UPDATE, neurons_by_fact={}), kn.ArgumentError, "no facts of P36"),
        (lambda m: kn.update_fact(m, **UPDATE | {"fact": BARE}), kn.PromptError, "no templates"),
        (lambda m: kn.erase_relation(m, OTHERS), kn.EditError, r"2 relations \(P1376, P36\)"),
        (lambda m: kn.erase_relation(m, {}), kn.EditError, "0 relations"),
        (lambda m: kn.erase_relation(m, {IRELAND: kn.NeuronSet()}), kn.EditError, "nothing to erase"),
        (lambda m: kn.erase_relation(m, {IRELAND: NEURONS}, min_facts=2), kn.EditError, "lower min_facts"),
        (lambda m: kn.erase_relation(m, {IRELAND: NEURONS}, min_facts=0), kn.ArgumentError, "whole number from 1"),
        (lambda m: kn.erase_relation(m, {IRELAND: NEURONS}, top=0), kn.ArgumentError, "whole number from 1"),
        (lambda m: kn.erase_relation(m, {IRELAND: NEURONS}, top=1, min_facts=1), kn.ArgumentError, "one of them"),
        (lambda m: kn.erase_neurons(m, NEURONS, value="Dubln"), kn.EditError, "Did you mean 'Dublin'"),
        (lambda m: kn.erase_neurons(m, NEURONS, value=10**6), kn.EditError, "is not a token of"),
        (lambda m: kn.erase_neurons(m, NEURONS, value=0.5), kn.ArgumentError, "'zero', 'unk', a token or its id"),
        (lambda m: kn.erase_neurons(m, kn.NeuronSet()), kn.EditError, "set of neurons is empty"),
        (lambda m: kn.WeightEdit.of(m, NEURONS, torch.zeros(4, 3)), kn.EditError, r"\[4, 3\] .*; expected \[4, 16\]"),
        (lambda m: kn.WeightEdit.of(m, NEURONS, torch.zeros(4, D_MODEL), [{"a": object()}]), kn.ArgumentError, "JSON"),
        (lambda m: random_edit(m).scaled(float("nan")), kn.ArgumentError, "finite number"),
        (lambda m: random_edit(m).undo_(m), kn.EditError, "is not applied"),
        (lambda m: kn.export(m, [], "nowhere"), kn.ArgumentError, "expected a WeightEdit"),
        (lambda m: kn.export(m, random_edit(m), "/nowhere/at/all"), kn.EditError, "no directory /nowhere/at"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(make, error, message):
    model = loaded("BertForMaskedLM")
    before = bits(model)
    with pytest.raises(error, match=message):
        make(model)
    assert same(before, bits(model))


def test_rows_that_overflow_are_refused():
    model = tiny_model("GPT2LMHeadModel", dtype=torch.float16)
    with pytest.raises(kn.EditError, match=r"new row of L0N3 is not finite in float16.* Smaller lambdas"):
        kn.update_fact(model, **UPDATE, lambdas=(1, 1e6))


def test_narrow_embeddings_without_a_projection_are_refused(monkeypatch):
    model = loaded("ElectraForMaskedLM")
    monkeypatch.setattr(_original, "_PROJECTIONS", ("elsewhere",))
    with pytest.raises(kn.EditError, match="have 12 numbers and the rows of W_out 16"):
        kn.update_fact(model, **UPDATE)


def test_an_update_by_norm_of_rows_that_were_erased_is_refused():
    """A row of no length stays as it is, whatever the lambdas."""
    model = tiny_model()
    how = {"allow_unknown": True}
    first = next(iter(NEURONS))
    with kn.erase_neurons(model, NEURONS).applied(model):
        with pytest.raises(kn.EditError, match=rf"All {len(NEURONS)} rows .* are zero.*scaling='plain'"):
            kn.update_fact(model, IRELAND, "Tokyo", NEURONS, **how)
        assert kn.update_fact(model, IRELAND, "Tokyo", NEURONS, scaling="plain", **how).new.any(-1).all()
    with kn.erase_neurons(model, kn.NeuronSet([first])).applied(model):
        edit = kn.update_fact(model, IRELAND, "Tokyo", NEURONS, **how)
    assert edit.why[0]["n_zero"] == 1 and not edit.new[0].any() and edit.new[1:].any(-1).all()
    assert kn.update_fact(model, IRELAND, "Tokyo", NEURONS, **how).why[0]["n_zero"] == 0
