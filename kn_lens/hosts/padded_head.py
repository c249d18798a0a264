"""The unembedding with a padded width: a product with 50,257 columns takes a far slower kernel than one with 50,304."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

COLUMNS = 64
"""Widths that are multiples of this take the fast kernels of a GPU."""


@dataclass(frozen=True, kw_only=True)
class PaddedHead:
    """A copy of an unembedding with columns of zeros after the last token, made for the passes over one clean state.

    Attributes:
        module: the linear map that it stands for.
        weight: with the padding.
        bias: with the padding; None where there is none.
    """

    module: nn.Linear
    weight: Float[Tensor, "padded_vocab d_model"]
    bias: Float[Tensor, " padded_vocab"] | None

    @classmethod
    def of(cls, module: Any) -> "PaddedHead | None":
        """Return the padded copy, or None where the width needs no padding or the module is no plain linear map."""
        if type(module) is not nn.Linear or module.out_features % COLUMNS == 0:
            return None
        n_more = -module.out_features % COLUMNS
        bias = None if module.bias is None else nn.functional.pad(module.bias.detach(), (0, n_more))
        weight = nn.functional.pad(module.weight.detach(), (0, 0, 0, n_more))
        return cls(module=module, weight=weight, bias=bias)

    def forward(self, resid: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_vocab"]:
        """Return what the module does."""
        return nn.functional.linear(resid, self.weight, self.bias)[..., : self.module.out_features]


def pays_off(device: torch.device) -> bool:
    """Return whether padding makes products faster: it does on a GPU of NVIDIA, and makes no difference on a CPU."""
    return device.type == "cuda"
