"""Effects of interventions: against plain loops over prompts, and that they leave nothing behind."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens._reading import Change, Ticks, read_changes
from kn_lens._refining import prompts_by_fact
from tests.tiny import COUNTRIES, D_MLP, N_LAYERS, memory_for, tiny_hf_model, tiny_model, tiny_tokenizer
from tests.unit.test_interventions import state

CAPITAL = ("The capital of [X] is [Y].", "[X]'s capital city, [Y]", "In fact, [X] has its seat of government in [Y]")
INVERSE = ("[X] is the capital of [Y].", "In [X] lies the seat of government of [Y]")
CAPITALS = {**COUNTRIES, "France": "Paris and Rome"}  # one answer of several tokens
FACTS = tuple(kn.Fact(country, "P36", capital, CAPITAL) for country, capital in CAPITALS.items()) + tuple(
    kn.Fact(capital, "P1376", country, INVERSE) for country, capital in COUNTRIES.items()
)
MODELS = ("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM")

loaded = functools.cache(tiny_model)


def sets_of(facts, seed=0):
    """Three neurons for each fact, one in each layer; none for the first."""
    draw = np.random.default_rng(seed)
    found = {fact: kn.NeuronSet((layer, int(draw.integers(D_MLP))) for layer in range(N_LAYERS)) for fact in facts}
    return found | {facts[0]: kn.NeuronSet()}


@pytest.fixture(params=MODELS)
def case(request):
    """A model and prompts of two relations; the model has to come back as it was."""
    model = loaded(request.param)
    before = state(model)
    yield model, kn.make_prompts(model, FACTS)
    assert state(model) == before


def naive_reading(model, prompts, i, hooks_of):
    """Probability, worst rank and top tokens of prompt `i`, run alone, token by token."""
    host = kn.host_of(model)
    part = prompts.select([i])
    with torch.no_grad():
        logits = host.logits(part.tokens, part.attention_mask, None, hooks_of(part))
    prob, ranks, top = 1.0, [], []
    for row in range(part.n_rows):
        probs = logits[row, part.read_pos[row]].softmax(-1)
        target = int(part.target_ids[row])
        prob *= float(probs[target])
        ranks.append(sorted(probs.tolist(), reverse=True).index(float(probs[target])))
        top.append(int(probs.argmax()))
    return prob, max(ranks), host.tokenizer.decode(top).strip()


@pytest.mark.parametrize("rows", [1, 5, 256])
def test_measure_is_what_a_loop_over_prompts_gives(case, rows):
    model, prompts = case
    neurons = sets_of(FACTS)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))
    prompts = prompts.select(order)
    ticks = []
    table = kn.measure(
        model,
        prompts,
        [kn.Amplify(neurons, 3.0), kn.Suppress(kn.NeuronSet([(1, 2)]))],
        memory_budget=memory_for(rows, model, prompts, gradient=False),
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert len(table) == len(prompts)
    assert ticks[-1] == (2 * prompts.n_rows,) * 2 and [done for done, _ in ticks] == sorted(done for done, _ in ticks)
    for i, row in enumerate(table.itertuples()):
        fact = prompts.fact(i)
        both = lambda part: [  # noqa: E731
            *kn.Amplify(neurons[prompts.fact(i)], 3.0).hooks(model, part),  # noqa: B023
            *kn.Suppress(kn.NeuronSet([(1, 2)])).hooks(model, part),
        ]
        assert (row.relation, row.subject, row.object, row.text) == (
            fact.relation,
            fact.subject,
            fact.object,
            prompts.text[i],
        )
        for got, (prob, rank, top) in (
            ((row.before, row.rank_before, row.top_before), naive_reading(model, prompts, i, lambda part: [])),
            ((row.after, row.rank_after, row.top_after), naive_reading(model, prompts, i, both)),
        ):
            assert got[0] == pytest.approx(prob, rel=1e-9) and got[1:] == (rank, top)
    assert np.allclose(table.change, table.after - table.before)
    assert np.allclose(np.exp(table.log_prob_after), table.after)
    assert (table.change != 0).all()


def test_measuring_a_set_for_each_prompt_and_values_for_each_row(case):
    """What is given for each prompt or row follows the prompts into whatever pass they fall."""
    model, prompts = case
    sets = sets_of(FACTS)
    by_prompt = [sets[prompts.fact(i)] for i in range(len(prompts))]
    values = torch.randn(prompts.n_rows, N_LAYERS, D_MLP, dtype=torch.float64, generator=torch.manual_seed(0))
    for make in (kn.Suppress, lambda neurons: kn.SetTo(neurons, values)):
        small, large = (
            kn.measure(model, prompts, make(by_prompt), memory_budget=memory_for(n, model, prompts, gradient=False))
            for n in (2, 256)
        )
        pd.testing.assert_frame_equal(small, large)
        pd.testing.assert_frame_equal(large, kn.measure(model, prompts, make(sets)))


def test_without_a_tokenizer_the_top_answers_are_ids():
    model = kn.load_model(tiny_hf_model("GPT2LMHeadModel"))
    prompts = kn.PromptBatch.from_tokens(
        torch.tensor([[5, 6, 7]]), read_pos=torch.tensor([2]), target_ids=torch.tensor([9])
    )
    (top,) = kn.measure(model, prompts, kn.Suppress(kn.NeuronSet())).top_before
    assert top == str(kn.predict(model, prompts, k=1).token_id[0])
    shown = kn.measure(model, prompts, [], tokenizer=tiny_tokenizer("GPT2LMHeadModel"))
    assert shown.top_before[0] == tiny_tokenizer("GPT2LMHeadModel").decode([int(top)]).strip()


def test_an_exception_in_a_hook_leaves_the_model_as_it_was(case):
    model, prompts = case

    class Failing:
        def hooks(self, model, prompts):
            def hook_fn(post, hook):
                raise RuntimeError("in the hook")

            return [(kn.host_of(model).hook_post(1), hook_fn)]

        def select(self, prompts, chosen):
            return self

    with pytest.raises(RuntimeError, match="in the hook"):
        kn.measure(model, prompts, [kn.Suppress(kn.NeuronSet([(0, 1)])), Failing()])


@pytest.fixture
def no_passes(monkeypatch):
    """A model whose forward pass fails the test."""
    model = loaded(MODELS[0])

    def forward(*args, **kwargs):
        raise AssertionError("the model ran")

    monkeypatch.setattr(model.original_model, "forward", forward)
    with pytest.raises(AssertionError, match="the model ran"):
        kn.predict(model, kn.make_prompts(model, FACTS))
    return model


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"interventions": kn.Suppress(kn.NeuronSet([(9, 0)]))}, kn.ArgumentError, "no neuron L9N0"),
        (
            {"interventions": kn.Suppress(dict.fromkeys(FACTS[:3], kn.NeuronSet()))},
            kn.ArgumentError,
            "no set of neurons",
        ),
        ({"memory_budget": 0}, kn.ArgumentError, "memory_budget=0"),
        ({"interventions": [kn.Suppress(kn.NeuronSet()), kn.Suppress([])]}, kn.ArgumentError, "0 sets of neurons"),
    ],
)
def test_measure_refuses_before_the_model_runs(no_passes, change, error, message):
    prompts = kn.make_prompts(no_passes, FACTS)
    with pytest.raises(error, match=message):
        kn.measure(**{"model": no_passes, "prompts": prompts, "interventions": kn.Suppress(kn.NeuronSet()), **change})


def test_a_hook_name_that_does_not_exist_is_refused_before_the_model_runs(no_passes):
    class Misnamed:
        def hooks(self, model, prompts):
            return [("blocks.1.mlp.hook_posst", lambda post, hook: post)]

        def select(self, prompts, chosen):
            return self

    with pytest.raises(kn.HookError, match="hook_post"):
        kn.measure(no_passes, kn.make_prompts(no_passes, FACTS), Misnamed())


# --- controlled effects ------------------------------------------------------------------------------------


def test_controlled_effects_are_those_of_measure(case):
    """Each row is a mean of `measure` over the prompts it names, with the neurons it names."""
    model, prompts = case
    found, activation = sets_of(FACTS), sets_of(FACTS, seed=1)
    effects = kn.controlled_effects(
        model, prompts, found, activation, memory_budget=memory_for(7, model, prompts, gradient=False)
    )
    assert len(effects) == 3 * 2 * len(FACTS)
    by_key = {fact.key: fact for fact in FACTS}
    prompts_of = {fact.key: [i for i in range(len(prompts)) if prompts.fact(i) == fact] for fact in FACTS}
    for row in effects.itertuples():
        fact, measured = by_key[row.key], by_key[row.measured]
        assert (row.relation, row.subject, row.object) == (fact.relation, fact.subject, fact.object)
        assert (measured == fact) == (row.facts == "own")
        assert (measured.relation == fact.relation) == (row.facts == "own")
        assert (row.n_neurons, row.n_prompts) == (len(found[fact]), len(prompts_of[row.measured]))
        part = prompts.select(prompts_of[row.measured])
        if row.neurons == "random":
            continue  # drawn inside; see below
        neurons = {"found": found, "activation": activation}[row.neurons][fact]
        table = kn.measure(model, part, kn.Suppress(neurons))
        assert row.before == pytest.approx(table.before.mean(), rel=1e-9)
        assert row.after == pytest.approx(table.after.mean(), rel=1e-9)
    unchanged = np.isclose(effects.after, effects.before, rtol=1e-9, atol=0)
    assert (unchanged == (effects.n_neurons == 0)).all()


def test_random_controls_hang_on_the_seed_and_the_fact_alone():
    model = loaded(MODELS[0])
    prompts = kn.make_prompts(model, FACTS)
    found = sets_of(FACTS)

    def afters(neurons, seed):
        effects = kn.controlled_effects(model, prompts, neurons, seed=seed)
        chosen = effects[(effects.neurons == "random") & (effects.facts == "own")]
        return dict(zip(chosen.key, chosen.after, strict=True))

    every = afters(found, 0)
    few = afters({fact: found[fact] for fact in FACTS[5:7]}, 0)
    assert few == pytest.approx({fact.key: every[fact.key] for fact in FACTS[5:7]})
    assert every == afters(found, 0) and every != afters(found, 1)


def test_what_is_intervened_on_matches_what_was_found():
    model = loaded(MODELS[0])
    prompts = kn.make_prompts(model, FACTS)
    found = sets_of(FACTS)
    tried = []

    def intervene(sets):
        tried.append(list(sets))
        return kn.Suppress(sets)

    kn.controlled_effects(model, prompts, found, intervene=intervene)
    own = [found[prompts.fact(i)] for i in range(len(prompts))]
    assert tried[0] == own and len(tried) == 4
    random = tried[1]
    assert len(random) == len(own) and random != own
    for control, neurons in zip(random, own, strict=True):
        assert control.isdisjoint(neurons) and control.layer_counts(N_LAYERS) == neurons.layer_counts(N_LAYERS)
    # On the prompts of other facts the sets are the same, fact by fact.
    assert set(tried[2]) == set(own) and set(tried[3]) == set(random)


def test_the_intervention_can_be_chosen():
    model = loaded(MODELS[0])
    prompts = kn.make_prompts(model, FACTS)
    found = sets_of(FACTS)
    ticks = []
    same = kn.controlled_effects(
        model,
        prompts,
        found,
        intervene=lambda sets: kn.Amplify(sets, 1.0),
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert np.allclose(same.before, same.after, rtol=1e-9) and ticks[-1][0] == ticks[-1][1]
    assert set(same.neurons) == {"found", "random"}
    double = kn.controlled_effects(model, prompts, found, intervene=kn.Amplify)
    assert not np.allclose(double.before, double.after, rtol=1e-3)


class AsGiven:
    """Another intervention, of which nothing is known but its hooks: it is measured in whole passes."""

    def __init__(self, inner):
        self.inner = inner

    def hooks(self, model, prompts):
        return self.inner.hooks(model, prompts)

    def select(self, prompts, chosen):
        return AsGiven(self.inner.select(prompts, chosen))


@pytest.mark.parametrize("rows", [1, 5, 256])
def test_passes_that_start_where_something_changes_are_whole_passes(case, rows):
    """Each of our interventions, with neurons in any layers or none, beside one that touches all positions."""
    model, prompts = case
    draw = np.random.default_rng(0)
    found = {
        fact: kn.NeuronSet((int(layer), int(draw.integers(D_MLP))) for layer in draw.integers(N_LAYERS, size=i % 4))
        for i, fact in enumerate(FACTS)
    }
    assert {min(neurons.by_layer(), default=None) for neurons in found.values()} == {*range(N_LAYERS), None}
    memory = memory_for(rows, model, prompts, gradient=False)
    makers = {
        "suppress": kn.Suppress,
        "amplify": lambda sets: kn.Amplify(sets, -3.0),
        "set": lambda sets: kn.SetTo(sets, 0.7),
        "everywhere": lambda sets: kn.Amplify(sets, 3.0, position="all"),
    }
    ticks = []
    fast = kn.controlled_effects(
        model, prompts, found, found, intervene=makers, memory_budget=memory, progress=lambda *now: ticks.append(now)
    )
    whole = kn.controlled_effects(
        model,
        prompts,
        found,
        found,
        intervene={name: lambda sets, make=make: AsGiven(make(sets)) for name, make in makers.items()},
    )
    pd.testing.assert_frame_equal(fast, whole, rtol=1e-9, atol=0)
    assert [name for name, _ in fast.groupby("intervention", sort=False)] == list(makers)
    assert ticks[-1][0] == ticks[-1][1] == max(done for done, _ in ticks)
    alone = kn.controlled_effects(model, prompts, found, found, intervene=makers["amplify"])
    pd.testing.assert_frame_equal(
        alone, fast.query("intervention == 'amplify'").drop(columns="intervention").reset_index(drop=True), rtol=1e-9
    )
    assert (np.isclose(fast.before, fast.after, rtol=1e-9, atol=0) == (fast.n_neurons == 0)).all()


def test_changes_are_read_as_measure_reads_them(case):
    """Of prompts in any order and several times, with values for each row of an answer's several."""
    model, prompts = case
    host = kn.host_of(model)
    draw = np.random.default_rng(1)
    chosen = torch.tensor(draw.choice(len(prompts), 30))
    part = prompts.select(chosen)
    neurons = [
        kn.NeuronSet((int(layer), int(draw.integers(D_MLP))) for layer in draw.integers(N_LAYERS, size=i % 3))
        for i in range(30)
    ]
    values = torch.randn(part.n_rows, N_LAYERS, D_MLP, dtype=torch.float64, generator=torch.manual_seed(0))
    intervention = kn.SetTo(neurons, values)
    memory = memory_for(5, model, prompts, gradient=False)
    change = Change.of(host, chosen, part, intervention)
    before, (after,) = read_changes(host, prompts, [change], memory, Ticks(None, 0))
    expected = kn.measure(model, part, intervention)
    assert np.allclose(before[chosen], expected.log_prob_before, rtol=1e-9, atol=0)
    assert np.allclose(after, expected.log_prob_after, rtol=1e-9, atol=0)
    assert set(np.flatnonzero(~np.isnan(before))) == set(chosen.tolist())
    assert (expected.change[[not one for one in neurons]] == 0).all() and (expected.change != 0).any()


