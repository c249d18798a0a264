"""Editors beside knowledge neurons equal plain loops of their formulas, and their edits are exact."""

from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from kn_lens.edits.targets import PREFIXES
from kn_lens.edits.value_rows import ValueRows
from tests.edit_cases import FACTS, IRELAND, bits, mean_embedding, random_edit, same
from tests.edits import editor_oracles as oracles
from tests.experts import both
from tests.tiny import TEXTS, equal, loaded, tiny_checkpoint, tiny_model, tiny_tokenizer

JAPAN = FACTS[4]
UPDATES = {IRELAND: "Tokyo", JAPAN: "Paris and Rome"}  # one token in some tokenizers, several in others
pytestmark = pytest.mark.usefixtures("float64_throughout")
ARCHITECTURES = ("GPT2LMHeadModel", "LlamaForCausalLM", "Gemma2ForCausalLM")
LAYERS = {"GPT2LMHeadModel": [0, 1], "LlamaForCausalLM": [0, 1], "Gemma2ForCausalLM": [1]}
NAMES = ["rome", "memit", "alphaedit", "ft", "kn"]
WHOLE = NAMES[:-1]
SETS = {fact: kn.NeuronSet([(0, number), (1, 3), (2, 5)]) for number, fact in enumerate(FACTS)}
SHORT = {"n_steps": 4, "learning_rate": 0.2, "prefixes": PREFIXES[:2]}
_MOMENTS = {}


def read(architecture, directory):
    """The plain Hugging Face model of `loaded`."""
    import transformers

    tiny_checkpoint(architecture, directory)
    return getattr(transformers, architecture).from_pretrained(directory, dtype=torch.float64).eval()


def moments_of(architecture):
    if architecture not in _MOMENTS:
        _MOMENTS[architecture] = kn.second_moments(loaded(architecture), TEXTS, layers=[0, 1, 2])
    return _MOMENTS[architecture]


def editor_of(name, architecture):
    moments = moments_of(architecture)
    layers = LAYERS[architecture]
    threshold = float(torch.linalg.eigvalsh(moments.by_layer[layers[0]])[11:13].mean())
    editors = {
        "rome": kn.ROME(moments=moments, layer=1, **SHORT),
        "memit": kn.MEMIT(moments=moments, layers=layers, weight=3.0, clamp=2.0, **SHORT),
        "alphaedit": kn.AlphaEdit(
            moments=moments, layers=layers, threshold=threshold, edited={FACTS[1]: "Paris"}, **SHORT
        ),
        "ft": kn.FT(layer=1, epsilon=2e-3, learning_rate=1e-3, n_steps=4),
        "kn": kn.KN(neurons=SETS),
    }
    return editors[name]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_second_moments_are_means_over_all_tokens(architecture, tmp_path):
    moments = moments_of(architecture)
    hf_model = read(architecture, tmp_path)
    for layer in (0, 2):
        equal(moments.by_layer[layer], oracles.moments_of(hf_model, architecture, layer))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", WHOLE)
def test_editors_equal_plain_loops(name, architecture, tmp_path):
    model = loaded(architecture)
    before = bits(model)
    editor = editor_of(name, architecture)
    layers = [1] if name in ("rome", "ft") else LAYERS[architecture]
    edit = editor.edit(model, UPDATES)
    assert same(before, bits(model))
    where = 1 if name in ("rome", "ft") else layers
    expected = getattr(oracles, name)(read(architecture, tmp_path), architecture, model, UPDATES, editor, where)
    assert edit.neurons == kn.NeuronSet((layer, index) for layer in layers for index in range(24))
    new = torch.cat([expected[layer] for layer in layers])
    change = (new - edit.old).norm()
    assert change > 1e-3
    assert (edit.new - new).norm() < 1e-8 * change


def edit_of(name, model=None, updates=UPDATES):
    return editor_of(name, "GPT2LMHeadModel").edit(model or loaded("GPT2LMHeadModel"), updates)


