"""Edits of rows: what they write, that every bit comes back, what is refused, and that hooks and files do the same."""

import functools
import json
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens import _original
from tests.tiny import CAUSAL, COUNTRIES, D_MLP, D_MODEL, MASKED, N_LAYERS, tiny_checkpoint, tiny_hf_model, tiny_model

TEMPLATES = ("The capital of [X] is [Y].", "[X]'s capital city, [Y]", "In fact, [X] has its seat of government in [Y]")
FACTS = tuple(kn.Fact(country, "P36", capital, TEMPLATES) for country, capital in COUNTRIES.items())
IRELAND = FACTS[0]
NEURONS = kn.NeuronSet([(0, 3), (1, 0), (1, 7), (2, 23)])
NARROW = {"OPTForCausalLM": {"word_embed_proj_dim": 12}}

loaded = functools.cache(tiny_model)


def bits(model):
    """Every weight of the model, bit for bit."""
    weights = model.original_model.state_dict()
    return {name: weight.contiguous().view(torch.uint8).clone() for name, weight in weights.items()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def changed_rows(model, other):
    """The neurons whose rows differ between two models."""
    one, two = kn.host_of(model), kn.host_of(other)
    differ = [(one.W_out(layer) != two.W_out(layer)).any(-1) for layer in range(N_LAYERS)]
    return kn.NeuronSet((layer, int(index)) for layer, rows in enumerate(differ) for index in rows.nonzero())


def logits(model, hooks=()):
    host = kn.host_of(model)
    tokens = torch.randint(8, host.d_vocab, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return host.logits(tokens, torch.ones_like(tokens), fwd_hooks=hooks)


def random_edit(model, neurons=NEURONS, seed=0):
    new = torch.randn(len(neurons), kn.host_of(model).d_model, generator=torch.Generator().manual_seed(seed))
    return kn.WeightEdit.of(model, neurons, new.double(), [{"kind": "test", "seed": seed}])


# --- every family ------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", MASKED + CAUSAL)
def test_an_edit_in_every_family(architecture):
    """Live, exact, reversible; the hook form equals the weight form; zeroed rows equal suppression everywhere."""
    model = loaded(architecture)
    before, clean = bits(model), logits(model)
    edit = random_edit(model)
    by_hooks = logits(model, edit.hooks(model))
    assert same(before, bits(model))
    with edit.applied(model) as in_force:
        by_weights = logits(model)
        host = kn.host_of(model)
        for neuron, row in zip(edit.neurons, edit.new, strict=True):
            assert torch.equal(host.W_out(neuron.layer)[neuron.index], row)
    assert in_force is edit
    assert same(before, bits(model)) and torch.equal(clean, logits(model))
    # GPT-Neo, GPT-J and MPT take their softmax in float32.
    close = {"atol": 1e-5, "rtol": 0} if architecture in SINGLE else {"atol": 1e-9, "rtol": 0}
    torch.testing.assert_close(by_hooks, by_weights, **close)
    assert (by_weights - clean).abs().max() > 1e-3

    erased = kn.erase_neurons(model, NEURONS)
    prompts = kn.make_prompts(model, FACTS)
    with torch.no_grad(), erased.applied(model):
        zeroed = host.logits(prompts.tokens, prompts.attention_mask)
    with torch.no_grad():
        off = host.logits(
            prompts.tokens,
            prompts.attention_mask,
            fwd_hooks=kn.Suppress(NEURONS, position="all").hooks(model, prompts),
        )
    torch.testing.assert_close(zeroed, off, **close)


SINGLE = ("GPTNeoForCausalLM", "GPTJForCausalLM", "MptForCausalLM")


@pytest.mark.parametrize("architecture", MASKED + CAUSAL)
def test_an_exported_checkpoint_is_the_edited_model(architecture, tmp_path):
    """Loaded by transformers alone, it has the checkpoint's weights with these rows replaced, no others."""
    import transformers

    source = tiny_checkpoint(architecture, tmp_path / "source")
    model = kn.load_model(source, dtype=torch.float64, device="cpu")
    before = bits(model)
    first = random_edit(model)
    with first.applied(model):
        second = random_edit(model, kn.NeuronSet([(1, 7), (0, 1)]), seed=1)
    directory = kn.export(model, [first, second], tmp_path / "edited")
    assert same(before, bits(model))

    edited = kn.load_model(directory, dtype=torch.float64, device="cpu")
    with (first + second).applied(model):
        assert torch.equal(logits(edited), logits(model))
    assert changed_rows(model, edited) == first.neurons | second.neurons

    auto = getattr(transformers, architecture)
    was, now = (auto.from_pretrained(path, dtype=torch.float64).state_dict() for path in (source, directory))
    assert was.keys() == now.keys()
    n_changed = sum(not torch.equal(was[name], now[name]) for name in was)
    assert n_changed == len((first + second).neurons.by_layer())
    tokenizers = [transformers.AutoTokenizer.from_pretrained(path) for path in (source, directory)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    record = json.loads((directory / "kn_lens_edits.json").read_text())
    assert [entry["digest"] for entry in record] == [first.digest, second.digest]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited", "source"]


# --- every bit comes back ----------------------------------------------------------------------

POOL = [(0, 3), (0, 4), (1, 0), (1, 7), (2, 23)]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["make", "apply", "undo", "force", "enter", "exit", "raise"]),
        st.integers(0, 5),
        st.sets(st.sampled_from(POOL), min_size=1, max_size=3),
    ),
    max_size=30,
)


