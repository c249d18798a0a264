"""The modules and weights of a model, each once.

``nn.Module.modules`` is a generator at each depth, which passes on what those below it yield: for a model of 2,000
modules that takes several milliseconds. Every call of the library looks at each module, so it walks the tree here,
with a stack, once for all its checks.
"""

from collections.abc import Iterable

from torch import nn


def modules_of(*roots: nn.Module) -> list[nn.Module]:
    """Return modules and all those below them, each once, in the order of ``nn.Module.modules``."""
    found: dict[nn.Module, None] = {}
    ahead: list[nn.Module | None] = list(reversed(roots))
    while ahead:
        module = ahead.pop()
        if module is None or module in found:  # a module may hold None in the place of one that it lacks
            continue
        found[module] = None
        ahead.extend(reversed(module._modules.values()))
    return list(found)


def weights_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the weights that modules hold themselves, each once; of `modules_of`, as ``nn.Module.parameters`` does."""
    found: dict[nn.Parameter, None] = {}
    for module in modules:
        for weight in module._parameters.values():
            if weight is not None:
                found[weight] = None
    return list(found)
