"""The check of a host: its logits beside those that transformers computes.

TransformerLens computes attention, norms and positions of many families in code of its own. Where that code misses a
setting of a checkpoint it computes another model, and nothing fails: every score would be of that other model.

The logits of a few tokens are compared, from full passes and from a pass that starts at a layer. With ``d`` the root
mean square of their difference and ``s`` that of the logits less their mean, the check is

    d <= sqrt(n_layers) * (8 * eps + 64 * eps_32) * s  +  eps * r

``eps`` is the unit of rounding of the model's type and ``r`` the root mean square of the logits. Each block adds to a
residual stream that is rounded to this type, and roundings of n blocks add up like sqrt(n) independent ones. Types of
16 bits are summed in float32, in another order, whose unit is ``eps_32``; so are parts of models in float64. Eager and
fused attention of transformers itself differ by at most 3.5 * sqrt(n_layers) units in float32 and float16 and by 1.5
in bfloat16, measured on random models of many families and on a pretrained one of 30 layers: the limit is at least
twice that. For 32 layers it is 0.005% of ``s`` in float32, 4.4% in float16 and 35% in bfloat16.
"""

from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kn_lens.errors import UnsupportedModelError
from kn_lens.hosts.bridge import CONTEXT_LENGTHS, Host
from kn_lens.hosts.checkpoints import first_line
from kn_lens.hosts.encoder_decoder import EncoderInput
from kn_lens.hosts.families import Kind, longest_padding, text_config
from kn_lens.hosts.memory import ran_out_of_memory
from kn_lens.hosts.partial_forward import Replacement, run_clean

PROMPT_LENGTHS = (8, 5)
"""Tokens of the two prompts: run as one batch, so that the padding of the second is part of the check."""

_TF32_EPS = 2.0**-10


@dataclass(frozen=True, kw_only=True)
class LogitCheck:
    """The result of a check that a host passed.

    Attributes:
        reference: the model that the logits were compared with.
        difference: root mean square of the difference of the logits.
        limit: the largest difference that rounding explains.
    """

    reference: str
    difference: float
    limit: float


@dataclass(frozen=True, kw_only=True)
class ReferenceLogits:
    """Two short prompts, and their logits as transformers computes them, each prompt alone.

    Attributes:
        prompts: token ids.
        logits: of all positions, by prompt, in float32 or float64.
    """

    prompts: Sequence[Int[Tensor, " pos"]]
    logits: Sequence[Float[Tensor, "pos d_vocab"]]

    @classmethod
    def of(cls, hf_model: Any, *, name: str, kind: Kind, mask_token_id: int | None) -> "ReferenceLogits":
        """Run a plain Hugging Face model in evaluation mode. Cost: two passes of at most eight tokens.

        Raises:
            UnsupportedModelError: transformers cannot run the model.
        """
        padding = longest_padding(hf_model.config, kind)
        prompts = _prompts(hf_model, mask_token_id if kind == "masked" else None, padding)
        attention = hf_model.config._attn_implementation
        try:
            return cls(prompts=prompts, logits=_plain_logits(hf_model, kind, prompts))
        except Exception as error:  # of as many kinds as there are models
            if ran_out_of_memory(error):
                raise
            # A GPT-2 with reorder_and_upcast_attn runs in float64 in its fused attention alone.
            with suppress(Exception):
                hf_model.set_attn_implementation("sdpa")
                return cls(prompts=prompts, logits=_plain_logits(hf_model, kind, prompts))
            raise UnsupportedModelError(
                f"transformers cannot run {name!r} in {hf_model.dtype}: {first_line(error)}. "
                f"{cure_of_failed_pass(hf_model.dtype)}"
            ) from error
        finally:
            if hf_model.config._attn_implementation != attention:
                hf_model.set_attn_implementation(attention)

    def compare(self, host: Host, *, name: str, advice: str) -> LogitCheck:
        """Compare the logits of a host. Cost: a pass of both prompts, and about two of the first.

        Args:
            host: the model.
            name: what the reference is, for messages.
            advice: what to do where the logits differ, for messages.

        Raises:
            UnsupportedModelError: TransformerLens computes other logits.
        """
        with torch.no_grad():
            found = _host_logits(host, self.prompts)
        expected = torch.cat([*self.logits, self.logits[0][-1:]])
        found = _widened(found).to(expected)
        if not host.raw:  # processed weights leave out the mean, which no probability depends on
            expected, found = _centred(expected), _centred(found)
        difference = float(_root_mean_square(found - expected))
        limit = _limit(host, expected)
        if not difference <= limit:
            raise UnsupportedModelError(
                f"{host.name!r} in TransformerLens computes other logits than {name}: they differ by "
                f"{difference:.2g} (root mean square), where logits vary by "
                f"{float(_root_mean_square(_centred(expected))):.2g} and rounding in {host.dtype} explains "
                f"{limit:.2g}. Scores would be those of another model. {advice}"
            )
        return LogitCheck(reference=name, difference=difference, limit=limit)


