"""Components of Hugging Face models, by PyTorch's own hooks alone: an oracle that shares nothing with the library."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PATHS = {
    "GPT2LMHeadModel": {
        "block": "transformer.h.{}",
        "mlp_out": "mlp.c_proj",
        "attn_out": "attn.c_proj",
        "key": "mlp.c_fc",
    },
    "GPTNeoXForCausalLM": {
        "block": "gpt_neox.layers.{}",
        "mlp_out": "mlp.dense_4h_to_h",
        "attn_out": "attention.dense",
        "key": "mlp.dense_h_to_4h",
    },
    "BertForMaskedLM": {
        "block": "bert.encoder.layer.{}",
        "mlp_out": "output.dense",
        "attn_out": "attention.output.dense",
        "key": "intermediate.dense",
        "v": "attention.self.value",
        "q": "attention.self.query",
    },
    **{
        f"{name}ForCausalLM": {
            "block": "model.layers.{}",
            "mlp_out": "mlp.down_proj",
            "attn_out": "self_attn.o_proj",
            "key": "mlp.up_proj",
            "gate": "mlp.gate_proj",
            "v": "self_attn.v_proj",
            "q": "self_attn.q_proj",
            "k": "self_attn.k_proj",
        }
        for name in ("Llama", "Qwen2", "Gemma2")
    },
}


@dataclass(frozen=True, kw_only=True)
class HFComponents:
    """A Hugging Face model whose components can be set while its norms are held.

    Attributes:
        model: the model.
        architecture: its class.
        n_layers: number of blocks.
    """

    model: Any
    architecture: str
    n_layers: int

    def module(self, layer: int, name: str) -> nn.Module:
        """Return a module of a block, by what it computes."""
        paths = PATHS[self.architecture]
        return self.model.get_submodule(f"{paths['block'].format(layer)}.{paths[name]}")

    def norms(self) -> list[nn.Module]:
        """Return all norms."""
        return [m for m in self.model.modules() if isinstance(m, nn.LayerNorm) or "RMSNorm" in type(m).__name__]

    def clean(self, tokens: Tensor) -> tuple[dict[Any, Tensor], Tensor]:
        """Return the inputs and outputs of all modules that matter, and the logits."""
        found: dict[Any, Tensor] = {}
        handles = []
        for module in self.model.modules():

            def keep(module: nn.Module, args: Any, output: Any) -> None:
                if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                    found[module, "in"], found[module, "out"] = args[0], output

            handles.append(module.register_forward_hook(keep))
        with torch.no_grad():
            logits = self.model(tokens).logits
        for handle in handles:
            handle.remove()
        return found, logits

    def held(
        self,
        tokens: Tensor,
        change: Callable[[int, str, Tensor], Tensor],
        embedding: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[dict[Any, Tensor], Tensor]:
        """Run with norms held, and every component at its clean activation after a change of it.

        Args:
            tokens: the tokens.
            change: from layer, ``mlp_out`` or ``attn_out``, and the clean activations, to those that are set.
            embedding: from what enters the first block to what is set.
        """
        clean, _ = self.clean(tokens)
        handles = []
        for layer in range(self.n_layers):
            for name in ("mlp_out", "attn_out"):
                module = self.module(layer, name)
                value = change(layer, name, clean[module, "in"].clone())
                handles.append(module.register_forward_pre_hook(lambda m, args, value=value: (value, *args[1:])))
        for norm in self.norms():
            if (norm, "in") not in clean:
                continue
            entered, left = clean[norm, "in"], clean[norm, "out"]

            def hold(module: Any, args: Any, output: Tensor, entered: Tensor = entered, left: Tensor = left) -> Tensor:
                moved = args[0] - entered
                eps = getattr(module, "variance_epsilon", None) or module.eps
                if isinstance(module, nn.LayerNorm):
                    moved = moved - moved.mean(-1, keepdim=True)
                    scale = (entered.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
                else:
                    scale = (entered.square().mean(-1, keepdim=True) + eps).sqrt()
                weight = 1 + module.weight if "Gemma" in type(module).__name__ else module.weight
                return left + moved * weight / scale

            handles.append(norm.register_forward_hook(hold))
        if embedding is not None:
            block = self.model.get_submodule(PATHS[self.architecture]["block"].format(0))

            def start(module: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
                return (embedding(args[0]), *args[1:]), kwargs

            handles.append(block.register_forward_pre_hook(start, with_kwargs=True))
        try:
            return self.clean(tokens)
        finally:
            for handle in handles:
                handle.remove()
