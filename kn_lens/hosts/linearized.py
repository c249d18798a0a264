"""A model under some prompts with its norms held: what each neuron and head adds to any input, by the direct path.

Let ``x_l`` be the residual stream at layer l. Held at the scales that they have on the clean pass, norms are linear
(affine) maps, and so is everything between a component's activation and another component's input:

    input of the target = constant + sum over components c below of <activation_c, d input / d activation_c>

Each term is the component's *direct effect* on the input: through the residual stream alone, with every other component
at its clean activation. The derivative comes from one backward pass in which no gradient enters a component: the
activations of neurons (``hook_post``) and heads (``hook_z``) are leaves, so that attention patterns and gates above the
leaves are constants. The derivatives of all components with respect to one input cost one such pass.

The inputs: a neuron's pre-activation (``key``; of a gated MLP the one that its activated gate multiplies) and its
gate's (``gate``), a head's queries, keys and values before rotation (``q``, ``k``, ``v``), and logits. What follows
the final norm is linear too, but for a masked model's transform before the unembedding and for soft-capped logits:
there effects on logits are those of first order, and their sum is not the logit.

Norms between ``W_out`` and the residual stream (Gemma 2) and after each addition to it (BERT) are held likewise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_lens.errors import UnsupportedModelError
from kn_lens.hosts.bridge import Host
from kn_lens.hosts.model_protocol import HookFn
from kn_lens.hosts.module_tree import modules_of
from kn_lens.hosts.overrides import norm_bridges, override_forwards

PROBE_SIZE = 2.0**10
"""The size of the vectors by which a norm's weights are read: its epsilon is nothing beside their square, which
float16 norms compute in float32."""

ROUNDING = 64
"""Units of rounding, times the root of the width, by which a held norm may differ from the norm."""

ComponentInput = Literal["key", "gate", "q", "k", "v"]
"""What a neuron or head reads; see the head of this module."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ComponentValues:
    """The activations of all components of some rows, or derivatives with respect to them.

    Attributes:
        embedding: the residual stream that enters the first block.
        neurons: ``hook_post``, by layer.
        heads: ``hook_z``, by layer.
    """

    embedding: Float[Tensor, "row pos d_model"]
    neurons: tuple[Float[Tensor, "row pos d_mlp"], ...]
    heads: tuple[Float[Tensor, "row pos n_heads d_head"], ...]

    def map(self, function: Callable[..., Tensor], *others: "ComponentValues") -> "ComponentValues":
        """Return the results of a function of these values and others of the same rows, component by component."""
        results = map(function, self.tensors, *(other.tensors for other in others))
        return ComponentValues.of_tensors(list(results))

    def select(self, rows: Int[Tensor, " chosen"]) -> "ComponentValues":
        """Return the values of some rows."""
        return self.map(lambda value: value[rows])

    def minus(self, other: "ComponentValues") -> "ComponentValues":
        """Return the differences from other values of the same rows."""
        return self.map(torch.sub, other)

    @property
    def tensors(self) -> list[Tensor]:
        """All values: the embedding, the neurons of each layer, the heads of each layer."""
        return [self.embedding, *self.neurons, *self.heads]

    @classmethod
    def of_tensors(cls, tensors: Sequence[Tensor]) -> "ComponentValues":
        """Return what has these `tensors`."""
        n_layers = (len(tensors) - 1) // 2
        return cls(
            embedding=tensors[0],
            neurons=tuple(tensors[1 : 1 + n_layers]),
            heads=tuple(tensors[1 + n_layers :]),
        )


def check_components(host: Host) -> None:
    """Raise unless every layer has the hooks by which neurons and heads are read and set.

    Raises:
        UnsupportedModelError: layers with experts, no attention or none with heads, an encoder-decoder, or a model of
            the older classes of TransformerLens.
    """
    if host.kind == "encoder-decoder" or host.layout.has_experts:
        reason = "is an encoder-decoder" if host.kind == "encoder-decoder" else "has layers with experts"
        raise UnsupportedModelError(
            f"{host.name} {reason}; circuits of neurons and heads need one stack of blocks with one MLP each."
        )
    for layer in range(host.n_layers):
        for hook in (hook_z(layer), f"blocks.{layer}.attn.hook_v", f"blocks.{layer}.mlp.hook_pre"):
            if hook not in host.hook_names:
                raise UnsupportedModelError(
                    f"{host.name} has no hook {hook}; circuits need one on the heads, the values and the "
                    "pre-activations of every layer, as a TransformerBridge of most families has."
                )


def hook_z(layer: int) -> str:
    """Return the name of the hook on the outputs of the heads of ``layer``, before ``W_O``."""
    return f"blocks.{layer}.attn.hook_z"


