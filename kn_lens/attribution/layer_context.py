"""One layer under some prompts: the output, and its gradient, with the layer's activation replaced.

Every score is made of answers to one question: *with the layer's activation at one position replaced by v, what is the
output, and what is its gradient?* The position is the read position, or where ``prompts.at`` has put the prompts.
Weights never get a gradient.

Where ``W_out`` writes ``v @ W_out + b_out``, the gradient with respect to v is ``W_out`` times the one with respect to
what is written, which has d_model numbers. A sum of such gradients then takes one product with ``W_out``. This is
checked on the clean pass, in every row of every layer. Where it does not hold (an adapter adds to it, say), and
where hooks of the user's are on the model, gradients are taken at v itself, through everything that happens to it. The
passes are the same in both cases: v goes into the model, never what it should lead to. Outputs, and the completeness
gap with them, do not share the assumption.

In a layer with experts the activation is that of the experts that a row is routed to, in the active form, and the
layers above keep their routing: see ``hosts.experts``. What neurons its entries are is a property of the row.

A row is one prompt (or one answer token of it) at one point of the path. A pass holds at most ``rows_per_pass`` rows, a
number that follows from a memory budget, so that memory does not depend on the number of prompts or points.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from kn_lens.attribution.layer_neurons import LayerNeurons, NeuronsOfExperts, NeuronsOfMLP
from kn_lens.attribution.outputs import Output
from kn_lens.errors import UnsupportedModelError
from kn_lens.hosts import (
    Budget,
    CleanState,
    Host,
    MLPActivation,
    Replacement,
    recomputes_last_token_only,
    run_clean,
)
from kn_lens.prompts import PromptBatch

Pass = tuple[Int[Tensor, " pass_row"], Int[Tensor, " pass_row"], Float[Tensor, "pass_row d_mlp"]]
"""The rows of a pass, the position among its prompts that each row belongs to, and the activation of each row."""


@dataclass(frozen=True, kw_only=True)
class LayerContext:
    """One layer under some prompts, with the clean state that passes start from.

    Attributes:
        layer: zero-based.
        prompts: the prompts.
        clean: output of the unaltered model.
        post: clean activation at the moved position (``prompts.post_pos``), ``w``, before any hook on ``hook_post``.
        neurons: which neurons the entries of ``post`` are, and what they write.
        gradient_activation: what gradients are taken with respect to: what ``W_out`` writes (``mlp_out``), or ``v``
            itself (``post``).
        output: what is read from the logits.
        state: the clean pass, shared by the contexts of all layers.
        clean_gradients: gradients at the clean activations, shared likewise.
        rows_per_pass: upper bound on the rows of a pass. An answer of more tokens than this still goes in whole.
        share_of_pass: what a row at this layer counts as, towards that bound.
        has_experts_above: whether a layer above has experts, whose routing is held.
        start: where paths to ``post`` start; None for zero.
    """

    layer: int
    prompts: PromptBatch
    clean: Float[Tensor, " batch"]
    post: Float[Tensor, "row d_mlp"]
    neurons: LayerNeurons
    gradient_activation: MLPActivation
    output: Output
    state: CleanState
    clean_gradients: "CleanGradients"
    rows_per_pass: int
    share_of_pass: float = 1.0
    has_experts_above: bool = False
    start: Float[Tensor, "row d_mlp"] | None = None

    @property
    def moving(self) -> Float[Tensor, "row d_mlp"]:
        """The part of the activation that the path of the whole layer moves, ``w - w0``."""
        return self.post if self.start is None else self.post - self.start

    @property
    def post_at_start(self) -> Float[Tensor, "row d_mlp"]:
        """The activation where paths start, ``w0``."""
        return torch.zeros_like(self.post) if self.start is None else self.start

    @property
    def d_model(self) -> int:
        """Width of what the layer's MLP writes."""
        return self.state.mlp_out[self.layer].shape[1]

    @property
    def all_prompts(self) -> Int[Tensor, " batch"]:
        """The numbers of all prompts."""
        return torch.arange(len(self.clean), device=self.clean.device)

    def sum_rows(self, values: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "batch d_mlp"]:
        """Sum over the rows of each prompt's answer."""
        sums = values.new_zeros(len(self.clean), values.shape[-1])
        return sums.index_add(0, self.prompts.prompt_index, values)

    def written(self, moving: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_gradient"]:
        """Return what a part of the activation adds to ``gradient_activation``.

        It has the property ``written(x) . g = x . gradient_at_post(g)``.
        """
        if self.gradient_activation == "mlp_out":
            return self.neurons.written(moving)
        return moving

    def gradient_at_post(self, gradient: Float[Tensor, "row d_gradient"]) -> Float[Tensor, "row d_mlp"]:
        """Return the gradient with respect to the activation, from that to ``gradient_activation``."""
        if self.gradient_activation == "mlp_out":
            return self.neurons.gradient_at_post(gradient)
        return gradient

    def neuron_scores(self, values: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "batch n_neurons"]:
        """Return the sum, over the rows of each prompt's answer, of values of the entries of ``post``, by neuron.

        A sparse tensor in a layer with experts: the other neurons are off, so that theirs are 0.
        """
        return self.neurons.by_prompt(values, self.prompts.prompt_index, len(self.clean))

    def outputs(
        self,
        batch: Int[Tensor, " pair"],
        post: Float[Tensor, "row d_mlp"],
        *,
        early_exit: bool = False,
        holds_routing: bool = True,
    ) -> Float[Tensor, " pair"]:
        """Return the output of each prompt with the layer's activation at the moved position replaced.

        Args:
            batch: numbers of prompts, repeats allowed.
            post: the activation instead, for each of ``prompts.rows_of(batch)``.
            early_exit: read the output off the residual stream that leaves this layer, with the layers above left out.
            holds_routing: see ``CleanState.logits_with_post``.

        Cost: a forward pass per row, from this layer up.
        """
        values = []
        with torch.no_grad():
            for rows, owner, pass_post in self._passes(batch, post):
                replacement = Replacement(layer=self.layer, rows=rows, post=pass_post)
                logits = self.state.logits_with_post([replacement], early_exit=early_exit, holds_routing=holds_routing)
                values.append(read_output(self.output, self.prompts, rows, owner, int(owner[-1]) + 1, logits))
                del logits  # else those of two passes are held
            return torch.cat(values)

    def _passes(
        self,
        batch: Int[Tensor, " pair"],
        post: Float[Tensor, "row d_mlp"],
    ) -> Iterator[Pass]:
        """Yield the passes that together hold all rows of ``batch``."""
        n_rows = self.prompts.rows_per_prompt[batch]
        end = n_rows.cumsum(0)
        for positions in chunk_by_rows(n_rows, self.rows_per_pass):
            first, last = int(positions[0]), int(positions[-1])
            rows, owner = self.prompts.rows_and_owners(batch[positions])
            start = int(end[first] - n_rows[first])
            yield rows, owner, post[start : int(end[last])]


@dataclass(frozen=True, kw_only=True)
class AnswerRows:
    """The rows of each prompt's answer, one for each of its tokens, and their form with an axis for them.

    Attributes:
        prompts: the prompts.
        most: rows of the longest answer.
    """

    prompts: PromptBatch
    most: int

    @classmethod
    def of(cls, prompts: PromptBatch) -> "AnswerRows":
        """Count the rows of each answer."""
        return cls(prompts=prompts, most=int(prompts.rows_per_prompt.max()))

    def padded(
        self,
        values: Float[Tensor, "row d"],
        chosen: Int[Tensor, " chosen"] | None = None,
    ) -> Float[Tensor, "chosen answer_row d"]:
        """Return the values of the rows of chosen prompts by prompt, with zeros after shorter answers.

        Args:
            values: one for each of ``prompts.rows_of(chosen)``.
            chosen: numbers of prompts, repeats allowed; None for each of them once.
        """
        if self.most == 1:
            return values[:, None]
        if chosen is None:
            chosen = torch.arange(len(self.prompts), device=values.device)
        _, owner = self.prompts.rows_and_owners(chosen)
        padded = values.new_zeros(len(chosen), self.most, values.shape[-1])
        padded[owner, _place_in_run(owner)] = values
        return padded

    def rows(self, padded: Float[Tensor, "batch answer_row d"]) -> Float[Tensor, "row d"]:
        """Return the values of all rows."""
        owner = self.prompts.prompt_index
        return padded[owner, _place_in_run(owner)]


def _place_in_run(owner: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Return how many rows before each one have the same owner; rows of one owner follow each other."""
    n_rows = torch.bincount(owner)
    first_row = n_rows.cumsum(0) - n_rows
    return torch.arange(len(owner), device=owner.device) - first_row[owner]


@dataclass(frozen=True, kw_only=True, eq=False)
class CleanGradients:
    """Gradients of each prompt's output at the clean activations: one backward pass gives those of all layers.

    Attributes:
        prompts: the prompts.
        output: what is read from the logits.
        gradient_activations: ``LayerContext.gradient_activation`` of each layer.
        state: the clean pass.
        rows_per_pass: upper bound on the rows of a pass.
    """

    prompts: PromptBatch
    output: Output
    gradient_activations: Mapping[int, MLPActivation]
    state: CleanState
    rows_per_pass: int
    _by_layer: dict[int, Float[Tensor, "row d_gradient"]] = field(
        default_factory=dict,
        init=False,
        repr=False,
    )

    def of_layer(self, layer: int) -> Float[Tensor, "row d_gradient"]:
        """Return the gradients at ``w`` of every prompt.

        Cost: at the first call a forward and a backward pass per row, from the lowest layer up; none later.
        """
        if self._by_layer:
            return self._by_layer[layer]
        parts: dict[int, list[Tensor]] = defaultdict(list)
        for chunk in chunk_by_rows(self.prompts.rows_per_prompt, self.rows_per_pass):
            rows, owner = self.prompts.rows_and_owners(chunk)
            added: dict[int, tuple[MLPActivation, Tensor]] = {}
            with torch.enable_grad():
                for added_layer, activation in self.gradient_activations.items():
                    clean = self.state.post if activation == "post" else self.state.mlp_out
                    zeros = torch.zeros_like(clean[added_layer][rows])
                    added[added_layer] = (activation, zeros.requires_grad_())
                logits = self.state.logits_with_additions(rows, added)
                value = read_output(self.output, self.prompts, rows, owner, len(chunk), logits)
                del logits
                gradients = gradients_of(value, [point for _, point in added.values()])
            for added_layer, gradient in zip(added, gradients, strict=True):
                parts[added_layer].append(gradient)
        for added_layer, gradients in parts.items():
            self._by_layer[added_layer] = torch.cat(gradients)
        return self._by_layer[layer]


def gradients_of(
    values: Float[Tensor, " pair"],
    points: Sequence[Float[Tensor, "_ _"]],
) -> list[Tensor]:
    """Return the gradient of each value with respect to its rows of each point.

    Prompts do not see each other, so that the gradient of the sum holds that of each value. It is zero where a value
    does not depend on a point: a hook of the user's may replace the activation in between, for example.
    """
    if not values.requires_grad:
        return [torch.zeros_like(point) for point in points]
    gradients = torch.autograd.grad(
        values.sum(),
        points,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(gradients)


def budget_for(host: Host, prompts: PromptBatch, memory: float | None) -> Budget:
    """Return the memory budget of passes over these prompts.

    Args:
        host: the model.
        prompts: the prompts; what a pass takes depends on where they are read and moved.
        memory: bytes; None takes a share of the free memory.

    Raises:
        ArgumentError: ``memory`` is not a positive number of bytes.
    """
    last_token_only = recomputes_last_token_only(host, prompts.attention_mask, prompts.read_pos, prompts.post_pos)
    return Budget.of(host, memory, last_token_only=last_token_only, gradient=True)


def layer_contexts(
    host: Host,
    prompts: PromptBatch,
    output: Output,
    layers: Sequence[int],
    rows_per_pass: int,
    share_of_pass: Callable[[int], float] = lambda layer: 1.0,
) -> list[LayerContext]:
    """Run the unaltered model once on some prompts, and return the context of each layer.

    Args:
        host: the model.
        prompts: prompts that fit into memory together, with their clean state.
        output: what is read from the logits.
        layers: the layers, each once.
        rows_per_pass: upper bound on the rows of later passes.
        share_of_pass: what a row whose pass starts at a layer counts as, towards that bound.

    Cost: one forward pass per row. The contexts share the clean state.

    Raises:
        UnsupportedModelError: the model's output is not finite.
    """
    state = run_clean(
        host,
        prompts.tokens,
        prompts.attention_mask,
        prompts.read_pos,
        layers,
        encoder=prompts.encoder_input,
        post_pos=prompts.post_pos,
    )
    rows = torch.arange(prompts.n_rows, device=host.device)
    clean = read_output(output, prompts, rows, prompts.prompt_index, len(prompts), state.logits)
    check_numbers(host, prompts, clean, output.name, finite=True)
    gradient_activations: dict[int, MLPActivation] = {}
    for layer in layers:
        gradient_activations[layer] = _gradient_activation(host, state, layer)
    clean_gradients = CleanGradients(
        prompts=prompts,
        output=output,
        gradient_activations=gradient_activations,
        state=state,
        rows_per_pass=rows_per_pass,
    )
    contexts = []
    for layer in layers:
        context = LayerContext(
            layer=layer,
            prompts=prompts,
            clean=clean,
            post=state.post[layer],
            neurons=_neurons_of(host, state, layer),
            gradient_activation=gradient_activations[layer],
            output=output,
            state=state,
            clean_gradients=clean_gradients,
            rows_per_pass=rows_per_pass,
            share_of_pass=share_of_pass(layer),
            has_experts_above=any(above > layer for above in host.expert_layers),
        )
        contexts.append(context)
    return contexts


def _neurons_of(host: Host, state: CleanState, layer: int) -> LayerNeurons:
    """Return which neurons the entries of a layer's activation are."""
    if layer in state.active:
        return NeuronsOfExperts(active=state.active[layer], n_neurons=host.layout.layers[layer].n_rows)
    # Weights of a bridge that TransformerLens has just made require gradients: no score holds a graph of them.
    return NeuronsOfMLP(value_rows=host.W_out(layer).detach())


def _gradient_activation(host: Host, state: CleanState, layer: int) -> MLPActivation:
    """Return what gradients are taken with respect to."""
    if layer in state.active:
        if not host.writes_mlp_out(state.active[layer], state.post[layer], state.mlp_out[layer]):
            raise UnsupportedModelError(
                f"What the experts of layer {layer} of {host.name} write is not their activations times their "
                "down-projections: an adapter (such as LoRA) or a hook of PyTorch's adds to it. Merge an adapter "
                "before kn_lens.load_model: hf_model = peft_model.merge_and_unload(); remove a hook."
            )
        return "post" if state.has_user_hooks else "mlp_out"
    if state.has_user_hooks:
        return "post"
    # In half precision the comparison below would miss a small adapter.
    if host.has_adapter(layer):
        return "post"
    if host.is_W_out_product(layer, state.post[layer], state.mlp_out[layer]):
        return "mlp_out"
    return "post"


def check_numbers(
    host: Host,
    prompts: PromptBatch,
    values: Float[Tensor, " batch"],
    output: str = "prob",
    *,
    finite: bool = False,
) -> None:
    """Raise if the unaltered model's output is not a number: scores of NaN would look like neurons without effect.

    Args:
        host: the model.
        prompts: the prompts.
        values: the output of each prompt.
        output: name of the output.
        finite: whether to refuse infinity too. A log-probability may be minus infinity; no score explains it.

    Raises:
        UnsupportedModelError: names the first such prompt, and the remedy.
    """
    refused = ~values.isfinite() if finite else values.isnan()
    n_refused = int(refused.sum())
    if not n_refused:
        return
    first = int(refused.long().argmax())
    value = float(values[first])
    raise UnsupportedModelError(
        f"{host.name} gives no finite number ({output} = {value}) for the answer to {prompts.text[first]!r} "
        f"and {n_refused - 1} more of {len(refused)} prompts, though its weights are finite. "
        + _remedy(value, host.dtype)
    )


def _remedy(value: float, dtype: torch.dtype) -> str:
    """Return what to do about an output that is not a finite number."""
    name = str(dtype).removeprefix("torch.")
    if value == float("-inf"):
        return (
            "The logit of the answer is minus infinity, whatever the neurons do, "
            "as of tokens that fill up a vocabulary: ask for another answer."
        )
    if dtype == torch.float16:
        return f"Activations overflow {name}: load it with a wider dtype, torch.bfloat16 or torch.float32."
    if dtype == torch.bfloat16:
        return f"Activations overflow {name}: load it with a wider dtype, torch.float32."
    return (
        f"Weights this large overflow {name}, or a hook on the model returns such numbers: "
        "remove hooks with model.reset_hooks(), and look with model.run_with_cache "
        "at the first activation that is not finite."
    )


def read_output(
    output: Output,
    prompts: PromptBatch,
    rows: Int[Tensor, " row"],
    owner: Int[Tensor, " row"],
    n_pairs: int,
    logits: Float[Tensor, "row d_vocab"],
) -> Float[Tensor, " pair"]:
    """Return the output of each prompt of a pass from the logits of its rows.

    Args:
        output: what is read.
        prompts: the prompts.
        rows: the rows of the pass.
        owner: the position, among the prompts of the pass, of the prompt of each row; ascending.
        n_pairs: the number of prompts of the pass.
        logits: of the rows.
    """
    contrast_ids = None if prompts.contrast_ids is None else prompts.contrast_ids[rows]
    return output(logits, prompts.target_ids[rows], contrast_ids, owner, n_pairs)


def chunk_by_rows(
    n_rows: Shaped[Tensor, " item"],
    most: int,
) -> Iterator[Int[Tensor, " chunk"]]:
    """Cut positions 0, 1, ... into runs of at most ``most`` rows, each at least one position long.

    Args:
        n_rows: number of rows of each position, or what they count as.
        most: upper bound on the rows of a run.

    >>> [chunk.tolist() for chunk in chunk_by_rows(torch.tensor([2, 1, 4, 1]), 3)]
    [[0, 1], [2], [3]]
    """
    start = rows = 0
    for stop, n in enumerate(n_rows.tolist()):
        if rows and rows + n > most:
            yield torch.arange(start, stop, device=n_rows.device)
            start, rows = stop, 0
        rows += n
    yield torch.arange(start, len(n_rows), device=n_rows.device)
