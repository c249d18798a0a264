"""The type checker of the suite: an inner function is checked at each call of the outer one."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from tests.typecheck import checked


def row_sums(rows: Tensor, result_axis: int) -> Tensor:
    @jaxtyped(typechecker=checked)
    def sums(rows: Float[Tensor, "row column"]) -> Float[Tensor, " row"]:
        return rows.sum(result_axis)

    return sums(rows)


def test_shapes_of_an_inner_function_are_checked_at_every_call():
    rows = torch.ones(2, 3)
    for _ in range(2):
        assert row_sums(rows, result_axis=1).shape == (2,)
        with pytest.raises(TypeCheckError, match="checking the return value"):
            row_sums(rows, result_axis=0)
        with pytest.raises(TypeCheckError, match="checking the parameters"):
            row_sums(rows[0], result_axis=0)