def component_input_hooks(host: Host, layer: int) -> dict[ComponentInput, str]:
    """Return the names of the hooks on what the neurons and heads of ``layer`` read, by input."""
    stem = f"blocks.{layer}"
    hooks: dict[ComponentInput, str] = {
        "q": f"{stem}.attn.hook_q",
        "k": f"{stem}.attn.hook_k",
        "v": f"{stem}.attn.hook_v",
    }
    if is_gated(host, layer):
        hooks |= {"key": f"{stem}.mlp.in.hook_out", "gate": f"{stem}.mlp.gate.hook_out"}
    else:
        hooks["key"] = f"{stem}.mlp.hook_pre"
    return hooks


def is_gated(host: Host, layer: int) -> bool:
    """Return whether neurons of ``layer`` are ``act(gate) * key`` instead of ``act(key)``."""
    return f"blocks.{layer}.mlp.gate.hook_out" in host.hook_names


def run_components(
    host: Host,
    tokens: Int[Tensor, "row pos"],
    attention_mask: Int[Tensor, "row pos"],
    read_pos: Int[Tensor, " row"],
) -> tuple[ComponentValues, Float[Tensor, "row d_vocab"]]:
    """Return the activations of all components, and the logits at the read position. Cost: a forward pass per row."""
    recorder, names = _Recorder(), _component_hooks(host)
    with torch.no_grad():
        logits = host.logits(tokens, attention_mask, read_pos, recorder.hooks(names, recorder.detached))
    return ComponentValues.of_tensors(recorder.of(names)), logits


def run_with_gradients(
    host: Host,
    tokens: Int[Tensor, "row pos"],
    attention_mask: Int[Tensor, "row pos"],
    read_pos: Int[Tensor, " row"],
    output: Callable[[Float[Tensor, "row d_vocab"]], Float[Tensor, " row"]],
    embedding: Float[Tensor, "row pos d_model"] | None = None,
) -> ComponentValues:
    """Return the gradients of an output of each row with respect to its components.

    Args:
        host: the model.
        tokens: the tokens.
        attention_mask: 1 for tokens, 0 for padding.
        read_pos: the position whose logits the output is of.
        output: from logits to one number for each row.
        embedding: what enters the first block instead of the embeddings of the tokens.

    Cost: a forward and a backward pass per row.
    """
    recorder = _Recorder()
    first, *others = _component_hooks(host)
    entered = recorder.leaf(first)

    def start(value: Tensor, hook: object) -> Tensor | None:
        return entered(value if embedding is None else embedding, hook)

    hooks: list[tuple[str, HookFn]] = [(first, start), *recorder.hooks(others, recorder.on_path)]
    with torch.enable_grad():
        value = output(host.logits(tokens, attention_mask, read_pos, hooks))
        gradients = torch.autograd.grad(value.sum(), recorder.of([first, *others]))
    return ComponentValues.of_tensors(gradients)


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearizedPass:
    """A clean pass with its norms held, in which every activation of a component is a leaf.

    Attributes:
        host: the model.
        read_pos: the position whose logits are kept.
        values: the activations.
        inputs: what neurons and heads read, by layer and input: ``[row, pos, d_mlp]`` and ``[row, pos, head, d_head]``.
        outputs: the activations as neurons and heads compute them from their inputs, equal to ``values``.
        resid_pre: the residual stream that enters each block.
        attn_out: the output of ``W_O`` of each block.
        patterns: the attention patterns of each block.
        logits: at the read position.
        final_norm: the map that the final norm is, held; None where the last norm of the pass stands in a block.
    """

    host: Host
    read_pos: Int[Tensor, " row"]
    values: ComponentValues
    inputs: Mapping[tuple[int, ComponentInput], Tensor]
    outputs: ComponentValues
    resid_pre: tuple[Float[Tensor, "row pos d_model"], ...]
    attn_out: tuple[Float[Tensor, "row pos d_model"], ...]
    patterns: tuple[Float[Tensor, "row n_heads pos key_pos"], ...]
    logits: Float[Tensor, "row d_vocab"]
    final_norm: "HeldNorm | None"

    def derivatives(self, target: Float[Tensor, ""]) -> ComponentValues:
        """Return the derivatives of a target by the direct paths: of a number made linearly of inputs or logits.

        Components that have no direct path to it get 0. Cost: the direct paths, backward; no component is run.
        """
        leaves = self.values.tensors
        found = torch.autograd.grad(target, leaves, retain_graph=True, allow_unused=True)
        gradients = []
        for leaf, gradient in zip(leaves, found, strict=True):
            gradients.append(torch.zeros_like(leaf) if gradient is None else gradient)
        return ComponentValues.of_tensors(gradients)

    def stream_part(self, target: Float[Tensor, ""], layer: int) -> Float[Tensor, ""]:
        """Return what the residual stream that the neurons or heads of ``layer`` read gives to one input of theirs.

        The rest of the input are the biases of the norm and of the map behind it. ``target`` is an entry of ``inputs``.
        """
        streams = [self.resid_pre[layer], self.attn_out[layer]]
        total = target.new_zeros(())
        for stream, gradient in zip(
            streams, torch.autograd.grad(target, streams, retain_graph=True, allow_unused=True), strict=True
        ):
            if gradient is not None:
                total = total + (stream.detach() * gradient).sum()
        return total

    def read_logits(
        self, vectors: Float[Tensor, "vector d_model"], rows: Int[Tensor, " vector"]
    ) -> Float[Tensor, "vector d_vocab"]:
        """Return the logits of residual streams, each read through the final norm as it is held for a row.

        Raises:
            UnsupportedModelError: the model has no norm after its blocks.
        """
        if self.final_norm is None:
            raise UnsupportedModelError(
                f"{self.host.name} has no norm between its blocks and the unembedding; value vectors are read through "
                "it. Take a causal model with a final norm."
            )
        held = self.final_norm.at(rows, self.read_pos[rows])
        with override_forwards({held.module: held}):
            return self.host.unembed(vectors)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldNorm:
    """The linear map that a norm is with its scale held.

    Attributes:
        module: the norm.
        factor: weights over scale, for each row and position.
        bias: what is added to the product.
        centres: whether the mean is subtracted first.
    """

    module: Any
    factor: Float[Tensor, "... d_model"]
    bias: Float[Tensor, "... d_model"]
    centres: bool

    def at(self, rows: Int[Tensor, " vector"], read_pos: Int[Tensor, " vector"]) -> "HeldNorm":
        """Return the map at one position of each of some rows, for vectors ``[vector, 1, d_model]``."""
        return HeldNorm(
            module=self.module,
            factor=self.factor[rows, read_pos][:, None],
            bias=self.bias,
            centres=self.centres,
        )

    def __call__(self, value: Float[Tensor, "... d_model"], *args: object, **kwargs: object) -> Tensor:
        """Return the output for residual streams."""
        return _centred(value, self.centres) * self.factor + self.bias


