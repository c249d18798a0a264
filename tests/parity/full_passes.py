"""Attribution by full passes over one unpadded prompt at a time."""

import torch

import kn_lens as kn
from tests.tiny import N_LAYERS


def full_pass(model, prompts, row, layer, post):
    """Return P(target) of a row from a full, unpadded pass, and its activation, which ``post`` replaces if given."""
    length, read_pos = int(prompts.attention_mask[row].sum()), int(prompts.read_pos[row])
    seen = []

    def hook_fn(activation, hook):
        seen.append(activation[0, read_pos].detach())
        if post is not None:
            at_read_pos = (torch.arange(length) == read_pos)[None, :, None]
            return torch.where(at_read_pos, post, activation)

    tokens = prompts.tokens[row, None, :length]
    logits = model.run_with_hooks(
        tokens, attention_mask=torch.ones_like(tokens), fwd_hooks=[(f"blocks.{layer}.mlp.hook_post", hook_fn)]
    )
    return logits[0, read_pos].softmax(-1)[prompts.target_ids[row]], seen[0]


def prompts_for(model, lengths, read_pos):
    """Return right-padded prompts of random tokens."""
    generator = torch.Generator().manual_seed(3)
    lengths, n_pos = torch.tensor(lengths), max(lengths)
    mask = (torch.arange(n_pos) < lengths[:, None]).long()
    tokens = torch.randint(10, 40, (len(lengths), n_pos), generator=generator)
    pad = getattr(kn.host_of(model).tokenizer, "pad_token_id", None) or 0
    return kn.PromptBatch.from_tokens(
        torch.where(mask.bool(), tokens, pad),
        attention_mask=mask,
        read_pos=torch.tensor(read_pos),
        target_ids=torch.randint(10, 40, (len(lengths),), generator=generator),
    )


def assert_scores_of_full_passes(model, prompts, share):
    """Compare scores; ``share`` is the largest error relative to each layer's largest score."""
    attr = kn.attribute(model, prompts, quadrature="gauss-legendre", n_steps=2, start="zero")
    for layer in range(N_LAYERS):
        reference = kn.reference_attribution(model, prompts, layer, rule="gauss-legendre", n_steps=2)
        for row, scores in enumerate(reference):
            torch.testing.assert_close(attr.scores[row, layer], scores, rtol=0, atol=share * float(scores.abs().max()))
    for row in range(len(prompts)):
        with torch.no_grad():
            probability, _ = full_pass(model, prompts, row, 0, None)
        torch.testing.assert_close(attr.clean[row], probability, rtol=share, atol=0)
