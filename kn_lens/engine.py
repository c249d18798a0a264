"""Many passes over many prompts, in bounded batches.

A ``Site`` is one layer under some prompts. It answers one question: *with the layer's activation at the read position
replaced by v, what is the output, and what is its gradient?* Everything in ``attribution.py`` is a sum of such answers.
Weights never get a gradient.

Where ``W_out`` writes ``v @ W_out + b_out``, the gradient with respect to v is ``W_out`` times the one with respect to
what is written, which has d_model numbers, and sums of such gradients need one product with ``W_out``. That the model
does write this is checked on the clean pass, in every row of every layer. Where it does not (an adapter adds to the
product, say), or where hooks of the user's are on the model, gradients are taken at v itself, through everything that
happens to it. The passes are the same: v goes into the model, never what it should lead to, so that outputs, and
the completeness gap with them, do not share the assumption.

A pass holds at most ``rows_per_pass`` rows; a row is one prompt (or one answer token of it) at one point of the path,
so that memory does not depend on the number of prompts or points. How many those are follows from a memory budget.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._budget import Budget
from kn_lens.errors import UnsupportedModelError
from kn_lens.hosts import Host
from kn_lens.outputs import Output, at_least_float32
from kn_lens.prompts import PromptBatch
from kn_lens.resume import Added, CleanState, Place, last_token_moves, run_clean


@dataclass(frozen=True, kw_only=True)
class Site:
    """One layer under some prompts, with the clean state that passes start from.

    Attributes:
        layer: zero-based.
        prompts: what is asked.
        clean: output of the unaltered model.
        post: clean activation at the read position, ``w``, before any hook on ``hook_post``.
        value_rows: the layer's ``W_out``, live, in the model's precision.
        place: where gradients are taken: at what ``W_out`` writes (``mlp_out``), or at ``v`` itself (``post``).
        output: what is read from the logits.
        state: the clean pass, shared by the sites of all layers.
        at_clean: gradients at the clean output, shared likewise.
        rows_per_pass: upper bound on the rows of a pass. An answer of more tokens than this still goes in whole.
    """

    layer: int
    prompts: PromptBatch
    clean: Float[Tensor, " batch"]
    post: Float[Tensor, "row d_mlp"]
    value_rows: Float[Tensor, "d_mlp d_model"]
    place: Place
    output: Output
    state: CleanState
    at_clean: "CleanGradients"
    rows_per_pass: int

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """The layer's value rows in the precision of ``post``.

        Of a model in half precision that is a copy, made at each call: those of all layers together could take more
        memory than its passes.
        """
        return at_least_float32(self.value_rows)

    @property
    def clean_gradient(self) -> Float[Tensor, "row d_place"]:
        """What ``gradients`` returns at ``w`` of every prompt; one backward pass finds it for all layers."""
        return self.at_clean.of_layer[self.layer]

    @property
    def everyone(self) -> Int[Tensor, " batch"]:
        """The number of every prompt."""
        return torch.arange(len(self.clean), device=self.clean.device)

    def per_prompt(self, values: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "batch d_mlp"]:
        """Sum over the rows of each prompt's answer."""
        return values.new_zeros(len(self.clean), values.shape[-1]).index_add(0, self.prompts.prompt_index, values)

    def written(self, moving: Float[Tensor, "row d_mlp"]) -> Float[Tensor, "row d_place"]:
        """Return what a part of the activation makes at the place of gradients: ``written(x) . g = x . to_post(g)``."""
        return moving @ self.W_out if self.place == "mlp_out" else moving

    def to_post(self, gradient: Float[Tensor, "row d_place"]) -> Float[Tensor, "row d_mlp"]:
        """Return the gradient with respect to the activation, from the one at the place of gradients."""
        return gradient @ self.W_out.T if self.place == "mlp_out" else gradient

    def outputs(
        self, batch: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"], *, early: bool = False
    ) -> Float[Tensor, " pair"]:
        """Return the output of each prompt with the layer's activation at the read position replaced.

        Args:
            batch: numbers of prompts, repeats allowed.
            post: the activation instead, for each of ``prompts.rows_of(batch)``.
            early: read the output off the residual stream that leaves this layer, with the layers above left out.

        Cost: a forward pass per row, from this layer up.
        """
        with torch.no_grad():
            return torch.cat([self._pass(now, new, early=early) for now, new in self._passes(batch, post)])

    def gradients(
        self, batch: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"]
    ) -> tuple[Float[Tensor, " pair"], Float[Tensor, "row d_place"]]:
        """Return as ``outputs`` does, and the gradient of each prompt's output, at ``place``.

        Cost: a forward and a backward pass per row, from this layer up.
        """
        values, gradients = [], []
        for now, new in self._passes(batch, post):
            with torch.enable_grad():
                new = new.detach()
                if self.place == "post":
                    point = new.requires_grad_()
                    value = self._pass(now, point)
                else:
                    point = new.new_zeros(len(new), self.value_rows.shape[1]).requires_grad_()
                    value = self._pass(now, new, {self.layer: ("mlp_out", point)})
                gradients.append(_gradients(value, [point])[0])
            values.append(value.detach())
        return torch.cat(values), torch.cat(gradients)

    def _pass(
        self,
        batch: Int[Tensor, " pair"],
        post: Float[Tensor, "row d_mlp"],
        added: Added | None = None,
        *,
        early: bool = False,
    ) -> Float[Tensor, " pair"]:
        rows, owner = self.prompts.rows_and_owners(batch)
        logits = self.state.logits_with_post(self.layer, rows, post, added, early=early)
        return _read(self.output, self.prompts, rows, owner, logits)

    def _passes(
        self, batch: Int[Tensor, " pair"], post: Float[Tensor, "row d_mlp"]
    ) -> Iterator[tuple[Int[Tensor, " some"], Float[Tensor, "row d_mlp"]]]:
        n_rows = self.prompts.rows_per_prompt[batch]
        end = n_rows.cumsum(0)
        for some in cuts(n_rows, self.rows_per_pass):
            first, last = int(some[0]), int(some[-1])
            yield batch[some], post[int(end[first] - n_rows[first]) : int(end[last])]


