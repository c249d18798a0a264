"""Prompts as tensors: the input of every computation, whether from facts or from the user's own tokens.

A prompt whose answer has k tokens has k consecutive rows (see ``build``); padding is on the right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kn_lens._core.checks import check_kind
from kn_lens._core.display import ROWS_SHOWN, shortened, table_html
from kn_lens._core.names import Side
from kn_lens._core.wording import counted, with_article
from kn_lens.errors import ArgumentError, PromptError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import EncoderInput, HookedModel, Host, Kind, host_on_side
from kn_lens.prompts.positions import PositionName, one_position

Selection = int | slice | Fact | Sequence[int] | Int[Tensor, " chosen"]
"""What names some prompts: a number, a slice, a fact, or a list of numbers."""


@dataclass(frozen=True, kw_only=True)
class MadeFor:
    """The models that can read some prompts.

    Attributes:
        kind: masked, causal or encoder-decoder.
        tokenizers: fingerprints of the model's own tokenizer, and of one that was chosen in its place. Empty if neither
            is known.
    """

    kind: Kind
    tokenizers: frozenset[str]

    def check(self, host: Host) -> None:
        """Raise if a model is of another kind, or has another tokenizer.

        Raises:
            ArgumentError: with the call that makes prompts for it.
        """
        if host.kind != self.kind:
            raise ArgumentError(
                f"The prompts were made for {with_article(self.kind)} model, and {host.name} is "
                f"{with_article(host.kind)} one, "
                "which takes prompts of another form. Make prompts for it: make_prompts(model, facts)."
            )
        own = host.tokenizer_fingerprint
        if own is not None and self.tokenizers and own not in self.tokenizers:
            raise ArgumentError(
                f"The prompts were made with another tokenizer than that of {host.name}, "
                "to which their tokens say something else. "
                "Make prompts for it: make_prompts(model, facts); "
                "with tokenizer=, if it is the other tokenizer that belongs to its weights."
            )


@dataclass(frozen=True, kw_only=True, eq=False)  # tensors have no single truth value to compare by
class PromptBatch:
    """Prompts as token tensors; all on one device, all indices int64.

    Attributes:
        tokens: token ids, padded on the right; for an encoder-decoder those that its decoder reads.
        attention_mask: 1 for tokens, 0 for padding.
        read_pos: position whose logits give the row's answer token.
        target_ids: the true answer token.
        prompt_index: which prompt a row belongs to: 0, 1, ... without gaps, in order.
        contrast_ids: the token of a contrasting answer, for ``output="logit_diff"``; None without one.
        text: each prompt as text: with the mask in the answer's place, or what precedes the answer.
        fact_index: position in ``facts`` of the prompt's fact.
        template: the template of each prompt.
        facts: the facts, including those left without a prompt.
        left_out: number of (fact, template) pairs that gave no prompt, by reason.
        made_for: the models that the tokens are for; None for your own tokens, which any model takes.
        encoder_tokens: token ids that the encoder of an encoder-decoder reads, padded on the right; None for other
            kinds of models.
        encoder_attention_mask: 1 for these tokens, 0 for padding; None where they are.
        subject: the first token of each mention of the subject, and the one past its last; -1 where a row has fewer
            mentions. None where it is not known, or where an encoder reads the subject and positions are the decoder's.
        moved_pos: position whose activation attribution and interventions move; None for ``answer_pos``: see ``at``.
        encoder_pos: the token of the encoder in the answer's place, where the prompts are for the encoder of an
            encoder-decoder: ``subject``, ``moved_pos`` and all positions but ``read_pos`` then count its tokens.
            None elsewhere.

    Raises:
        ArgumentError: shapes, types, devices, padding or indices do not fit together.
    """

    tokens: Int[Tensor, "row pos"]
    attention_mask: Int[Tensor, "row pos"]
    read_pos: Int[Tensor, " row"]
    target_ids: Int[Tensor, " row"]
    prompt_index: Int[Tensor, " row"]
    contrast_ids: Int[Tensor, " row"] | None
    text: tuple[str, ...]
    fact_index: Int[Tensor, " batch"]
    template: tuple[str, ...]
    facts: tuple[Fact, ...]
    left_out: Mapping[str, int]
    made_for: MadeFor | None = None
    encoder_tokens: Int[Tensor, "row encoder_pos"] | None = None
    encoder_attention_mask: Int[Tensor, "row encoder_pos"] | None = None
    subject: Int[Tensor, "row mention 2"] | None = None
    moved_pos: Int[Tensor, " row"] | None = None
    encoder_pos: Int[Tensor, " row"] | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_values(self)

    @classmethod
    def from_tokens(
        cls,
        tokens: Int[Tensor, "batch pos"],
        *,
        read_pos: Int[Tensor, " batch"],
        target_ids: Int[Tensor, " batch"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        fact_index: Int[Tensor, " batch"] | None = None,
        facts: Sequence[Fact] | None = None,
        contrast_ids: Int[Tensor, " batch"] | None = None,
        encoder_tokens: Int[Tensor, "batch encoder_pos"] | None = None,
        encoder_attention_mask: Int[Tensor, "batch encoder_pos"] | None = None,
        subject: Int[Tensor, "batch 2"] | Int[Tensor, "batch mention 2"] | None = None,
        encoder_pos: Int[Tensor, " batch"] | None = None,
    ) -> "PromptBatch":
        """Make a batch from your own tokens, one row a prompt; no tokenizer is needed.

        Args:
            tokens: token ids, padded on the right; for an encoder-decoder those of the decoder.
            read_pos: position that is read: that of the mask, or the last token's.
            target_ids: the token whose probability is explained.
            attention_mask: 1 for tokens, 0 for padding; None where nothing is padded.
            fact_index: position in ``facts`` of each prompt's fact; None gives each prompt a fact of its own.
            facts: the facts of the prompts; None makes placeholders with the target's id as their object.
            contrast_ids: a contrasting token, for ``output="logit_diff"``.
            encoder_tokens: what the encoder reads, for an encoder-decoder.
            encoder_attention_mask: 1 for these tokens, 0 for padding; None where nothing is padded.
            subject: the first token of the subject of each prompt and the one past its last, or of each of several
                mentions of it, with -1 where a prompt has fewer.
            encoder_pos: the token of the encoder in the answer's place, for prompts whose positions are the encoder's.

        Raises:
            ArgumentError: shapes, types, devices, padding or indices do not fit together.

        >>> import torch
        >>> batch = PromptBatch.from_tokens(
        ...     torch.tensor([[5, 6, 7]]), read_pos=torch.tensor([2]), target_ids=torch.tensor([9])
        ... )
        >>> len(batch), batch.fact(0).object
        (1, '9')
        """
        tensors = {"tokens": tokens, "read_pos": read_pos, "target_ids": target_ids}
        if fact_index is not None:
            tensors["fact_index"] = fact_index
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise ArgumentError(f"{name} must be a tensor of whole numbers; got {type(value).__name__}.")
        n_prompts = len(tokens)
        prompt_index = torch.arange(n_prompts, device=tokens.device)
        if fact_index is None:
            fact_index = prompt_index
        if facts is None:
            facts = _placeholder_facts(fact_index, target_ids)
        if attention_mask is None:
            attention_mask = torch.ones_like(tokens)
        if isinstance(encoder_tokens, Tensor) and encoder_attention_mask is None:
            encoder_attention_mask = torch.ones_like(encoder_tokens)
        return cls(
            tokens=_whole(tokens),
            attention_mask=_whole(attention_mask),
            read_pos=_whole(read_pos),
            target_ids=_whole(target_ids),
            prompt_index=prompt_index,
            contrast_ids=_whole(contrast_ids),
            text=tuple(f"tokens {number}" for number in range(n_prompts)),
            fact_index=_whole(fact_index),
            template=("",) * n_prompts,
            facts=tuple(facts),
            left_out={},
            encoder_tokens=_whole(encoder_tokens),
            encoder_attention_mask=_whole(encoder_attention_mask),
            subject=_mentions(subject),
            encoder_pos=_whole(encoder_pos),
        )

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, prompts: Selection) -> "PromptBatch":
        """Return some prompts as a batch: by number, slice, list of numbers, or fact; see ``select``.

        Raises:
            IndexError: no prompt of that number.
            ArgumentError: a fact without prompts, or something else.

        >>> import torch
        >>> batch = PromptBatch.from_tokens(
        ...     torch.tensor([[5, 6], [5, 7]]), read_pos=torch.tensor([1, 1]), target_ids=torch.tensor([9, 8])
        ... )
        >>> batch[1].tokens, len(batch[:2]), len(batch[batch.fact(0)])
        (tensor([[5, 7]]), 2, 1)
        """
        return self.select(self.indices_of(prompts))

    def __repr__(self) -> str:
        n_facts = len(self.fact_index.unique())
        text = f"{counted(len(self), 'prompt')} of {counted(n_facts, 'fact')}"
        if self.made_for is not None:
            text += f", {self.made_for.kind}"
        if self.side == "encoder":
            text += ", its encoder"
        if self.left_out:
            text += f", {sum(self.left_out.values()):,} left out"
        return f"PromptBatch({text}, {self.tokens.device}, first: {shortened(self.text[0])!r})"

    def _repr_html_(self) -> str:
        rows = []
        for number, text in enumerate(self.text[:ROWS_SHOWN]):
            fact = self.fact(number)
            rows.append([number, fact.relation_name, fact.subject, fact.object, text])
        summary = f"{counted(len(self), 'prompt')} of {counted(len(self.fact_index.unique()), 'fact')}"
        for reason, n in self.left_out.items():
            summary += f"; {n:,} left out ({reason})"
        return table_html(summary, ["", "relation", "subject", "object", "prompt"], rows, n_rows=len(self))

    def indices_of(self, prompts: Selection) -> Sequence[int] | Int[Tensor, " chosen"]:
        """Return the numbers of prompts that an index names; see ``batch[...]``.

        Raises:
            IndexError: no prompt of that number.
            ArgumentError: a fact without prompts.
        """
        if isinstance(prompts, Fact):
            numbers = [number for number in range(len(self)) if self.fact(number) == prompts]
            if not numbers:
                near = did_you_mean(prompts.key, (fact.key for fact in self.facts))
                raise ArgumentError(f"{prompts.key} has no prompts here.{near}")
            return numbers
        if isinstance(prompts, slice):
            return list(range(len(self)))[prompts]
        if isinstance(prompts, (int, np.integer)):
            if not -len(self) <= prompts < len(self):
                raise IndexError(f"There is no prompt {prompts}; there are 0 to {len(self) - 1}.")
            return [int(prompts) % len(self)]
        return prompts

    @property
    def n_rows(self) -> int:
        """Number of rows, one for each answer token of each prompt."""
        return len(self.tokens)

    @property
    def rows_per_prompt(self) -> Int[Tensor, " batch"]:
        """Number of answer tokens of each prompt."""
        return torch.bincount(self.prompt_index, minlength=len(self))

    @property
    def length(self) -> Int[Tensor, " batch"]:
        """Number of tokens of each prompt's last row, which holds the most of the answer."""
        return self.attention_mask.sum(-1)[self.rows_per_prompt.cumsum(0) - 1]

    @property
    def n_positions(self) -> Int[Tensor, " batch"]:
        """Number of positions of each prompt's last row in a pass: ``length``, and the tokens that an encoder reads."""
        if self.encoder_attention_mask is None:
            return self.length
        return self.length + self.encoder_attention_mask.sum(-1)[self.rows_per_prompt.cumsum(0) - 1]

    @property
    def encoder_input(self) -> EncoderInput | None:
        """What the encoder reads for each row; None for models without one."""
        if self.encoder_tokens is None or self.encoder_attention_mask is None:
            return None
        return EncoderInput(tokens=self.encoder_tokens, attention_mask=self.encoder_attention_mask).cropped()

    @property
    def text_length(self) -> Int[Tensor, " batch"]:
        """Number of tokens of each prompt that see each other: those of an encoder, where there is one."""
        return self.length if self.encoder_attention_mask is None else self.n_positions - self.length

    @property
    def side(self) -> Side | None:
        """The stack of an encoder-decoder whose tokens the positions count; None for other kinds of models."""
        if self.encoder_tokens is None:
            return None
        return "decoder" if self.encoder_pos is None else "encoder"

    @property
    def counted_tokens(self) -> Int[Tensor, "row pos"]:
        """The tokens that positions count: those that the layers read whose neurons are meant."""
        return self.tokens if self.encoder_pos is None or self.encoder_tokens is None else self.encoder_tokens

    @property
    def counted_mask(self) -> Int[Tensor, "row pos"]:
        """1 for ``counted_tokens``, 0 for padding."""
        if self.encoder_pos is None or self.encoder_attention_mask is None:
            return self.attention_mask
        return self.encoder_attention_mask

    @property
    def counted_length(self) -> Int[Tensor, " batch"]:
        """Number of ``counted_tokens`` of each prompt's last row."""
        return self.counted_mask.sum(-1)[self.rows_per_prompt.cumsum(0) - 1]

    @property
    def answer_pos(self) -> Int[Tensor, " row"]:
        """The position ``read``: the read position, or in an encoder that of the placeholder of the answer."""
        return self.read_pos if self.encoder_pos is None else self.encoder_pos

    @property
    def post_pos(self) -> Int[Tensor, " row"]:
        """Position whose activation is moved: ``answer_pos``, or where ``at`` has put the prompts."""
        return self.answer_pos if self.moved_pos is None else self.moved_pos

    def at(self, position: PositionName | Int[Tensor, " _"]) -> "PromptBatch":
        """Return the prompts with activations moved at another position; answers are read where they were.

        Args:
            position: ``read``; ``subject_last``, the subject's last token (of several mentions the last before the read
                position, or else the first after it); or a position of each prompt, or of each row, as a tensor.

        Raises:
            ArgumentError: another name, a position outside a prompt's tokens, or it is not known where the subject
                stands.

        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> prompts = kn.make_prompts(model, kn.FactSet.world().find("Ireland", relation="P36"))
        >>> prompts.text[0], int(prompts.read_pos[0]), int(prompts.at("subject_last").post_pos[0])
        ('The country Ireland has the capital [MASK].', 7, 3)
        """
        moved_pos = one_position(self, position)
        return self._unchecked(moved_pos=None if moved_pos is self.answer_pos else moved_pos)

    def prompts_per_fact(self) -> dict[Fact, int]:
        """Return the number of prompts of each fact, 0 if all of them were left out.

        Refining leaves out facts with fewer than ``min_prompts``, 3 by default.
        """
        counts = torch.bincount(self.fact_index, minlength=len(self.facts)).tolist()
        return dict(zip(self.facts, counts, strict=True))

    def fact(self, prompt: int) -> Fact:
        """Return the fact of a prompt."""
        return self.facts[int(self.fact_index[prompt])]

    def rows_of(self, prompts: Sequence[int] | Int[Tensor, " chosen"]) -> Int[Tensor, " row"]:
        """Return the rows of the given prompts, in the order given.

        Raises:
            ArgumentError: no such prompt.
        """
        return self.rows_and_owners(self._indices(prompts))[0]

    def select(self, prompts: Sequence[int] | Int[Tensor, " chosen"]) -> "PromptBatch":
        """Return these prompts, in the order given; repeats are allowed. ``facts`` and ``left_out`` stay whole.

        Raises:
            ArgumentError: no such prompt, or none at all.
        """
        chosen = self._indices(prompts)
        numbers = chosen.tolist()
        if not numbers:
            raise ArgumentError("There is no prompt in the batch; expected at least one.")
        rows, owner = self.rows_and_owners(chosen)
        optional = {}
        for name in ("contrast_ids", "encoder_tokens", "encoder_attention_mask", "subject", "moved_pos", "encoder_pos"):
            values = getattr(self, name)
            optional[name] = None if values is None else values[rows]
        return self._unchecked(
            tokens=self.tokens[rows],
            attention_mask=self.attention_mask[rows],
            read_pos=self.read_pos[rows],
            target_ids=self.target_ids[rows],
            prompt_index=owner,
            **optional,
            text=tuple(self.text[number] for number in numbers),
            fact_index=self.fact_index[chosen],
            template=tuple(self.template[number] for number in numbers),
        )

    def moved_tokens_only(self) -> "PromptBatch":
        """Return the prompts with one token in each row, the one whose activation is moved."""
        tokens = self.counted_tokens.gather(1, self.post_pos[:, None])
        first = torch.zeros_like(self.read_pos)
        if self.encoder_pos is None:
            kept = {"tokens": tokens, "attention_mask": torch.ones_like(tokens), "read_pos": first}
        else:
            kept = {
                "encoder_tokens": tokens,
                "encoder_attention_mask": torch.ones_like(tokens),
                "encoder_pos": first,
            }
        return self._unchecked(subject=None, moved_pos=None, **kept)

    def to(self, device: str | torch.device) -> "PromptBatch":
        """Return the batch on another device."""
        tensors = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                tensors[name] = value.to(device)
        return self._unchecked(**tensors)

    def _unchecked(self, **changed: Any) -> "PromptBatch":
        """Return the batch with other values of fields, which come from checked ones.

        Each check of a value would wait for the device, and passes select their prompts again and again.
        """
        batch = object.__new__(type(self))
        for name, value in {**vars(self), **changed}.items():
            object.__setattr__(batch, name, value)
        return batch

    def check_for(self, host: Host) -> None:
        """Raise if the model cannot run on these prompts.

        Raises:
            ArgumentError: made for another kind of model or another tokenizer, on another device than the model, or
                token ids beyond its vocabulary.
            PromptError: longer than the model's context.
        """
        if self.made_for is not None:
            self.made_for.check(host)
        if self.tokens.device != host.device:
            raise ArgumentError(
                f"The prompts are on {self.tokens.device} and {host.name} on {host.device}; "
                f"move one of them: prompts.to({str(host.device)!r})."
            )
        self._check_encoder_tokens(host)
        if self.moved_pos is not None and host.kind != "masked" and self.side != "encoder":
            _refuse(
                self.moved_pos > self.read_pos,
                "The prompts are put at position {value} in row {row}, after its read position, "
                f"which in {host.name}, {with_article(host.kind)} model, does not see it.",
                self.moved_pos,
            )
        for name in ("tokens", "encoder_tokens", "target_ids", "contrast_ids"):
            ids = getattr(self, name)
            if ids is None:
                continue
            largest = int(ids.max())
            if largest >= host.d_vocab:
                raise ArgumentError(
                    f"{name} hold the id {largest}; {host.name} has {host.d_vocab} tokens. "
                    "Use the tokenizer that belongs to the model."
                )
        for mask in (self.attention_mask, self.encoder_attention_mask):
            if mask is None:
                continue
            lengths = mask.sum(-1)
            longest = int(lengths.max())
            if host.n_ctx is not None and longest > host.n_ctx:
                prompt = int(self.prompt_index[lengths.argmax()])
                raise too_long(self.text[prompt], longest, host.n_ctx)

    def _check_encoder_tokens(self, host: Host) -> None:
        """Raise unless there are tokens for an encoder where, and only where, the model has one.

        Raises:
            ArgumentError: with what to pass.
        """
        if host.kind == "encoder-decoder" and self.encoder_tokens is None:
            raise ArgumentError(
                f"{host.name} is an encoder-decoder, and the prompts have no encoder_tokens; expected what its encoder "
                "reads, beside the tokens of its decoder: PromptBatch.from_tokens(tokens, encoder_tokens=...)."
            )
        if host.kind != "encoder-decoder" and self.encoder_tokens is not None:
            raise ArgumentError(
                f"The prompts have encoder_tokens, and {host.name} is {with_article(host.kind)} model, which has no "
                "encoder beside it. Make prompts for it: make_prompts(model, facts)."
            )
        if self.side != host.side:
            raise ArgumentError(
                f"The prompts are for the {self.side} of an encoder-decoder, and layers are those of the {host.side} "
                f"of {host.name}; expected prompts for that side: make_prompts(model, facts) for the decoder, with "
                "host_of(model, side='encoder') in the place of the model for the encoder."
            )

    def _indices(self, prompts: Sequence[int] | Int[Tensor, " chosen"]) -> Int[Tensor, " chosen"]:
        """Return the numbers of prompts as a tensor, checked."""
        check_kind(prompts, (Sequence, Tensor, np.ndarray), "a list of the numbers of prompts: [0, 1]", "prompts")
        try:
            chosen = torch.as_tensor(prompts, device=self.tokens.device)
        except (TypeError, ValueError, RuntimeError):
            raise ArgumentError(f"Prompts are chosen by a list of their numbers; got {prompts!r}.") from None
        is_list = chosen.ndim == 1
        if is_list and len(chosen) == 0:  # an empty list has no whole numbers: PyTorch makes it float32
            return chosen.long()
        if not is_list or chosen.dtype == torch.bool or chosen.is_floating_point():
            raise ArgumentError(f"Prompts are chosen by a list of their numbers; got {prompts!r}.")
        first, last = int(chosen.min()), int(chosen.max())
        if first < 0 or last >= len(self):
            raise ArgumentError(f"Prompts {first} to {last} were chosen; there are 0 to {len(self) - 1}.")
        return chosen.long()

    def rows_and_owners(
        self,
        chosen: Int[Tensor, " chosen"],
    ) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Return the rows of the chosen prompts, and for each row the position in ``chosen`` of its prompt."""
        rows_per_prompt = self.rows_per_prompt
        first_row = (rows_per_prompt.cumsum(0) - rows_per_prompt)[chosen]
        n_rows = rows_per_prompt[chosen]
        owner = torch.arange(len(chosen), device=chosen.device).repeat_interleave(n_rows)
        n_rows_before = n_rows.cumsum(0) - n_rows
        token_number = torch.arange(len(owner), device=chosen.device) - n_rows_before[owner]
        return first_row[owner] + token_number, owner


def too_long(text: str, length: int, n_ctx: int) -> PromptError:
    """Return the error for a prompt that does not fit the model's context."""
    return PromptError(
        f"The prompt {text!r} has {length} tokens, more than the model's context of {n_ctx}. "
        "Leave its template or fact out; nothing is cut off."
    )


