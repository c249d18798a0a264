"""Editors in one table: the same facts, questions and other facts for each, beside controls of the same size.

Each editor makes its edit, which is written to the weights while all answers are scored, and undone bit for bit. The
controls are edits with the same rows of change in other places:

    random        the rows of change are dealt to other neurons of the layer at random; those of a whole layer are
                  permuted, which keeps the size and the rank of the change, and what it writes
    activation    they go, the longest first, to the neurons of the layer that are most active at the edited facts: at
                  the subject's last token of a causal model, at the read position of others

What the controls do as well is no merit of where an editor writes.
"""

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.checks import check_kind, check_share, wrong_kind
from kn_lens._core.names import PositionName
from kn_lens._core.progress import draws_progress
from kn_lens.attribution import attribute
from kn_lens.edits.arguments import check_new_objects
from kn_lens.edits.editors import Editor, while_applied
from kn_lens.edits.effects import MAX_DISTURBED
from kn_lens.edits.fluency import fluency, generation_prompts
from kn_lens.edits.questions import (
    OWN,
    Question,
    QuestionPrompts,
    Questions,
    checked_groups,
    group_other_facts,
    is_version,
)
from kn_lens.edits.scored_questions import ScoredQuestions, current_answer_columns, disturbed_share
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.errors import ArgumentError, EditError, UnsupportedModelError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import Budget, HookedModel, Host, checked_host, exclusive
from kn_lens.interventions import AnswerScores, Progress, Ticks, score_answers
from kn_lens.neurons import NeuronSet, random_neurons
from kn_lens.prompts import PromptBatch, check_prompts, host_for

if TYPE_CHECKING:
    import pandas as pd

Refused = Literal["error", "unchanged"]
"""What is done where an editor refuses to edit a fact."""