class Boom(Exception):
    pass


@settings(max_examples=80, deadline=None)
@given(operations=OPERATIONS)
def test_any_interleaving_of_edits_is_exact(operations):
    """Against an oracle that keeps the rows as bytes: what is allowed happens bit for bit, the rest changes nothing."""
    model = loaded("BertForMaskedLM")
    host = kn.host_of(model)
    before = bits(model)

    def now():
        return {pair: host.W_out(pair[0])[pair[1]].numpy().tobytes() for pair in POOL}

    def rows(edit, values):
        return {(n.layer, n.index): row.numpy().tobytes() for n, row in zip(edit.neurons, values, strict=True)}

    rest = now()
    made, contexts = [random_edit(model, kn.NeuronSet(POOL[:2]))], []

    def expect(allowed, action, result):
        expected = now() | (result if allowed else {})
        if allowed:
            value = action()
        else:
            with pytest.raises(kn.EditError):
                action()
            value = None
        assert now() == expected
        return value

    def leave(error):
        context, old, new = contexts.pop()
        there = now().items()
        expect(new.items() <= there or old.items() <= there, lambda: context.__exit__(*error), old)

    for seed, (operation, number, neurons) in enumerate(operations):
        edit = made[number % len(made)]
        old, new = rows(edit, edit.old), rows(edit, edit.new)
        fits = old.items() <= now().items()
        if operation == "make":
            made.append(random_edit(model, kn.NeuronSet(neurons), seed))
        elif operation == "apply":
            expect(fits, lambda edit=edit: edit.apply_(model), new)
        elif operation == "force":
            made.append(expect(True, lambda edit=edit: edit.apply_(model, force=True), new))
        elif operation == "undo":
            expect(new.items() <= now().items(), lambda edit=edit: edit.undo_(model), old)
        elif operation == "enter":
            context = edit.applied(model)
            if expect(fits, context.__enter__, new):
                contexts.append((context, old, new))
        elif operation in ("exit", "raise") and contexts:
            leave((Boom, Boom(), None) if operation == "raise" else (None, None, None))
    while contexts:
        leave((None, None, None))
    # Whatever is left, writing the first values back by force makes the model what it was.
    clean = torch.stack([torch.frombuffer(bytearray(rest[pair]), dtype=torch.float64) for pair in sorted(POOL)])
    kn.WeightEdit.of(model, kn.NeuronSet(POOL), clean).apply_(model)
    assert same(before, bits(model))


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(4)), data=st.data())
def test_edits_of_different_rows_are_undone_in_any_order(order, data):
    model = loaded("GPT2LMHeadModel")
    before = bits(model)
    stacked = [random_edit(model, kn.NeuronSet([(i % 3, i), (1, 10 + i)]), seed=i) for i in range(4)]
    for edit in data.draw(st.permutations(stacked)):
        edit.apply_(model)
    for i in order:
        stacked[i].undo_(model)
    assert same(before, bits(model))