def _whole(value: Any) -> Any:
    """Return integers and booleans as int64; other values unchanged, for the checks to refuse."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        return value
    return value.long()


def _mentions(subject: Any) -> Any:
    """Return spans with an axis for the mentions of a subject, where there is none for the only one."""
    if isinstance(subject, Tensor) and subject.ndim == 2:
        subject = subject[:, None]
    return _whole(subject)


def _placeholder_facts(
    fact_index: Int[Tensor, " batch"],
    target_ids: Int[Tensor, " batch"],
) -> list[Fact]:
    """Return facts that have the target's id as their object."""
    objects = dict(zip(fact_index.tolist(), target_ids.tolist(), strict=False))
    facts = []
    for number in range(max(objects, default=-1) + 1):
        object_ = str(objects.get(number, "none"))
        facts.append(Fact("", "tokens", object_, uid=str(number)))
    return facts


def host_for(model: HookedModel | Host, prompts: PromptBatch | None) -> Host:
    """Return the host of a model whose layers are those that the positions of prompts are of.

    Of an encoder-decoder that is the side that the prompts were made for; a ``Host`` has one already.

    Raises:
        UnsupportedModelError: as ``host_of``.
    """
    return host_on_side(model, prompts.side if isinstance(prompts, PromptBatch) else None)


