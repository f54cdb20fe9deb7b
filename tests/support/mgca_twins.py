"""Slow twins of ``mgca``, as loops over the published description."""

from __future__ import annotations

import torch
import twins


def projected(p, name, rows):
    """``rows`` ``[n,inputs]``, all real: linear, batch norm, ReLU, linear, batch norm without scale; then unit length."""

    def norm(x):
        return (x - x.mean(0)) / ((x - x.mean(0)).square().mean(0) + 1e-5).sqrt()

    hidden = norm(rows @ p[f"{name}.inner.weight"].T) * p[f"{name}.inner_norm.weight"] + p[f"{name}.inner_norm.bias"]
    out = norm(hidden.relu() @ p[f"{name}.outer.weight"].T)
    return out / out.norm(dim=1, keepdim=True)


def token_twin(queries, keys, weights):
    """One pair: real queries ``[n,E]``, real keys ``[m,E]``, weights ``[n]``."""
    contexts = []
    for q in queries:
        attention = torch.stack([torch.dot(q, k) / 0.1 for k in keys]).softmax(0)
        context = sum(a * k for a, k in zip(attention, keys, strict=True))
        contexts.append(context / context.norm())
    total = queries.new_zeros(())
    for n, weight in enumerate(weights):
        own = torch.dot(queries[n], contexts[n]) / 0.1
        over_contexts = torch.stack([torch.dot(queries[n], x) / 0.1 for x in contexts]).logsumexp(0)
        over_queries = torch.stack([torch.dot(q, contexts[n]) / 0.1 for q in queries]).logsumexp(0)
        total = total + weight * (over_contexts - own + over_queries - own) / 2
    return total


def shares_twin(attention):
    clipped = attention.clamp(torch.quantile(attention, 0.1), torch.quantile(attention, 0.9))
    return clipped / clipped.sum()


def sinkhorn_twin(scores, epsilon=0.05, iterations=3):
    """As the publication has it, constants included: ``[B,K]``."""
    q = (scores / epsilon).exp().T
    q = q / q.sum()
    prototypes, pairs = q.shape
    for _ in range(iterations):
        q = q * (1 / prototypes / q.sum(1)).unsqueeze(1)
        q = q * (1 / pairs / q.sum(0)).unsqueeze(0)
    return (q / q.sum(0)).T.detach()


def losses_twin(p, image, text, hash):
    """The three terms, pair by pair, from the parameters by their names and the towers' features."""
    vg, tg = projected(p, "image_projection", image.pooled), projected(p, "text_projection", text.pooled)
    regions = projected(p, "region_projection", image.tokens.flatten(0, 1)).view(*image.tokens.shape[:2], -1)
    real_words = projected(p, "word_projection", text.tokens[text.mask]).split(text.mask.sum(1).tolist())
    token = vg.new_zeros(())
    for b, words in enumerate(real_words):
        token = token + token_twin(words, regions[b], shares_twin(text.attention[b][text.mask[b]])) / len(vg)
        token = token + token_twin(regions[b], words, shares_twin(image.attention[b])) / len(vg)
    unit_prototypes = p["prototypes"] / p["prototypes"].norm(dim=1, keepdim=True)
    scores = vg @ unit_prototypes.T, tg @ unit_prototypes.T
    prototype = vg.new_zeros(())
    for code_of, predicted_by in ((0, 1), (1, 0)):
        codes, logits = sinkhorn_twin(scores[code_of]), scores[predicted_by] / 0.2
        for b in range(len(vg)):
            prototype = prototype - (codes[b] * logits[b].softmax(0).log()).sum() / (2 * len(vg))
    instance = 2 * twins.info_nce(p["scale.log_scale"].exp() * vg @ tg.T, hash, 0.5)
    return {"instance": instance, "token": token, "prototype": prototype}