def test_blocks_below_what_changes_run_for_the_clean_pass_alone(case):
    model, prompts = case
    host = kn.host_of(model)
    top = {fact: kn.NeuronSet([(N_LAYERS - 1, 3)]) for fact in FACTS}
    seen = [0] * N_LAYERS

    def counter(layer):
        def hook_fn(post, hook):
            seen[layer] += len(post)

        return host.hook_post(layer), hook_fn

    with model.hooks(fwd_hooks=[counter(layer) for layer in range(N_LAYERS)]):
        effects = kn.controlled_effects(model, prompts, top)
    n_rows = {fact.key: prompts.select(chosen).n_rows for fact, chosen in prompts_by_fact(prompts).items()}
    assert set(seen[:-1]) == {seen[0]}
    assert seen[-1] - seen[0] == sum(n_rows[key] for key in effects.measured)


@pytest.mark.parametrize(
    "facts, neurons, activation, message",
    [
        (FACTS, {}, None, "no facts with neurons"),
        (FACTS[1:], {FACTS[0]: kn.NeuronSet()}, None, r"P36/Ireland/Dublin has neurons and no prompts"),
        (FACTS, {FACTS[0]: kn.NeuronSet()}, {}, "no activation neurons"),
        (FACTS[:8], {FACTS[0]: kn.NeuronSet()}, None, "two relations"),
        (FACTS, {FACTS[0]: kn.NeuronSet([(0, D_MLP)])}, None, f"indices 0 to {D_MLP - 1}"),
    ],
)
def test_controlled_effects_refuse_before_the_model_runs(no_passes, facts, neurons, activation, message):
    prompts = kn.make_prompts(no_passes, facts)
    with pytest.raises(kn.ArgumentError, match=message):
        kn.controlled_effects(no_passes, prompts, neurons, activation)