def first_prompts(prompts: PromptBatch) -> PromptBatch:
    """Return the first prompt of each fact."""
    fact_index = prompts.fact_index.tolist()
    first = [fact_index.index(number) for number in dict.fromkeys(fact_index)]
    return prompts.select(torch.tensor(first, device=prompts.tokens.device))


def check_prompts(prompts: object, name: str = "prompts") -> None:
    """Raise unless an argument is a batch of prompts.

    Raises:
        ArgumentError: another kind of argument, such as facts.
    """
    check_kind(prompts, PromptBatch, "a PromptBatch: kn_lens.make_prompts(model, facts)", name)


def _check_shapes(batch: PromptBatch) -> None:
    n_rows, n_prompts = len(batch.target_ids), len(batch.text)
    n_pos = batch.tokens.shape[-1] if batch.tokens.ndim else 0
    expected = {
        "tokens": (n_rows, n_pos),
        "attention_mask": (n_rows, n_pos),
        "read_pos": (n_rows,),
        "target_ids": (n_rows,),
        "prompt_index": (n_rows,),
        "fact_index": (n_prompts,),
    }
    if batch.contrast_ids is not None:
        expected["contrast_ids"] = (n_rows,)
    if (batch.encoder_tokens is None) != (batch.encoder_attention_mask is None):
        raise ArgumentError("encoder_tokens and encoder_attention_mask belong together; expected both or none.")
    if batch.encoder_tokens is not None:
        n_encoder_pos = batch.encoder_tokens.shape[-1] if batch.encoder_tokens.ndim else 0
        expected["encoder_tokens"] = expected["encoder_attention_mask"] = (n_rows, n_encoder_pos)
    if batch.subject is not None:
        n_mentions = batch.subject.shape[1] if isinstance(batch.subject, Tensor) and batch.subject.ndim == 3 else 1
        expected["subject"] = (n_rows, n_mentions, 2)
    if batch.moved_pos is not None:
        expected["moved_pos"] = (n_rows,)
    if batch.encoder_pos is not None:
        expected["encoder_pos"] = (n_rows,)
        if batch.encoder_tokens is None:
            raise ArgumentError("encoder_pos is a token of the encoder; expected encoder_tokens too.")
    for name, shape in expected.items():
        value = getattr(batch, name)
        if not isinstance(value, Tensor) or value.dtype != torch.int64:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(f"{name} must be a tensor of whole numbers (torch.int64); got {got}.")
        if value.shape != shape:
            raise ArgumentError(f"{name} has shape {list(value.shape)}; expected {list(shape)}.")
    devices = {name: str(getattr(batch, name).device) for name in expected}
    if len(set(devices.values())) > 1:
        locations = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ArgumentError(f"All tensors of a batch must be on one device; got {locations}.")
    if not n_rows or not n_prompts:
        raise ArgumentError("There is no prompt in the batch; expected at least one.")
    if len(batch.template) != n_prompts:
        raise ArgumentError(f"template has {len(batch.template)} entries for {n_prompts} prompts.")