def test_edits_of_the_same_row_are_undone_last_first():
    model = loaded("BertForMaskedLM")
    before = bits(model)
    first = random_edit(model)
    with pytest.raises(kn.EditError, match=r"cannot be undone: 1 of 4 rows, such as L1N0, of .* last first"):
        with first.applied(model):
            second = random_edit(model, kn.NeuronSet([(1, 0)]), seed=1)
            second.apply_(model)
    second.undo_(model)
    first.undo_(model)
    assert same(before, bits(model))


@contextmanager
def interrupt_at(line, filenames):
    """Raise KeyboardInterrupt before the given line, counted over all that run in these files."""
    n_seen = 0

    def trace(frame, event, _):
        nonlocal n_seen
        if frame.f_code.co_filename not in filenames:
            return None
        n_seen += event == "line"
        if event == "line" and n_seen == line:
            raise KeyboardInterrupt
        return trace

    tracer = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(tracer)
        torch.set_grad_enabled(True)  # the interrupt may have come while torch was switching it


@pytest.mark.parametrize("action", ["apply", "undo", "with"])
def test_an_interrupt_anywhere_leaves_a_whole_edit_or_none(action):
    """Interrupted before every line of the modules that write, in turn."""
    model = loaded("GPT2LMHeadModel")
    edit = random_edit(model)
    without = bits(model)
    with edit.applied(model):
        within = bits(model)

    def block():
        with edit.applied(model):
            pass

    run = {"apply": lambda: edit.apply_(model), "undo": lambda: edit.undo_(model), "with": block}[action]
    filenames = {sys.modules[name].__file__ for name in ("kn_lens.weight_edits", "kn_lens._rows")}
    for line in count(1):
        if action == "undo":
            edit.apply_(model)
        interrupted = False
        try:
            with interrupt_at(line, filenames):
                run()
        except KeyboardInterrupt:
            interrupted = True
        there = bits(model)
        assert same(there, within) or same(there, without), line
        if not same(there, without):
            edit.undo_(model)
        if not interrupted:
            break
    assert line > 20 and same(without, bits(model))


# --- composing ---------------------------------------------------------------------------------


def test_a_sum_does_what_its_parts_do():
    model = loaded("BertForMaskedLM")
    before = bits(model)
    first, apart = random_edit(model), random_edit(model, kn.NeuronSet([(0, 0), (2, 1)]), seed=2)
    with first.applied(model):
        on_top = random_edit(model, kn.NeuronSet([(1, 0), (2, 2)]), seed=1)
    for other in (apart, on_top):
        with first.applied(model), other.applied(model):
            expected = bits(model)
        total = first + other
        with total.applied(model):
            assert same(expected, bits(model))
        assert total.neurons == first.neurons | other.neurons and total.why == first.why + other.why
    assert ((first + on_top) + apart).digest != (first + apart).digest
    assert same(before, bits(model))
    with pytest.raises(kn.EditError, match="Both edits change the row L1N0"):
        on_top + first


@settings(max_examples=40, deadline=None)
@given(factor=st.floats(-8, 8))
def test_scaling_multiplies_the_change(factor):
    edit = random_edit(loaded("BertForMaskedLM"))
    scaled = edit.scaled(factor)
    torch.testing.assert_close(scaled.new - scaled.old, factor * (edit.new - edit.old), atol=1e-12, rtol=1e-9)
    assert torch.equal(edit.scaled(1).new, edit.new) and torch.equal(edit.scaled(0).new, edit.old)
    assert scaled.why[-1] == {"kind": "scale", "factor": factor}