@exclusive
@draws_progress("Comparing editors", "edits")
def compare_edits(
    model: HookedModel | Host,
    updates: Mapping[Fact, str],
    editors: Sequence[Editor],
    *,
    questions: Mapping[str, Questions] | None = None,
    others: PromptBatch | None = None,
    sizes: Sequence[int] = (1,),
    controls: bool = True,
    refused: Refused = "error",
    n_generated: int = 0,
    max_disturbed: float = MAX_DISTURBED,
    seed: int = 0,
    tokenizer: Any = None,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> "pd.DataFrame":
    """Measure what several editors do with the same facts, beside controls.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        updates: the facts to edit, with their templates, and the new answer of each.
        editors: ``kn.KN()``, ``kn.ROME(moments=...)`` and others, of different names.
        questions: groups of further questions that the edits should change, by name: see ``update_effects``.
        others: prompts of facts that should stay the same. Those of the edited facts themselves are left out.
        sizes: numbers of facts of one edit. The facts are edited so many at a time, in their order; a rest is left out.
        controls: whether each edit has its two controls.
        refused: what an edit counts as that an editor refuses with an ``EditError``, as ``KN`` does where it finds no
            neurons: ``"error"`` raises it; ``"unchanged"`` measures the model as it is, so that all editors are
            measured on the same facts, and ``why`` says what the editor said.
        n_generated: tokens that the edited model writes after each subject, greedily, for its ``fluency``; 0 leaves it
            unmeasured. Some 100 tell whether it repeats itself.
        max_disturbed: see ``update_effects``.
        seed: seed of the random controls.
        tokenizer: the tokenizer to use instead of the model's own.
        memory_budget: bytes of memory for passes; see ``attribute``.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with (done, total), counted in
            edits, those of the controls included.

    Returns:
        The table of ``update_effects``, for ``edit_table`` and the figures, with a row for each ``editor``, ``n_edits``
        (one of ``sizes``), ``neuron_set`` (``found``: where the editor writes; ``activation`` and ``random``: its
        controls), fact and ``question``. ``n_neurons`` counts the rows that change, ``seconds`` what making the edit
        took for each of its facts (NaN for controls), ``norm`` is the length of the change of all rows together.
        ``edit_bytes`` is the size of these rows, old and new: what the edit holds in memory, and its file on disk but
        for a header. ``why`` is empty, or why the editor refused. ``fluency``, and ``fluency_before`` without the edit,
        is the entropy of the 2-grams and 3-grams of ``n_generated`` tokens, in bits, in rows of the own wording (NaN in
        others, and where it is not measured): see `fluency`.

        Cost: that of each editor; and for each edit a forward pass for each row of the questions of its facts, with
        both answers, and of ``others``; and ``n_generated`` passes of the facts' subjects.

    Raises:
        ArgumentError: no updates or editors, two of one name, a size without that many facts; and as
            ``update_effects``.
        UnsupportedModelError: layers with experts and ``controls``; ``n_generated`` for a model that is not causal; and
            as the editors.
        EditError: as the editors, unless ``refused`` is ``"unchanged"``.
        PromptError: as the editors.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> fact = kn.FactSet.world("held_out").find("Ireland", relation="P36")
        >>> effects = kn.compare_edits(model, {fact: "Rome"}, [kn.KN(), kn.FT(n_steps=5)])
        >>> effects[["editor", "neuron_set", "new_right_after"]].values.tolist()[:3]
        [['KN', 'found', 1.0], ['KN', 'activation', 0.0], ['KN', 'random', 0.0]]
    """
    import pandas as pd

    host = checked_host(host_for(model, others))
    budget = Budget.of(host, memory_budget)
    check_new_objects(updates)
    if not updates:
        raise ArgumentError("There are no facts to edit; expected at least one: {fact: 'Tokyo'}.")
    _check_editors(editors)
    _check_sizes(sizes, len(updates))
    check_share("max_disturbed", max_disturbed)
    if refused not in get_args(Refused):
        near = did_you_mean(str(refused), get_args(Refused))
        raise ArgumentError(f"refused={refused!r}; expected 'error' or 'unchanged'.{near}")
    if controls and host.layout.has_experts:
        raise UnsupportedModelError(
            f"{host.name} has layers with experts, among whose neurons rows of change have no other place; expected "
            "controls=False."
        )
    own = {fact: Question(fact, new_object) for fact, new_object in updates.items()}
    groups: dict[str, QuestionPrompts] = {}
    for name, group in checked_groups(own, {} if questions is None else questions).items():
        groups[name] = QuestionPrompts.of(host, name, group, tokenizer)
    if others is not None:
        check_prompts(others, "others")
        others.check_for(host)
    written_after = generation_prompts(host, list(updates), n_generated, tokenizer) if n_generated else {}
    own_prompts = _at_keys(host, groups[OWN].current) if controls else groups[OWN].current
    silent = Ticks(None, 0)
    decoder = host.tokenizer if tokenizer is None else tokenizer
    scored = {name: ScoredQuestions.of(host, prompts, [], budget, silent, decoder) for name, prompts in groups.items()}
    before = None if others is None else score_answers(host, others, [], budget, silent)
    fluency_before = fluency(host, list(written_after.values()), n_generated, budget) if written_after else []
    comparison = _Comparison(
        host=host,
        updates=updates,
        scored=scored,
        others=others,
        before=before,
        budget=budget,
        max_disturbed=max_disturbed,
        n_generated=n_generated,
        written_after=written_after,
        fluency_before=dict(zip(written_after, fluency_before, strict=True)),
    )

    batches = [batch for size in sizes for batch in _batches(list(updates), size)]
    n_done, n_edits = 0, len(batches) * len(editors) * (3 if controls else 1)
    records: list[dict[str, Any]] = []
    for editor in editors:
        for batch in batches:
            start = time.perf_counter()
            of_batch = {fact: updates[fact] for fact in batch}
            edit, why = None, ""
            try:
                edit = editor.edit(host, of_batch, tokenizer=tokenizer, memory_budget=memory_budget)
            except EditError as error:
                if refused == "error":
                    raise
                why = str(error)
            seconds = (time.perf_counter() - start) / len(batch)
            trials: list[tuple[str, WeightEdit | None, float]] = [("found", edit, seconds)]
            if controls and edit is None:
                trials += [("activation", None, np.nan), ("random", None, np.nan)]
            elif controls and edit is not None:
                chosen = torch.cat([groups[OWN].current_prompts[fact] for fact in batch])
                active = active_control(host, edit, own_prompts.select(chosen), memory_budget)
                names = " ".join(fact.key for fact in batch)
                drawn = random_control(host, edit, [seed, zlib.crc32(names.encode())])
                trials += [("activation", active, np.nan), ("random", drawn, np.nan)]
            for neuron_set, trial, trial_seconds in trials:
                labels = {
                    "editor": editor.name,
                    "n_edits": len(batch),
                    "neuron_set": neuron_set,
                    "n_neurons": 0 if trial is None else len(trial.neurons),
                    "norm": 0.0 if trial is None else float(_change(trial).norm()),
                    "edit_bytes": 0 if trial is None else trial.old.nbytes + trial.new.nbytes,
                    "seconds": trial_seconds,
                    "why": why,
                }
                records += comparison.rows(trial, batch, labels)
                n_done += 1
                if callable(progress):
                    progress(n_done, n_edits)
    return pd.DataFrame(records)


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """What every edit is measured on, with the scores before.

    Attributes:
        host: the model.
        updates: all updates.
        scored: the groups of questions.
        others: see ``compare_edits``.
        before: the scores of ``others`` without an edit.
        budget: the memory for passes.
        max_disturbed: see ``compare_edits``.
        n_generated: see ``compare_edits``.
        written_after: the tokens of the subjects after which the model writes; empty where it does not.
        fluency_before: the fluency of each of these facts without an edit.
    """

    host: Host
    updates: Mapping[Fact, str]
    scored: Mapping[str, ScoredQuestions]
    others: PromptBatch | None
    before: AnswerScores | None
    budget: Budget
    max_disturbed: float
    n_generated: int
    written_after: Mapping[Fact, Sequence[int]]
    fluency_before: Mapping[Fact, float]

    def rows(self, edit: WeightEdit | None, batch: Sequence[Fact], labels: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of an edit of some facts, which is applied meanwhile; None changes nothing."""
        silent = Ticks(None, 0)
        rows: dict[Fact, list[dict[str, Any]]] = {fact: [] for fact in batch}
        with while_applied(edit, self.host):
            for name, scored in self.scored.items():
                asked = [fact for fact in batch if fact in scored.prompts.questions]
                for fact, row in zip(asked, scored.as_they_are(self.host, asked, self.budget, silent), strict=True):
                    rows[fact].append({"question": name, **row})
            if self.others is not None and self.before is not None:
                after = score_answers(self.host, self.others, [], self.budget, silent)
                for fact in batch:
                    for name, chosen in self._groups_of_others(fact, batch).items():
                        row = current_answer_columns(self.before.select(chosen), after.select(chosen))
                        rows[fact].append({"question": name, **row})
            self._add_fluency(rows)
        labelled = []
        for fact, of_fact in rows.items():
            disturbed = disturbed_share(of_fact)
            names = {
                "relation": fact.relation,
                "subject": fact.subject,
                "object": fact.object,
                "key": fact.key,
                "new_object": self.updates[fact],
            }
            whole = {"disturbed": disturbed, "disturbs": disturbed > self.max_disturbed}
            labelled += [{**names, **labels, **row, **whole} for row in of_fact]
        return labelled

    def _add_fluency(self, rows: Mapping[Fact, Sequence[dict[str, Any]]]) -> None:
        """Add the fluency of the model as it is now to the rows of each fact."""
        after: list[float] = []
        if self.written_after:
            after = fluency(self.host, [self.written_after[fact] for fact in rows], self.n_generated, self.budget)
        for number, (fact, of_fact) in enumerate(rows.items()):
            for row in of_fact:
                is_measured = bool(after) and row["question"] == OWN
                row["fluency_before"] = self.fluency_before[fact] if is_measured else np.nan
                row["fluency"] = after[number] if is_measured else np.nan

    def _groups_of_others(self, fact: Fact, batch: Sequence[Fact]) -> dict[str, Int[np.ndarray, " prompt"]]:
        """Return the prompts of each group of other facts, without those that the edit changes on purpose."""
        assert self.others is not None
        edited = {(other.relation, other.subject) for other in batch if other.subject}
        groups = {}
        for name, chosen in group_other_facts(self.others, fact, self.updates[fact]).items():
            facts = [self.others.fact(number) for number in chosen.tolist()]
            is_edited = []
            for other in facts:
                is_own = other in batch or any(is_version(other, one) for one in batch)
                is_edited.append(is_own or (other.relation, other.subject) in edited)
            kept = chosen[~np.array(is_edited, dtype=bool)]
            if len(kept):
                groups[name] = kept
        return groups


def random_control(host: Host, edit: WeightEdit, seed: int | Sequence[int]) -> WeightEdit:
    """Return the edit whose rows of change are dealt at random to neurons of the same layers, others if there are.

    Args:
        host: the model, without the edit.
        edit: the edit to control.
        seed: the same seed and edit give the same control.
    """
    targets = random_neurons(edit.neurons, host, seed)
    generator = np.random.default_rng(seed)
    order: list[int] = []
    for numbers in _numbers_by_layer(edit.neurons):
        order += generator.permutation(numbers).tolist()
    return _moved(host, edit, targets, order, "random")


def active_control(
    host: Host,
    edit: WeightEdit,
    prompts: PromptBatch,
    memory_budget: float | None = None,
) -> WeightEdit:
    """Return the edit whose rows of change go, the longest first, to the most active neurons of the same layers.

    Args:
        host: the model, without the edit.
        edit: the edit to control.
        prompts: of the edited facts, put where activations are taken; their absolute values are averaged over prompts.
        memory_budget: bytes of memory for passes.
    """
    layers = sorted({neuron.layer for neuron in edit.neurons})
    scores = attribute(host, prompts, method="activation", layers=layers, memory_budget=memory_budget).scores
    activity = scores.abs().mean(0).cpu()
    length = _change(edit).norm(dim=-1)
    targets: list[tuple[int, int]] = []
    order: list[int] = []
    for layer, numbers in zip(layers, _numbers_by_layer(edit.neurons), strict=True):
        most_active = activity[layer].argsort(descending=True, stable=True)[: len(numbers)]
        longest_first = torch.tensor(numbers)[length[numbers].argsort(descending=True, stable=True)]
        by_index = most_active.argsort()
        targets += [(layer, index) for index in most_active[by_index].tolist()]
        order += longest_first[by_index].tolist()
    return _moved(host, edit, NeuronSet(targets), order, "activation")


def _at_keys(host: Host, prompts: PromptBatch) -> PromptBatch:
    """Return prompts put where facts are looked up: at the subject's last token of a causal model, else where they are.

    Raises:
        ArgumentError: a prompt of a causal model does not name its subject.
    """
    position: PositionName = "subject_last" if host.kind == "causal" else "read"
    return prompts.at(position)


def _moved(host: Host, edit: WeightEdit, targets: NeuronSet, order: Sequence[int], control: str) -> WeightEdit:
    """Return the edit of other neurons with the rows of change of an edit, in another order."""
    unchanged = WeightEdit.of(host, targets, torch.zeros(len(targets), host.d_model))
    new = unchanged.old.double() + _change(edit)[list(order)]
    return WeightEdit.of(host, targets, new, [*edit.why, {"kind": "control", "control": control}])


def _change(edit: WeightEdit) -> Float[Tensor, "neuron d_model"]:
    return edit.new.double() - edit.old.double()


def _numbers_by_layer(neurons: NeuronSet) -> list[list[int]]:
    """Return the numbers, within a set, of the neurons of each of its layers."""
    by_layer: dict[int, list[int]] = {}
    for number, neuron in enumerate(neurons):
        by_layer.setdefault(neuron.layer, []).append(number)
    return list(by_layer.values())


def _batches(facts: Sequence[Fact], size: int) -> Iterator[Sequence[Fact]]:
    """Yield so many facts at a time; a rest is left out."""
    for start in range(0, len(facts) - size + 1, size):
        yield facts[start : start + size]


def _check_editors(editors: Any) -> None:
    check_kind(editors, Sequence, "editors: [kn_lens.KN(), kn_lens.FT()]", "editors")
    if not editors:
        raise ArgumentError("There are no editors to compare; expected some, such as [kn_lens.KN(), kn_lens.FT()].")
    names: list[str] = []
    for editor in editors:
        if isinstance(editor, type):  # it has the attributes of an editor
            raise wrong_kind(editor, "an editor, which a call makes: kn_lens.KN()", "one of the editors")
        check_kind(editor, Editor, "editors alone: [kn_lens.KN(), kn_lens.FT()]", "one of the editors")
        names.append(editor.name)
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(
                f"Two editors have the name {name!r}; expected different ones: kn_lens.FT(name='FT, 50 steps')."
            )


def _check_sizes(sizes: Any, n_facts: int) -> None:
    check_kind(sizes, Sequence, "numbers of facts: [1, 10]", "sizes")
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= n_facts:
            raise ArgumentError(f"sizes has {size!r}; expected numbers from 1 to {n_facts}, the number of facts.")
    if not sizes or len(set(sizes)) < len(sizes):
        raise ArgumentError(f"sizes={list(sizes)}; expected at least one, each once.")
