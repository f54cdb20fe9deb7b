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
    {"mode": "srm", "attention": "scan", "cosine_scale": 0.0},
    {"mode": "irm", "importance_norm": "none", "global_node": False},
    {"mode": "none", "attention": "scan", "global_node": False},
    {"mode": "srm", "global_node": False, "steps": 1, "residual": False},
    {"residual": False, "steps": 1, "global_node": False, "cosine_scale": 0.0, "byte_budget": 0},
    {"mode": "irm", "attention": "softmax"},
    {"mode": "srm", "attention": "raw", "steps": 1},
]
NAMES = ["-".join(map(str, options.values())) or "default" for options in VARIANTS]
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=NAMES)
SOME = [0, 1, 6, 7, 8]
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


def contexts(regions, words, attention="unit", scale=1.0):
    """What each word attends to, of length 1. ``scale`` is 1 over the temperature of the attention."""
    seen = twins.attend(scale * words @ regions.T, attention, SHARPNESS[attention]) @ regions
    return [unit(x) for x in seen]


def compare(x, t, weight, bias, matching):
    z = x * t if matching == "product" else (x - t) ** 2
    return unit(weight @ z + bias)


def reason(nodes, p, name):
    queries = [p[f"{name}.query.weight"] @ q + p[f"{name}.query.bias"] for q in nodes]
    keys = [p[f"{name}.key.weight"] @ q for q in nodes]
    related = []
    for q, query in zip(nodes, queries, strict=True):
        edges = torch.stack([torch.dot(query, key) for key in keys]).softmax(0)
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


def twin_score(p, options, vg, v, tg, t):
    """``S`` of one image and one report's real words, from parameters by their names and the options of the variant."""
    mode, matching = options.get("mode", "cascade"), options.get("matching", "sqdiff")
    local, pooled_nodes = [
        (p.get(f"{name}.weight"), p.get(f"{name}.bias")) for name in ("local_matching", "global_matching")
    ]
    scale = p["attention_scale.log_scale"].exp() if "attention_scale.log_scale" in p else 1.0
    seen = contexts(v, t, options.get("attention", "unit"), scale)
    t = torch.stack([unit(word) for word in t])
    nodes = [compare(x, word, *local, matching) for x, word in zip(seen, t, strict=True)]
    if options.get("global_node", True):
        nodes.insert(0, compare(vg, tg, *pooled_nodes, matching))

    def read(name, q):
        s = torch.dot(p[f"{name}.weight"][0], unit(q))
        return 1 / (1 + (-(s + p[f"{name}.bias"][0])).exp()) if options.get("score") == "sigmoid" else s

    def mean(nodes, weights):
        return sum(b * q for b, q in zip(weights, nodes, strict=True))

    related = nodes
    if mode in ("cascade", "parallel", "srm"):
        for index in range(options.get("steps", 3)):
            related = reason(related, p, f"semantic.{index}")
    weights = torch.full((len(nodes),), 1 / len(nodes), dtype=v.dtype)
    pooled = related if mode in ("cascade", "srm") else nodes
    if mode in ("irm", "cascade", "parallel"):
        gate = "importance_gate"
        weights = importance(pooled, p[f"{gate}.gate.weight"], p.get(f"{gate}.gain"), p[f"{gate}.shift"])
    first = related[0] if options.get("global_node", True) else mean(related, [1 / len(nodes)] * len(nodes))
    score = read("score", first if mode == "srm" else mean(pooled, weights))
    if mode == "parallel":
        score = score + read("srm_score", first)
    if options.get("cosine_scale", 5.0):
        of_words = weights[-len(t) :]
        cosines = sum(b * torch.dot(x, word) for b, x, word in zip(of_words, seen, t, strict=True)) / of_words.sum()
        score = score + p["cosine_scale"] * cosines
    return score


def twin(p, options, image, text):
    reports = list(zip(text.pooled, text.tokens, text.mask, strict=True))
    rows = [
        torch.stack([twin_score(p, options, vg, v, tg, t[real]) for tg, t, real in reports])
        for vg, v in zip(image.pooled, image.tokens, strict=True)
    ]
    return torch.stack(rows)


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
