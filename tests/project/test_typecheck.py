"""The type checker of the suite: an inner function is checked at each call of the outer one."""

from dataclasses import dataclass

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float
from torch import Tensor

from kn_lens.hosts import host_of
from tests.tiny import loaded
from tests.typecheck import checked


def row_sums(rows: Tensor, result_axis: int) -> Tensor:
    @checked
    def sums(rows: Float[Tensor, "row column"]) -> Float[Tensor, " row"]:
        return rows.sum(result_axis)

    return sums(rows)


def test_shapes_of_an_inner_function_are_checked_at_every_call():
    rows = torch.ones(2, 3)
    for _ in range(2):
        assert row_sums(rows, result_axis=1).shape == (2,)
        with pytest.raises(BeartypeCallHintReturnViolation, match="sums"):
            row_sums(rows, result_axis=0)
        with pytest.raises(BeartypeCallHintParamViolation, match="parameter rows"):
            row_sums(rows[0], result_axis=0)


def test_the_name_of_an_axis_stands_for_one_size():
    @checked
    def joined(one: Float[Tensor, " row"], *others: Float[Tensor, " row"], scale: "float" = 1) -> Tensor:
        return torch.stack([one, *others]) * scale

    assert joined(torch.ones(2), torch.ones(2), scale=2).sum() == 8
    assert joined(torch.ones(3)).sum() == 3
    with pytest.raises(BeartypeCallHintParamViolation):
        joined(torch.ones(2), torch.ones(3))
    with pytest.raises(BeartypeCallHintParamViolation, match="scale"):
        joined(torch.ones(2), scale="2")


def test_fields_of_a_dataclass_are_checked():
    @checked
    @dataclass(frozen=True)
    class Rows:
        rows: Float[Tensor, "row column"]
        count: int = 0

    assert Rows(torch.ones(2, 3)).count == 0
    with pytest.raises(BeartypeCallHintParamViolation, match="count"):
        Rows(torch.ones(2, 3), count="2")


def test_the_suite_checks_calls_of_the_library():
    host = host_of(loaded())
    with pytest.raises(BeartypeCallHintParamViolation, match="layer"):
        host.resid_post("0")
    with pytest.raises(BeartypeCallHintParamViolation, match="tokens"):
        host.kv_prefix(torch.ones(3, dtype=torch.long))
