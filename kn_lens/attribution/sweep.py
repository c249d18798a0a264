"""One sweep of passes over points of several layers: outputs, and gradients where they are needed.

A point is a prompt with one layer's activation replaced. Its rows enter the model at that layer, so that rows of all
layers go up together, and one backward pass gives the gradient of each at its own layer. The work is that of passes for
each layer by itself. The number of calls is not: models and batches that are small wait for calls, not for arithmetic.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.attribution.layer_context import LayerContext, chunk_by_rows, gradients_of, read_output
from kn_lens.hosts import Replacement

PassDone = Callable[[int, int], None]
"""Called after each pass with the rows that are done and the rows of the sweep."""


@dataclass(frozen=True, kw_only=True)
class PathPoints:
    """Points on the paths of one layer: ``v = w + (alpha - 1) m``.

    Attributes:
        context: the layer under some prompts.
        moving: the part of the activation that moves, ``m``.
        prompts: the number of the prompt of each point, repeats allowed.
        alpha: where each point lies.
    """

    context: LayerContext
    moving: Float[Tensor, "row d_mlp"]
    prompts: Int[Tensor, " point"]
    alpha: Float[Tensor, " point"]


@dataclass(frozen=True, kw_only=True)
class PointValues:
    """Values at points of paths.

    Attributes:
        outputs: the output at each point.
        gradients: its gradient with respect to the context's ``gradient_activation``, for the rows of each point.
    """

    outputs: Float[Tensor, " point"]
    gradients: Float[Tensor, "point_row d_gradient"]


def sweep(requests: Sequence[PathPoints], pass_done: PassDone | None = None) -> list[PointValues]:
    """Return the values at points of several layers.

    Args:
        requests: points of contexts that share their clean state, in the order of their layers.
        pass_done: called after each pass.

    Returns:
        The values of each request. Cost: a forward and a backward pass per row of a point, from its layer up.
    """
    first = requests[0].context
    device = first.clean.device
    # What goes into which pass is known on the processor alone: a pass never waits for the device.
    prompts = first.prompts.to("cpu")
    sizes = [len(request.prompts) for request in requests]
    prompt_of = torch.cat([request.prompts for request in requests]).cpu()
    request_of = torch.arange(len(requests)).repeat_interleave(torch.tensor(sizes))
    number_in_request = torch.cat([torch.arange(size) for size in sizes])
    n_rows = prompts.rows_per_prompt[prompt_of]
    first_row = (prompts.rows_per_prompt.cumsum(0) - prompts.rows_per_prompt)[prompt_of]
    group_of_row = first.state.pass_group.cpu()
    group = group_of_row[first_row]
    share = torch.tensor([request.context.share_of_pass for request in requests])
    size = n_rows * share[request_of]
    order = (group * len(requests) + request_of).argsort(stable=True)

    outputs: list[Tensor] = []
    gradients: list[list[Tensor]] = [[] for _ in requests]
    row_points: list[list[Tensor]] = [[] for _ in requests]  # the point of each row of ``gradients``
    points: list[Tensor] = []  # those of ``outputs``
    n_done, n_all = 0, int(n_rows.sum())
    for chosen in _passes(order, group, size, first.rows_per_pass):
        rows, owner = prompts.rows_and_owners(prompt_of[chosen])
        row_request = request_of[chosen][owner]
        parts: list[_Part] = []
        for number in row_request.unique().tolist():
            own = row_request == number
            part = _Part.of(number, requests[number], rows[own], number_in_request[chosen[owner[own]]])
            parts.append(part)
        with torch.enable_grad():
            logits = first.state.logits_with_post(_replacements(parts), groups=group_of_row[rows])
            pass_rows, pass_owner = _moved(rows, device), _moved(owner, device)
            values = read_output(first.output, first.prompts, pass_rows, pass_owner, len(chosen), logits)
            del logits  # else those of two passes are held
            part_gradients = gradients_of(values, [part.variable for part in parts])
        outputs.append(values.detach())
        points.append(chosen)
        for part, gradient in zip(parts, part_gradients, strict=True):
            gradients[part.number].append(gradient)
            row_points[part.number].append(part.points)
        del parts, part_gradients, values
        n_done += len(rows)
        if pass_done is not None:
            pass_done(n_done, n_all)

    in_order = torch.cat(outputs)[_moved(torch.cat(points).argsort(), device)]
    results = []
    for own_outputs, own_gradients, own_points in zip(in_order.split(sizes), gradients, row_points, strict=True):
        row_order = _moved(torch.cat(own_points).argsort(stable=True), device)
        results.append(PointValues(outputs=own_outputs, gradients=torch.cat(own_gradients)[row_order]))
    return results


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The rows of a pass that belong to one request.

    Attributes:
        number: of the request.
        context: of the request.
        rows: the rows.
        points: the number, among the request's points, of the point that each row belongs to.
        post: the activation of each row.
        added: zeros that are added to what ``W_out`` writes; None where gradients are taken at the activation.
    """

    number: int
    context: LayerContext
    rows: Int[Tensor, " row"]
    points: Int[Tensor, " row"]
    post: Float[Tensor, "row d_mlp"]
    added: Float[Tensor, "row d_model"] | None

    @classmethod
    def of(cls, number: int, request: PathPoints, rows: Tensor, points: Tensor) -> "_Part":
        """Compute the activations of some rows of a request."""
        context = request.context
        on_device = _moved(rows, context.post.device)
        alpha = request.alpha[_moved(points, context.post.device), None]
        post = (context.post[on_device] + (alpha - 1) * request.moving[on_device]).detach()
        added = None
        if context.gradient_activation == "mlp_out":
            added = post.new_zeros(len(rows), context.d_model).requires_grad_()
        else:
            post.requires_grad_()
        return cls(number=number, context=context, rows=on_device, points=points, post=post, added=added)

    @property
    def variable(self) -> Tensor:
        """What the gradient is taken with respect to."""
        return self.post if self.added is None else self.added


def _passes(
    order: Int[Tensor, " point"],
    group: Int[Tensor, " point"],
    size: Float[Tensor, " point"],
    rows_per_pass: int,
) -> Iterator[Int[Tensor, " chosen"]]:
    """Yield the points of each pass: those whose first rows are of one group, in the order of their layers.

    Args:
        order: the points by group, and in a group by layer.
        group: of the first row of each point.
        size: of each point: its rows, counted by what they take of a pass.
        rows_per_pass: upper bound on the rows of a pass.
    """
    _, sizes = group[order].unique_consecutive(return_counts=True)
    for of_group in order.split(sizes.tolist()):
        for positions in chunk_by_rows(size[of_group], rows_per_pass):
            yield of_group[positions]


def _moved(indices: Int[Tensor, " index"], device: torch.device) -> Int[Tensor, " index"]:
    """Return indices on a device, without waiting for the passes that run there."""
    return indices.to(device, non_blocking=True)


def _replacements(parts: Sequence[_Part]) -> list[Replacement]:
    """Return one replacement for each layer; requests may share a layer."""
    by_layer: dict[int, list[_Part]] = {}
    for part in parts:
        by_layer.setdefault(part.context.layer, []).append(part)
    replacements = []
    for layer, of_layer in by_layer.items():
        added = [part.added for part in of_layer if part.added is not None]
        replacement = Replacement(
            layer=layer,
            rows=torch.cat([part.rows for part in of_layer]),
            post=torch.cat([part.post for part in of_layer]),
            added=torch.cat(added) if added else None,
        )
        replacements.append(replacement)
    return replacements