def test_scaling_an_update_scales_its_lambdas():
    model = loaded("BertForMaskedLM")
    once = kn.update_fact(model, IRELAND, "Tokyo", NEURONS, lambdas=(1, 4), allow_unknown=True)
    twice = kn.update_fact(model, IRELAND, "Tokyo", NEURONS, lambdas=(2, 8), allow_unknown=True)
    torch.testing.assert_close(once.scaled(2.0).new, twice.new, atol=1e-12, rtol=0)


def test_restricting_and_its_rest_add_up():
    model = loaded("BertForMaskedLM")
    edit = random_edit(model)
    part, rest = edit.restricted_to([(1, 0), (2, 23), (2, 5)]), edit.restricted_to(NEURONS - [(1, 0), (2, 23)])
    assert part.neurons == kn.NeuronSet([(1, 0), (2, 23)]) and torch.equal(part.new, edit.new[[1, 3]])
    both = part + rest
    assert torch.equal(both.new, edit.new) and torch.equal(both.old, edit.old)
    with pytest.raises(kn.EditError, match="none of the 1 neurons"):
        edit.restricted_to([(0, 0)])


def test_measure_takes_an_edit_as_an_intervention():
    model = loaded("LlamaForCausalLM")
    prompts = kn.make_prompts(model, FACTS)
    edit = random_edit(model)
    effect = kn.measure(model, prompts, edit)
    with edit.applied(model):
        after = kn.measure(model, prompts, [])
    assert effect.after.to_numpy() == pytest.approx(after.before.to_numpy(), rel=1e-9)
    assert (effect.change.abs() > 1e-6).any()


def test_hooks_see_what_hooks_before_them_make_of_the_activations():
    model = loaded("GPT2LMHeadModel")
    prompts = kn.make_prompts(model, IRELAND)
    edit = random_edit(model)
    off = kn.Suppress(NEURONS, position="all")
    neither = kn.measure(model, prompts, [off, edit])
    assert neither.after.to_numpy() == pytest.approx(kn.measure(model, prompts, off).after.to_numpy(), rel=1e-9)


# --- updating ----------------------------------------------------------------------------------


def mean_embedding(model, ids):
    """By hand, with the projection of the two families that have one."""
    modules = dict(model.original_model.named_modules())
    found = sum(model.embed.W_E[i] for i in ids) / len(ids)
    for name in ("electra.embeddings_project", "model.decoder.project_in"):
        found = found @ modules[name].weight.T if name in modules else found
    return found.detach()


