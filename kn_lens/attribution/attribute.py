r"""Knowledge attribution: how much of the answer's probability each neuron of a layer carries.

Let ``w`` be the activation (``hook_post``) of one layer at the read position and ``P(v)`` the output when that
activation is replaced by ``v`` and everything above is recomputed. Integrated gradients (Sundararajan et al. 2017)
from ``0`` to ``w``, as Dai et al. (2022), equation 2, apply them to neurons (``starts`` has paths from elsewhere):

    Attr_i = w_i * integral_0^1 dP(alpha * w) / dw_i  d alpha                      (joint path: the whole layer moves)
    sum_i Attr_i = P(w) - P(0)                                                     (completeness)

The paper's formula can also be read as moving neuron ``i`` alone (``method="single_path"``); then ``Attr_i`` is
exactly ``P(w) - P(w with w_i = 0)``. A positive score means that the neuron's activation speaks for the answer.
Scores have the output's unit. ``Attribution.completeness_gap``, what the quadrature misses of the completeness sum, is
the error bar of every (prompt, layer).

In a model whose layers have experts, ``w`` is the activation of the experts that the token is routed to. The routers
above keep their clean choice while ``w`` moves: scores sum to the *held part* of ``P(w) - P(0)``. What routing that
responds adds is the *routing term*, ``Attribution.routing_term``, a score of no neuron. Neurons of other experts are
off, and only the scores of those that are on are stored, as a sparse tensor.

Positions other than the read position are attributed in the same way, with the answer read where it is: see
``positions``.

An answer of several tokens is read in several rows (see ``PromptBatch``). Its rows move together, and a neuron's score
is the sum over them, so that completeness holds for the probability of the whole answer.

Prompts go through the model in chunks that fit into memory with their clean state. Each layer has a ``LayerContext``
under a chunk, and the ``AttributionMethod`` makes scores of passes that start there.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Unpack, get_args, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.progress import reported
from kn_lens.attribution.integration import absolute_tolerance
from kn_lens.attribution.layer_context import budget_for, layer_contexts
from kn_lens.attribution.method import AttributionMethod, LayerScores, PathMethod
from kn_lens.attribution.options import (
    AttributionKeywords,
    AttributionOptions,
    Method,
    Neurons,
    Preset,
    Progress,
)
from kn_lens.attribution.outputs import Output
from kn_lens.attribution.parts import PartsJoin, Together, whole_parts
from kn_lens.attribution.positions import (
    PositionAttribution,
    PositionPairs,
    Positions,
    expanded_starts,
    position_attribution,
)
from kn_lens.attribution.result import Attribution
from kn_lens.attribution.routing import routing_term_of
from kn_lens.attribution.score_table import scores_of
from kn_lens.attribution.starts import PathStart, Start, StartPasses
from kn_lens.errors import ArgumentError
from kn_lens.hosts import Budget, HookedModel, Host, exclusively
from kn_lens.prompts import PromptBatch, check_prompts, host_for


@overload
def attribute(
    model: HookedModel | Host,
    prompts: PromptBatch,
    *,
    positions: Literal["read"] | None = None,
    **keywords: Unpack[AttributionKeywords],
) -> Attribution: ...


@overload
def attribute(
    model: HookedModel | Host,
    prompts: PromptBatch,
    *,
    positions: Literal["subject_last", "subject", "all"] | Int[Tensor, "batch position"],
    **keywords: Unpack[AttributionKeywords],
) -> PositionAttribution: ...


def attribute(
    model: HookedModel | Host,
    prompts: PromptBatch,
    *,
    positions: Positions | None = None,
    method: Method = AttributionOptions.method,
    output: str | Output = AttributionOptions.output,
    preset: Preset | None = AttributionOptions.preset,
    quadrature: str = AttributionOptions.quadrature,
    n_steps: int | None = AttributionOptions.n_steps,
    tolerance: float = AttributionOptions.tolerance,
    max_points: int = AttributionOptions.max_points,
    start: Start | Sequence[Start] | None = AttributionOptions.start,
    layers: Sequence[int] | None = AttributionOptions.layers,
    neurons: Neurons | None = AttributionOptions.neurons,
    keep: float | None = AttributionOptions.keep,
    memory_budget: float | None = AttributionOptions.memory_budget,
    progress: Progress | bool | None = AttributionOptions.progress,
) -> Attribution | PositionAttribution:
    """Attribute each prompt's answer to the neurons of each layer, at the read position or at others.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        prompts: the prompts, from ``make_prompts`` or ``PromptBatch.from_tokens``.
        positions: whose activations move, one position at a time; the answer is read where it always is. None: where
            the prompts are put, the read position unless ``prompts.at`` says otherwise. ``read``: the read position.
            With ``subject_last`` (the subject's last token), ``subject`` (all its tokens), ``all`` (all tokens, in a
            causal model those up to the read position), or a tensor of positions [batch, position] with -1 where a
            prompt has fewer, the result has an axis for positions. In the last layer no other position than the read
            position has an effect: its scores are exactly 0. ``log_prob_gain`` has no other position.
        method: ``integrated_gradients`` (joint path); ``single_path`` (one chosen neuron moves at a time);
            ``gradient_x_activation`` (``w_i dP(w)/dw_i``); ``ablation`` (``P(w) - P(w with w_i = 0)``, the truth that
            the others approximate); ``activation`` (``w_i``, averaged over the answer's rows: the paper's baseline);
            ``log_prob_gain`` (Yu & Ananiadou 2024: what ``w_i W_out[i]`` alone adds to the log-probability of the
            answer read off the residual stream after this layer, over the layer's ``b_out`` alone; nats).
        output: ``prob``, ``log_prob``, ``logit``, ``logit_diff``, or an ``Output``. ``activation`` and
            ``log_prob_gain`` have units of their own and ignore it.
        preset: ``paper`` (right sum, 20 points) or ``official`` (left sum, 20 points), instead of ``quadrature``.
        quadrature: ``adaptive``, or a fixed rule of ``kn_lens.attribution.quadrature``. ``adaptive`` starts with
            3 points and adds more to just those (prompt, layer) pairs whose completeness gap is above the tolerance,
            at those parts of the path where the gap arises.
        n_steps: number of points of a fixed rule (default 20).
        tolerance: for the gap, relative to the size of the clean output (taken as at least 0.01). Taken as at least
            twice the rounding of the weights' type, 1.6e-2 in bfloat16: below it the gap is rounding.
        max_points: where ``adaptive`` gives up; ``Attribution.unconverged`` lists the pairs that got there.
        start: where the path to ``w`` starts, ``w0``: ``Attr_i`` is ``w_i - w0_i`` times the integral of ``dP/dw_i``,
            and the scores sum to ``P(w) - P(w0)``. ``zero``; ``mean``, the mean activation under the other subjects of
            the fact's relation among the prompts; ``kn.MeanStart(prompts)``, the same over prompts of your own; or
            counterfactual prompts, one for each prompt, in their order. The scores from several starts, given as a
            list, are averaged. None: ``zero``, but for ``integrated_gradients`` in a model with a norm after ``W_out``
            ``mean``, provided that every relation has two subjects and no ``preset`` is given; ``Attribution.start``
            says which.
        layers: the layers to attribute; the others' scores are NaN. None takes all.
        neurons: the chosen ones, such as ``["L9N1234"]``: required by ``single_path``, optional for ``ablation`` and
            ``log_prob_gain``, whose cost grows with their number. For these two also those of each fact,
            ``{fact: NeuronSet}``, which are scored under the fact's prompts; the scores of others are NaN.
        keep: keep only the scores of at least this share of the prompt's largest (the released code: 0.1), sparse;
            see ``Attribution.thresholded``. With positions, of the largest at each of them. None keeps all.
        memory_budget: bytes that passes may take, on the model's device; default: half of what is free. It sets how
            many rows go through the model at a time, and the results do not depend on it. Where it was too much and
            memory runs out, passes are halved and run again, down to single prompts. The result comes on top.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with (done, total), counted in
            (prompt, layer) pairs.

    Returns:
        An ``Attribution``, or with positions a ``PositionAttribution``. Cost: one forward pass per row; for each
        (prompt, layer) ``n_points`` forward and backward passes from that layer up, of which the point alpha = 1 is one
        pass that all layers share; for ``ablation`` and ``log_prob_gain`` one forward pass per neuron. The routing term
        of a model with experts takes one more forward pass for each (prompt, layer). With positions as much for each of
        them; passes of a causal model then run the tokens from the moved position to the read position. Each start
        takes all points anew; ``mean`` two more forward passes per row.

    Raises:
        ArgumentError: an argument out of range, or two that exclude each other.
        UnsupportedModelError: the model cannot be hosted, is in train mode, or has NaN weights or answers.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, [kn.FactSet.world().find("Ireland", relation="P36")])
        >>> attr = kn.attribute(model, prompts)
        >>> bool(attr.converged.all())
        True
    """
    options = AttributionOptions(
        method=method,
        output=output,
        preset=preset,
        quadrature=quadrature,
        n_steps=n_steps,
        tolerance=tolerance,
        max_points=max_points,
        start=start,
        layers=layers,
        neurons=neurons,
        keep=keep,
        memory_budget=memory_budget,
        progress=progress,
    )
    host_for(model, prompts)  # a model that cannot be hosted is what a caller hears of first
    check_prompts(prompts)
    if positions is not None and not (isinstance(positions, str) and positions == "read"):
        return _attribute_positions(model, prompts, positions, options)
    if positions is not None:
        prompts = prompts.at("read")
    with exclusively(model):
        joined = PartsJoin(prompts)
        computation = _Computation.of(model, prompts, options)
        with computation.reporting() as computation.report:
            for numbers, part in computation.chunks(prompts):
                joined.add(numbers, part)
                del part  # while the next one is computed
        return joined.result()


def _attribute_positions(
    model: HookedModel | Host,
    prompts: PromptBatch,
    positions: Positions,
    options: AttributionOptions,
) -> PositionAttribution:
    """Attribute at several positions; see ``attribute``."""
    with exclusively(model):
        pairs = PositionPairs.of(prompts, positions, host_for(model, prompts).kind)
        options = replace(options, start=expanded_starts(options.start, pairs))
        computation = _Computation.of(model, pairs.expanded, options)
        joined = PartsJoin(pairs.expanded)
        with computation.reporting() as computation.report:
            for numbers, batch in pairs.batches():
                computation.budget = budget_for(computation.host, batch, options.memory_budget)
                for chosen, part in computation.chunks(batch, numbers):
                    joined.add(numbers[chosen], part)
                    del part  # while the next one is computed
        return position_attribution(pairs, joined.result())


def attribute_in_parts(
    model: HookedModel | Host,
    prompts: PromptBatch,
    *,
    together: Together | None = None,
    **keywords: Unpack[AttributionKeywords],
) -> Iterator[tuple[Int[Tensor, " part"], Attribution]]:
    """Attribute as ``attribute`` does, and yield finished prompts as they come: memory does not grow with their number.

    Args:
        model: as for ``attribute``.
        prompts: as for ``attribute``.
        together: ``fact``: every part holds all prompts of its facts, as refining needs them, in the order of the
            prompts, and as many facts as have about ``SCORES_PER_PART`` scores; ``relation``: whole relations likewise.
            None: prompts come as they are finished, long ones first.
        **keywords: the other arguments of ``attribute``.

    Returns:
        An iterator over the numbers of some prompts and their ``Attribution``. Arguments are checked now, the model
        runs when the next part is requested.

    Raises:
        ArgumentError: as ``attribute``, or ``together`` is neither of the two.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, [kn.FactSet.world().find("Ireland", relation="P36")])
        >>> sum(len(numbers) for numbers, part in attribute_in_parts(model, prompts, keep=0.1)) == len(prompts)
        True
    """
    if "positions" in keywords:
        raise ArgumentError(
            f"Got positions={keywords['positions']!r}; parts are of one position: prompts.at('subject_last'). "
            "Several go to a file as they come: kn_lens.attribute_to_file(model, path, prompts, positions=...)."
        )
    options = AttributionOptions(**keywords)
    if together is not None and together not in get_args(Together):
        raise ArgumentError(f"together={together!r}; expected 'fact', 'relation' or None.")
    computation = _Computation.of(model, prompts, options)
    if together is None:
        return computation.reported(computation.chunks(prompts))
    return computation.reported(computation.whole_parts(prompts, together))


@dataclass(kw_only=True)
class _Computation:
    """An attribution on its way.

    Attributes:
        host: the model.
        options: as given.
        method: with its settings for the model.
        output: what is explained.
        layers: the layers to attribute.
        neurons: the chosen indices of each layer; None for all neurons.
        starts: where paths start.
        budget: bounds the rows that go through the model at a time.
        n_pairs: number of (prompt, layer) pairs.
        n_done: how many of them are finished.
        report: called with (done, total) while results are made, in the context of ``reporting``.
    """

    host: Host
    options: AttributionOptions
    method: AttributionMethod
    output: Output
    layers: list[int]
    neurons: dict[int, Int[Tensor, " chosen"]] | None
    starts: tuple[PathStart, ...]
    budget: Budget
    n_pairs: int
    n_done: int = 0
    report: Progress | None = None

    @classmethod
    def of(
        cls,
        model: HookedModel | Host,
        prompts: PromptBatch,
        options: AttributionOptions,
    ) -> "_Computation":
        """Check all that can be checked without running the model; see ``attribute`` for errors."""
        host = host_for(model, prompts)
        check_prompts(prompts)
        layers = options.layers_of(host)
        neurons = options.neurons_of(host)
        chosen = options.chosen_neurons(host)
        if chosen is not None:
            chosen.check_prompts(prompts)
        output = options.output_for(prompts)
        options.check_positions(prompts)
        prompts.check_for(host)
        starts = options.starts_for(host, prompts)
        budget = budget_for(host, prompts, options.memory_budget)
        host.check_finite()
        return cls(
            host=host,
            options=options,
            method=options.method_for(host),
            output=output,
            layers=layers,
            neurons=neurons,
            starts=starts,
            budget=budget,
            n_pairs=len(prompts) * len(layers),
        )

    def chunks(
        self, prompts: PromptBatch, of_all: Int[Tensor, " batch"] | None = None
    ) -> Iterator[tuple[Int[Tensor, " chunk"], Attribution]]:
        """Return an iterator over the numbers of some prompts that fit into memory together, and their attribution.

        Args:
            prompts: the prompts.
            of_all: their numbers among all attributed prompts; None where they are all of them.
        """
        attribute_chunk = partial(self.attribute_chunk, prompts, of_all)
        n_layers = len(self.layers) if isinstance(self.method, PathMethod) else 1
        rows_per_chunk = partial(self.budget.rows_per_chunk, n_layers=n_layers)
        return self.budget.map_chunks(
            prompts.rows_per_prompt,
            prompts.n_positions,
            rows_per_chunk,
            attribute_chunk,
            text_length=prompts.text_length,
        )

    def reporting(self) -> AbstractContextManager[Progress | None]:
        """Return the context in which what is done is reported as ``progress`` says."""
        return reported(self.options.progress, "Attributing", "prompt-layers")

    def reported(
        self,
        parts: Iterator[tuple[Int[Tensor, " part"], Attribution]],
    ) -> Iterator[tuple[Int[Tensor, " part"], Attribution]]:
        """Yield parts, and report meanwhile as ``progress`` says."""
        with self.reporting() as self.report:
            yield from parts

    def whole_parts(
        self,
        prompts: PromptBatch,
        together: Together,
    ) -> Iterator[tuple[Int[Tensor, " part"], Attribution]]:
        """Yield the numbers of the prompts of whole facts or relations, and their attribution."""
        for numbers in whole_parts(prompts, together, self.host.n_layers * self.host.d_active):
            part = prompts.select(numbers)
            joined = PartsJoin(part)
            for positions, chunk in self.chunks(part, numbers):
                joined.add(positions, chunk)
                del chunk  # while the next one is computed
            yield numbers, joined.result()

    def attribute_chunk(
        self,
        prompts: PromptBatch,
        of_all: Int[Tensor, " batch"] | None,
        numbers: Int[Tensor, " chunk"],
    ) -> Attribution:
        """Return the attribution of some prompts that fit into memory together.

        Changes ``n_done`` when all is done, so that it can be run again where memory runs out.

        Args:
            prompts: the prompts.
            of_all: see ``chunks``.
            numbers: of the prompts that fit into memory together.
        """
        host, options = self.host, self.options
        chunk = prompts.select(numbers)
        longest = int(chunk.n_positions.max())
        rows_per_pass = self.budget.rows_per_pass(longest)
        share_of_pass = partial(self.budget.share_of_pass, length=longest)
        dtype = torch.promote_types(host.dtype, torch.float32)
        shape = (len(chunk), host.n_layers)
        n_pairs = len(chunk) * len(self.layers)

        def report(n_starts_done: int, share: float) -> None:
            if self.report is not None:
                share = (n_starts_done + share) / len(self.starts)
                self.report(self.n_done + int(share * n_pairs), self.n_pairs)

        with exclusively(host):
            total = torch.full(shape, torch.nan, device=host.device, dtype=dtype)
            expected = torch.full_like(total, torch.nan)
            scores = scores_of(host, len(chunk), dtype, len(self.starts))
            routing_term = torch.full_like(total, torch.nan) if host.layout.has_experts else None
            n_points = torch.zeros(shape, device=host.device, dtype=torch.long)
            run = StartPasses(
                activations=self.activations,
                contexts=lambda others: layer_contexts(host, others, self.output, self.layers, rows_per_pass),
            )
            numbers_of_all = numbers if of_all is None else of_all[numbers]
            starts = [start.rows(chunk, numbers_of_all, run) for start in self.starts]
            contexts = layer_contexts(host, chunk, self.output, self.layers, rows_per_pass, share_of_pass)
            start_gaps = total.new_full((*shape, len(starts)), torch.nan)
            for number, start in enumerate(starts):
                begun = [replace(context, start=start(context)) for context in contexts]
                report_start = partial(report, number)
                for context, result in self.method.score_layers(begun, self.neurons, report_start):
                    layer = context.layer
                    scores.add_layer(layer, result.scores.to(dtype))
                    layer_total = self._sum_of_scores(chunk, layer, result).to(dtype)
                    layer_expected = result.expected.to(dtype)
                    start_gaps[:, layer, number] = layer_total - layer_expected
                    _add_to_mean(total[:, layer], layer_total, number, len(starts))
                    _add_to_mean(expected[:, layer], layer_expected, number, len(starts))
                    n_points[:, layer] += torch.as_tensor(result.n_points, device=host.device)
                    if routing_term is not None and self.method.silences_layer:
                        term = routing_term_of(context, result.expected).to(dtype)
                        _add_to_mean(routing_term[:, layer], term, number, len(starts))
            clean = contexts[0].clean.to(dtype)
        attr = Attribution(
            scores=scores.result(),
            total=total,
            clean=clean,
            expected=expected,
            n_points=n_points,
            tolerance=absolute_tolerance(options.tolerance_of(host), clean),
            prompts=chunk,
            method=options.method,
            output=self.method.unit or self.output.name,
            quadrature=self.method.quadrature,
            layout=host.layout,
            start=", ".join(start.name for start in self.starts) if self.method.takes_start else "none",
            routing_term=routing_term,
            start_gaps=start_gaps if len(starts) > 1 else None,
        )
        if options.keep is not None:
            attr = attr.thresholded(options.keep)
        self.n_done += n_pairs
        report(0, 0)
        return attr

    def activations(
        self, prompts: PromptBatch
    ) -> Iterator[tuple[Int[Tensor, " part"], Float[Tensor, "part n_layers n_neurons"]]]:
        """Yield numbers of prompts with their activations, for starts that are made of them."""
        parts = attribute_in_parts(
            self.host, prompts, method="activation", layers=self.layers, memory_budget=self.options.memory_budget
        )
        for numbers, part in parts:
            yield numbers, part.scores.to_dense() if part.scores.is_sparse else part.scores

    def _sum_of_scores(self, chunk: PromptBatch, layer: int, result: LayerScores) -> Float[Tensor, " batch"]:
        """Return the sum of the scores of the chosen neurons of a layer, under each prompt."""
        indices = None if self.neurons is None else self.neurons[layer]
        if result.scores.is_sparse:
            return result.scores.sum(-1).to_dense()
        if indices is None:
            return result.scores.sum(-1)
        if not len(indices):
            return torch.full_like(result.scores[:, 0], torch.nan)
        scores = result.scores[:, indices]
        chosen = self.options.chosen_neurons(self.host)
        if chosen is not None:
            scores = scores.where(chosen.of_prompts(chunk, layer, indices), 0)
        return scores.sum(-1)


def _add_to_mean(mean: Float[Tensor, " batch"], values: Float[Tensor, " batch"], number: int, n_values: int) -> None:
    """Add the values with this number to a mean of so many, in place."""
    if number == 0:
        mean.copy_(values / n_values)
    else:
        mean += values / n_values
