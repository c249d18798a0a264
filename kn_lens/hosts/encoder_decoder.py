"""Encoder-decoders: the text that the encoder reads, and the form in which the decoder begins to write.

The layers of a host are those of one of the two stacks, its *side*. What the encoder returns for a text does not depend
on the layers of the decoder, so that on that side it is computed once for each text and given to all passes through the
decoder. Where the layers are those of the encoder, every pass runs both.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.names import Side

Writes = Literal["span", "text"]
"""What a decoder was trained to write: what a sentinel stands for, after that sentinel, or the whole text anew."""

STACKS: dict[Side, str] = {"decoder": "decoder_blocks", "encoder": "encoder_blocks"}
"""The names of the blocks in TransformerLens' models of an encoder and a decoder."""

FINAL_BIAS = "final_logits_bias"
"""The buffer that a BART adds to its logits, which TransformerLens moves into the bias of the head."""


@dataclass(frozen=True, kw_only=True)
class DecoderForm:
    """How the decoder of an encoder-decoder begins, before the answer.

    Attributes:
        writes: ``span``: the sentinel comes before the answer, as in T5. ``text``: the text before the answer does, as
            in BART.
        start_id: the first token; None where it is the last token of the text, which is the language's in an mBART.
    """

    writes: Writes
    start_id: int | None

    @classmethod
    def of(cls, config: Any, writes: Writes) -> "DecoderForm":
        """Return the form in which a model was trained, by its Hugging Face configuration."""
        if config.model_type == "mbart":
            return cls(writes=writes, start_id=None)
        start_id = getattr(config, "decoder_start_token_id", None)
        if start_id is None and hasattr(config, "decoder"):
            start_id = config.decoder.bos_token_id  # as a T5Gemma is trained
        if start_id is None:
            start_id = config.pad_token_id  # as a T5 is trained
        return cls(writes=writes, start_id=start_id)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncoderInput:
    """What the encoder reads for each row of a pass.

    Attributes:
        tokens: token ids, padded on the right.
        attention_mask: 1 for tokens, 0 for padding.
        output: what the encoder returns for them; None before it has run.
    """

    tokens: Int[Tensor, "row encoder_pos"]
    attention_mask: Int[Tensor, "row encoder_pos"]
    output: Float[Tensor, "row encoder_pos d_encoder"] | None = None

    def select(self, rows: Int[Tensor, " selected"]) -> "EncoderInput":
        """Return some of the rows; repeats are allowed."""
        return EncoderInput(
            tokens=self.tokens[rows],
            attention_mask=self.attention_mask[rows],
            output=None if self.output is None else self.output[rows],
        )

    def cropped(self) -> "EncoderInput":
        """Return the rows without the positions that are padding in all of them."""
        n_pos = int(self.attention_mask.any(0).nonzero().max()) + 1
        return replace(
            self,
            tokens=self.tokens[:, :n_pos],
            attention_mask=self.attention_mask[:, :n_pos],
            output=None if self.output is None else self.output[:, :n_pos],
        )

    def distinct(self) -> tuple["EncoderInput", Int[Tensor, " row"]]:
        """Return each text once, and the number of the text of each row."""
        both = torch.stack([self.tokens, self.attention_mask], dim=-1)
        texts, text_of_row = both.unique(dim=0, return_inverse=True)
        tokens, attention_mask = texts.unbind(-1)
        return EncoderInput(tokens=tokens.contiguous(), attention_mask=attention_mask.contiguous()), text_of_row