# --- the table ---------------------------------------------------------------------------------------------


def made_up(seed=0, n_facts=40, n_relations=3):
    """Effects with known structure: own facts lose a third, others nothing on average."""
    draw = np.random.default_rng(seed)
    rows = []
    for kind in ("random", "found"):
        for scope in ("other", "own"):
            for i in range(n_facts):
                before = draw.uniform(0.2, 0.9)
                lost = 1 / 3 if (kind, scope) == ("found", "own") else 0.0
                rows.append(
                    {
                        "relation": f"P{i % n_relations}",
                        "neurons": kind,
                        "facts": scope,
                        "n_neurons": i % 5,
                        "n_prompts": 5 + i % 2 * 5,
                        "before": before,
                        "after": before * (1 - lost + draw.normal(0, 0.05)),
                    }
                )
    return pd.DataFrame(rows)


def test_the_table_is_the_mean_over_relations_of_ratios_of_means():
    effects = made_up()
    table = kn.effect_table(effects)
    assert list(zip(table.neurons, table.facts, strict=True)) == [
        ("found", "own"),
        ("found", "other"),
        ("random", "own"),
        ("random", "other"),
    ]
    per_relation = kn.effect_table(effects, by_relation=True).set_index(["neurons", "facts", "relation"])
    for row in table.itertuples():
        ratios = []
        for relation in ("P0", "P1", "P2"):
            cell = effects[
                (effects.neurons == row.neurons) & (effects.facts == row.facts) & (effects.relation == relation)
            ]
            # Over prompts: a fact of ten prompts counts twice as much as one of five.
            prompts = cell.loc[cell.index.repeat(cell.n_prompts)]
            ratios.append((prompts.after - prompts.before).mean() / prompts.before.mean())
            one = per_relation.loc[(row.neurons, row.facts, relation)]
            assert one.change_ratio == pytest.approx(ratios[-1]) and one.n_facts == len(cell)
            assert one.before == pytest.approx(prompts.before.mean())
        assert row.change_ratio == pytest.approx(np.mean(ratios))
        assert row.low < row.change_ratio < row.high
        assert row.n_facts == 40 and row.n_neurons == pytest.approx(2)
    assert table.high[0] < -0.2 and table.low[1] < 0 < table.high[1]