@pytest.mark.parametrize("name", NAMES)
def test_edits_of_editors_are_exact(name, tmp_path):
    """Apply, undo, files, stacks and exports keep every bit, as for edits of single rows."""
    model = tiny_model("GPT2LMHeadModel")
    host, before = kn.host_of(model), bits(model)
    edit = edit_of(name, model)
    with pytest.raises(ZeroDivisionError), edit.applied(model):
        assert not same(before, bits(model))
        raise ZeroDivisionError
    assert same(before, bits(model))
    edit.save(tmp_path / "edit.safetensors")
    read_back = kn.WeightEdit.load(tmp_path / "edit.safetensors")
    assert read_back.digest == edit.digest
    assert read_back.why == edit.why
    read_back.apply_(model)
    second = edit_of(name, model, {FACTS[2]: "Oslo"})
    second.apply_(model)
    after = bits(model)
    second.undo_(model)
    read_back.undo_(model)
    assert same(before, bits(model))
    both = edit + second
    with both.applied(model):
        assert same(after, bits(model))
    kn.export(model, [both], tmp_path / "exported")
    exported = kn.host_of(kn.load_model(tmp_path / "exported", dtype=torch.float64))
    for layer, indices in both.neurons.by_layer().items():
        new = both.restricted_to([(layer, index) for index in indices]).new
        assert torch.equal(exported.W_out(layer)[list(indices)], new)
        assert not torch.equal(host.W_out(layer)[list(indices)], new)


@pytest.mark.parametrize("name", WHOLE)
def test_a_stopped_editor_leaves_the_model_as_it_was(name):
    model = loaded("GPT2LMHeadModel")
    before = bits(model)
    totals = []

    def stop(done, total):
        totals.append(total)
        if done > total / 2:  # while a second fact is edited
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        editor_of(name, "GPT2LMHeadModel").edit(model, UPDATES, progress=stop)
    assert totals
    assert same(before, bits(model))


@pytest.mark.parametrize("name", WHOLE)
def test_the_answer_moves_towards_the_new_one(name):
    model = loaded("GPT2LMHeadModel")
    effect = kn.measure(model, kn.make_prompts(model, replace(IRELAND, object="Tokyo")), edit_of(name))
    assert effect["change"].mean() > 0


def test_memory_does_not_change_an_edit():
    """States of prompts are computed again where they do not fit; the edit is the same to rounding."""
    model = loaded("GPT2LMHeadModel")
    editor = replace(editor_of("memit", "GPT2LMHeadModel"), n_steps=2, prefixes=())
    little = editor.edit(model, UPDATES, memory_budget=1.0)
    equal(little.new, editor.edit(model, UPDATES).new)