def run_linearized(
    host: Host,
    tokens: Int[Tensor, "row pos"],
    attention_mask: Int[Tensor, "row pos"],
    read_pos: Int[Tensor, " row"],
    *,
    hold_means: bool = False,
) -> LinearizedPass:
    """Run a pass with its norms held, which keeps what derivatives by direct paths need.

    Args:
        host: the model.
        tokens: the tokens.
        attention_mask: 1 for tokens, 0 for padding.
        read_pos: the position whose logits are kept.
        hold_means: hold the means that layer norms subtract, too, so that contributions are not centred.

    Raises:
        UnsupportedModelError: a norm that is not a scale, weights and a bias, or one that TransformerLens does not
            wrap.

    Cost: a forward pass per row. Memory: the activations of all layers.
    """
    check_norms(host)
    recorder = _Recorder()
    input_hooks: dict[tuple[int, ComponentInput], str] = {}
    resid_pre: list[str] = []
    attn_out: list[str] = []
    patterns: list[str] = []
    for layer in range(host.n_layers):
        for which, name in component_input_hooks(host, layer).items():
            input_hooks[layer, which] = name
        resid_pre.append(host.resid_pre(layer))
        attn_out.append(f"blocks.{layer}.attn.o.hook_out")
        patterns.append(f"blocks.{layer}.attn.hook_pattern")
    names = _component_hooks(host)
    on_path = [*input_hooks.values(), *resid_pre[1:], *attn_out]
    hooks = recorder.hooks(names, recorder.leaf)
    hooks += recorder.hooks(on_path, recorder.on_path)
    hooks += recorder.hooks(patterns, recorder.detached)
    held: list[HeldNorm] = []
    norms: dict[Any, Callable[..., Tensor]] = {}
    for norm in norm_bridges(modules_of(host.model)):
        norms[norm] = _held(host, norm, hold_means, held)
    with torch.enable_grad(), override_forwards(norms):
        logits = host.logits(tokens, attention_mask, read_pos, hooks)
    in_blocks = set(host.blocks.modules())
    return LinearizedPass(
        host=host,
        read_pos=read_pos,
        values=ComponentValues.of_tensors(recorder.of(names)),
        inputs=dict(zip(input_hooks, recorder.of(input_hooks.values()), strict=True)),
        outputs=ComponentValues.of_tensors([recorder.computed[name] for name in names]),
        resid_pre=recorder.of(resid_pre),
        attn_out=recorder.of(attn_out),
        patterns=recorder.of(patterns),
        logits=logits,
        final_norm=None if held[-1].module in in_blocks else held[-1],
    )


