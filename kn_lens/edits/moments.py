"""Second moments of what enters ``W_out``: which directions of its input texts use, and how much.

    C = E[k k^T]        k: the activations of a layer at one token of the texts, [d_mlp]; the mean is not subtracted

An edit of a whole ``W_out`` changes its output for every token by ``k @ change``. ROME, MEMIT and AlphaEdit choose the
change that does what they want at a few tokens and least at those of texts, and C is all that they know of texts (Meng
et al. 2022, section 3.1). The published statistics are of 100,000 articles of Wikipedia. With fewer tokens than a layer
has neurons, C has directions without any weight, in which these editors then change what they like.

Cost of computing: a forward pass of each text up to the highest layer. Memory: a matrix ``[d_mlp, d_mlp]`` of float32
(of float64 for models in float64) for each layer: 9 MB for 1,536 neurons, 822 MB for 14,336.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.atomic import part_folder, replace_durably
from kn_lens._core.checks import check_kind, check_path, wrong_kind
from kn_lens._core.precision import at_least_float32
from kn_lens._core.progress import draws_progress
from kn_lens._core.wording import counted
from kn_lens.edits.editors import check_causal, checked_layers, default_layers
from kn_lens.edits.files import canonical, digest_of
from kn_lens.errors import ArgumentError, DataError, EditError
from kn_lens.facts import FactSet
from kn_lens.hosts import (
    Budget,
    HookedModel,
    HookFn,
    Host,
    ModelIdentity,
    checked_host,
    exclusive,
    fingerprint,
    host_of,
)
from kn_lens.interventions import Progress, Ticks

FORMAT = "kn_lens.moments"
VERSION = 1
_ENTRY = "kn_lens"

WINDOW = 256
"""Tokens of the longest pass. A longer text is cut into windows of this length, each read by itself."""

TEXTS_AT_ONCE = 512
"""Texts whose tokens are in memory together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SecondMoments:
    """Uncentred second moments of the activations of some layers over the tokens of texts; ``second_moments`` makes it.

    Attributes:
        by_layer: C of each layer, on the CPU.
        n_tokens: the number of tokens that the mean is over.
        n_texts: the number of texts.
        texts: SHA-256 of the texts.
        model: the model whose activations they are.
        version: the version of kn_lens that computed them.

    Raises:
        ArgumentError: no layers, or matrices that are not square, of one size and finite.
    """

    by_layer: Mapping[int, Float[Tensor, "d_mlp d_mlp"]]
    n_tokens: int
    n_texts: int
    texts: str
    model: ModelIdentity
    version: str
    _factors: dict[tuple[int, float], Tensor] = field(default_factory=dict, init=False, repr=False)
    _eigen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        shapes = {tuple(moments.shape) for moments in self.by_layer.values()}
        if len(shapes) != 1 or len(set(next(iter(shapes)))) != 1:
            raise ArgumentError(f"The second moments have the shapes {sorted(shapes)}; expected [d_mlp, d_mlp].")
        for layer, moments in self.by_layer.items():
            if not moments.isfinite().all():
                raise ArgumentError(
                    f"The second moments of layer {layer} are not finite in {moments.dtype}; expected numbers. "
                    "A model loaded with a wider dtype keeps them finite."
                )

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers, in order."""
        return tuple(sorted(self.by_layer))

    @property
    def d_mlp(self) -> int:
        """The number of neurons of a layer."""
        return len(self.by_layer[self.layers[0]])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the matrices and of what they were computed from."""
        return digest_of(self._tensors(), self._provenance())

    def check_for(self, model: HookedModel | Host, layers: Sequence[int]) -> None:
        """Raise unless they are moments of such a model and of these layers.

        Weights may differ: after an edit, the moments of the unedited model are those that editors take.

        Raises:
            EditError: with the call that computes them.
        """
        host = host_of(model)
        own = (self.model.architecture, self.model.n_layers, self.model.d_mlp, self.model.d_model)
        expected = (host.architecture, host.n_layers, host.d_mlp, host.d_model)
        if own != expected:
            raise EditError(
                f"The second moments are of {self.model.name} ({_shape_text(*own)}); "
                f"{host.name} has {_shape_text(*expected)}. Compute its own: second_moments(model, texts)."
            )
        missing = [layer for layer in layers if layer not in self.by_layer]
        if missing:
            raise EditError(
                f"There are second moments of the layers {list(self.layers)}, and layer {missing[0]} is to be edited. "
                f"Compute them too: second_moments(model, texts, layers={sorted({*self.layers, *layers})})."
            )

    # --- linear algebra, in float64 ---------------------------------------------------------------------

    def solve(
        self,
        layer: int,
        keys: Float[Tensor, "d_mlp key"],
        *,
        ridge: float = 0.0,
    ) -> Float[Tensor, "d_mlp key"]:
        """Return ``(C + ridge * median(diag C) * I)^-1 keys``, in float64. A layer's factor is kept for the next call.

        The median, because in many layers of large models a few neurons are a thousand times as active as all others.

        Raises:
            EditError: the matrix has no inverse: some direction has no weight in the texts, and there is no ridge.
        """
        known = self._factors.get((layer, ridge))
        if known is None:
            moments = self.by_layer[layer].to(keys.device, torch.float64)
            strength = ridge * moments.diagonal().median()
            moments = moments + strength * torch.eye(len(moments), dtype=torch.float64, device=keys.device)
            factor, failed = torch.linalg.cholesky_ex(moments)
            if int(failed):
                raise EditError(
                    f"The second moments of layer {layer} have no inverse: {counted(self.n_tokens, 'token')} of texts "
                    f"do not use every direction of {self.d_mlp} neurons. "
                    "Compute them from more texts, or pass a ridge, such as ridge=0.01."
                )
            known = self._factors[layer, ridge] = factor.cpu()
        return torch.cholesky_solve(keys.double(), known.to(keys.device))

    def null_space(
        self, layer: int, threshold: float, device: torch.device | None = None
    ) -> Float[Tensor, "d_mlp direction"]:
        """Return the directions that texts hardly use: eigenvectors of C with small eigenvalues, in float64.

        Args:
            layer: one of the layers.
            threshold: the largest eigenvalue: the mean square of what texts put into a direction.
            device: where they are computed; the CPU unless given. They are kept for the next call.
        """
        if layer not in self._eigen:
            moments = self.by_layer[layer].to(device or "cpu", torch.float64)
            values, vectors = torch.linalg.eigh(moments)
            self._eigen[layer] = values.cpu(), vectors.cpu()
        values, vectors = self._eigen[layer]
        return vectors[:, values < threshold]

    # --- files ------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the moments to a safetensors file, which appears whole or not at all.

        Raises:
            ArgumentError: another kind of argument than a path.
            DataError: the file cannot be written.
        """
        from safetensors.torch import save_file

        check_path(path)
        path = Path(path)
        header = {"format": FORMAT, "version": VERSION, **self._provenance(), "digest": self.digest}
        try:
            with part_folder(path.parent) as part:
                save_file(self._tensors(), part / "moments", {_ENTRY: canonical(header)})
                replace_durably(part / "moments", path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path} cannot be written: {reason}.") from error

    @classmethod
    def load(cls, path: str | Path) -> "SecondMoments":
        """Read a file written by `save`; the moments have the same bits.

        Raises:
            ArgumentError: another kind of argument than a path.
            DataError: no such file, another format, or changed after it was written.
        """
        from safetensors import safe_open

        check_path(path)
        path = Path(path)
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_ENTRY])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        except Exception as error:  # safetensors raises many types for damaged files
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(
                f"{path} cannot be read as second moments; expected a file written by SecondMoments.save: {reason}."
            ) from error
        try:
            digest, form = header.pop("digest"), (header.pop("format"), header.pop("version"))
            if form != (FORMAT, VERSION):
                raise ValueError(f"its format is {form}; this version of kn_lens reads {(FORMAT, VERSION)}")
            if digest != digest_of(tensors, header):
                raise ValueError("its contents do not have the digest that it names: it was damaged or changed")
            return cls(
                by_layer={int(name): moments for name, moments in tensors.items()},
                n_tokens=header["n_tokens"],
                n_texts=header["n_texts"],
                texts=header["texts"],
                model=ModelIdentity(**header["model"]),
                version=header["kn_lens"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} holds no second moments to be used: {error}. Compute them again.") from error

    def _tensors(self) -> dict[str, Tensor]:
        return {str(layer): self.by_layer[layer].contiguous() for layer in self.layers}

    def _provenance(self) -> dict[str, Any]:
        return {
            "n_tokens": self.n_tokens,
            "n_texts": self.n_texts,
            "texts": self.texts,
            "model": asdict(self.model),
            "kn_lens": self.version,
        }

    def __repr__(self) -> str:
        return (
            f"SecondMoments(layers {', '.join(map(str, self.layers))} of {self.model.name}, "
            f"{counted(self.n_texts, 'text')}, {counted(self.n_tokens, 'token')}, {self.digest[:8]})"
        )


@exclusive
@draws_progress("Computing second moments", "texts")
def second_moments(
    model: HookedModel | Host,
    texts: Iterable[str] | None = None,
    *,
    layers: Sequence[int] | None = None,
    cache: str | Path | None = None,
    tokenizer: Any = None,
    memory_budget: float | None = None,
    progress: Progress | bool | None = None,
) -> SecondMoments:
    """Compute the second moments of the activations of layers over texts: what ROME, MEMIT and AlphaEdit spare.

    Every token counts the same, those that the tokenizer adds included. Texts of more than 256 tokens are cut into
    windows of this length; no token is left out.

    Args:
        model: a TransformerLens model in evaluation mode; it is left as it was.
        texts: any texts, the more and the more varied the better: some 100 tokens a neuron are plenty, one is little.
            None takes a stated sample: each embedded fact as a sentence, in one of its templates in turn. It is small
            and of one kind, and meant for first trials.
        layers: the layers; None takes those that the editors edit by default.
        cache: a folder. The moments are kept there under a name that stands for the weights of the model, the texts,
            the tokenizer, the layers and the version of kn_lens, and read from there when all of these are the same.
            Not used while hooks of yours are on the model, or with a slow tokenizer: nothing tells these apart.
        tokenizer: the tokenizer to use instead of the model's own.
        memory_budget: bytes of memory for passes; see ``attribute``.
        progress: True draws a bar, on a terminal or in a notebook; or a function, called with (done, total), counted in
            texts.

    Returns:
        The moments. Cost: a forward pass of each text, up to the highest of the layers.

    Raises:
        ArgumentError: no texts, or something else than texts; a layer that the model does not have.
        UnsupportedModelError: a model that is not causal, or a layer with experts.
        EditError: a model without a tokenizer.
        DataError: the file in the cache is damaged, or the folder cannot be written.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> moments = kn.second_moments(model, ["Dublin is the capital of Ireland.", "Tea is from China."], layers=[1])
        >>> moments.by_layer[1].shape, moments.n_texts
        (torch.Size([512, 512]), 2)
    """
    from kn_lens import __version__

    host = checked_host(model)
    if texts is not None:
        texts = _checked_texts(texts)
    check_causal(host, "Second moments")
    chosen = default_layers(host) if layers is None else checked_layers(host, layers)
    texts = world_sentences() if texts is None else list(texts)
    tokenizer = host.tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        raise EditError(f"{host.name} has no tokenizer to read texts with; pass tokenizer=.")
    identity = ModelIdentity.of(host)
    texts_digest = hashlib.sha256(canonical(texts).encode()).hexdigest()
    path = None
    if cache is not None:
        check_path(cache, "cache")
    tokenizer_digest = fingerprint(tokenizer)
    if cache is not None and tokenizer_digest is not None and not host.has_user_hooks:
        key = {
            "model": asdict(identity) | {"name": ""},
            "texts": texts_digest,
            "tokenizer": tokenizer_digest,
            "layers": chosen,
            "kn_lens": __version__,
            "window": WINDOW,
        }
        path = Path(cache) / f"moments-{digest_of({}, key)[:20]}.safetensors"
        if path.exists():
            return SecondMoments.load(path)
    sums, n_tokens = _sums(host, texts, chosen, tokenizer, Budget.of(host, memory_budget), Ticks(progress, len(texts)))
    moments = SecondMoments(
        by_layer={layer: (total / n_tokens).cpu() for layer, total in sums.items()},
        n_tokens=n_tokens,
        n_texts=len(texts),
        texts=texts_digest,
        model=identity,
        version=__version__,
    )
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"The folder {path.parent} cannot be made: {error.strerror}.") from error
        moments.save(path)
    return moments


def world_sentences() -> list[str]:
    """Return the stated sample of texts: each embedded fact as a sentence, in one of its templates in turn.

    >>> sentences = world_sentences()
    >>> "[X]" in "".join(sentences) or "[Y]" in "".join(sentences)
    False
    """
    sentences = []
    for number, fact in enumerate(FactSet.world()):
        template = fact.templates[number % len(fact.templates)]
        sentences.append(template.replace("[X]", fact.subject).replace("[Y]", fact.object))
    return sentences


def _sums(
    host: Host,
    texts: Sequence[str],
    layers: Sequence[int],
    tokenizer: Any,
    budget: Budget,
    tick: Ticks,
) -> tuple[dict[int, Float[Tensor, "d_mlp d_mlp"]], int]:
    """Return the sum of ``k k^T`` over all tokens of texts in each layer, and the number of tokens."""
    wide = torch.promote_types(host.dtype, torch.float32)
    sums = {layer: torch.zeros(host.d_mlp, host.d_mlp, dtype=wide, device=host.device) for layer in layers}
    n_tokens = 0
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        group = texts[start : start + TEXTS_AT_ONCE]
        windows = list(_windows(host, tokenizer, group))
        lengths = torch.tensor([len(window) for window in windows])

        def run(chosen: Int[Tensor, " chunk"], windows: list[list[int]] = windows) -> dict[int, Tensor]:
            return _products(host, [windows[number] for number in chosen.tolist()], layers)

        for _, products in budget.map_chunks(torch.ones_like(lengths), lengths, budget.rows_per_pass, run):
            for layer, product in products.items():
                sums[layer] += product
        n_tokens += int(lengths.sum())
        tick(len(group))
    return sums, n_tokens


def _products(
    host: Host,
    windows: Sequence[Sequence[int]],
    layers: Sequence[int],
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """Return the sum of ``k k^T`` over the tokens of one pass in each layer."""
    longest = max(map(len, windows))
    tokens = torch.zeros(len(windows), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, window in enumerate(windows):
        tokens[row, : len(window)] = torch.tensor(window)
        mask[row, : len(window)] = 1
    tokens, mask = tokens.to(host.device), mask.to(host.device)
    products: dict[int, Tensor] = {}

    def record(layer: int) -> HookFn:
        def hook_fn(post: Float[Tensor, "row pos d_mlp"], hook: object = None) -> None:
            keys = at_least_float32(post.detach()[mask.bool()])
            products[layer] = rearrange(keys, "token d_mlp -> d_mlp token") @ keys

        return hook_fn

    hooks = [(host.hook_post(layer), record(layer)) for layer in layers]
    with torch.no_grad(), host.skip_blocks_above(max(layers)):
        host.logits(tokens, mask, torch.zeros_like(tokens[:, 0]), hooks)
    return products


def _windows(host: Host, tokenizer: Any, texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield the tokens of texts, in windows that fit one pass."""
    longest = WINDOW if host.n_ctx is None else min(WINDOW, host.n_ctx)
    for text, ids in zip(texts, tokenizer(list(texts), verbose=False)["input_ids"], strict=True):
        if not ids:
            raise ArgumentError(f"The text {text!r} has no tokens; expected texts that are not empty.")
        if max(ids) >= host.d_vocab:
            raise ArgumentError(
                f"The tokenizer made the id {max(ids)} of the text {text[:60]!r}; {host.name} has {host.d_vocab} "
                "tokens. Pass the tokenizer that belongs to the model with tokenizer=."
            )
        for start in range(0, len(ids), longest):
            yield ids[start : start + longest]


def _checked_texts(texts: Any) -> list[str]:
    if isinstance(texts, str):
        raise wrong_kind(texts, "several texts: ['Dublin is the capital of Ireland.', ...]", "texts")
    check_kind(texts, Iterable, "several texts: ['Dublin is the capital of Ireland.', ...]", "texts")
    texts = list(texts)
    for text in texts:
        check_kind(text, str, "texts alone: ['Dublin is the capital of Ireland.', ...]", "one of the texts")
    if not texts:
        raise ArgumentError("There are no texts; expected at least one, and better some thousand.")
    return texts


def _shape_text(architecture: str | None, n_layers: int | None, d_mlp: int | None, d_model: int | None) -> str:
    return f"{architecture}, {n_layers} layers of {d_mlp} x {d_model}"
