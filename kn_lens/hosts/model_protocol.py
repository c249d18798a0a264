"""The interface that kn_lens needs of a user's TransformerLens model, and the types of hook functions."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

HookFn = Callable[..., Tensor | None]
"""A TransformerLens hook: called with an activation and ``hook=``; returns its replacement, or None to keep it."""

PostFn = Callable[[Float[Tensor, "row pos d_mlp"]], Float[Tensor, "row pos d_mlp"]]
"""A function of the activations of one layer, which returns those that go into ``W_out``."""


@runtime_checkable
class HookedModel(Protocol):
    """A TransformerLens model: a ``TransformerBridge``, a ``HookedTransformer`` or a ``HookedEncoder``.

    Every public function takes one, as ``load_model`` returns it or as the user made it. `host_of` checks the rest:
    which checkpoint is wrapped, and whether its MLPs have the rows of ``W_out`` that neurons are. The members are typed
    loosely, because the three classes and the releases of TransformerLens differ in their signatures.

    >>> import kn_lens as kn
    >>> isinstance(kn.load_model("world-bert"), HookedModel)
    True
    """

    # A read-only property, so that a class may have a configuration of any type.
    @property
    def cfg(self) -> Any:
        """The configuration of TransformerLens."""
        ...

    @property
    def hook_dict(self) -> Any:
        """The hook points by name, aliases included."""
        ...

    def hooks(self, *args: Any, **kwargs: Any) -> Any:
        """Return a context in which ``fwd_hooks`` and ``bwd_hooks`` are on the model."""
        ...

    def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result of one forward pass with hooks."""
        ...

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result of one forward pass and its activations by hook name."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the logits of tokens."""
        ...
