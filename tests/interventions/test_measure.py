"""``measure``, compared with a plain loop over prompts, and what it refuses."""

import numpy as np
import pandas as pd
import pytest
import torch

import kn_lens as kn
from tests.effects import FACTS, naive_reading, sets_of
from tests.tiny import D_MLP, N_LAYERS, memory_for, tiny_hf_model, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("rows", [1, 5, 256])
def test_measure_equals_a_loop_over_prompts(model_and_prompts, rows):
    model, prompts = model_and_prompts
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


def test_measure_takes_a_set_for_each_prompt_and_values_for_each_row(model_and_prompts):
    """Sets and values stay with their prompts and rows, in whatever pass these are run."""
    model, prompts = model_and_prompts
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


def test_overflow_gives_nan_probabilities_and_the_last_rank(model_and_prompts):
    model, prompts = model_and_prompts
    beyond_all = [kn.Amplify(kn.NeuronSet([(1, 2)]), 1e200)] * 2
    table = kn.measure(model, prompts, beyond_all)
    assert table.after.isna().all() and (table.rank_after == kn.host_of(model).d_vocab).all()
    assert table.before.notna().all() and (table.rank_before < kn.host_of(model).d_vocab).all()


def test_a_model_whose_clean_answers_are_nan_is_refused():
    """Its weights are finite but its activations overflow, here in float64, in practice in float16."""
    model = tiny_model("GPT2LMHeadModel")
    prompts = kn.make_prompts(model, FACTS)
    with torch.no_grad():
        kn.host_of(model).W_out(1).fill_(1.7e308)
    for run in (
        lambda: kn.attribute(model, prompts),
        lambda: kn.measure(model, prompts, kn.Suppress(kn.NeuronSet())),
        lambda: kn.controlled_effects(model, prompts, sets_of(FACTS)),
    ):
        with pytest.raises(
            kn.UnsupportedModelError, match=r"no finite number \(prob = nan\) for the answer to .*overflow float64"
        ):
            run()


def test_an_exception_in_a_hook_leaves_the_model_as_it_was(model_and_prompts):
    model, prompts = model_and_prompts

    class Failing:
        def hooks(self, model, prompts):
            def hook_fn(post, hook):
                raise RuntimeError("in the hook")

            return [(kn.host_of(model).hook_post(1), hook_fn)]

        def select(self, prompts, chosen):
            return self

    with pytest.raises(RuntimeError, match="in the hook"):
        kn.measure(model, prompts, [kn.Suppress(kn.NeuronSet([(0, 1)])), Failing()])


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


def test_a_named_position_is_where_prompts_are_put(model_and_prompts):
    model, prompts = model_and_prompts
    neurons = sets_of(FACTS)
    for make in (kn.Suppress, lambda sets, **at: kn.SetTo(sets, 0.7, **at)):
        named = kn.measure(model, prompts, make(neurons, position="subject_last"))
        put_there = kn.measure(model, prompts.at("subject_last"), make(neurons))
        pd.testing.assert_frame_equal(pd.DataFrame(named), pd.DataFrame(put_there), rtol=1e-9)
        assert (named["change"].abs() > 1e-6).any()
    active = kn.activation_neurons(kn.attribute(model, prompts, method="activation"), neurons)
    tables = []
    for at, options in (
        (prompts, {"intervene": lambda sets: kn.Suppress(sets, position="subject_last")}),
        (prompts.at("subject_last"), {}),
    ):
        tables.append(kn.controlled_effects(model, at, neurons, active, across_relations=False, **options))
    pd.testing.assert_frame_equal(tables[0], tables[1], rtol=1e-9)
