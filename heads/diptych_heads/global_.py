"""``global``: whole images against whole reports."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from diptych import distributed
from diptych.checks import check_number
from diptych.head import ScaledHead
from diptych.nn import functional as F
from diptych.nn.layers import Extractor
from diptych.types import Dims, Embedding, Features, Pairs
from diptych_heads.projections import Projection, projection_of

__all__ = ["Global"]


class Global(ScaledHead[Embedding]):
    """Instance alignment: the cosine of the pooled vectors (ConVIRT, arXiv 2010.00747; CLIP, arXiv 2103.00020).

    ``infonce`` contrasts each image's report with all reports of the whole batch, and each report's image with all images.
    ``sigmoid`` judges each pair by itself (SigLIP, arXiv 2303.15343). It has a learned bias, which starts at -10.

    Args:
        dims: widths of the towers.
        width: of the shared space; 512 in CLIP's and ConVIRT's ResNet-50.
        loss: ``infonce`` or ``sigmoid``.
        temperature: start of the learned temperature, 0.01 or more. Left out, it is 0.07 for ``infonce`` (CLIP) and 0.1
            for ``sigmoid`` (SigLIP).
        learn_temperature: False keeps it fixed, as ConVIRT does at 0.1.
        image_weight: share of the image-to-text direction in ``infonce``, 0 to 1; 0.75 in ConVIRT, 0.5 in CLIP.
        image_pooling: how an image becomes one vector. ``tower``: as its tower pools it. ``query``: a learned query attends to
            the regions, which know their row and column, in a decoder layer (as CLIP's ResNets and CoCa pool). ``regions``:
            each region is projected, and the mean of the projections is taken (BioViL, arXiv 2204.09817).
        projection: ``linear`` (CLIP), ``mlp``, two layers with a ReLU between them (ConVIRT), or another form of
            :func:`diptych_heads.projections.projection_of`.
        text_projection: the same for texts. Left out, it is ``projection``.
        hidden: width of the hidden layer, where a projection has one: a number, or one for images and one for texts. Left
            out, it is ``width``.

    Raises:
        ConfigError: a value out of its range.
    """

    gathers = frozenset({"text.pooled"})
    paper: ClassVar[str] = "ConVIRT, arXiv 2010.00747; CLIP, arXiv 2103.00020"

    def __init__(
        self,
        dims: Dims,
        *,
        width: int = 512,
        loss: Literal["infonce", "sigmoid"] = "infonce",
        temperature: float | None = None,
        learn_temperature: bool = True,
        image_weight: float = 0.5,
        image_pooling: Literal["tower", "query", "regions"] = "tower",
        projection: Projection = "linear",
        text_projection: Projection | None = None,
        hidden: int | list[int] | None = None,
    ) -> None:
        super().__init__()
        if temperature is None:
            temperature = 0.07 if loss == "infonce" else 0.1
        check_number("head global: temperature", temperature, least=0.01)
        check_number("head global: image_weight", image_weight, least=0, most=1)
        self.weights = {"global": 1.0}
        self.loss = loss
        self.image_weight = image_weight
        self.query = None
        if image_pooling == "query":
            self.query = Extractor(dims.image_tokens, width, queries=1, layers=1, attention_heads=4)
        self.image_pooling = image_pooling
        hiddens = [width] if hidden is None else hidden if isinstance(hidden, list) else [hidden]
        check_number("head global: how many numbers hidden has", len(hiddens), least=1, most=2, whole=True)
        for number in hiddens:
            check_number("head global: hidden", number, least=1, whole=True)
        inputs = {"tower": dims.image, "query": width, "regions": dims.image_tokens}[image_pooling]
        self.image_projection = projection_of(projection, inputs, hiddens[0], width)
        self.text_projection = projection_of(text_projection or projection, dims.text, hiddens[-1], width)
        self.scale = F.LogitScale(temperature, learn=learn_temperature)
        self.bias = nn.Parameter(torch.tensor(-10.0)) if loss == "sigmoid" else None

    def embed_image(self, image: Features) -> Embedding:
        """``pooled`` ``[I,E]``."""
        pooled = image.pooled
        if self.query is not None:
            places = F.grid_code(image, self.query.queries.shape[1])
            pooled = self.query(image.tokens, image.mask, places)[0].squeeze(1)
        elif self.image_pooling == "regions":
            return Embedding(F.unit(self.image_projection(image.tokens).mean(1)))
        return Embedding(F.unit(self.image_projection(pooled)))

    def embed_text(self, text: Features) -> Embedding:
        """``pooled`` ``[T,E]``."""
        return Embedding(F.unit(self.text_projection(text.pooled)))

    def similarity(self, image: Embedding, text: Embedding) -> Tensor:
        """Cosines ``[I,T]``, -1 to 1."""
        return F.dot_products(image.pooled, text.pooled)

    def losses(self, here: Pairs[Embedding], world: Pairs[Embedding]) -> dict[str, Tensor]:
        """``global``: the chosen loss over all ``B * W`` pairs, each scored once over the job."""
        logits = self.scale() * self.similarity(here.image, world.text)  # [B,B*W]
        if self.bias is not None:
            return {"global": F.sigmoid_loss(logits + self.bias, here.targets, world.hash)}
        return {"global": F.info_nce(distributed.gather(logits), world.hash, self.image_weight)}
