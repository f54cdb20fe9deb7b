"""``cce``: predict which patches of an image are alike, from the report. It is a term to train beside any head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from diptych.checks import check_number
from diptych.errors import ConfigError
from diptych.head import AlignmentHead
from diptych.nn import functional as F
from diptych.nn.layers import DecoderLayer
from diptych.types import Dims, Embedding, Features, Pairs

__all__ = ["Cce", "CceEmbedding", "Source", "Target", "correlation_loss", "draw_patches", "patch_views"]

Source = Literal["pixel", "ema", "detached"]
"""The vectors whose correlations are the target, an argument of :class:`Cce`."""


Target = Literal["correlation", "covariance"]
"""What is predicted of two patches, an argument of :class:`Cce`."""


@dataclass(frozen=True)
class CceEmbedding(Embedding):
    """A panel as the term ``cce`` reads it. ``pooled`` is the tower's own. All other fields are None outside training."""

    patches: Tensor | None = None
    """``[B,R,E]``, image only: the projected patches."""
    places: Tensor | None = None
    """``[B,R,E]``, image only: the code of each patch's place."""
    views: Tensor | None = None
    """``[B,R,Q]``, image only: unit vectors whose dot products are the target."""
    words: Tensor | None = None
    """``[B,N,E]``, text only: the projected words."""
    word_mask: Tensor | None = None
    """``[B,N]``, text only: True at real words."""


def patch_views(vectors: Tensor, centre: Literal["image", "patch"] = "image", target: Target = "correlation") -> Tensor:
    """Vectors ``[B,R,Q]`` whose dot products are the target ``C*``, from patch vectors ``[B,R,Q]``.

    ``image`` subtracts the mean patch of each image. Without that, all cosines are near 1. ``patch`` subtracts each
    patch's own mean. Its dot products are then of texture, blind to brightness.

    For ``correlation`` each centred vector gets length 1. For ``covariance`` all vectors of an image are divided by their
    root mean square length. So patches that differ much from the mean count more.

    >>> patch_views(torch.tensor([[[1.0, 3.0], [3.0, 1.0]]]))
    tensor([[[-0.7071,  0.7071],
             [ 0.7071, -0.7071]]])
    """
    vectors = F.full(vectors)
    vectors = vectors - vectors.mean(1 if centre == "image" else 2, keepdim=True)
    if target == "correlation":
        return F.unit(vectors)
    return vectors * (vectors.square().sum(2, keepdim=True).mean(1, keepdim=True) + 1e-12).rsqrt()


def draw_patches(rows: Tensor, patches: int, share: float, step: int | Tensor) -> Tensor:
    """Masks ``round(share * R)`` patches of each image, at least one and not all: ``[B,R]`` bool, True if masked.

    The mask depends only on the step and on the pair's row in the whole job's batch. No random generator is used. So the
    mask is the same on any number of processes, and after a crash.

    >>> draw_patches(torch.tensor([0, 1]), patches=6, share=0.5, step=3).sum(1)
    tensor([3, 3])

    Args:
        rows: ``[B]`` int64, the pairs' rows in the whole job's batch.
        patches: ``R``.
        share: of the patches that are masked, in (0, 1).
        step: of training. As a scalar tensor it may change without new compiled code.
    """
    numbers = rows.unsqueeze(1) * patches + torch.arange(patches, device=rows.device)
    order = _mixed(numbers + _mixed(torch.zeros_like(numbers) + step)).argsort(1)  # a random permutation
    return order.argsort(1) < min(max(1, round(share * patches)), patches - 1)