@pytest.mark.parametrize("scaling", ["norm", "plain"])
@pytest.mark.parametrize(
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
@pytest.mark.parametrize("new_object", ["Tokyo", "Paris and Rome"])
def test_an_update_is_the_formula(architecture, config, scaling, new_object):
    model = tiny_model(architecture, **config)
    before = bits(model)
    edit = kn.update_fact(model, IRELAND, new_object, NEURONS, lambdas=(0.5, 3), scaling=scaling, allow_unknown=True)
    assert same(before, bits(model))
    tokens = {}
    for name, answer in (("old", "Dublin"), ("new", new_object)):
        prompts = kn.make_prompts(model, kn.Fact("Ireland", "P36", answer, TEMPLATES[:1]))
        tokens[name] = prompts.target_ids.tolist()
    (step,) = edit.why
    assert (step["old_tokens"], step["new_tokens"]) == (tokens["old"], tokens["new"])
    assert (
        len(tokens["new"]) > 1 or new_object == "Tokyo" or architecture not in ("BertForMaskedLM", "ElectraForMaskedLM")
    )
    for neuron, old, new in zip(edit.neurons, edit.old, edit.new, strict=True):
        row = kn.host_of(model).W_out(neuron.layer)[neuron.index]
        e, f = (mean_embedding(model, tokens[name]) for name in ("old", "new"))
        if scaling == "norm":
            e, f = (row.square().sum().sqrt() * e / e.square().sum().sqrt() for e in (e, f))
        assert torch.equal(old, row)
        torch.testing.assert_close(new, row - 0.5 * e + 3 * f, atol=1e-10, rtol=0)


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
    (template, said) = next((t, i) for t, i in zip(TEMPLATES, top.token_id, strict=True) if i > 4)  # no special token
    word = tokenizer.decode([said])
    wrong = [t for t, i in zip(TEMPLATES, top.token_id, strict=True) if i != said]

    def fact(*templates):
        return kn.Fact("Ireland", "P36", word, templates)

    assert kn.make_prompts(model, fact(template)).target_ids.tolist() == [said]
    known = kn.update_fact(model, fact(template, wrong[0]), "Tokyo", NEURONS)  # half of the prompts
    assert known.why[0]["old_tokens"] == [said]
    with pytest.raises(kn.EditError, match=r"does not know P36/Ireland/.* 1 of 3 prompts.*allow_unknown=True"):
        kn.update_fact(model, fact(template, *wrong), "Tokyo", NEURONS)
    kn.update_fact(model, fact(template, *wrong), "Tokyo", NEURONS, allow_unknown=True)


# --- erasing -----------------------------------------------------------------------------------


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


# --- what is refused ---------------------------------------------------------------------------

BARE = replace(IRELAND, templates=())
UPDATE = {"fact": IRELAND, "new_object": "Tokyo", "neurons": NEURONS, "allow_unknown": True}
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


def test_an_edit_is_applied_once():
    model = loaded("BertForMaskedLM")
    edit = random_edit(model)
    with edit.applied(model):
        with pytest.raises(kn.EditError, match="applied to this model already"):
            edit.apply_(model)
        with pytest.raises(kn.EditError, match="applied to this model already"):
            edit.hooks(model)


def test_another_checkpoint_is_refused_unless_forced_and_comes_back():
    edit = random_edit(loaded("BertForMaskedLM"))
    other = tiny_model("BertForMaskedLM", seed=1)
    before = bits(other)
    for use in (edit.apply_, edit.hooks, lambda model: edit.applied(model).__enter__()):
        with pytest.raises(kn.EditError, match=r"4 of 4 rows, such as L0N3, .* force=True"):
            use(other)
    assert same(before, bits(other))
    forced = edit.apply_(other, force=True)
    assert changed_rows(other, tiny_model("BertForMaskedLM", seed=1)) == NEURONS
    assert torch.equal(forced.new, edit.new) and not torch.equal(forced.old, edit.old)
    forced.undo_(other)
    assert same(before, bits(other))
    with edit.applied(other, force=True):
        assert not same(before, bits(other))
    assert same(before, bits(other))


def test_another_type_or_shape_is_refused():
    edit = random_edit(loaded("BertForMaskedLM"))
    half = tiny_model("BertForMaskedLM", dtype=torch.bfloat16)
    before = bits(half)
    with pytest.raises(kn.EditError, match=r"float64.*bfloat16.*force=True"):
        edit.apply_(half)
    with edit.applied(half, force=True) as forced:
        assert forced.checkpoint.dtype == "bfloat16" and torch.equal(forced.new, edit.new.bfloat16())
    assert same(before, bits(half))
    wider = tiny_model("BertForMaskedLM", intermediate_size=D_MLP + 1)
    for force in (False, True):
        with pytest.raises(kn.EditError, match=f"3 layers of {D_MLP} x 16.*{D_MLP + 1} x 16"):
            edit.apply_(wider, force=force)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_exact_too(dtype):
    model = tiny_model("LlamaForCausalLM", dtype=dtype)
    before = bits(model)
    edit = kn.update_fact(model, IRELAND, "Tokyo", NEURONS, allow_unknown=True)
    hooked = logits(model, edit.hooks(model))
    with edit.applied(model):
        torch.testing.assert_close(hooked, logits(model), atol=60 * torch.finfo(dtype).eps, rtol=0.05)
    assert same(before, bits(model))


def test_rows_that_overflow_are_refused():
    model = tiny_model("GPT2LMHeadModel", dtype=torch.float16)
    with pytest.raises(kn.EditError, match=r"new row of L0N3 is not finite in float16.* Smaller lambdas"):
        kn.update_fact(model, **UPDATE, lambdas=(1, 1e6))


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "LlamaForCausalLM", "Gemma2ForCausalLM"])
def test_erased_neurons_of_processed_weights(architecture):
    """They are suppressed, exactly, and the raw model's; TransformerLens processes in float32, whatever the weights."""
    raw, model = tiny_model(architecture), tiny_model(architecture)
    model.enable_compatibility_mode(disable_warnings=True)
    prompts = kn.make_prompts(raw, FACTS)
    edits = [kn.erase_neurons(one, NEURONS) for one in (raw, model)]
    assert not torch.equal(edits[0].old, edits[1].old)

    def log_probs(model, hooks=()):
        return kn.host_of(model).logits(prompts.tokens, prompts.attention_mask, fwd_hooks=hooks).log_softmax(-1)

    with torch.no_grad():
        clean = log_probs(model)
        off = log_probs(model, kn.Suppress(NEURONS, position="all").hooks(model, prompts))
        by_hooks = log_probs(model, edits[1].hooks(model))
        with edits[0].applied(raw), edits[1].applied(model):
            expected, found = log_probs(raw), log_probs(model)
        assert torch.equal(log_probs(model), clean)
    for other in (off, by_hooks):
        torch.testing.assert_close(found, other, atol=1e-12, rtol=0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - clean).abs().max() > 0.1


