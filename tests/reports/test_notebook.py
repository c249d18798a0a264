"""The figures of attributions and effects show their numbers."""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.io
import pytest
import torch

import kn_lens as kn
from kn_lens.attribution.result import N_RESAMPLES
from tests.intervals import drawn_facts, is_close, naive_interval
from tests.tiny import COUNTRIES, D_MLP, N_LAYERS, tiny_model

TEMPLATES = ("The capital of [X] is [Y].", "[X]'s capital city, [Y]", "In fact, [X] has its seat of government in [Y]")
FACTS = [kn.Fact(country, "P36", capital, TEMPLATES) for country, capital in list(COUNTRIES.items())[:4]]


@functools.cache
def case():
    model = tiny_model()
    prompts = kn.make_prompts(model, FACTS)
    return model, prompts, kn.attribute(model, prompts)


def naive(attr, chosen):
    """Return the mean score of every neuron over some prompts."""
    return {
        f"L{layer}N{index}": float(np.mean([attr.scores[i, layer, index] for i in chosen]))
        for layer in range(N_LAYERS)
        for index in range(D_MLP)
    }


@pytest.mark.parametrize("fact", [None, FACTS[1]])
def test_plot_of_an_attribution_shows_the_neurons_of_highest_mean_score(fact):
    _, prompts, attr = case()
    chosen = [i for i in range(len(prompts)) if fact in (None, prompts.fact(i))]
    means = naive(attr, chosen)
    figure = attr.plot(fact, top=5)
    names = figure.layout.yaxis.ticktext
    assert list(names) == sorted(means, key=means.get, reverse=True)[:5]
    assert list(figure.data[0].x) == pytest.approx([means[name] for name in names])
    bars = figure.data[0].error_x
    scores = [attr.scores[chosen, int(name[1 : name.index("N")]), int(name[name.index("N") + 1 :])] for name in names]
    for mean, more, less, of_prompts in zip(figure.data[0].x, bars.array, bars.arrayminus, scores, strict=True):
        n = len(chosen)
        drawn_means = [float(of_prompts[drawn].mean()) for (drawn,) in drawn_facts([n], N_RESAMPLES)]
        assert is_close([mean - less, mean + more], naive_interval(mean, drawn_means, [n]))
        assert np.isnan(more) == (n < 8)  # one fact has three prompts


def test_one_prompt_has_no_interval():
    model, prompts, _ = case()
    one = kn.attribute(model, prompts.select([0]))
    assert np.isnan(one.plot().data[0].error_x.array).all()


def test_dropped_scores_count_as_zero_and_uncomputed_ones_are_not_drawn():
    model, prompts, attr = case()
    kept = attr.thresholded(0.1)
    dense = replace(attr, scores=kept.scores.to_dense())
    assert kept.plot(top=5).to_json() == dense.plot(top=5).to_json()
    chosen = kn.attribute(model, prompts, method="ablation", neurons=kn.NeuronSet([(0, 3), (1, 2)]))
    assert set(chosen.plot().layout.yaxis.ticktext) == {"L0N3", "L1N2"}


def test_fact_without_prompts_is_refused():
    _, _, attr = case()
    other = kn.Fact(FACTS[0].subject, "P36", "Nowhere", TEMPLATES)
    with pytest.raises(kn.ArgumentError, match=r"has no prompts here\. Did you mean"):
        attr.plot(other)


def test_html_is_a_short_table_where_no_renderer_draws_figures(monkeypatch):
    _, prompts, attr = case()
    monkeypatch.setattr(plotly.io.renderers, "default", "json")  # for files alone
    shown = attr._repr_html_()
    assert f"Attribution of {len(prompts)} prompts" in shown and "Completeness gap at most" in shown
    assert len(shown) < 5_000
    best = attr.top(10)
    for layer, index, score in zip(best["layer"], best["index"], best["score"], strict=True):
        assert f"<td>L{layer}N{index}</td><td>{score:.3g}</td>" in shown


def test_html_has_the_figure_that_the_renderer_of_a_notebook_draws(monkeypatch):
    _, prompts, attr = case()
    monkeypatch.setattr(plotly.io.renderers, "default", "notebook_connected")
    shown = attr._repr_html_()
    assert f"Attribution of {len(prompts)} prompts" in shown and "Completeness gap at most" in shown
    assert "Plotly.newPlot" in shown and "<table>" not in shown


def test_effect_is_a_pandas_table_with_a_plot():
    model, prompts, attr = case()
    cells = (attr.scores.mean(0) > 0).nonzero()[:3].tolist()
    effect = kn.measure(model, prompts, kn.Suppress(kn.NeuronSet(map(tuple, cells))))
    assert isinstance(effect, kn.Effect) and isinstance(effect, pd.DataFrame)
    _, before, after = effect.plot().data
    assert list(before.x) == list(effect["before"]) and list(after.x) == list(effect["after"])
    _, before, _ = effect.query("subject == @FACTS[0].subject").plot().data  # so do its parts
    assert list(before.x) == list(effect["before"][effect["subject"] == FACTS[0].subject])


def test_effect_keeps_the_plots_of_pandas():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    effect = kn.Effect({"text": ["a", "b"], "before": [0.5, 0.6], "after": [0.1, 0.2]})
    for axes in (effect.plot(y="after"), effect.plot.line(y="after"), effect[["before", "after"]].plot()):
        assert [list(line.get_ydata()) for line in axes.get_lines()][-1] == [0.1, 0.2]
    matplotlib.pyplot.close("all")


def test_scores_on_any_device_type_are_drawn():
    _, _, attr = case()
    half = replace(attr, scores=attr.scores.to(torch.bfloat16))
    assert len(half.plot().data[0].x) == 20
