"""KN: knowledge neurons as an editor, ours and as two other packages run it.

An editor of one protocol takes facts alone, so it finds their neurons first: ``find``, then ``update_fact``, one fact
after another. The forms of an update are those of `updates`; the presets fix both.

    preset         prompts     coarse set   shared by     change of a row
    None           all         from 0.2     70%, 3        scaled by norms and signed, lambdas (1, 2)
    "paper"        all         from 0.2     70%, 3        - e(t) + 8 e(t')
    "official"     all         from 0.2     70%, 3        scaled by norms, lambdas (1, 8)
    "eleutherai"   all         from 0.3     50%           - 2 e(t) + 2 e(t')
    "easyedit"     the first   from 0.2     no refining   - 2 e(t) + 2 e(t')

Published numbers for "KN" are mostly of the last row: EasyEdit's settings have ``refine: false`` and one prompt a
fact. The presets take what defines an edit from these packages, and leave what would be another measurement.
EleutherAI/knowledge-neurons hooks the MLP before its activation function, and EasyEdit the gate of gated MLPs; its
settings for Llama take one step, at alpha = 0. Here activations are the input of ``W_out`` in every model, and the
integral is a trapezoid rule of 20 points, since theirs includes both ends. Both subtract the embedding of the token
that the model says; for a fact that it knows, that is the answer. Of an answer of several tokens EasyEdit adds up the
embeddings, and here 2 e(.) is twice their mean: for two tokens the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from kn_lens._core import defaults
from kn_lens._core.checks import check_kind
from kn_lens._core.names import EDITORS, UpdateForm
from kn_lens._core.progress import draws_progress
from kn_lens.edits.arguments import check_each_has_neurons, check_new_objects
from kn_lens.edits.editors import joined, while_applied
from kn_lens.edits.targets import check_count
from kn_lens.edits.updates import resolve_form, update_fact
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.errors import ArgumentError, EditError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import HookedModel, Host, checked_host, exclusive
from kn_lens.interventions import Progress
from kn_lens.neurons import NeuronSet, find
from kn_lens.prompts import make_prompts

KNPreset = Literal["paper", "official", "eleutherai", "easyedit"]


class _Search(NamedTuple):
    """How the neurons of a fact are found."""

    attr_threshold: float = defaults.ATTR_THRESHOLD
    share_threshold: float = defaults.SHARE_THRESHOLD
    min_prompts: int | None = None
    one_prompt: bool = False
    quadrature: str = defaults.QUADRATURE
    n_steps: int | None = None


_SEARCHES: Mapping[str, _Search] = {
    "eleutherai": _Search(0.3, 0.5, 1, quadrature="trapezoid", n_steps=20),
    "easyedit": _Search(0.2, 0.0, 1, one_prompt=True, quadrature="trapezoid", n_steps=20),
}
_TWO_EMBEDDINGS = UpdateForm((2.0, 2.0), "plain", False)


@dataclass(frozen=True, kw_only=True, eq=False)
class KN:
    """The editor of Dai et al. (2022): the rows of a fact's knowledge neurons, found by ``find`` unless given.

    It edits models of every kind. Facts that the model does not know are edited too.

    Attributes:
        preset: None for our defaults; ``"paper"`` and ``"official"`` as for ``update_fact``; ``"eleutherai"`` and
            ``"easyedit"``, how these packages find and edit.
        neurons: the neurons of at least the facts to be edited; None finds them in the model.
        lambdas: as for ``update_fact``, instead of those of the preset.
        min_prompts: the least number of prompts that share a neuron, as for ``find``, instead of that of the preset.
        name: the name in tables; empty for that of the preset.

    Raises:
        ArgumentError: an unknown preset, or another kind of argument.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> fact = kn.FactSet.world("held_out").find("Ireland", relation="P36")
        >>> editor = kn.KN(preset="easyedit")
        >>> edit = editor.edit(model, {fact: "Rome"})
        >>> editor.name, edit.why[0]["lambdas"], edit.why[0]["scaling"]
        ('KN (EasyEdit)', [2.0, 2.0], 'plain')
    """

    preset: KNPreset | None = None
    neurons: Mapping[Fact, NeuronSet] | None = None
    lambdas: tuple[float, float] | None = None
    min_prompts: int | None = None
    name: str = ""

    def __post_init__(self) -> None:
        presets = get_args(KNPreset)
        if self.preset is not None and self.preset not in presets:
            near = did_you_mean(str(self.preset), presets)
            raise ArgumentError(f"Unknown preset {self.preset!r}; expected one of {', '.join(presets)}.{near}")
        check_kind(self.name, str, "a text", "name")
        if self.min_prompts is not None:
            check_count("min_prompts", self.min_prompts)
        if not self.name:
            object.__setattr__(self, "name", EDITORS["KN" if self.preset is None else f"KN-{self.preset}"])
        self._resolved_form()  # raises for lambdas that are no numbers

    def _resolved_form(self) -> UpdateForm:
        if self.preset not in _SEARCHES:
            preset: Any = self.preset
            return resolve_form(self.lambdas, preset, defaults.SCALING, defaults.SIGNED)
        return resolve_form(self.lambdas or _TWO_EMBEDDINGS.lambdas, None, *_TWO_EMBEDDINGS[1:])

    @exclusive
    @draws_progress("Editing by knowledge neurons", "passes")
    def edit(
        self,
        model: HookedModel | Host,
        updates: Mapping[Fact, str],
        *,
        tokenizer: Any = None,
        memory_budget: float | None = None,
        progress: Progress | bool | None = None,
    ) -> WeightEdit:
        """Return one edit that gives facts new answers; see ``Editor``. The model is left as it was.

        Neurons of all facts are found in the unedited model. Each fact is edited while the edits of those before it
        are applied.

        Cost: the attribution of the facts' prompts, and that of ``update_fact`` for each.

        Raises:
            EditError: a fact without neurons; and as ``update_fact``.
            ArgumentError: no updates, or a fact without a set in ``neurons``.
            PromptError, UnsupportedModelError: as ``find`` and ``update_fact``.
        """
        host = checked_host(model)
        check_new_objects(updates)
        if not updates:
            raise ArgumentError("There are no facts to edit; expected at least one: {fact: 'Tokyo'}.")
        neurons = self.neurons
        if neurons is None:
            neurons = self._found(host, updates, tokenizer, memory_budget, progress)
        check_each_has_neurons(updates, neurons, "neurons", "neurons")
        for fact in updates:
            if not neurons[fact]:
                raise EditError(
                    f"{self.name} changes nothing for {fact.key}: no neuron is in the coarse sets of enough of its "
                    "prompts. Expected a fact with neurons; pass neurons=, or lower thresholds: kn_lens.find."
                )
        form = self._resolved_form()
        edit: WeightEdit | None = None
        for fact, new_object in updates.items():
            with while_applied(edit, host):
                part = update_fact(
                    host,
                    fact,
                    new_object,
                    neurons[fact],
                    lambdas=form.lambdas,
                    scaling=form.scaling,
                    signed=form.signed,
                    tokenizer=tokenizer,
                    allow_unknown=True,
                )
            edit = joined(edit, part)
        assert edit is not None  # there is at least one update
        return edit

    def _found(
        self,
        host: Host,
        updates: Mapping[Fact, str],
        tokenizer: Any,
        memory_budget: float | None,
        progress: Any,
    ) -> Mapping[Fact, NeuronSet]:
        """Return the neurons of each fact, found as the preset does."""
        search = _SEARCHES.get(self.preset or "", _Search())
        facts = list(updates)
        if search.one_prompt:
            for number, fact in enumerate(facts):
                first = make_prompts(host, fact, tokenizer=tokenizer, unknown_answers="leave_out").template[0]
                facts[number] = replace(fact, templates=(first,))
        findings = find(
            host,
            facts,
            tokenizer=tokenizer,
            unknown_answers="leave_out",
            attr_threshold=search.attr_threshold,
            share_threshold=search.share_threshold,
            min_prompts=search.min_prompts if self.min_prompts is None else self.min_prompts,
            quadrature=search.quadrature,
            n_steps=search.n_steps,
            memory_budget=memory_budget,
            progress=progress,
        )
        return findings.neurons_by_fact