@torch.no_grad()
def _plain_logits(
    hf_model: Any, kind: Kind, prompts: Sequence[Int[Tensor, " pos"]]
) -> list[Float[Tensor, "pos d_vocab"]]:
    logits: list[Tensor] = []
    for prompt in prompts:
        options = {"input_ids": prompt[None]}
        if kind == "encoder-decoder":
            options = {"input_ids": prompt.flip(0)[None], "decoder_input_ids": prompt[None]}
        logits.append(_widened(hf_model(**options).logits[0]))
    return logits


def _host_logits(host: Host, prompts: Sequence[Int[Tensor, " pos"]]) -> Float[Tensor, "pos d_vocab"]:
    """Return the logits of all tokens of a padded batch, and those of the last token of the first from half-way up."""
    tokens = nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)
    encoder = None
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=tokens.device)
    mask = (torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]).long()
    if host.kind == "encoder-decoder":  # whose encoder reads each prompt from its end
        reversed_prompts = [prompt.flip(0) for prompt in prompts]
        texts = nn.utils.rnn.pad_sequence(reversed_prompts, batch_first=True)
        encoder = EncoderInput(tokens=texts, attention_mask=mask)
    logits = host.logits(tokens, mask, encoder=encoder)
    first, middle = torch.zeros_like(lengths[:1]), host.n_layers // 2
    encoder = None if encoder is None else encoder.select(first)
    last = lengths[:1] - 1  # of the decoder and, as both texts are as long, of the encoder
    state = run_clean(host, tokens[:1], mask[:1], last, [middle], encoder, post_pos=last)
    resumed = state.logits_with_post([Replacement(layer=middle, rows=first, post=state.post[middle])])
    return torch.cat([logits[mask.bool()], resumed])


def _prompts(hf_model: Any, mask_token_id: int | None, padding: int | None) -> list[Int[Tensor, " pos"]]:
    """Return prompts of ordinary tokens, spread over the vocabulary, with a mask in the middle of a masked model's.

    Args:
        hf_model: the plain model.
        mask_token_id: None without a mask.
        padding: the longest padding of a prompt beside a longer one; None where any is right.
    """
    config, text = hf_model.config, text_config(hf_model.config)
    n_tokens = hf_model.get_input_embeddings().weight.shape[0]
    special = _special_ids(config) | _special_ids(text)
    longest = max(PROMPT_LENGTHS)
    for key in CONTEXT_LENGTHS:
        context = getattr(text, key, None) or 2 * longest
        longest = max(1, min(longest, context // 2))  # some positions may be reserved
    prompts = []
    for number, length in enumerate(PROMPT_LENGTHS):
        length = min(length, longest)
        if padding is not None:
            length = max(length, longest - padding)
        prompt = []
        for position in range(1, length + 1):
            prompt.append(_ordinary_token(position * n_tokens // (length + 1 + number), n_tokens, special))
        if mask_token_id is not None:
            prompt[length // 2] = mask_token_id
        prompts.append(torch.tensor(prompt, device=hf_model.device))
    return prompts


def _ordinary_token(first: int, n_tokens: int, special: Set[int]) -> int:
    """Return the first token from ``first`` on that is not special; ``first`` where all are."""
    for offset in range(n_tokens):
        token = (first + offset) % n_tokens
        if token not in special:
            return token
    return first % n_tokens


def _special_ids(config: Any) -> set[int]:
    """Return the tokens that a configuration names: of padding, of ends, of images."""
    ids = set()
    for key, value in vars(config).items():
        if key.endswith(("token_id", "token_index")) and isinstance(value, int):
            ids.add(value)
    return ids


def _limit(host: Host, expected: Float[Tensor, "pos d_vocab"]) -> float:
    eps_32 = torch.finfo(torch.float32).eps
    eps = max(torch.finfo(host.dtype).eps, eps_32)
    if host.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        eps = max(eps, _TF32_EPS)
    share = host.n_layers**0.5 * (8 * eps + 64 * eps_32)
    return float(share * _root_mean_square(_centred(expected)) + eps * _root_mean_square(expected))


def _root_mean_square(values: Float[Tensor, "pos d_vocab"]) -> Float[Tensor, ""]:
    return values.square().mean().sqrt()


def _centred(logits: Float[Tensor, "pos d_vocab"]) -> Float[Tensor, "pos d_vocab"]:
    return logits - logits.mean(-1, keepdim=True)


def _widened(logits: Float[Tensor, "pos d_vocab"]) -> Float[Tensor, "pos d_vocab"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cure_of_failed_pass(dtype: torch.dtype) -> str:
    """Return what to do about a model that cannot be run in its type."""
    if dtype == torch.float32:
        return "Its configuration (config.json) may not be one that this class can run; load another checkpoint."
    return "Load it in torch.float32, or, where its configuration (config.json) is the reason, another checkpoint."
