"""A slow twin of ``reclf`` as loops, and the variants that its tests compare with it."""

from __future__ import annotations

import pytest
import torch
import twins
from head_contract import close
from torch import nn

from diptych_heads.equations.attention import SHARPNESS

VARIANTS = [
    {},
    {"mode": "parallel", "matching": "product", "score": "sigmoid", "steps": 1},
    {"mode": "srm", "attention": "scan", "cosine_scale": 0.0, "global_node": True, "readout_norm": False},
    {"mode": "irm", "importance_norm": "none", "global_node": True, "matching": "product"},
    {"mode": "none", "attention": "scan", "global_node": False},
    {"mode": "srm", "steps": 1, "residual": False, "region_places": True},
    {"residual": False, "steps": 1, "global_node": True, "cosine_scale": 0.0, "byte_budget": 0},
    {"mode": "irm", "attention": "unit"},
    {"mode": "srm", "attention": "raw", "steps": 1},
    {"attention": "softmax", "word_relations": True, "steps": 2, "global_node": True, "readout_norm": False},
    {"mode": "srm", "word_identity": True, "attention": "raw", "steps": 1},
]
NAMES = ["-".join(f"{k}={v}" if isinstance(v, bool) else str(v) for k, v in o.items()) or "default" for o in VARIANTS]
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=NAMES)
SOME = [0, 1, 6, 7, 8, 9, 10]
some_variants = pytest.mark.parametrize("options", [VARIANTS[i] for i in SOME], ids=[NAMES[i] for i in SOME])


def step(options, dtype=torch.float64):
    """Stand-in towers and the head, its zeros and ones shaken so that every parameter counts."""
    made = twins.Step("reclf", {"matching_width": 12, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.head.named_parameters():
            if "scale" not in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made.to(dtype)


def unit(x):
    return x / x.norm()


def contexts(regions, words, attention, scale=1.0):
    """What each word attends to, of length 1. ``scale`` is 1 over the temperature of the attention."""
    seen = twins.attend(scale * words @ regions.T, attention, SHARPNESS[attention]) @ regions
    return [unit(x) for x in seen]


def compare(x, t, weight, bias, matching, identity=None):
    z = x * t if matching == "product" else (x - t) ** 2
    return unit(weight @ z + bias + (0 if identity is None else identity @ t))


def relation(i, j, sentences):
    """The class of word ``j`` as word ``i`` sees it: how far, on which side, and whether in the same sentence."""
    near = next(k for k, most in enumerate((0, 1, 2, 4, 8, 10**9)) if abs(j - i) <= most)
    return 5 + (near if j > i else -near) + (0 if sentences[i] == sentences[j] else 11)


def reason(nodes, p, name, sentences):
    queries = [p[f"{name}.query.weight"] @ q + p[f"{name}.query.bias"] for q in nodes]
    keys = [p[f"{name}.key.weight"] @ q for q in nodes]
    related = []
    for i, (q, query) in enumerate(zip(nodes, queries, strict=True)):
        logits = [torch.dot(query, key) for key in keys]
        if f"{name}.relations" in p:
            logits = [x + p[f"{name}.relations"][relation(i, j, sentences)] for j, x in enumerate(logits)]
        edges = torch.stack(logits).softmax(0)
        message = sum(e * other for e, other in zip(edges, nodes, strict=True))
        new = (p[f"{name}.graph.weight"] @ message + p[f"{name}.graph.bias"]).relu()
        if f"{name}.norm.weight" in p:
            new = nn.functional.layer_norm(q + new, q.shape, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"])
        related.append(new)
    return related


def importance(nodes, gate, gain, shift):
    z = torch.stack([torch.dot(gate[0], q) for q in nodes])
    if gain is not None:
        z = gain * (z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt()
    b = 1 / (1 + (-(z + shift)).exp())
    return b / b.sum()


def twin_score(p, options, v, t, sentences):
    """``S`` of one image and one report's real words, from parameters by their names and the options of the variant."""
    mode, matching = options.get("mode", "cascade"), options.get("matching", "sqdiff")
    local = p["local_matching.weight"], p["local_matching.bias"]
    scale = p["attention_scale.log_scale"].exp() if "attention_scale.log_scale" in p else 1.0
    seen = contexts(v, t, options.get("attention", "softmax"), scale)
    t = torch.stack([unit(word) for word in t])
    identity = p.get("word_identity.weight")
    nodes = [compare(x, word, *local, matching, identity) for x, word in zip(seen, t, strict=True)]

    def read(name, q, normalised=True):
        s = torch.dot(p[f"{name}.weight"][0], unit(q) if normalised else q)
        return 1 / (1 + (-(s + p[f"{name}.bias"][0])).exp()) if options.get("score") == "sigmoid" else s

    def mean(nodes, weights):
        return sum(b * q for b, q in zip(weights, nodes, strict=True))

    related = nodes
    if mode in ("cascade", "parallel", "srm"):
        for index in range(options.get("steps", 3)):
            related = reason(related, p, f"semantic.{index}", sentences)
    even = [1 / len(nodes)] * len(nodes)
    weights = torch.tensor(even, dtype=v.dtype)
    pooled = related if mode in ("cascade", "srm") else nodes
    if mode in ("irm", "cascade", "parallel"):
        gate = "importance_gate"
        weights = importance(pooled, p[f"{gate}.gate.weight"], p.get(f"{gate}.gain"), p[f"{gate}.shift"])
    normalised = options.get("readout_norm", True)
    score = read("score", mean(pooled, weights), normalised or mode not in ("cascade", "srm"))
    if mode == "parallel":
        score = score + read("srm_score", mean(related, even), normalised)
    if options.get("cosine_scale", 5.0):
        cosines = sum(b * torch.dot(x, word) for b, x, word in zip(weights, seen, t, strict=True)) / weights.sum()
        score = score + p["cosine_scale"] * cosines
    return score


def twin(p, options, image, text):
    """``S`` of every pair, as loops."""
    places = (torch.arange(text.mask.shape[1]) // 2).expand(text.mask.shape)
    reports = list(zip(text.tokens, text.mask, places, strict=True))
    rows = [torch.stack([twin_score(p, options, v, t[real], k[real]) for t, real, k in reports]) for v in image.tokens]
    return torch.stack(rows)


def twin_global(p, options, image, text):
    """The global part of every pair, as loops: the cosine, and what the global node reads."""

    def score(vg, tg):
        cosine = torch.dot(vg, tg)
        if not options.get("global_node"):
            return cosine
        weights = p["global_matching.weight"], p["global_matching.bias"]
        node = torch.dot(p["global_score.weight"][0], compare(vg, tg, *weights, options.get("matching", "sqdiff")))
        return cosine + (1 / (1 + (-node).exp()) if options.get("score") == "sigmoid" else node)

    return torch.stack([torch.stack([score(vg, tg) for tg in text.pooled]) for vg in image.pooled])


def value_and_gradients(module, scores):
    weights = torch.linspace(-1.0, 2.0, scores.numel(), dtype=scores.dtype).view_as(scores)
    module.zero_grad()
    (weights * scores).sum().backward()
    return scores.detach(), {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def same(actual, expected, tolerance):
    close(actual[0], expected[0], tolerance)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        close(actual[1][name], gradient, tolerance)
