"""Tokenizers: the checkpoint's own, unchanged, which prompts use, beside the one that TransformerLens works with.

TransformerLens sets a tokenizer up for its own functions (``to_tokens``, ``generate``): it prepends the BOS token, also
where the checkpoint was trained without one, and gives special tokens to a tokenizer that lacks them. Asked with such
tokens, a model gives other answers. So a model has two tokenizers with the same tokens: ``model.tokenizer``, as users
of TransformerLens expect it, and an unchanged one, which `tokenizer_of` returns.
"""

import copy
import hashlib
import json
from typing import Any

from kn_lens._core.checks import check_kind
from kn_lens.errors import ArgumentError
from kn_lens.hosts.families import quiet_imports

_ATTRIBUTE = "_kn_lens_tokenizer"
_PROBE = "The capital of Ireland is Dublin (since 1922).\nnaïve ÉCOLE straße Москва 東京"
_TOKENS_PROBED = 128


def attach_tokenizer(model: Any, tokenizer: Any) -> None:
    """Attach an unchanged tokenizer to a model, for `tokenizer_of`."""
    if tokenizer is not None:
        setattr(model, _ATTRIBUTE, tokenizer)


def tokenizer_of(model: Any) -> Any:
    """Return the checkpoint's own tokenizer of a TransformerLens model, or None.

    A model that kn_lens did not load has none attached. Its tokenizer is then read again, unchanged, from where that of
    TransformerLens was read. The result is None where that is not known or not at hand, or has other tokens now.
    """
    if not hasattr(model, _ATTRIBUTE):
        own = getattr(model, "tokenizer", None)
        config = getattr(getattr(model, "original_model", None), "config", None)
        # None is attached too: looking again at each call would ask the hub each time.
        setattr(model, _ATTRIBUTE, read_again(own, commit=getattr(config, "_commit_hash", None)))
    return getattr(model, _ATTRIBUTE)


def read_again(tokenizer: Any, commit: str | None = None) -> Any:
    """Return a tokenizer as its checkpoint has it, or None where the checkpoint cannot be read, or has other tokens.

    Args:
        tokenizer: a Hugging Face tokenizer, perhaps changed since it was read; or None.
        commit: the commit of the checkpoint on the Hugging Face hub, where it is known.
    """
    source = getattr(tokenizer, "name_or_path", "")
    if not source:
        return None
    with quiet_imports():
        from transformers import AutoTokenizer

    options = {} if commit is None else {"revision": commit}
    try:
        unchanged = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    except Exception:  # no such place, no network, a damaged file: there is nothing to read again
        return None
    ids = tokenizer.get_vocab()
    same = all(ids.get(token) == number for token, number in unchanged.get_vocab().items())
    return unchanged if same else None


def copy_for_transformer_lens(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer for TransformerLens to set up, which reads it again for some of its changes.

    That would ask the hub, and fails for tokenizers that were made in memory or read from a GGUF file. It is left out
    for a tokenizer whose ``init_kwargs`` say that it prepends BOS. TransformerLens then finds out by a text whether it
    does, and prepends BOS itself in ``to_tokens``.
    """
    own = copy.deepcopy(tokenizer)
    own.init_kwargs = {
        **own.init_kwargs,
        "name_or_path": tokenizer.name_or_path,
        "add_bos_token": True,
    }
    return own


def check_tokenizer(tokenizer: Any) -> None:
    """Raise unless ``tokenizer`` is a Hugging Face tokenizer, or None.

    Raises:
        ArgumentError: with what to pass.
    """
    with quiet_imports():
        from transformers import PreTrainedTokenizerBase

    if tokenizer is not None:
        expected = "a Hugging Face tokenizer: transformers.AutoTokenizer.from_pretrained(name)"
        check_kind(tokenizer, PreTrainedTokenizerBase, expected, "tokenizer")


def check_beginning(tokenizer: Any, unchanged: Any) -> None:
    """Raise if a tokenizer puts a special token before each text that the checkpoint's own does not put there.

    Args:
        tokenizer: the tokenizer that the caller chose.
        unchanged: the checkpoint's own; None where it is not known. Where a checkpoint has no tokenizer, transformers
            makes one of its class, without words: nothing can be compared with that.

    Raises:
        ArgumentError: with the token, and what to do.
    """
    if unchanged is None or unchanged is tokenizer or not _has_words(unchanged):
        return
    added = _special_tokens_before(tokenizer)
    if len(added) > len(_special_tokens_before(unchanged)):
        raise ArgumentError(
            f"The tokenizer puts {added[0]!r} before each text, which the checkpoint's own tokenizer does not: the "
            "model would be queried with tokens that it was not trained on, and gives other answers. TransformerLens "
            "sets its tokenizers up like this. Leave tokenizer= out, or pass "
            "transformers.AutoTokenizer.from_pretrained(...) unchanged. To query with that token all the same, make "
            "the prompts with PromptBatch.from_tokens, for example of model.to_tokens(text)."
        )


def _has_words(tokenizer: Any) -> bool:
    """Return whether a tokenizer has other tokens than special ones, and than the mark of a word's beginning."""
    return not tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens, "▁"}


def adds_special_tokens_before(tokenizer: Any) -> bool:
    """Return whether a tokenizer puts special tokens, such as BOS, before each text."""
    return bool(_special_tokens_before(tokenizer))


def fingerprint(tokenizer: Any) -> str | None:
    """Return a digest by which tokenizers with other tokens are told apart; None for a slow tokenizer, or for None.

    It covers the size of the vocabulary, tokens spread over it, and the tokens of one text with cases, accents and
    scripts. Tokens added to a vocabulary do not change it: earlier token ids keep their meaning. Cost: half a
    millisecond, whatever the size.
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    n_tokens = tokenizer.vocab_size
    ids = list(range(0, n_tokens, max(1, n_tokens // _TOKENS_PROBED)))
    encoded = tokenizer.encode(_PROBE, padding=False, truncation=False)
    seen = [
        n_tokens,
        tokenizer.convert_ids_to_tokens(ids),
        encoded,
        tokenizer.mask_token_id,
    ]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _special_tokens_before(tokenizer: Any) -> list[str]:
    special_ids = set(tokenizer.all_special_ids)
    before: list[str] = []
    for token_id in tokenizer.encode("The", padding=False, truncation=False):
        if token_id not in special_ids:
            break
        before.append(tokenizer.convert_ids_to_tokens(token_id))
    return before