def _check_values(batch: PromptBatch) -> None:
    mask, index = batch.attention_mask, batch.prompt_index
    lengths = mask.sum(-1)
    _check_padding(mask, "attention_mask")
    if batch.encoder_tokens is not None and batch.encoder_attention_mask is not None:
        _check_padding(batch.encoder_attention_mask, "encoder_attention_mask")
        _refuse((batch.encoder_tokens < 0).any(-1), "encoder_tokens of row {row} hold a negative id.")
    _refuse(
        (batch.read_pos < 0) | (batch.read_pos >= lengths),
        "read_pos of row {row} is {value}, outside the row's tokens.",
        batch.read_pos,
    )
    counted = batch.counted_mask.sum(-1)
    if batch.encoder_pos is not None:
        _refuse(
            (batch.encoder_pos < 0) | (batch.encoder_pos >= counted),
            "encoder_pos of row {row} is {value}, outside the tokens that the row's encoder reads.",
            batch.encoder_pos,
        )
    if batch.moved_pos is not None:
        _refuse(
            (batch.moved_pos < 0) | (batch.moved_pos >= counted),
            "moved_pos of row {row} is {value}, outside the row's tokens.",
            batch.moved_pos,
        )
    if batch.subject is not None:
        start, stop = batch.subject.unbind(-1)
        is_mention = (start >= 0) & (start < stop) & (stop <= counted[:, None])
        is_none = (start == -1) & (stop == -1)
        _refuse(
            (~(is_mention | is_none)).any(-1),
            "subject of row {row} is not the first token of a mention and the one past its last, or -1 and -1.",
        )
    _refuse((batch.tokens < 0).any(-1), "tokens of row {row} hold a negative id.")
    for name in ("target_ids", "contrast_ids"):
        ids = getattr(batch, name)
        if ids is not None:
            _refuse(ids < 0, name + " of row {row} is {value}; expected a token id.", ids)
    step = index.diff(prepend=index.new_full((1,), -1))
    _refuse(
        (step < 0) | (step > 1) | (step == 0) & (index < 0),
        "prompt_index jumps to {value} at row {row}.",
        index,
    )
    if int(index[-1]) != len(batch) - 1:
        raise ArgumentError(f"prompt_index names {int(index[-1]) + 1} prompts; there are {len(batch)}.")
    _refuse(
        (batch.fact_index < 0) | (batch.fact_index >= len(batch.facts)),
        f"fact_index of prompt {{row}} is {{value}}; there are {len(batch.facts)} facts.",
        batch.fact_index,
    )


def _check_padding(mask: Int[Tensor, "row pos"], name: str) -> None:
    lengths = mask.sum(-1)
    expected = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    _refuse(
        (mask != expected).any(-1) | (lengths == 0),
        f"{name} of row {{row}} is not ones followed by zeros; pad on the right.",
    )


def _refuse(
    refused: Bool[Tensor, " row"],
    message: str,
    values: Int[Tensor, " row"] | None = None,
) -> None:
    """Raise an ``ArgumentError`` about the first refused row, if there is one.

    Args:
        refused: whether each row is refused.
        message: with ``{row}`` for its number and ``{value}`` for its value.
        values: one for each row, where the message names it.
    """
    if not bool(refused.any()):
        return
    row = int(refused.long().argmax())
    value = None if values is None else int(values[row])
    raise ArgumentError(message.format(row=row, value=value))