def test_erased_neurons_of_centred_weights_are_the_raw_models():
    """As above in float64 throughout: only what centring does is done, by its definition."""
    raw, model = tiny_model("GPT2LMHeadModel"), tiny_model("GPT2LMHeadModel")
    for name, weight in model.original_model.named_parameters():
        if "wpe" in name or "c_proj" in name:  # what writes to the residual stream, but the embeddings tied to the head
            weight -= weight.mean(-1, keepdim=True)
    centred = replace(kn.host_of(model), raw=False)
    erased = kn.WeightEdit.of(centred, NEURONS, torch.zeros(len(NEURONS), D_MODEL))
    assert not torch.equal(erased.old, kn.erase_neurons(raw, NEURONS).old)
    with kn.erase_neurons(raw, NEURONS).applied(raw), erased.applied(centred):
        expected, found = (logits(one).log_softmax(-1) for one in (raw, model))
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_what_has_no_meaning_in_processed_weights_is_refused(tmp_path):
    raw, model = tiny_model("GPT2LMHeadModel"), tiny_model("GPT2LMHeadModel")
    kn.erase_neurons(raw, NEURONS).save(tmp_path / "raw")
    applied = kn.erase_neurons(model, NEURONS).apply_(model)
    model.enable_compatibility_mode(disable_warnings=True)
    before = bits(model)
    edit = kn.WeightEdit.load(tmp_path / "raw")
    for use in (
        applied.undo_,  # what was zero still is, and its old value is no longer what it was
        edit.apply_,
        edit.hooks,
        functools.partial(edit.apply_, force=True),
        lambda model: kn.update_fact(model, **UPDATE),
        lambda model: kn.erase_neurons(model, NEURONS, value="Tokyo"),
        lambda model: kn.export(model, kn.erase_neurons(model, NEURONS), tmp_path / "edited"),
    ):
        with pytest.raises(kn.EditError, match=r"processed by TransformerLens \(norms folded, rows centred\)"):
            use(model)
    for use in (random_edit, lambda model: kn.erase_neurons(model, kn.NeuronSet([(0, 4)])).scaled(0.5)):
        with pytest.raises(kn.EditError, match="where only zero means for a row what it means"):
            use(model)
    assert same(before, bits(model)) and not (tmp_path / "edited").exists()


