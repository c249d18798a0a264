"""The precision of products is that of the chosen type, inside a block alone."""

import pytest
import torch

from kn_lens._core.names import DTYPES
from kn_lens._core.precision import dtype_name, product_precision, weight_dtype


def test_every_type_has_weights_and_its_own_name():
    for name in DTYPES:
        with product_precision(name):
            assert dtype_name(weight_dtype(name)) == name
        assert torch.get_float32_matmul_precision() == "highest"


def test_the_precision_of_before_is_back_after_an_error():
    with pytest.raises(KeyError), product_precision("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"