@dataclass(frozen=True, kw_only=True, eq=False)
class CleanGradients:
    """Gradients of each prompt's output at the clean activations, of all layers from one pass; once asked for.

    Attributes:
        prompts: what is asked.
        output: what is read from the logits.
        places: where they are taken, of each layer.
        state: the clean pass.
        rows_per_pass: upper bound on the rows of a pass.
    """

    prompts: PromptBatch
    output: Output
    places: Mapping[int, Place]
    state: CleanState
    rows_per_pass: int

    @cached_property
    def of_layer(self) -> dict[int, Float[Tensor, "row d_place"]]:
        """The gradients, by layer. Cost: a forward and a backward pass per row, from the lowest layer up."""
        parts = []
        for some in cuts(self.prompts.rows_per_prompt, self.rows_per_pass):
            rows, owner = self.prompts.rows_and_owners(some)
            with torch.enable_grad():
                added: dict[int, tuple[Place, Tensor]] = {
                    layer: (place, torch.zeros_like(getattr(self.state, place)[layer][rows]).requires_grad_())
                    for layer, place in self.places.items()
                }
                value = _read(self.output, self.prompts, rows, owner, self.state.logits_with_added(rows, added))
                parts.append(_gradients(value, [point for _, point in added.values()]))
        return dict(zip(self.places, map(torch.cat, zip(*parts, strict=True)), strict=True))


def _gradients(values: Float[Tensor, " pair"], points: Sequence[Float[Tensor, "row _"]]) -> list[Tensor]:
    """Return the gradient of each value with respect to its rows of some points; zero where a value sees none of them.

    Prompts do not see each other, so the gradient of the sum holds each one's own. A hook of the user's may cut a point
    off from the output: that replaces an activation, say.
    """
    if not values.requires_grad:
        return [torch.zeros_like(point) for point in points]
    return list(torch.autograd.grad(values.sum(), points, allow_unused=True, materialize_grads=True))


def budget_for(host: Host, prompts: PromptBatch, memory: float | None) -> Budget:
    """Return the budget of the passes that the sites of these prompts run.

    Raises:
        ArgumentError: ``memory`` is not a positive number of bytes.
    """
    moving_last = last_token_moves(host, prompts.attention_mask, prompts.read_pos)
    return Budget.of(host, memory, moving_last=moving_last, gradient=True)


