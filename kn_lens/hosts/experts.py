r"""The layers whose MLP is a mixture of experts: their neurons, their routing, and what they write.

A router chooses a few experts for each token, and gives each a weight. The activation of neuron i of expert e is

    h_ei = weight_e * act(gate_ei) * up_ei        for a chosen expert, 0 for another
    h_i  = act(gate_i) * up_i                     of the shared expert, which every token runs, times its gate if any

and the value rows of the layer are the rows of the experts' down-projections, so that the MLP writes

    mlp_out = h @ W_out + b,     b = the biases that it has, weighted likewise.

Only the activations of the chosen experts are ever computed or kept: the *active form* of an activation has the shared
expert's neurons, then those of the chosen experts in the order of the `Routing`. It says nothing without its routing.

An experts module of transformers is called with the tokens, the chosen experts and their weights. There routing is
recorded, and there it is held: a pass with the routing of another pass runs the experts that were chosen in it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kn_lens._core.layout import LayerLayout
from kn_lens._core.precision import at_least_float32

_ROUTERS = ("gate", "router")
_SHARED = ("shared_expert", "shared_experts")


@dataclass(frozen=True, kw_only=True)
class Routing:
    """The experts that were chosen for tokens.

    Attributes:
        experts: their numbers, each once for a token.
        weights: their weights.
    """

    experts: Int[Tensor, "*token chosen"]
    weights: Float[Tensor, "*token chosen"]

    def select(self, rows: Any) -> "Routing":
        """Return the routing of some tokens."""
        return Routing(experts=self.experts[rows], weights=self.weights[rows])

    @classmethod
    def joined(cls, parts: "Sequence[Routing]", order: Int[Tensor, " row"] | None = None) -> "Routing":
        """Join the routings of rows, and put them in an order."""
        experts = torch.cat([part.experts for part in parts])
        weights = torch.cat([part.weights for part in parts])
        every = cls(experts=experts, weights=weights)
        return every if order is None else every.select(order)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertLayer:
    """The mixture of experts of one layer.

    Attributes:
        layer: zero-based.
        block: the checkpoint's module that computes ``mlp_out``.
        experts: its routed experts, with the weights of all of them in one tensor.
        router: its router: returns logits, weights and chosen experts.
        shared: its shared expert, a gated MLP; None where there is none.
        shared_gate: the linear map whose sigmoid multiplies the shared expert; None where there is none.
    """

    layer: int
    block: nn.Module
    experts: Any
    router: Any
    shared: Any = None
    shared_gate: Any = None

    @classmethod
    def of(cls, layer: int, mlp: Any) -> "ExpertLayer | None":
        """Describe the MLP of a layer; None where it is no mixture of experts of a known form."""
        block: Any = innermost(mlp)
        experts = innermost(getattr(block, "experts", None))
        router = next((getattr(block, name) for name in _ROUTERS if hasattr(block, name)), None)
        weights = [getattr(experts, name, None) for name in ("gate_up_proj", "down_proj")]
        has_weights = all(isinstance(weight, Tensor) and weight.ndim == 3 for weight in weights)
        if router is None or not has_weights or not hasattr(experts, "_apply_gate"):
            return None
        return cls(
            layer=layer,
            block=block,
            experts=experts,
            router=innermost(router),
            shared=innermost(next((getattr(block, name) for name in _SHARED if hasattr(block, name)), None)),
            shared_gate=innermost(getattr(block, "shared_expert_gate", None)),
        )

    @cached_property
    def layout(self) -> LayerLayout:
        """The rows of the layer."""
        n_experts, d_expert = self.down_proj.shape[:2]
        d_shared = 0 if self.shared is None else self._of_shared("down_proj").weight.shape[1]
        return LayerLayout(n_rows=d_shared + n_experts * d_expert, n_experts=n_experts, d_expert=d_expert)

    @property
    def down_proj(self) -> Float[Tensor, "n_experts d_expert d_model"]:
        """The value rows of the routed experts, live."""
        weight = self.experts.down_proj.detach()
        return weight if getattr(self.experts, "is_transposed", False) else weight.transpose(1, 2)

    @property
    def shared_rows(self) -> Float[Tensor, "d_shared d_model"]:
        """The value rows of the shared expert, live; none where there is none."""
        if self.shared is None:
            return self.down_proj[0, :0]
        return self._of_shared("down_proj").weight.detach().T

    @property
    def d_model(self) -> int:
        """Width of the value rows."""
        return self.down_proj.shape[2]

    @property
    def d_active(self) -> int:
        """Neurons of the shared expert and of the experts that are chosen for a token."""
        return self.layout.d_shared + int(self.router.top_k) * self.layout.d_expert

    @property
    def output_weights(self) -> list[Tensor]:
        """The weights that hold the value rows."""
        weights = [self.experts.down_proj]
        if self.shared is not None:
            weights.append(self._of_shared("down_proj").weight)
        return weights

    @property
    def has_adapter(self) -> bool:
        """Whether the maps of the experts have weights beside their own."""
        names = {name for name, _ in self.experts.named_parameters()}
        own = {f"{projection}{kind}" for projection in ("gate_up_proj", "down_proj") for kind in ("", "_bias")}
        of_shared = set()
        if self.shared is not None:
            of_shared = {name for name, _ in self._of_shared("down_proj").named_parameters()}
        return not (names <= own and of_shared <= {"weight", "bias"})

    # --- activations ------------------------------------------------------------------------------

    def active(
        self, mlp_in: Float[Tensor, "token d_model"], routing: Routing
    ) -> "tuple[ActiveExperts, Float[Tensor, 'token d_active']]":
        """Return the layer under tokens whose routing is held, and their activations in the active form."""
        active = ActiveExperts(expert_layer=self, routing=routing, bias=self.bias(mlp_in, routing))
        return active, self.activations(mlp_in, routing)

    def route(self, mlp_in: Float[Tensor, "token d_model"]) -> Routing:
        """Return the routing that the router chooses for tokens."""
        _, weights, experts = self.router(mlp_in)
        return Routing(experts=experts, weights=weights)

    def activations(self, mlp_in: Float[Tensor, "token d_model"], routing: Routing) -> Float[Tensor, "token d_active"]:
        """Return the activations of tokens, in their active form, in float32 or float64.

        Args:
            mlp_in: what enters the MLP.
            routing: of the tokens.
        """
        parts = []
        if self.shared is not None:
            parts.append(at_least_float32(self._shared_activations(mlp_in)) * self._shared_weight(mlp_in))
        d_expert, n_chosen = self.layout.d_expert, routing.experts.shape[1]
        routed = at_least_float32(mlp_in.new_zeros(len(mlp_in), n_chosen, d_expert))
        for expert, token, place in _by_expert(routing):
            activation = at_least_float32(self._gated(expert, mlp_in[token]))
            routed[token, place] = activation * routing.weights[token, place, None].to(activation.dtype)
        parts.append(routed.flatten(1))
        return torch.cat(parts, dim=1)

    def activations_of(
        self, mlp_in: Float[Tensor, "*token d_model"], rows: Int[Tensor, " neuron"]
    ) -> Float[Tensor, "*token neuron"]:
        """Return the activations of some neurons for tokens, with the routing that the router chooses.

        Args:
            mlp_in: what enters the MLP.
            rows: of the neurons in the layer.
        """
        return self.activations_and_state_of(mlp_in, rows)[0]

    def activations_and_state_of(
        self, mlp_in: Float[Tensor, "*token d_model"], rows: Int[Tensor, " neuron"]
    ) -> tuple[Float[Tensor, "*token neuron"], Bool[Tensor, "*token neuron"]]:
        """Return `activations_of` neurons, and whether each token is routed to the expert of each neuron."""
        tokens = mlp_in.reshape(-1, mlp_in.shape[-1])
        routing = self.route(tokens)
        expert_of_row, index = self._expert_and_index(rows)
        is_shared = expert_of_row < 0
        result = at_least_float32(tokens.new_zeros(len(tokens), len(rows)))
        is_on = is_shared.expand(len(tokens), -1).clone()
        if is_shared.any():
            shared = at_least_float32(self._shared_activations(tokens)) * self._shared_weight(tokens)
            result = result.index_copy(1, is_shared.nonzero().squeeze(1), shared[:, index[is_shared]])
        wanted = set(expert_of_row.tolist())
        for expert, token, place in _by_expert(routing):
            if expert not in wanted:
                continue
            of_expert = (expert_of_row == expert).nonzero().squeeze(1)
            activation = at_least_float32(self._gated(expert, tokens[token]))[:, index[of_expert]]
            weight = routing.weights[token, place, None].to(activation.dtype)
            cells = (token[:, None], of_expert)
            result = result.index_put(cells, activation * weight)
            is_on[cells] = True
        shape = mlp_in.shape[:-1]
        return result.unflatten(0, shape), is_on.unflatten(0, shape)

    def _gated(self, expert: int, mlp_in: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_expert"]:
        """Return what enters the down-projection of an expert, by the checkpoint's own gate."""
        weight = self.experts.gate_up_proj[expert]
        gate_up = mlp_in @ (weight if getattr(self.experts, "is_transposed", False) else weight.T)
        bias = getattr(self.experts, "gate_up_proj_bias", None)
        return self.experts._apply_gate(gate_up if bias is None else gate_up + bias[expert])

    def _shared_activations(self, mlp_in: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_shared"]:
        gate, up = self._of_shared("gate_proj")(mlp_in), self._of_shared("up_proj")(mlp_in)
        return self.shared.act_fn(gate) * up

    def _shared_weight(self, mlp_in: Float[Tensor, "token d_model"]) -> Float[Tensor, "token 1"]:
        if self.shared_gate is None:
            return at_least_float32(mlp_in.new_ones(len(mlp_in), 1))
        return at_least_float32(self.shared_gate(mlp_in).sigmoid())

    def _of_shared(self, name: str) -> Any:
        return innermost(getattr(self.shared, name))

    def _expert_and_index(self, rows: Int[Tensor, " neuron"]) -> tuple[Int[Tensor, " neuron"], Int[Tensor, " neuron"]]:
        """Return the expert of each row, -1 for the shared one, and its index there."""
        layout = self.layout
        is_shared = rows < layout.d_shared
        routed = rows - layout.d_shared
        expert = torch.where(is_shared, -1, routed.div(layout.d_expert, rounding_mode="floor"))
        return expert, torch.where(is_shared, rows, routed % layout.d_expert)

    # --- what activations write -------------------------------------------------------------------

    def rows(self, routing: Routing) -> Int[Tensor, "token d_active"]:
        """Return the rows in the layer of the entries of an active form."""
        layout, experts = self.layout, routing.experts
        shared = torch.arange(layout.d_shared, device=experts.device).expand(len(experts), -1)
        first = layout.d_shared + experts * layout.d_expert
        routed = first[..., None] + torch.arange(layout.d_expert, device=experts.device)
        return torch.cat([shared, routed.flatten(1)], dim=1)

    def write(self, post: Float[Tensor, "token d_active"], routing: Routing) -> Float[Tensor, "token d_model"]:
        """Return ``h @ W_out`` of activations in their active form, in their type."""
        d_shared = self.layout.d_shared
        written = post[:, :d_shared] @ self.shared_rows.to(post.dtype)
        routed = post[:, d_shared:].unflatten(1, (-1, self.layout.d_expert))
        for expert, token, place in _by_expert(routing):
            product = routed[token, place] @ self.down_proj[expert].to(post.dtype)
            written = written.index_add(0, token, product)
        return written

    def gradient_at_post(
        self, gradient: Float[Tensor, "token d_model"], routing: Routing
    ) -> Float[Tensor, "token d_active"]:
        """Return the gradient with respect to an active form, from that to what is written."""
        shared = gradient @ self.shared_rows.to(gradient.dtype).T
        routed = gradient.new_zeros(*routing.experts.shape, self.layout.d_expert)
        for expert, token, place in _by_expert(routing):
            routed[token, place] = gradient[token] @ self.down_proj[expert].to(gradient.dtype).T
        return torch.cat([shared, routed.flatten(1)], dim=1)

    def bias(self, mlp_in: Float[Tensor, "token d_model"], routing: Routing) -> Float[Tensor, "token d_model"]:
        """Return what the MLP writes where every activation is zero, with the routing held; in float32 or float64."""
        bias = at_least_float32(torch.zeros_like(mlp_in))
        of_experts = getattr(self.experts, "down_proj_bias", None)
        if of_experts is not None:
            chosen = of_experts.detach()[routing.experts].to(bias.dtype)
            bias = bias + (chosen * routing.weights[..., None].to(bias.dtype)).sum(1)
        of_shared = None if self.shared is None else self._of_shared("down_proj").bias
        if of_shared is not None:
            bias = bias + of_shared.detach().to(bias.dtype) * self._shared_weight(mlp_in)
        return bias


@dataclass(frozen=True, kw_only=True, eq=False)
class ActiveExperts:
    """A layer with experts under some rows, whose routing is held.

    Attributes:
        expert_layer: the layer.
        routing: of each row at the read position.
        bias: what the MLP writes for each row where every activation is zero.
    """

    expert_layer: ExpertLayer
    routing: Routing
    bias: Float[Tensor, "row d_model"]

    @property
    def rows(self) -> Int[Tensor, "row d_active"]:
        """The row in the layer of each entry of an activation in its active form."""
        return self.expert_layer.rows(self.routing)

    def select(self, rows: Int[Tensor, " selected"]) -> "ActiveExperts":
        """Return the layer under some of the rows, repeats allowed."""
        return ActiveExperts(expert_layer=self.expert_layer, routing=self.routing.select(rows), bias=self.bias[rows])

    @classmethod
    def joined(cls, parts: "Sequence[ActiveExperts]", order: Int[Tensor, " row"]) -> "ActiveExperts":
        """Join the rows of one layer, and put them in an order."""
        return cls(
            expert_layer=parts[0].expert_layer,
            routing=Routing.joined([part.routing for part in parts], order),
            bias=torch.cat([part.bias for part in parts])[order],
        )

    def written(self, post: Float[Tensor, "row d_active"]) -> Float[Tensor, "row d_model"]:
        """Return ``h @ W_out`` of activations in their active form."""
        return self.expert_layer.write(post, self.routing)

    def mlp_out(self, post: Float[Tensor, "row d_active"]) -> Float[Tensor, "row d_model"]:
        """Return what the MLP writes with its activations replaced."""
        return self.written(post) + self.bias.to(post.dtype)

    def gradient_at_post(self, gradient: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_active"]:
        """Return the gradient with respect to the active form, from that to what is written."""
        return self.expert_layer.gradient_at_post(gradient, self.routing)


@dataclass(frozen=True, eq=False)
class ExpertRows:
    """The value rows of a layer with experts: read and written by row, as those of one ``W_out``.

    Attributes:
        expert_layer: the layer.
    """

    expert_layer: ExpertLayer

    def __getitem__(self, rows: Int[Tensor, " neuron"]) -> Float[Tensor, "neuron d_model"]:
        """Return a copy of rows."""
        layer = self.expert_layer
        expert, index = layer._expert_and_index(rows)
        values = layer.down_proj.new_empty(len(rows), layer.d_model)
        is_shared = expert < 0
        values[is_shared] = layer.shared_rows[index[is_shared]]
        values[~is_shared] = layer.down_proj[expert[~is_shared], index[~is_shared]]
        return values

    def __setitem__(self, rows: Int[Tensor, " neuron"], values: Float[Tensor, "neuron d_model"]) -> None:
        """Write rows to the weights of the model."""
        layer = self.expert_layer
        expert, index = layer._expert_and_index(rows)
        is_shared = expert < 0
        layer.shared_rows[index[is_shared]] = values[is_shared]
        layer.down_proj[expert[~is_shared], index[~is_shared]] = values[~is_shared]

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        return self.expert_layer.down_proj.device


def innermost(module: Any) -> Any:
    """Return the checkpoint's module inside the wrappers of TransformerLens."""
    while isinstance(getattr(module, "original_component", None), nn.Module):
        module = module.original_component
    return module


def _by_expert(routing: Routing) -> list[tuple[int, Int[Tensor, " entry"], Int[Tensor, " entry"]]]:
    """Return the number, the tokens, and the place among their choices, of each expert that any token is routed to."""
    groups = []
    for expert in routing.experts.unique().tolist():
        token, place = (routing.experts == expert).nonzero(as_tuple=True)
        groups.append((expert, token, place))
    return groups


# --- passes ---------------------------------------------------------------------------------------


def recording_forwards(
    layers: Mapping[int, ExpertLayer], record: Callable[[int, Tensor, Routing], None]
) -> dict[Any, Callable[..., Any]]:
    """Return forwards, for `override_forwards`, that record what enters the experts and how it is routed.

    Args:
        layers: by number.
        record: called with the layer, the tokens and their routing.
    """
    forwards: dict[Any, Callable[..., Any]] = {}
    for number, layer in layers.items():

        def forward(
            tokens: Tensor,
            experts: Tensor,
            weights: Tensor,
            *,
            number: int = number,
            run: Callable[..., Any] = layer.experts.forward,
        ) -> Any:
            record(number, tokens.detach(), Routing(experts=experts.detach(), weights=weights.detach()))
            return run(tokens, experts, weights)

        forwards[layer.experts] = forward
    return forwards


def holding_forwards(
    layers: Mapping[int, ExpertLayer], held: Callable[[int, int], Routing | None]
) -> dict[Any, Callable[..., Any]]:
    """Return forwards, for `override_forwards`, by which experts run as they were routed in another pass.

    Args:
        layers: by number.
        held: returns, for a layer and the number of its tokens, their routing; None leaves it free.
    """
    forwards: dict[Any, Callable[..., Any]] = {}
    for number, layer in layers.items():

        def forward(
            tokens: Tensor,
            experts: Tensor,
            weights: Tensor,
            *,
            number: int = number,
            run: Callable[..., Any] = layer.experts.forward,
        ) -> Any:
            routing = held(number, len(tokens))
            if routing is None:
                return run(tokens, experts, weights)
            return run(tokens, routing.experts, routing.weights)

        forwards[layer.experts] = forward
    return forwards


def changed_output_forwards(
    layers: Mapping[int, ExpertLayer], functions: Mapping[int, Callable[[Tensor], Tensor]]
) -> dict[Any, Callable[..., Any]]:
    """Return forwards, for `override_forwards`, by which what mixtures write passes through functions.

    Args:
        layers: by number.
        functions: by layer, of what is written.
    """
    forwards: dict[Any, Callable[..., Any]] = {}
    for number, function in functions.items():
        block = layers[number].block

        def forward(
            *args: Any,
            function: Callable[[Tensor], Tensor] = function,
            run: Callable[..., Any] = block.forward,
            **kwargs: Any,
        ) -> Any:
            output = run(*args, **kwargs)
            if isinstance(output, tuple):
                return function(output[0]), *output[1:]
            return function(output)

        forwards[block] = forward
    return forwards