def test_moments_are_kept_under_their_provenance(tmp_path):
    model = loaded("GPT2LMHeadModel")
    moments = kn.second_moments(model, TEXTS[:5], layers=[1], cache=tmp_path)
    (path,) = tmp_path.iterdir()
    read_back = kn.SecondMoments.load(path)
    assert read_back.digest == moments.digest
    assert torch.equal(read_back.by_layer[1], moments.by_layer[1])
    stamp = path.stat().st_mtime_ns
    assert kn.second_moments(model, TEXTS[:5], layers=[1], cache=tmp_path).digest == moments.digest
    assert path.stat().st_mtime_ns == stamp
    kn.second_moments(model, TEXTS[:4], layers=[1], cache=tmp_path)
    kn.second_moments(tiny_model("GPT2LMHeadModel", seed=1), TEXTS[:5], layers=[1], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(kn.DataError, match="damaged or changed"):
        kn.second_moments(model, TEXTS[:5], layers=[1], cache=tmp_path)


def test_moments_of_another_tokenizer_or_under_hooks_are_not_those_in_the_cache(tmp_path):
    model = loaded("GPT2LMHeadModel")
    plain = kn.second_moments(model, TEXTS[:5], layers=[1], cache=tmp_path)
    other = kn.second_moments(model, TEXTS[:5], layers=[1], cache=tmp_path, tokenizer=tiny_tokenizer("BertForMaskedLM"))
    assert other.digest != plain.digest and len(list(tmp_path.iterdir())) == 2
    for factor in (0.5, 2.0):
        hooks = [("blocks.1.mlp.hook_post", lambda value, hook, factor=factor: factor * value)]
        with model.hooks(fwd_hooks=hooks):
            hooked = kn.second_moments(model, TEXTS[:5], layers=[1], cache=tmp_path)
        equal(hooked.by_layer[1], factor**2 * plain.by_layer[1])
    assert len(list(tmp_path.iterdir())) == 2


def test_long_texts_are_read_in_windows_and_no_token_is_left_out():
    model = loaded("GPT2LMHeadModel")
    text = " ".join(TEXTS)
    n_tokens = len(kn.host_of(model).tokenizer(text, verbose=False)["input_ids"])
    assert n_tokens > 64  # the model's context
    assert kn.second_moments(model, [text], layers=[0]).n_tokens == n_tokens


def test_what_cannot_be_edited_is_refused_in_one_sentence():
    rome = editor_of("rome", "GPT2LMHeadModel")
    updates = {IRELAND: "Tokyo"}
    for architecture, kind in (("BertForMaskedLM", "a masked"), ("T5ForConditionalGeneration", "an encoder-decoder")):
        with pytest.raises(kn.UnsupportedModelError, match=f"is {kind} model; expected a causal one"):
            rome.edit(loaded(architecture), updates)
    with pytest.raises(kn.UnsupportedModelError, match="has experts, which have a W_out each"):
        replace(rome, layer=1).edit(both("MixtralForCausalLM")[0], updates)
    model = loaded("GPT2LMHeadModel")
    with pytest.raises(kn.EditError, match=r"second_moments\(model, texts, layers=\[0, 1\]\)"):
        kn.ROME(moments=kn.second_moments(model, TEXTS[:5], layers=[0]), layer=1).edit(model, updates)
    with pytest.raises(kn.EditError, match="LlamaForCausalLM"):
        kn.ROME(moments=moments_of("LlamaForCausalLM")).edit(model, updates)
    with pytest.raises(kn.EditError, match="have no inverse"):
        kn.ROME(moments=kn.second_moments(model, TEXTS[:1], layers=[1]), layer=1, ridge=0).edit(model, updates)
    with pytest.raises(kn.EditError, match="does not reach the answer"):
        replace(rome, layer=2).edit(model, updates)
    with pytest.raises(kn.UnsupportedModelError, match=r"expected one layer: layers=\[1\]"):
        replace(editor_of("memit", "Gemma2ForCausalLM"), layers=[0, 1]).edit(loaded("Gemma2ForCausalLM"), updates)
    with pytest.raises(kn.EditError, match="larger threshold"):
        replace(editor_of("alphaedit", "GPT2LMHeadModel"), threshold=1e-30).edit(model, updates)


def test_layers_are_those_published_or_at_their_depth():
    from kn_lens.edits.editors import memit_layers, rome_layer

    host = kn.host_of(loaded("LlamaForCausalLM"))
    gpt2 = kn.host_of(loaded("GPT2LMHeadModel"))
    cases = [
        (replace(gpt2, n_layers=48), 17, (13, 14, 15, 16, 17)),
        (replace(gpt2, n_layers=24), 8, (6, 7, 8)),
        (replace(gpt2, n_layers=36), 12, (9, 10, 11, 12)),
        (replace(gpt2, n_layers=28, architecture="GPTJForCausalLM"), 5, (3, 4, 5, 6, 7, 8)),
        (replace(host, n_layers=32), 5, (4, 5, 6, 7, 8)),
        (replace(host, n_layers=30), 4, (3, 4, 5, 6, 7)),
    ]
    for shape, layer, layers in cases:
        assert (rome_layer(shape), memit_layers(shape)) == (layer, layers)
    assert len(memit_layers(kn.host_of(loaded("Gemma2ForCausalLM")))) == 1


def test_every_editor_has_the_protocol():
    for name in NAMES:
        assert isinstance(editor_of(name, "GPT2LMHeadModel"), kn.Editor)


def test_fine_tuning_stays_within_its_bound():
    edit = kn.FT(layer=1, epsilon=1e-3, learning_rate=1e-2, n_steps=3).edit(loaded("GPT2LMHeadModel"), UPDATES)
    largest = (edit.new - edit.old).abs().max()
    assert 0.999e-3 < largest <= 1e-3 + 1e-15


@pytest.mark.parametrize(("preset", "threshold", "one_prompt"), [("easyedit", 0.2, True), ("eleutherai", 0.3, False)])
def test_presets_of_other_packages_add_two_embeddings(preset, threshold, one_prompt):
    """The rule of their code, over neurons found by their thresholds."""
    model = loaded("GPT2LMHeadModel")
    edit = kn.KN(preset=preset).edit(model, {IRELAND: "Tokyo"})
    prompts = kn.make_prompts(model, IRELAND)
    prompts = prompts[:1] if one_prompt else prompts
    attr = kn.attribute(model, prompts, quadrature="trapezoid", n_steps=20)
    largest = attr.scores.flatten(1).amax(1)[:, None, None]
    share = (attr.scores >= threshold * largest).double().mean(0)
    assert edit.neurons == kn.NeuronSet.from_mask(share >= (1 if one_prompt else 0.5))
    old, new = edit.why[0]["old_tokens"], edit.why[0]["new_tokens"]
    expected = edit.old - 2 * mean_embedding(model, old) + 2 * mean_embedding(model, new)
    equal(edit.new, expected)


def test_a_fact_of_one_wording_has_neurons_if_one_prompt_is_enough():
    model = loaded("GPT2LMHeadModel")
    fact = replace(IRELAND, templates=IRELAND.templates[:1])
    with pytest.raises(kn.PromptError, match="min_prompts=1"):
        kn.KN().edit(model, {fact: "Tokyo"})
    assert kn.KN(min_prompts=1).edit(model, {fact: "Tokyo"}).why[0]["new_object"] == "Tokyo"


# --- taking back any of several edits ---------------------------------------------------------------------------


def stack_of(model, order=NAMES):
    """Apply edits of every editor, each made while those before it are applied."""
    facts = [(FACTS[0], "Tokyo"), (FACTS[1], "Lima"), (FACTS[2], "Oslo"), (FACTS[3], "Paris"), (FACTS[4], "Rome")]
    stack = []
    for name, (fact, new) in zip(order, facts, strict=True):
        stack.append(editor_of(name, "GPT2LMHeadModel").edit(model, {fact: new}).apply_(model))
    return stack


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_edits_of_the_same_rows_are_taken_back_in_any_order(dtype):
    model = tiny_model("GPT2LMHeadModel", dtype=dtype)
    host, before = kn.host_of(model), bits(model)
    everything = kn.NeuronSet((layer, index) for layer in range(3) for index in range(24))
    start = torch.cat([host.W_out(layer).detach().double() for layer in range(3)])
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        stack = []
        for number in range(5):
            chosen = everything if number % 2 else everything[number : number + 20]
            new = torch.randn(len(chosen), host.d_model, generator=generator, dtype=torch.float64)
            stack.append(kn.WeightEdit.of(model, chosen, new, [{"kind": "test", "number": number}]).apply_(model))
        changes = {}
        for number, edit in enumerate(stack):
            changes[number] = torch.zeros_like(start)
            at = [layer * 24 + index for layer, index in edit.neurons]
            changes[number][at] = edit.new.double() - edit.old.double()
        left = list(range(5))
        for number in torch.randperm(5, generator=generator).tolist():
            stack = list(kn.undo_any_(model, stack, left.index(number)))
            left.remove(number)
            now = torch.cat([host.W_out(layer).detach().double() for layer in range(3)])
            expected = start + sum((changes[other] for other in left), torch.zeros_like(start))
            equal(now, expected, 1e-12 if dtype == torch.float64 else 0.05)
        assert same(before, bits(model))


def test_a_stack_of_all_editors_is_taken_back_in_any_order():
    model = tiny_model("GPT2LMHeadModel")
    before = bits(model)
    stack = stack_of(model)
    for which in (1, 3, 0, 1, 0):
        stack = list(kn.undo_any_(model, stack, stack[which]))
    assert stack == []
    assert same(before, bits(model))


def test_taking_back_writes_all_or_nothing(monkeypatch):
    model = tiny_model("GPT2LMHeadModel")
    stack = [random_edit(model, seed=seed).apply_(model) for seed in range(3)]
    before = bits(model)
    with pytest.raises(kn.EditError, match=r"do not hold its new values\. Pass all edits that are applied"):
        kn.undo_any_(model, stack[:2], 0)
    with pytest.raises(kn.EditError, match="do not hold its new values"):
        kn.undo_any_(model, stack[::-1], 0)
    with pytest.raises(kn.ArgumentError, match="is none of the 2 applied ones"):
        kn.undo_any_(model, stack[:2], stack[2])
    with pytest.raises(kn.ArgumentError, match="its number from 0 to 2"):
        kn.undo_any_(model, stack, 3)
    assert same(before, bits(model))
    assign, calls = ValueRows._assign, []

    def failing(self, values):
        assign(self, values)
        calls.append(values)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(ValueRows, "_assign", failing)
    with pytest.raises(KeyboardInterrupt):
        kn.undo_any_(model, stack, 0)
    assert same(before, bits(model))
