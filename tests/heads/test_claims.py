"""What the papers claim, at unit scale: heads trained by themselves, on features whose meaning is known.

A region is a disease and a place, one-hot side by side, with noise; a word is the one or the other. Every image shows all
diseases at all places, so that nothing but which disease is at which place tells two images apart.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diptych.head import gather_pairs
from diptych.types import Dims, Features, Pairs
from diptych_heads.pcma import Pcma
from diptych_heads.reclf import Reclf

pytestmark = pytest.mark.slow
KINDS, FILLER = 6, 12
EYE = torch.eye(KINDS)


def places_of(n: int, generator: torch.Generator, *, alone: bool = False) -> Tensor:
    """Which disease is at each place ``[n,KINDS]``: all of them, one a place, or one at all places."""
    if alone:
        return torch.randint(KINDS, (n, 1), generator=generator).expand(n, KINDS)
    return torch.stack([torch.randperm(KINDS, generator=generator) for _ in range(n)])


def picture(disease: Tensor, noise: float, extra: int, generator: torch.Generator) -> Features:
    n = len(disease)
    regions = torch.cat([EYE[disease], EYE.expand(n, -1, -1), torch.zeros(n, KINDS, extra)], -1)
    regions = regions + noise * torch.randn(regions.shape, generator=generator)
    return Features(regions.mean(1), regions, torch.ones(n, KINDS, dtype=torch.bool), grid=(2, 3))


def report(disease: Tensor, place: Tensor, filler: Tensor, extra: int) -> Features:
    """Words ``[n,2+F,D]``: the disease, its place, and filler that means nothing."""
    n, none = len(disease), torch.zeros(len(disease), KINDS)
    beyond = torch.zeros(n, extra)
    words = [torch.cat([EYE[disease], none, beyond], -1), torch.cat([none, EYE[place], beyond], -1)]
    words += [torch.cat([none, none, torch.eye(max(extra, 1))[f][:, :extra]], -1) for f in filler.T]
    tokens = torch.stack(words, 1)
    return Features(tokens.mean(1), tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


def train(head, *, seed: int, steps: int, noise: float, filler: int = 0):
    """Train the head; 256 new images, their own reports, and the same with another place. Filler: one disease an image."""
    extra = FILLER if filler else 0
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)

    def draw(n: int) -> tuple[Features, Features, Features, Tensor]:
        disease_at = places_of(n, generator, alone=filler > 0)
        place = torch.randint(KINDS, (n,), generator=generator)
        disease = disease_at.gather(1, place.unsqueeze(1)).squeeze(1)
        elsewhere = (place + torch.randint(1, KINDS, (n,), generator=generator)) % KINDS
        fillers = torch.randint(max(extra, 1), (n, filler), generator=generator)
        image = picture(disease_at, noise, extra, generator)
        key = disease if filler else disease * KINDS + place
        return image, report(disease, place, fillers, extra), report(disease, elsewhere, fillers, extra), key

    for _ in range(steps):
        image, text, _, key = draw(32)
        here = Pairs(head.embed_image(image), head.embed_text(text), torch.arange(32), key)
        terms = head.losses(here, gather_pairs(head, here))
        optimizer.zero_grad()
        torch.stack([head.weights[name] * term for name, term in terms.items()]).sum().backward()
        optimizer.step()
    return draw(256)


def dims(extra: int = 0) -> Dims:
    return Dims(*[2 * KINDS + extra] * 4)


@torch.no_grad()
def right(head, image: Features, own: Features, other: Features) -> float:
    """How often the matchings prefer an image's own report to the same disease elsewhere."""
    seen = head.embed_image(image)
    scores = [head.local_scores(seen, head.embed_text(text)).diagonal() for text in (own, other)]
    return float((scores[0] > scores[1]).double().mean())


def test_related_matchings_tell_which_disease_is_where_and_their_plain_mean_does_not(one_thread):
    """What RECLF is for: disease word and place word match the same region, or two.

    The plain mean has the same nodes. With the head's own ``cosine_scale`` of 5 the plain cosines, which cannot tell, lead
    for longer than these steps last.
    """
    options = {"cosine_scale": 1.0, "attention": "softmax", "word_identity": True}
    shares = {}
    for mode in ("srm", "none"):
        torch.manual_seed(0)
        head = Reclf(dims(), width=16, matching_width=16, mode=mode, **options)
        image, own, other, _ = train(head, seed=0, steps=1000, noise=0.3)
        shares[mode] = right(head, image, own, other)
    assert shares["srm"] > 0.8, shares
    assert shares["none"] < 0.75, shares


def test_filler_weighs_less_than_what_is_said(one_thread):
    torch.manual_seed(0)
    head = Reclf(dims(FILLER), width=16, matching_width=16, mode="irm")
    image, own, _, _ = train(head, seed=0, steps=250, noise=0.1, filler=8)
    with torch.no_grad():
        weights = head.importance(head.embed_image(image), head.embed_text(own))
    disease, filler = weights[:, :1], weights[:, 2:]
    assert weights.sum(1).allclose(torch.ones(256))
    assert (
        (disease > filler).double().mean() - (disease < filler).double().mean()
    ) > 0.5  # rank-biserial; 0 at the start


def test_queries_specialise(one_thread):
    """Each query looks for a few of the diseases or places, and they do not all look for the same."""
    torch.manual_seed(0)
    head = Pcma(dims(), width=16, queries=6, layers=2, heads=1, least_words=1, cce=0.0)

    def shares() -> Tensor:
        """Of each query's attention, that for each disease and each place: ``[K,2*KINDS]``."""
        generator = torch.Generator().manual_seed(9)
        disease_at = places_of(256, generator)
        with torch.no_grad():
            seen = head.observations(head.embed_image(picture(disease_at, 0.1, 0, generator)))  # [n,K,regions]
        of = [(seen * (disease_at == d).unsqueeze(1)).sum(2).mean(0) for d in range(KINDS)]
        return torch.cat([torch.stack(of, 1), seen.mean(0)], 1)

    assert shares().max(1).values.mean() < 1.5 / KINDS
    train(head, seed=0, steps=800, noise=0.1)
    assert shares().max(1).values.mean() > 2 / KINDS
    assert len(set(shares().argmax(1).tolist())) >= 2