def sites(host: Host, prompts: PromptBatch, output: Output, layers: Sequence[int], rows_per_pass: int) -> list[Site]:
    """Run the unaltered model once on a stretch of prompts, and return the site of each layer.

    Cost: one forward pass per row. The sites share the clean state.

    Raises:
        UnsupportedModelError: the model's output is not finite.
    """
    state = run_clean(host, prompts.tokens, prompts.attention_mask, prompts.read_pos, layers)
    rows = torch.arange(prompts.n_rows, device=host.device)
    clean = _read(output, prompts, rows, prompts.prompt_index, state.logits)
    check_numbers(host, prompts, clean, output.name, finite=True)
    places: dict[int, Place] = {layer: _place(host, state, layer) for layer in layers}
    at_clean = CleanGradients(
        prompts=prompts,
        output=output,
        places=places,
        state=state,
        rows_per_pass=rows_per_pass,
    )
    return [
        Site(
            layer=layer,
            prompts=prompts,
            clean=clean,
            post=state.post[layer],
            value_rows=host.W_out(layer),
            place=places[layer],
            output=output,
            state=state,
            at_clean=at_clean,
            rows_per_pass=rows_per_pass,
        )
        for layer in layers
    ]


def _place(host: Host, state: CleanState, layer: int) -> Place:
    if state.has_user_hooks or host.has_adapter(layer):  # a small one drowns in the rounding of half precision
        return "post"
    return "mlp_out" if host.writes_plainly(layer, state.post[layer], state.mlp_out[layer]) else "post"


def check_numbers(
    host: Host, prompts: PromptBatch, values: Float[Tensor, " batch"], output: str = "prob", *, finite: bool = False
) -> None:
    """Raise where the unaltered model gives no number: scores of NaN would be read as neurons that do nothing.

    Args:
        host: what ran.
        prompts: what it was asked.
        values: what was read from its logits.
        output: what that is called.
        finite: whether infinity is refused as well. A log-probability may be minus infinity; no score explains it.

    Raises:
        UnsupportedModelError: naming the first such prompt, and what to do.
    """
    bad = ~values.isfinite() if finite else values.isnan()
    if not bool(bad.any()):
        return
    first = int(bad.long().argmax())
    raise UnsupportedModelError(
        f"{host.name} gives no finite number ({output} = {float(values[first])}) for the answer to "
        f"{prompts.text[first]!r} and {int(bad.sum()) - 1} more of {len(bad)} prompts, though its weights are finite. "
        + _cure_for(float(values[first]), host.dtype)
    )


def _cure_for(value: float, dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if value == float("-inf"):
        return (
            "The logit of the answer is minus infinity, whatever the neurons do, as of tokens that fill up a "
            "vocabulary: ask for another answer."
        )
    wider = {torch.float16: "torch.bfloat16 or torch.float32", torch.bfloat16: "torch.float32"}.get(dtype)
    if wider is not None:
        return f"Activations overflow {name}: load it with a wider dtype, {wider}."
    return (
        f"Weights this large overflow {name}, or a hook on the model returns such numbers: remove hooks with "
        "model.reset_hooks(), and look with model.run_with_cache at the first activation that is not finite."
    )


def _read(
    output: Output,
    prompts: PromptBatch,
    rows: Int[Tensor, " row"],
    owner: Int[Tensor, " row"],
    logits: Float[Tensor, "row d_vocab"],
) -> Float[Tensor, " pair"]:
    contrast_ids = None if prompts.contrast_ids is None else prompts.contrast_ids[rows]
    return output(logits, prompts.target_ids[rows], contrast_ids, owner, int(owner[-1]) + 1)


def cuts(n_rows: Int[Tensor, " some"], most: int) -> Iterator[Int[Tensor, " fewer"]]:
    """Cut positions 0, 1, ... into runs of at most ``most`` rows, each at least one position long."""
    start = rows = 0
    for stop, n in enumerate(n_rows.tolist()):
        if rows and rows + n > most:
            yield torch.arange(start, stop, device=n_rows.device)
            start, rows = stop, 0
        rows += n
    yield torch.arange(start, len(n_rows), device=n_rows.device)
