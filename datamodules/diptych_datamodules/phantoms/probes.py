"""Probes of a trained model on phantoms. Each is built so that one ability decides it.

- *pair*: two radiographs of one patient differ in the side, or the zone, of one finding alone. Whose report is whose?
  ``pair/mild`` asks this of findings in their mildest degree, which are hard to see.
- *swap*: two findings, one on each side, change places. The two reports hold the same words.
- *distractor*: retrieval among reports of which up to 80 % of the sentences are filler.
- *long*: the same among reports of 60 to 90 words, of which 80 % of the sentences are filler.
- *other_regions*, *other_pooled*: what remains of the local score if an image has another image's regions, or another image's
  pooled vector. The score must fall to chance with the first, and stay with the second.
- *grounding*: does the attention of the words that name a finding peak inside its box? How flat is it?
- *importance*: do the words of findings weigh more than those of filler?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from diptych.head import Grounds, WeighsWords
from diptych_datamodules.phantoms.findings import KINDS, FindingSpec
from diptych_datamodules.phantoms.plan import PhantomPlan, plan_phantom, render, with_findings
from diptych_datamodules.phantoms.retrieval_probes import distractor_probes, encode, long_probe, scores_of

if TYPE_CHECKING:
    from diptych.model.inference import TrainedModel

__all__ = ["CHANCE", "VERSION", "pairs_of_sides", "pairs_of_zones", "run_probes", "swaps"]

Section = Literal["both", "findings", "impression"]
Pair = tuple[PhantomPlan, PhantomPlan]

_CHOICES = ("pair", "pair/side", "pair/zone", "pair/mild", "pair/mild/side", "pair/mild/zone", "swap")
CHANCE = {f"{part}{probe}": 0.5 for part in ("", "matchings/") for probe in _CHOICES}
CHANCE["importance/rank_biserial"] = 0.0
"""The results of a model that knows nothing."""
VERSION = 2
"""It rises with every figure that is added or changed. Trained models are then probed again."""
_CHUNK = 64


def _plans(seed: int) -> Iterator[PhantomPlan]:
    """Patients without findings, from a collection that is not trained on."""
    index = 0
    while True:
        yield plan_phantom(index, seed=seed, normal=1.0, filler=0.3)
        index += 1


def _spec(rng: np.random.Generator, name: str, side: str, zone: str | None = None) -> FindingSpec:
    kind = KINDS[name]
    zone = zone or (str(rng.choice(kind.zones)) if kind.zones else None)
    return FindingSpec(name, side, zone, kind.severities[1 + int(rng.integers(2))])  # not the mildest: it must be seen


def _sided(findings: Sequence[str], zones: int = 1) -> list[str]:
    return [name for name in findings if KINDS[name].sided and len(KINDS[name].zones) >= zones]


def pairs_of_sides(n: int, findings: Sequence[str], seed: int) -> list[Pair]:
    """``n`` pairs of a patient with one finding on the right, and the same on the left."""
    rng, names = np.random.default_rng([seed, 1]), _sided(findings)
    pairs = []
    for plan in _plans(seed):
        spec = _spec(rng, str(rng.choice(names)), "right")
        pairs.append((with_findings(plan, [spec]), with_findings(plan, [replace(spec, side="left")])))
        if len(pairs) == n:
            break
    return pairs


def pairs_of_zones(n: int, findings: Sequence[str], seed: int) -> list[Pair]:
    """``n`` pairs of a patient with one finding in one zone, and the same in another zone of that side."""
    rng, names = np.random.default_rng([seed, 2]), _sided(findings, zones=2)
    pairs = []
    for plan in _plans(seed):
        name = str(rng.choice(names))
        here, there = rng.choice(KINDS[name].zones, size=2, replace=False)
        spec = _spec(rng, name, str(rng.choice(["right", "left"])), str(here))
        pairs.append((with_findings(plan, [spec]), with_findings(plan, [replace(spec, zone=str(there))])))
        if len(pairs) == n:
            break
    return pairs


def swaps(n: int, findings: Sequence[str], seed: int) -> list[Pair]:
    """``n`` pairs of a patient with one finding right and another left, and the same two with exchanged sides."""
    rng, names = np.random.default_rng([seed, 3]), _sided(findings)
    pairs = []
    for plan in _plans(seed):
        a, b = (str(name) for name in rng.choice(names, size=2, replace=False))
        one, other = _spec(rng, a, "right"), _spec(rng, b, "left")
        exchanged = [replace(one, side="left"), replace(other, side="right")]
        pairs.append((with_findings(plan, [one, other]), with_findings(plan, exchanged)))
        if len(pairs) == n:
            break
    return pairs


def mildest_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """The same pairs with each finding in its mildest degree."""

    def mild(plan: PhantomPlan) -> PhantomPlan:
        return with_findings(plan, [replace(spec, severity=KINDS[spec.name].severities[0]) for spec in plan.specs])

    return [(mild(one), mild(other)) for one, other in pairs]


def _text(plan: PhantomPlan, section: Section) -> str:
    report = plan.report
    return {"both": report.text, "findings": report.findings, "impression": report.impression}[section]


@torch.inference_mode()
def choice_accuracy(
    model: TrainedModel, pairs: Sequence[Pair], section: Section, cache: Path | None = None
) -> dict[str, float]:
    """How often a radiograph's own report scores higher than the other one of its pair. A tie counts as wrong."""
    wins: dict[str, list[Tensor]] = {}
    plans = [plan for pair in pairs for plan in pair]
    images = encode(model, plans, cache)
    for start in range(0, len(plans), _CHUNK):
        chunk = torch.arange(start, min(start + _CHUNK, len(plans)))
        picture = torch.arange(len(chunk))
        texts = model.encode_text([_text(plans[i], section) for i in chunk.tolist()])
        for part, scores in scores_of(model, images.select(chunk), texts).items():
            both = scores.view(len(chunk), -1, 2)[picture, picture // 2]  # [2n,2]
            wins.setdefault(part, []).append(both[picture, picture % 2] > both[picture, 1 - picture % 2])
    return {part: float(torch.cat(rows).double().mean()) for part, rows in wins.items()}


def _words(model: TrainedModel, plan: PhantomPlan, section: Section) -> tuple[list[int | None], list[str]]:
    """For each word of a section: the index of the finding that it names, or None, and its role, or empty."""
    start = len(plan.report.findings) + 1 if section == "impression" else 0
    named: list[int | None] = []
    roles = []
    for a, b in model.module.tokenizer.word_spans(_text(plan, section)):
        link = next((k for k in plan.report.links if k.start <= start + a and start + b <= k.end), None)
        named.append(link.finding if link is not None and link.role == "finding" else None)
        roles.append("" if link is None else link.role)
    return named, roles


@torch.inference_mode()
def word_probes(model: TrainedModel, n: int, mix: dict[str, float], section: Section, seed: int) -> dict[str, float]:
    """Two probes of single words.

    The pointing game of words that name a finding, with its chance by the box's area, and how flat their attention is. And
    how much more these words weigh than those of filler.
    """
    head, size = model.module.head, model.image_size
    hits, areas, flat, effects = [], [], [], []
    plans = [plan_phantom(i, seed=seed, mix=mix, normal=0.0, max_findings=2, filler=0.4) for i in range(n)]
    for plan in plans:
        radiograph, text = render(plan, size), _text(plan, section)
        named, roles = _words(model, plan, section)
        weights = None
        if isinstance(head, Grounds):
            seen = model.look(radiograph.image, text)
            maps, entropy, weights = seen.native, seen.entropy, seen.weights
            for k, finding in enumerate(radiograph.findings):
                words = [i for i, finding_named in enumerate(named) if finding_named == k]
                if words:
                    y, x = np.unravel_index(int(maps[words].mean(0).argmax()), (size, size))
                    x0, y0, x1, y1 = finding.box
                    hits.append(x0 <= x < x1 and y0 <= y < y1)
                    areas.append((x1 - x0) * (y1 - y0) / size**2)
                    flat.append(float(entropy[words].mean()))
        elif isinstance(head, WeighsWords) and head.weighs_words:
            weights = model.importance(radiograph.image, text)
        if weights is not None:
            kind = np.array(roles)
            telling, filler = weights[kind == "finding"], weights[kind == "filler"]
            if len(telling) and len(filler):
                above = (telling[:, None] > filler).mean() - (telling[:, None] < filler).mean()
                effects.append(float(above))
    results: dict[str, float] = {}
    if hits:
        pointing, chance = float(np.mean(hits)), float(np.mean(areas))
        results |= {"grounding/pointing": pointing, "grounding/pointing/chance": chance}
        results |= {"grounding/over_chance": pointing / chance, "grounding/entropy": float(np.mean(flat))}
    if effects:
        results["importance/rank_biserial"] = float(np.mean(effects))
    return results


def run_probes(
    model: TrainedModel,
    *,
    mix: dict[str, float] | None = None,
    section: Section = "both",
    seed: int = 10_000,
    pairs: int = 200,
    cache: Path | None = None,
) -> dict[str, float]:
    """All probes of a trained model.

    Args:
        model: trained on phantoms.
        mix: the findings that it was trained on. All, if not given.
        section: the part of the reports that it was trained on.
        seed: of the probes' phantoms. No training must use it.
        pairs: pairs of each kind, and radiographs in each of the other probes.
        cache: folder that keeps the probes' pictures. Left out, they are drawn anew.

    Returns:
        - ``pair``, ``pair/side``, ``pair/zone``, the same three as ``pair/mild``, and ``swap``: shares of right choices.
          Chance is 0.5.
        - ``distractor/0.8`` and the like: R@5 at a share of filler. ``distractor`` is that at 0.8.
        - ``long``: R@5 among reports of 60 to 90 words, at a share of 0.8. ``long/cut`` is the share of these reports that the
          text tower's limit has cut. It is there only if some were.
        - All of these as ``matchings/pair`` and the like, by the score of the head's matchings alone, if it has one.
        - ``matchings/own``, ``matchings/other_regions``, ``matchings/other_pooled``: R@5 of that score at a share of 0.4, as it
          is, with another image's regions, and with another image's pooled vector. A local score must fall to chance with the
          first, and stay with the second.
        - ``grounding/pointing``, its ratio to chance ``grounding/over_chance``, and ``grounding/entropy``, if the head grounds
          words. The entropy of a word's attention over regions is divided by the logarithm of their number: 0 is a single
          region, and 1 is all alike.
        - ``importance/rank_biserial``, of the words of findings over those of filler within a report, from -1 to 1, if the
          head weighs words.
        - The chance of any of these figures as ``NAME/chance``, where it depends on the phantoms. The others are in ``CHANCE``.
    """
    weights = dict(mix) if mix is not None else {name: kind.share for name, kind in KINDS.items()}
    seen = [name for name, weight in weights.items() if weight > 0]
    sides, zones = pairs_of_sides(pairs, seen, seed), pairs_of_zones(pairs, seen, seed)
    probes = {
        "pair/side": choice_accuracy(model, sides, section, cache),
        "pair/zone": choice_accuracy(model, zones, section, cache),
        "pair/mild/side": choice_accuracy(model, mildest_pairs(sides), section, cache),
        "pair/mild/zone": choice_accuracy(model, mildest_pairs(zones), section, cache),
        "swap": choice_accuracy(model, swaps(pairs, seen, seed), section, cache),
    }
    results: dict[str, float] = {}
    for part in probes["swap"]:
        for pair in ("pair", "pair/mild"):
            results[f"{part}{pair}"] = (probes[f"{pair}/side"][part] + probes[f"{pair}/zone"][part]) / 2
        results |= {f"{part}{probe}": values[part] for probe, values in probes.items()}
    results |= distractor_probes(model, pairs, weights, seed + 1, cache)
    results |= long_probe(model, pairs, weights, seed + 3, cache)
    return results | word_probes(model, pairs, weights, section, seed + 2)