def test_an_edit_of_processed_weights_says_so_in_its_file(tmp_path):
    raw, model = tiny_model("GPT2LMHeadModel"), tiny_model("GPT2LMHeadModel")
    model.enable_compatibility_mode(disable_warnings=True)
    kn.erase_neurons(model, NEURONS).save(tmp_path / "edit")
    edit = kn.WeightEdit.load(tmp_path / "edit")
    assert not edit.checkpoint.raw and "of processed weights of" in repr(edit)
    with edit.applied(model):
        assert not kn.host_of(model).W_out(1)[7].any()
    for force in (False, True):
        with pytest.raises(kn.EditError, match=r"made of weights .* processed, and those of .* are raw"):
            edit.apply_(raw, force=force)
    with pytest.raises(kn.EditError, match=r"for different models: .*, processed"):
        kn.erase_neurons(raw, NEURONS) + edit


def test_a_model_may_change_its_mode_while_an_edit_is_applied():
    model = tiny_model("BertForMaskedLM")
    before = bits(model)
    with random_edit(model).applied(model):
        model.train()
    assert same(before, bits(model))


def test_weights_that_require_gradients_can_be_edited():
    model = tiny_model("BertForMaskedLM")
    model.requires_grad_(True)
    before = bits(model)
    with random_edit(model).applied(model):
        assert not same(before, bits(model))
    assert same(before, bits(model))


# --- exporting ---------------------------------------------------------------------------------


def test_a_directory_that_exists_is_left_as_it_is(tmp_path):
    model = loaded("BertForMaskedLM")
    (tmp_path / "there").mkdir()
    with pytest.raises(kn.EditError, match="there exists; expected the name of a directory to make"):
        kn.export(model, random_edit(model), tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    model = loaded("BertForMaskedLM")
    before = bits(model)
    first, second = random_edit(model), random_edit(model, seed=1)  # of the same rows, but not one on the other
    with pytest.raises(kn.EditError, match="made for other rows"):
        kn.export(model, [first, second], tmp_path / "edited")

    def full(self, path, **_):
        path.mkdir()
        (path / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(kn.EditError, match="edited cannot be written: No space left on device"):
        kn.export(model, first, tmp_path / "edited")
    assert list(tmp_path.iterdir()) == [] and same(before, bits(model))


def test_a_model_from_memory_is_exported_without_a_tokenizer(tmp_path):
    model = kn.load_model(tiny_hf_model("GPT2LMHeadModel"))
    directory = kn.export(model, random_edit(model), tmp_path / "edited")
    assert not any("token" in path.name for path in directory.iterdir())


def test_narrow_embeddings_without_a_projection_are_refused(monkeypatch):
    model = loaded("ElectraForMaskedLM")
    monkeypatch.setattr(_original, "_PROJECTIONS", ("elsewhere",))
    with pytest.raises(kn.EditError, match="have 12 numbers and the rows of W_out 16"):
        kn.update_fact(model, **UPDATE)


# --- cost --------------------------------------------------------------------------------------


def test_a_thousand_rows_cost_less_than_a_forward_pass():
    from transformers import BertConfig, BertForMaskedLM

    model = kn.load_model(BertForMaskedLM(BertConfig()).eval())
    host = kn.host_of(model)
    neurons = kn.NeuronSet((i % 12, 3 * i) for i in range(1000))
    edit = kn.erase_neurons(model, neurons)
    tokens = torch.full((1, 12), 7)

    def seconds(action):
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    def forward():
        with torch.no_grad():
            host.logits(tokens, torch.ones_like(tokens))

    actions = (lambda: edit.apply_(model), lambda: edit.undo_(model), forward)
    times = [[seconds(action) for action in actions] for _ in range(5)]
    applying, undoing, passing = (min(column) for column in zip(*times, strict=True))
    assert max(applying, undoing) < passing
