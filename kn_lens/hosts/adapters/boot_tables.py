"""What `TransformerBridge.boot_transformers` needs beside the registry of adapters.

TransformerLens 3.9 to 4.3 looks a class up in a table of its own before it loads entry points, and takes a class that a
second table does not list for a causal model. An adapter adds its classes to both tables when it is imported, so that
``boot_transformers`` takes them from then on. With a TransformerLens that asks its registry this module can go.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.utilities.architectures import MASKED_LM_ARCHITECTURES

Adapter = TypeVar("Adapter", bound=type[Any])


def boots_masked(*architectures: str) -> Callable[[Adapter], Adapter]:
    """Return a decorator that lists an adapter for classes of masked language models."""

    def list_adapter(adapter: Adapter) -> Adapter:
        for architecture in architectures:
            SUPPORTED_ARCHITECTURES.setdefault(architecture, adapter)
            MASKED_LM_ARCHITECTURES.add(architecture)
        return adapter

    return list_adapter