def check_norms(host: Host) -> None:
    """Raise unless every norm of the blocks is one that can be held.

    Raises:
        UnsupportedModelError: TransformerLens does not wrap a norm.
    """
    wrapped: set[nn.Module] = set()
    for norm in norm_bridges(modules_of(host.model)):
        wrapped.update(norm.modules())
    for block in host.blocks:
        for path, module in block.named_modules():
            is_norm = "norm" in type(module).__name__.lower() and not list(module.children())
            if is_norm and module not in wrapped:
                raise UnsupportedModelError(
                    f"{host.name}: TransformerLens does not wrap the norm {path!r} ({type(module).__name__}), which "
                    "direct effects need to hold. Load the model with kn_lens.load_model, or use scores by gradients."
                )


def _component_hooks(host: Host) -> list[str]:
    """Return the names of the hooks on components, in the order of `ComponentValues.tensors`."""
    layers = range(host.n_layers)
    return [host.resid_pre(0), *map(host.hook_post, layers), *map(hook_z, layers)]


class _Recorder:
    """Values at hooks, by name, kept as they pass.

    Attributes:
        values: what is passed on.
        computed: what arrives, where leaves are passed on in its place.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.computed: dict[str, Tensor] = {}

    def hooks(self, names: Iterable[str], hook_of: Callable[[str], HookFn]) -> list[tuple[str, HookFn]]:
        """Return a hook for each name."""
        return [(name, hook_of(name)) for name in names]

    def of(self, names: Iterable[str]) -> tuple[Tensor, ...]:
        """Return what was passed on at some hooks."""
        return tuple(map(self.values.__getitem__, names))

    def detached(self, name: str) -> HookFn:
        """Return a hook that keeps the value without its gradient, and changes nothing."""

        def hook_fn(value: Tensor, hook: object) -> None:
            self.values[name] = value.detach()

        return hook_fn

    def on_path(self, name: str) -> HookFn:
        """Return a hook that keeps the value that is passed on: some hooks see another form of it."""

        def hook_fn(value: Tensor, hook: object) -> Tensor:
            self.values[name] = value
            return value

        return hook_fn

    def leaf(self, name: str) -> HookFn:
        """Return a hook that passes a leaf on in the place of the value, and keeps both."""

        def hook_fn(value: Tensor, hook: object) -> Tensor:
            self.computed[name] = value
            self.values[name] = value.detach().requires_grad_()
            return self.values[name].clone()  # some blocks add in place

        return hook_fn


def _held(host: Host, norm: Any, hold_means: bool, found: list[HeldNorm]) -> Callable[..., Tensor]:
    """Return the forward of a norm with its scale held: the same values, and the derivative of a linear map.

    With ``m`` the input, centred where the norm centres, the output is ``m * weight / scale + bias``. The weight and
    the bias are read off the outputs for two probes; the scale is fitted to the output. The maps are added to ``found``
    in the order of the calls.
    """
    forward = norm.forward

    def held(value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            output = forward(value, *args, **kwargs)
            constant = torch.full_like(value[(slice(1),) * (value.ndim - 1)], PROBE_SIZE)
            bias = forward(torch.zeros_like(constant), *args, **kwargs)
            centres = bool((forward(constant, *args, **kwargs) - bias).norm() <= 1e-3 * output.norm())
            probe = constant.clone()
            probe[..., 1::2] *= -1
            moved = _centred(probe, centres)
            weight = (forward(probe, *args, **kwargs) - bias) / moved * moved.square().mean().sqrt()
            expected = _centred(value, centres) * weight
            scaled = output - bias
            product = (scaled * expected).sum(-1, keepdim=True)
            inverse_scale = product / expected.square().sum(-1, keepdim=True).clamp_min(torch.finfo(value.dtype).tiny)
            factor = inverse_scale * weight
            distance = (scaled - _centred(value, centres) * factor).norm()
        # Norms of transformers compute in float32, also those of models in float64.
        eps = max(torch.finfo(value.dtype).eps, torch.finfo(torch.float32).eps)
        limit = ROUNDING * eps * value.shape[-1] ** 0.5
        if not bool(distance <= limit * output.norm()):
            raise UnsupportedModelError(
                f"{host.name}: the norm {type(norm.original_component).__name__} is not a scale, weights and a bias, "
                "so that direct effects are not defined. Use scores by gradients."
            )
        found.append(HeldNorm(module=norm, factor=factor, bias=bias, centres=centres))
        if centres:
            mean = value.mean(-1, keepdim=True)
            value = value - (mean.detach() if hold_means else mean)
        linear = value * factor + bias
        return linear + (output - linear).detach()  # equal to the norm's output to the bit

    return held


def _centred(value: Float[Tensor, "... d"], centres: bool) -> Float[Tensor, "... d"]:
    return value - value.mean(-1, keepdim=True) if centres else value