def _mixed(x: Tensor) -> Tensor:
    """A 64-bit mix of each number (splitmix64, Steele et al., OOPSLA 2014). int64 arithmetic wraps around."""

    def shifted(x: Tensor, bits: int) -> Tensor:
        return (x >> bits) & ((1 << (64 - bits)) - 1)  # a logical shift: no copies of the sign

    x = x + (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ shifted(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ shifted(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ shifted(x, 31)


def correlation_loss(
    predicted: Tensor, views: Tensor, masked: Tensor, beta: float = 1.0, target: Target = "correlation"
) -> Tensor:
    """Smooth L1 between predicted and target correlations, or covariances.

    It is the mean of ``l(Z_p . Z_q - C*_pq)`` over pairs of different patches ``p`` and ``q``. At least one of the two is
    masked. ``Z`` has length 1 for correlations. ``l(d)`` is ``d^2 / (2 beta)`` up to ``beta``, and ``|d| - beta/2`` beyond.

    >>> views = torch.eye(2).unsqueeze(0)
    >>> correlation_loss(views, views, torch.tensor([[True, False]]))
    tensor(0.)

    Args:
        predicted: ``[B,R,E]``, ``Z`` before it is normalised.
        views: ``[B,R,Q]``, ``C* = views views'``.
        masked: ``[B,R]`` bool, equally many in each image.
        beta: the difference at which the square ends.
        target: ``correlation`` makes every ``Z`` of length 1, ``covariance`` does not.
    """
    with F.without_autocast(predicted):
        z = F.unit(predicted) if target == "correlation" else F.full(predicted)
        products = (views @ views.transpose(1, 2)).to(z.dtype)
        loss = nnf.smooth_l1_loss(z @ z.transpose(1, 2), products, reduction="none", beta=beta)  # [B,R,R]
    own = torch.eye(masked.shape[1], dtype=torch.bool, device=masked.device)
    counted = (masked.unsqueeze(1) | masked.unsqueeze(2)) & ~own
    return (loss * counted).sum() / counted.sum().clamp_min(1)


class Cce(AlignmentHead[CceEmbedding]):
    """Cross-modal correlation exploration, the proxy task of PLACE (arXiv 2506.10573).

    A share of the patches is replaced by a mask token. In a predictor, all patches attend to each other, and then to the
    words of the report. The correlations between the predicted patches should equal those between the patches themselves.
    For a masked patch, the predictor knows its place, the visible patches and the report.

    This head scores no pairs. Train it beside another head: ``pcma`` contains it, and ``composite`` adds it to any head.
    Outside training it costs nothing.

    The term ``cce`` is the loss. The term ``cce_shuffled`` has weight 0 and is logged only: it is the same loss with the
    report of a neighbouring pair. While ``cce`` is not below it, the report is not used.

    **Inferred.** The publication's text could not be obtained; every argument from ``source`` on is a reconstruction.

    Args:
        dims: widths of the towers.
        weight: of the term. It rises linearly from 0 over ``warmup``.
        source: inferred. The target vectors. ``pixel``: the image itself, which cannot collapse. ``detached``: the tower's
            patch vectors without gradient. ``ema``: these through a slowly moving copy of this term's own projection.
        target: inferred. ``correlation`` of two patches, or their ``covariance``, as in :func:`patch_views`. A summary of the
            paper speaks of covariance.
        self_attention: inferred. Whether the patches attend to each other. Without it a masked patch sees the report alone,
            and hardly gains by it.
        centre: inferred. Which mean is subtracted before the cosine, as in :func:`patch_views`.
        detail: inferred. Pixels a side to which ``pixel`` patches are resampled.
        share: inferred. Of patches that are masked, in (0, 1).
        width: inferred. Of the predictor; a multiple of 4 and of ``heads``.
        layers: inferred. Layers of the predictor.
        heads: inferred. Attention heads of the predictor.
        beta: inferred. The difference at which the square of smooth L1 ends, above 0.
        decay: inferred. Of the moving copy, for ``ema``.
        warmup: inferred. Share of all steps over which the weight rises, 0 to 1.
        control: whether ``cce_shuffled`` is computed; it costs a third of this term.

    Raises:
        ConfigError: a value out of its range.
    """

    ranks: ClassVar[bool] = False
    needs = frozenset({"image.pixels", "image.grid"})
    gathers = frozenset()
    paper: ClassVar[str] = "PLACE, arXiv 2506.10573"

    def __init__(
        self,
        dims: Dims,
        *,
        weight: float = 1.0,
        source: Source = "pixel",
        target: Target = "correlation",
        self_attention: bool = True,
        centre: Literal["image", "patch"] = "image",
        detail: int = 8,
        share: float = 0.5,
        width: int = 256,
        layers: int = 2,
        heads: int = 4,
        beta: float = 1.0,
        decay: float = 0.996,
        warmup: float = 0.1,
        control: bool = True,
    ) -> None:
        super().__init__()
        check_number("head cce: share", share, above=0, below=1)
        check_number("head cce: layers", layers, least=1, whole=True)
        check_number("head cce: detail", detail, least=1, whole=True)
        check_number("head cce: beta", beta, above=0)
        check_number("head cce: decay", decay, least=0, below=1)
        check_number("head cce: warmup", warmup, least=0, most=1)
        check_number("head cce: width", width, least=4, whole=True)
        if width % 4:
            raise ConfigError(f"head cce: width is {width}; give a multiple of 4")
        self.weight = weight
        self.weights = {"cce": weight, **({"cce_shuffled": 0.0} if control else {})}
        self.source, self.target, self.centre, self.detail = source, target, centre, detail
        self.share, self.beta, self.decay, self.warmup = share, beta, decay, warmup
        self.patches = nn.Linear(dims.image_tokens, width)
        self.words = nn.Linear(dims.text_tokens, width)
        self.word_norm = nn.LayerNorm(width)
        self.mask_token = nn.Parameter(torch.randn(width))
        self.layers = nn.ModuleList(DecoderLayer(width, heads, self_attention=self_attention) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.predictor = nn.Linear(width, width, bias=False)
        self.teacher: nn.Linear | None = None
        if source == "ema":
            self.teacher = nn.Linear(dims.image_tokens, width, bias=False).requires_grad_(False)
            with torch.no_grad():
                self.teacher.weight.copy_(self.patches.weight)
        self._step: int | None = None
        self._step_drawn = torch.zeros((), dtype=torch.int64)

    def start_step(self, epoch: int, step: int, total_steps: int) -> None:
        """Raise the weight, mask other patches, and move the teacher towards the projection."""
        rising = self.warmup * total_steps
        self.weights["cce"] = self.weight * (min(1.0, (step + 1) / rising) if rising > 0 else 1.0)
        if self.teacher is not None and step != self._step:  # once a step, however many batches it accumulates
            with torch.no_grad():
                self.teacher.weight.lerp_(self.patches.weight, 1 - self.decay)
        self._step = step
        self._step_drawn = torch.full((), step, device=self.mask_token.device)

    def embed_image(self, image: Features) -> CceEmbedding:
        """The patches, their places and their target views. Outside training it holds ``pooled`` alone."""
        pooled = F.unit(image.pooled)
        if not self.training:
            return CceEmbedding(pooled)
        if image.grid is None or image.pixels is None:
            raise ConfigError("head cce: the image tower gives no grid or no pixels; choose another image tower")
        rows, columns = image.grid
        if self.source == "pixel":
            size = (rows * self.detail, columns * self.detail)
            pixels = nnf.adaptive_avg_pool2d(image.pixels.detach(), size)
            vectors = nnf.unfold(pixels, self.detail, stride=self.detail).transpose(1, 2)  # [B,R,detail^2]
        else:
            vectors = image.tokens.detach()
            vectors = vectors if self.teacher is None else self.teacher(vectors)
        return CceEmbedding(
            pooled,
            patches=self.patches(image.tokens),
            places=F.grid_code(image, self.mask_token.shape[0]).expand(vectors.shape[0], -1, -1),
            views=patch_views(vectors, self.centre, self.target),
        )

    def embed_text(self, text: Features) -> CceEmbedding:
        """The projected words. Outside training it holds ``pooled`` alone."""
        pooled = F.unit(text.pooled)
        if not self.training:
            return CceEmbedding(pooled)
        return CceEmbedding(pooled, words=self.word_norm(self.words(text.tokens)), word_mask=text.mask)

    def terms(self, image: CceEmbedding, text: CceEmbedding, rows: Tensor) -> dict[str, Tensor]:
        """``cce`` and ``cce_shuffled`` of this process's pairs. ``rows`` ``[B]`` are their rows in the job's batch."""
        if image.patches is None or image.places is None or image.views is None or text.words is None:
            return {}  # evaluation keeps none of this
        patches, views, words = image.patches, image.views, text.words
        assert text.word_mask is not None  # comes with the words
        masked = draw_patches(rows, patches.shape[1], self.share, self._step_drawn)
        x = torch.where(masked.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        x = x + image.places
        predicted = self._predict(x, words, text.word_mask)
        terms = {"cce": correlation_loss(predicted, views, masked, self.beta, self.target)}
        if "cce_shuffled" in self.weights:
            other = torch.arange(len(rows), device=rows.device) ^ 1  # neighbours exchange their reports
            other = torch.where(other < len(rows), other, 0)  # an odd one out takes the first
            with torch.no_grad():
                shuffled = self._predict(x, words[other], text.word_mask[other])
                terms["cce_shuffled"] = correlation_loss(shuffled, views, masked, self.beta, self.target)
        return terms

    def _predict(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = layer(x, words, mask)
        predicted: Tensor = self.predictor(self.norm(x))
        return predicted

    def similarity(self, image: CceEmbedding, text: CceEmbedding) -> NoReturn:
        """Refuse: this head scores no pair.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("the head cce scores no pair; train it beside one, as composite: heads: [global, cce]")

    def losses(self, here: Pairs[CceEmbedding], world: Pairs[CceEmbedding]) -> dict[str, Tensor]:
        """``cce`` and ``cce_shuffled``, or no terms outside training."""
        return self.terms(here.image, here.text, here.targets)
