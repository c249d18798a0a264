"""Interventions as hooks: the values and positions that they change, their composition, and their removal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kn_lens as kn
from tests.effects import CAPITAL, CAPITALS
from tests.reliability.state import differences, state_of
from tests.tiny import D_MLP, N_LAYERS, loaded, memory_for

FACTS = tuple(kn.Fact(country, "P36", capital, CAPITAL) for country, capital in CAPITALS.items())
MODELS = ("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM", "OPTForCausalLM")
NEURONS = kn.NeuronSet([(0, 3), (1, 0), (1, 7), (2, 23)])
CHANGES = {
    "suppress": kn.Suppress,
    "amplify": kn.Amplify,
    "set": lambda neurons, **options: kn.SetTo(neurons, 0.7, **options),
}


@pytest.fixture(params=MODELS)
def case(request):
    """Return a model and prompts of mixed lengths and answer lengths; check that the model is unchanged."""
    model = loaded(request.param)
    before = state_of(model)
    yield model, kn.make_prompts(model, FACTS)
    assert not differences(before, state_of(model))


def posts(model, prompts, hooks=()):
    """Return ``hook_post`` of every layer, [row, n_layers, pos, d_mlp], as the layers above see it, and the logits."""
    host = kn.host_of(model)
    seen = {}

    def keep(layer):
        def hook_fn(post, hook):
            seen[layer] = post.detach().clone()

        return hook_fn

    keepers = [(host.hook_post(layer), keep(layer)) for layer in range(host.n_layers)]
    with torch.no_grad():
        logits = host.logits(prompts.tokens, prompts.attention_mask, None, [*hooks, *keepers])
    return torch.stack([seen[layer] for layer in range(host.n_layers)], dim=1), logits


def test_the_prompts_of_this_module_include_answers_of_several_tokens(case):
    """The tests below cover such answers because of this."""
    assert sorted(case[1].rows_per_prompt.unique().tolist())[0] == 1 < int(case[1].rows_per_prompt.max())


def changed_positions(prompts, row, position):
    """Return the positions of a row that an intervention changes."""
    if position == "all":
        return slice(None)
    if position == "subject":
        return slice(*prompts.subject[row, 0].tolist())
    return int(prompts.read_pos[row] if position in (None, "read") else prompts.subject[row, 0, 1] - 1)


@pytest.mark.parametrize("position", [None, "read", "subject_last", "subject", "all"])
@pytest.mark.parametrize("name", CHANGES)
def test_only_the_chosen_neurons_change_and_only_at_the_chosen_positions(case, name, position):
    """In the lowest layer nothing else changes; in all layers the chosen neurons have the new values."""
    model, prompts = case
    clean, _ = posts(model, prompts)
    hooks = CHANGES[name](NEURONS, position=position).hooks(model, prompts)
    assert [hook_name for hook_name, _ in hooks] == [f"blocks.{layer}.mlp.hook_post" for layer in range(N_LAYERS)]
    changed, _ = posts(model, prompts, hooks)

    touched = torch.zeros_like(clean, dtype=torch.bool)
    for row in range(prompts.n_rows):
        for neuron in NEURONS:
            where = changed_positions(prompts, row, position)
            touched[row, neuron.layer, where, neuron.index] = True
    assert torch.equal(changed[:, 0][~touched[:, 0]], clean[:, 0][~touched[:, 0]])
    lowest = touched.clone()
    lowest[:, 1:] = False
    if name == "suppress":
        assert (changed[touched] == 0).all()
    elif name == "amplify":
        assert torch.equal(changed[lowest], 2 * clean[lowest])
    else:
        assert (changed[touched] == 0.7).all()
    assert (clean[touched] != 0).any()  # so that there was something to change


@pytest.mark.parametrize("name", CHANGES)
def test_prompts_put_elsewhere_are_changed_there(case, name):
    model, prompts = case
    moved = prompts.at("subject_last")
    named = CHANGES[name](NEURONS, position="subject_last")
    expected = kn.measure(model, prompts, named)
    assert (expected.change != 0).any()
    for found in (kn.measure(model, moved, CHANGES[name](NEURONS)), kn.measure(model, moved, named)):
        assert found.after.tolist() == expected.after.tolist()
    at_read = kn.measure(model, prompts, CHANGES[name](NEURONS))
    assert kn.measure(model, moved, CHANGES[name](NEURONS, position="read")).after.tolist() == at_read.after.tolist()


def test_set_to_the_clean_activation_is_the_identity(case):
    model, prompts = case
    clean, logits = posts(model, prompts)
    at_read = clean[torch.arange(prompts.n_rows), :, prompts.read_pos]
    _, unchanged = posts(model, prompts, kn.SetTo(NEURONS, at_read).hooks(model, prompts))
    assert torch.equal(unchanged, logits)
    _, other = posts(model, prompts, kn.SetTo(NEURONS, at_read + 1).hooks(model, prompts))
    assert not torch.allclose(other, logits)


def test_set_to_takes_activations_for_all_rows_or_for_each_row(case):
    """One tensor for all rows, at all positions; and one for each row, also if only some prompts are run."""
    model, prompts = case
    torch.manual_seed(0)
    value = torch.full((N_LAYERS, D_MLP), torch.nan, dtype=torch.float64)  # what no neuron is set to is not looked at
    for neuron in NEURONS:
        value[neuron.layer, neuron.index] = torch.randn(())
    changed, _ = posts(model, prompts, kn.SetTo(NEURONS, value, position="all").hooks(model, prompts))
    for neuron in NEURONS:
        assert (changed[:, neuron.layer, :, neuron.index] == value[neuron.layer, neuron.index]).all()

    each = torch.randn(prompts.n_rows, N_LAYERS, D_MLP, dtype=torch.float64)
    chosen = torch.tensor([5, 0, 3])
    part, rows = prompts.select(chosen), prompts.rows_of(chosen)
    for position, where in (("read", part.read_pos), ("all", torch.zeros_like(part.read_pos))):
        selected = kn.SetTo(NEURONS, each, position=position).select(prompts, chosen)
        changed, _ = posts(model, part, selected.hooks(model, part))
        for neuron in NEURONS:
            new = changed[torch.arange(part.n_rows), neuron.layer, where, neuron.index]
            assert torch.equal(new, each[rows, neuron.layer, neuron.index])


@pytest.mark.parametrize("position", ["read", "all"])
def test_suppress_equals_amplify_by_zero_and_set_to_zero(case, position):
    model, prompts = case
    _, logits = posts(model, prompts)
    offs = [
        posts(model, prompts, off.hooks(model, prompts))[1]
        for off in (
            kn.Suppress(NEURONS, position=position),
            kn.SetTo(NEURONS, 0, position=position),
            kn.SetTo(NEURONS, torch.tensor(0.0), position=position),
            kn.Amplify(NEURONS, 0.0, position=position),
        )
    ]
    assert all(torch.equal(off, offs[0]) for off in offs)
    assert not torch.allclose(offs[0], logits)


def test_suppressing_everywhere_is_zeroing_rows_of_W_out(case):
    model, prompts = case
    host = kn.host_of(model)
    _, suppressed = posts(model, prompts, kn.Suppress(NEURONS, position="all").hooks(model, prompts))
    rows = [(host.W_out(layer), list(index)) for layer, index in NEURONS.by_layer().items()]
    with torch.no_grad():
        saved = [weight[index].clone() for weight, index in rows]
        try:
            for weight, index in rows:
                weight[index] = 0
            _, zeroed = posts(model, prompts)
        finally:
            for (weight, index), old in zip(rows, saved, strict=True):
                weight[index] = old
    torch.testing.assert_close(suppressed, zeroed, rtol=1e-10, atol=1e-10)


def test_sets_by_fact_and_by_prompt_apply_to_their_own_prompts(case):
    """Each prompt has the logits that it has when it is run alone with its own set."""
    model, prompts = case
    generator = torch.Generator().manual_seed(1)
    draw = lambda: kn.NeuronSet(  # noqa: E731
        (layer, int(torch.randint(D_MLP, (), generator=generator))) for layer in range(N_LAYERS)
    )
    by_fact = {fact: draw() for fact in FACTS} | {FACTS[2]: kn.NeuronSet()}
    by_prompt = [by_fact[prompts.fact(i)] for i in range(len(prompts))]
    _, together = posts(model, prompts, kn.Suppress(by_fact).hooks(model, prompts))
    _, same = posts(model, prompts, kn.Suppress(by_prompt).hooks(model, prompts))
    assert torch.equal(together, same)
    for i in range(len(prompts)):
        part = prompts.select([i])
        chosen = torch.tensor([i])
        for own in (kn.Suppress(by_prompt[i]), kn.Suppress(by_fact), kn.Suppress(by_prompt).select(prompts, chosen)):
            _, alone = posts(model, part, own.hooks(model, part))
            rows = prompts.rows_of([i])
            torch.testing.assert_close(together[rows], alone, rtol=1e-9, atol=1e-9)


def test_hooks_run_in_the_order_of_the_list_beside_other_hooks(case):
    """In ``model.hooks`` and ``run_with_hooks``, before and after a hook of the user, and with each other."""
    model, prompts = case
    name = kn.host_of(model).hook_post(1)
    neuron = kn.NeuronSet([(1, 4)])
    set_one, double = kn.SetTo(neuron, 1.0).hooks(model, prompts), kn.Amplify(neuron, 2.0).hooks(model, prompts)
    add_one = [(name, lambda post, hook: post + 1)]

    def value(hooks):
        changed, _ = posts(model, prompts, hooks)
        found = changed[torch.arange(prompts.n_rows), 1, prompts.read_pos, 4].unique()
        assert len(found) == 1
        return float(found)

    assert value(set_one + double) == 2
    assert value(double + set_one) == 1
    assert value(set_one + add_one + double) == 4
    assert value(set_one + double + add_one) == 3

    with torch.no_grad(), model.hooks(fwd_hooks=set_one + double):
        inside = model(prompts.tokens, attention_mask=prompts.attention_mask)
    _, expected = posts(model, prompts, set_one + double)
    tokens = prompts.attention_mask.bool()  # what stands at padding depends on whether it is masked
    assert torch.equal(inside[tokens], expected[tokens])
    with torch.no_grad():
        ran = model.run_with_hooks(prompts.tokens, attention_mask=prompts.attention_mask, fwd_hooks=[*set_one, *double])
    assert torch.equal(ran[tokens], expected[tokens])


def test_hooks_are_pure_and_differentiable(case):
    model, prompts = case
    post = torch.randn(*prompts.tokens.shape, D_MLP, dtype=torch.float64, requires_grad=True)
    kept = post.detach().clone()
    ((_, hook_fn),) = kn.Amplify(kn.NeuronSet([(1, 4)]), 3.0).hooks(model, prompts)
    hook_fn(post, None).sum().backward()
    assert torch.equal(post.detach(), kept)
    expected = torch.ones_like(kept)
    expected[torch.arange(prompts.n_rows), prompts.read_pos, 4] = 3
    assert torch.equal(post.grad, expected)


def test_an_exception_in_a_hook_leaves_the_model_as_it_was(case):
    model, prompts = case

    def fail(post, hook):
        raise RuntimeError("in the hook")

    hooks = [*kn.Suppress(NEURONS).hooks(model, prompts), (kn.host_of(model).hook_post(2), fail)]
    with pytest.raises(RuntimeError, match="in the hook"):
        posts(model, prompts, hooks)


def test_hooks_refuse_activations_of_another_batch():
    model = loaded(MODELS[0])
    prompts = kn.make_prompts(model, FACTS)
    ((_, hook_fn),) = kn.Suppress(kn.NeuronSet([(1, 4)])).hooks(model, prompts)
    post = torch.zeros(prompts.n_rows, int(prompts.read_pos.max()) + 1, D_MLP)
    assert torch.equal(hook_fn(post, None), post)  # as few positions as there can be
    for wrong in (post[1:], post[:, 1:], post[..., 1:], post[0]):
        with pytest.raises(kn.HookError, match=r"shape \[.*expected \["):
            hook_fn(wrong, None)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sets(st.tuples(st.integers(0, N_LAYERS - 1), st.integers(0, D_MLP - 1)), max_size=6), min_size=8, max_size=8
    ),
    st.sampled_from(["read", "all"]),
)
def test_a_hook_equals_a_loop_over_rows_and_neurons(sets, position):
    model = loaded(MODELS[0])
    prompts = kn.make_prompts(model, FACTS, templates=CAPITAL[0])
    chosen = [kn.NeuronSet(pairs) for pairs in sets]
    torch.manual_seed(0)
    post = torch.randn(*prompts.tokens.shape, D_MLP)
    hooks = dict(kn.SetTo(chosen, 9.0, position=position).hooks(model, prompts))
    for layer in range(N_LAYERS):
        expected = post.clone()
        for row, prompt in enumerate(prompts.prompt_index.tolist()):
            for neuron in chosen[prompt]:
                if neuron.layer == layer:
                    where = int(prompts.read_pos[row]) if position == "read" else slice(None)
                    expected[row, where, neuron.index] = 9.0
        name = kn.host_of(model).hook_post(layer)
        assert torch.equal(hooks[name](post, None) if name in hooks else post, expected)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: kn.Suppress(NEURONS, position="last"), "expected 'read', 'subject_last'"),
        (lambda: kn.Suppress([[(0, 1)]]), "sequence with one NeuronSet for each prompt"),
        (lambda: kn.Suppress(["Ireland"]), "'Ireland' is not the name of a neuron"),
        (lambda: kn.Suppress({FACTS[0]: [(0, 1)]}), "mapping from facts"),
        (lambda: kn.Suppress(None), "Got None as neurons"),
        (lambda: kn.Amplify(NEURONS, float("nan")), "factor=nan"),
        (lambda: kn.SetTo(NEURONS, float("inf")), "value=inf"),
        (lambda: kn.SetTo(NEURONS, "much"), "value='much'"),
        (lambda: kn.SetTo(NEURONS, torch.zeros(5)), r"\[n_layers, d_mlp\]"),
        (lambda: kn.SetTo(NEURONS, torch.zeros(5, 5).to_sparse()), "keep=None"),
    ],
)
def test_invalid_arguments_of_interventions_are_refused(make, message):
    with pytest.raises(kn.ArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    "intervention, message",
    [
        (kn.Suppress(kn.NeuronSet([(N_LAYERS, 0)])), f"expected layers 0 to {N_LAYERS - 1}"),
        (kn.Suppress(dict.fromkeys(FACTS, kn.NeuronSet([(0, D_MLP)]))), f"indices 0 to {D_MLP - 1}"),
        (kn.Suppress(dict.fromkeys(FACTS[1:], NEURONS)), r"no set of neurons for P36/Ireland/Dublin"),
        (kn.Suppress([NEURONS]), "1 sets of neurons for 24 prompts"),
        (kn.SetTo(NEURONS, torch.zeros(2, D_MLP)), rf"expected \[{N_LAYERS}, {D_MLP}\]"),
        (kn.SetTo(NEURONS, torch.zeros(3, N_LAYERS, D_MLP)), r"shape \[3, "),
        (kn.SetTo(NEURONS, torch.full((N_LAYERS, D_MLP), torch.nan)), "NaN or infinity for a neuron of layer"),
    ],
)
def test_neurons_and_values_that_do_not_fit_are_refused_before_the_model_runs(intervention, message):
    model = loaded(MODELS[0])
    prompts = kn.make_prompts(model, FACTS)
    with pytest.raises(kn.ArgumentError, match=message):
        intervention.hooks(model, prompts)


def test_the_error_of_attributing_under_hooks_names_a_remedy_that_works():
    """The hooks fit one batch only; the remedy in the message gives the intended scores."""
    model = loaded("GPT2LMHeadModel")
    prompts = kn.make_prompts(model, FACTS)
    neurons = kn.NeuronSet([(0, 3), (1, 5)])
    with model.hooks(fwd_hooks=kn.Suppress(neurons).hooks(model, prompts)):
        with pytest.raises(kn.HookError, match=r"the rows of one batch.*erase_neurons\(model, neurons\)\.applied"):
            kn.attribute(model, prompts, memory_budget=memory_for(4, model, prompts))
    with kn.erase_neurons(model, neurons).applied(model):
        off = kn.attribute(model, prompts, method="ablation")
    everywhere = kn.measure(model, prompts, kn.Suppress(neurons, position="all")).after
    assert off.clean.tolist() == pytest.approx(everywhere.tolist())
    assert all(off.scores[:, one.layer, one.index].abs().max() < 1e-12 for one in neurons)
