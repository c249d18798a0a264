"""Positions of prompts other than the read position: where the subject stands, and what role each token has.

A position has a *role*, after Meng et al. (2022):

    before          a token before the subject
    subject_first   the first token of the subject
    subject_middle  a token between its first and its last
    subject_last    its last token, of a subject of one token the only one
    after           a token after the subject
    read            the read position, whatever else it is; in an encoder the placeholder in the answer's place

A template may write its subject out beside its slot. Each mention has tokens of these roles, and tokens between two
mentions are ``after``. *The* last token of the subject, the position ``subject_last``, is that of the last mention
before the read position; where all mentions come after it, as in a masked prompt they can, that of the first of them.

A position is counted in tokens of the prompt, those that its tokenizer adds included: of an encoder-decoder in those
of the side that the prompts are for. It names the same token in every row of an answer of several tokens, but for
``read``, which is each row's own read position. By name no other position of the answer is given.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kn_lens._core.names import PositionName
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.hosts import Kind

if TYPE_CHECKING:
    from kn_lens.prompts.batch import PromptBatch

PositionsName = Literal["read", "subject_last", "subject", "all"]
"""Positions by name: one of ``PositionName``, all tokens of the subject, or all tokens that can reach the answer."""

Role = Literal["before", "subject_first", "subject_middle", "subject_last", "after", "read"]
"""The role of a token in a prompt."""

ROLES: tuple[Role, ...] = get_args(Role)
"""The roles, in the order of a prompt."""


def subject_of(prompts: "PromptBatch") -> Int[Tensor, "row mention 2"]:
    """Return the mentions of the subject in each row.

    Raises:
        ArgumentError: it is not known where the subject stands, or it stands nowhere in a prompt.
    """
    if prompts.side == "decoder":
        raise ArgumentError(
            "The subject of these prompts is read by the encoder, and neurons are those of the decoder; expected "
            "positions='read', the positions of the decoder's tokens as a tensor, or prompts for the encoder: "
            "make_prompts(host_of(model, side='encoder'), facts)."
        )
    if prompts.subject is None:
        raise ArgumentError(
            "These prompts do not say where their subject stands; expected prompts of "
            "make_prompts(model, facts), or PromptBatch.from_tokens(..., subject=spans) with the first token and the "
            "one past the last of each prompt's subject."
        )
    has_none = (prompts.subject[..., 0] < 0).all(-1)
    if bool(has_none.any()):
        number = int(prompts.prompt_index[has_none.long().argmax()])
        raise ArgumentError(
            f"The prompt {prompts.text[number]!r} does not name its subject {prompts.fact(number).subject!r}; "
            "expected a template with [X], whose place is where the subject's tokens are."
        )
    return prompts.subject


def subject_last(prompts: "PromptBatch") -> Int[Tensor, " row"]:
    """Return the position of the subject's last token in each row; see the module for subjects mentioned twice.

    Raises:
        ArgumentError: it is not known where the subject stands, or it stands nowhere in a prompt.
    """
    start, stop = subject_of(prompts).unbind(-1)
    exists = start >= 0
    # The same token in all rows of a prompt: that before the first of them.
    read_pos = prompts.answer_pos[_first_rows(prompts)][prompts.prompt_index]
    is_before = exists & (stop <= read_pos[:, None])
    last_before = torch.where(is_before, stop, 0).amax(-1)
    beyond = prompts.counted_tokens.shape[1] + 1
    first_after = torch.where(exists & ~is_before, stop, beyond).amin(-1)
    return torch.where(is_before.any(-1), last_before, first_after) - 1


def subject_mask(prompts: "PromptBatch") -> Bool[Tensor, "row pos"]:
    """Return which positions of each row hold tokens of the subject.

    Raises:
        ArgumentError: it is not known where the subject stands, or it stands nowhere in a prompt.
    """
    start, stop = subject_of(prompts).unbind(-1)
    position = torch.arange(prompts.counted_tokens.shape[1], device=prompts.tokens.device)
    return ((position >= start[..., None]) & (position < stop[..., None])).any(1)


def one_position(prompts: "PromptBatch", position: PositionName | Int[Tensor, " _"]) -> Int[Tensor, " row"]:
    """Return one position of each row.

    Args:
        prompts: the prompts.
        position: by name, or a position of each prompt or of each row.

    Raises:
        ArgumentError: another name or shape, or a position outside a prompt's tokens.
    """
    if isinstance(position, Tensor):
        sizes = {len(prompts): "prompt", prompts.n_rows: "row"}
        if position.ndim != 1 or len(position) not in sizes or not _is_whole(position):
            raise ArgumentError(
                f"A tensor of {position.dtype} of shape {list(position.shape)} names no position of each prompt; "
                f"expected [{len(prompts)}] whole numbers, one for each prompt."
            )
        position = position.to(prompts.tokens.device).long()
        if len(position) != prompts.n_rows:
            position = position[prompts.prompt_index]
        _check_inside(prompts, position)
        return position
    if position == "read":
        return prompts.answer_pos
    if position == "subject_last":
        return subject_last(prompts)
    hint = did_you_mean(str(position), get_args(PositionName))
    if position in get_args(PositionsName):
        hint = f" {position!r} are several: kn_lens.attribute(model, prompts, positions={position!r})."
    raise ArgumentError(
        f"Got the position {position!r}; expected 'read', 'subject_last', or a tensor of one for each prompt.{hint}"
    )


def positions_of(
    prompts: "PromptBatch",
    positions: PositionsName | Int[Tensor, "batch position"],
    kind: Kind,
) -> Int[Tensor, "batch position"]:
    """Return the positions of each prompt, in ascending order, and -1 after those of prompts that have fewer.

    Args:
        prompts: the prompts.
        positions: by name, or the positions themselves, in any order, with -1 for none.
        kind: of the model. In a causal one no position after the read position counts.

    Raises:
        ArgumentError: another name or shape, a prompt without any, one twice, outside a prompt's tokens, or after the
            read position of a causal model.
    """
    first = _first_rows(prompts)
    read_pos = prompts.answer_pos[first]
    if isinstance(positions, Tensor):
        return _explicit(prompts, positions, kind)
    if positions not in get_args(PositionsName):
        known = get_args(PositionsName)
        raise ArgumentError(
            f"positions={positions!r}; expected one of {', '.join(map(repr, known))}, or a tensor of positions "
            f"[batch, position].{did_you_mean(str(positions), known)}"
        )
    if positions == "read":
        return read_pos[:, None]
    if positions == "subject_last":
        return subject_last(prompts)[first][:, None]
    n_pos = prompts.counted_tokens.shape[1]
    position = torch.arange(n_pos, device=prompts.tokens.device)
    is_chosen = prompts.counted_mask.bool() if positions == "all" else subject_mask(prompts)
    is_chosen = is_chosen[first] & ~_later_answer_positions(prompts)
    if not _sees_all(prompts, kind):
        is_chosen &= position <= read_pos[:, None]
    found = torch.where(is_chosen, position, n_pos).sort(-1).values
    found = found[:, : int(is_chosen.sum(-1).max())]
    return torch.where(found < n_pos, found, -1)


def roles_of(prompts: "PromptBatch", positions: Int[Tensor, "batch position"]) -> list[list[Role | None]]:
    """Return the role of each position of each prompt; None for -1.

    Where it is not known where the subject stands, every token but the one that is read is ``before``.
    """
    first = _first_rows(prompts)
    read_pos = prompts.answer_pos[first].tolist()
    mentions: Sequence[Any] = [[]] * len(prompts)
    if prompts.subject is not None:
        mentions = prompts.subject[first].tolist()
    roles: list[list[Role | None]] = []
    for of_prompt, read, spans in zip(positions.tolist(), read_pos, mentions, strict=True):
        roles.append([_role(position, read, spans) for position in of_prompt])
    return roles


def _role(position: int, read_pos: int, mentions: Sequence[Sequence[int]]) -> Role | None:
    if position < 0:
        return None
    if position == read_pos:
        return "read"
    is_after = False
    for start, stop in mentions:
        if start < 0:
            continue
        if start <= position < stop:
            if position == stop - 1:
                return "subject_last"
            return "subject_first" if position == start else "subject_middle"
        is_after |= position >= stop
    return "after" if is_after else "before"


def _first_rows(prompts: "PromptBatch") -> Int[Tensor, " batch"]:
    """Return the first row of each prompt, which has the fewest tokens of the answer."""
    n_rows = prompts.rows_per_prompt
    return n_rows.cumsum(0) - n_rows


def _later_answer_positions(prompts: "PromptBatch") -> Bool[Tensor, "batch pos"]:
    """Return where the later tokens of an answer are read; ``read`` stands for them, in their rows."""
    first = _first_rows(prompts)
    # In an encoder one placeholder stands for all of them.
    is_later = prompts.answer_pos != prompts.answer_pos[first][prompts.prompt_index]
    n_pos = prompts.counted_tokens.shape[1]
    answer = torch.zeros(len(prompts), n_pos, dtype=torch.bool, device=is_later.device)
    answer[prompts.prompt_index[is_later], prompts.answer_pos[is_later]] = True
    return answer


def _sees_all(prompts: "PromptBatch", kind: Kind) -> bool:
    """Return whether all positions can reach the answer: of a masked model, and of an encoder."""
    return kind == "masked" or prompts.side == "encoder"


def _explicit(
    prompts: "PromptBatch", positions: Int[Tensor, "batch position"], kind: Kind
) -> Int[Tensor, "batch position"]:
    """Return positions that are given, checked and in ascending order."""
    n_prompts = len(prompts)
    if positions.ndim != 2 or len(positions) != n_prompts or not _is_whole(positions):
        raise ArgumentError(
            f"positions is a tensor of {positions.dtype} of shape {list(positions.shape)}; "
            f"expected whole numbers [{n_prompts}, number of positions], with -1 where a prompt has fewer."
        )
    positions = positions.to(prompts.tokens.device).long()
    first = _first_rows(prompts)
    _refuse(prompts, (positions < 0).all(-1), "positions names none of the tokens of {text!r}; expected at least one.")
    length = prompts.counted_mask[first].sum(-1, keepdim=True)
    outside = (positions < -1) | (positions >= length)
    _refuse(prompts, outside.any(-1), "positions names a token that {text!r} does not have; it has {length}.")
    if not _sees_all(prompts, kind):
        unseen = positions > prompts.answer_pos[first][:, None]
        message = "positions names a token of {text!r} after the read position, {read_pos}, which does not see it."
        _refuse(prompts, unseen.any(-1), message)
    beyond = prompts.counted_tokens.shape[1]
    ordered = torch.where(positions < 0, beyond, positions).sort(-1).values
    is_twice = (ordered.diff(dim=-1) == 0) & (ordered[:, 1:] < beyond)
    _refuse(prompts, is_twice.any(-1), "positions names a token of {text!r} twice; expected each once.")
    ordered = ordered[:, : int((positions >= 0).sum(-1).max())]
    return torch.where(ordered < beyond, ordered, -1)


def _check_inside(prompts: "PromptBatch", position: Int[Tensor, " row"]) -> None:
    is_outside = (position < 0) | (position >= prompts.counted_mask.sum(-1))
    refused = torch.zeros(len(prompts), dtype=torch.bool, device=position.device)
    refused[prompts.prompt_index[is_outside]] = True
    _refuse(prompts, refused, "The position is outside the tokens of {text!r}, 0 to {last}.")


def _refuse(prompts: "PromptBatch", refused: Bool[Tensor, " batch"], message: str) -> None:
    """Raise an ``ArgumentError`` about the first refused prompt, if there is one."""
    if not bool(refused.any()):
        return
    number = int(refused.long().argmax())
    row = int(_first_rows(prompts)[number])
    length = int(prompts.counted_mask[row].sum())
    values = {"length": length, "last": length - 1, "read_pos": int(prompts.answer_pos[row])}
    raise ArgumentError(message.format(text=prompts.text[number], **values))


def _is_whole(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