def test_the_interval_covers_as_often_as_it_says():
    """The true ratio is -1/3; 95 of 100 intervals should hold it, and of this many more than 85 do."""
    held = 0
    for seed in range(60):
        effects = made_up(seed)
        own = effects[(effects.neurons == "found") & (effects.facts == "own")]
        row = kn.effect_table(own, n_resamples=200).iloc[0]
        held += row.low < -1 / 3 < row.high
    assert 0.85 * 60 < held


def test_the_bootstrap_is_seeded_and_narrows_with_its_level():
    effects = made_up()
    pd.testing.assert_frame_equal(kn.effect_table(effects), kn.effect_table(effects))
    wide, narrow = kn.effect_table(effects), kn.effect_table(effects, level=0.5)
    assert ((wide.high - wide.low) > (narrow.high - narrow.low)).all()


def test_a_probability_of_zero_gives_no_ratio():
    effects = made_up().assign(before=0.0, after=0.0)
    table = kn.effect_table(effects)
    assert table.change_ratio.isna().all() and (table.change == 0).all()


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda e: e.rename(columns={"before": "befor"}), {}, "Did you mean 'befor'"),
        (lambda e: e.iloc[:0], {}, "empty"),
        (lambda e: e, {"n_resamples": 0}, "at least 1 sample"),
        (lambda e: e, {"level": 1.0}, "between 0 and 1"),
    ],
)
def test_what_the_table_cannot_be_made_of(change, options, message):
    with pytest.raises(kn.ArgumentError, match=message):
        kn.effect_table(change(made_up()), **options)
