"""The precision of numbers: in which sums and logarithms can be taken, and in which products are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens._core.names import TF32


def at_least_float32(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return half-precision values as float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def weight_dtype(name: str) -> torch.dtype:
    """Return the type of weights for one of ``DTYPES``.

    >>> weight_dtype("tf32"), weight_dtype("bfloat16")
    (torch.float32, torch.bfloat16)
    """
    return torch.float32 if name == TF32 else getattr(torch, name)


@contextmanager
def product_precision(name: str) -> Iterator[None]:
    """Take products of float32 in TF32 inside the block if that is the type, and as before after it.

    It concerns NVIDIA GPUs: elsewhere such products are taken in float32.

    Args:
        name: one of ``DTYPES``.
    """
    before = torch.get_float32_matmul_precision()
    if name == TF32:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name among ``DTYPES`` of the type of weights, as products of them are taken now.

    >>> dtype_name(torch.float32), dtype_name(torch.bfloat16)
    ('float32', 'bfloat16')
    """
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return TF32
    return str(dtype).removeprefix("torch.")
