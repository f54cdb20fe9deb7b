"""Attentive probe: a query for each finding attends to the regions of a frozen tower, and its map shows where."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diptych.checks import check_number
from diptych.data.dataset import Sample
from diptych.errors import ConfigError
from diptych.metrics.classification import ScoreThreshold
from diptych.metrics.regions import at_pixels
from diptych.model.optim import OptimizerFactory, ScheduleFactory
from diptych.results.attention import Panel, draw_maps
from diptych.tasks.mapped import MappedTask
from diptych.towers.image import ImageTower
from diptych.types import Batch

__all__ = ["AttentiveProbe", "QueryDecoder"]

_PANELS = 7
"""Most findings in a picture."""


class QueryDecoder(nn.Module):
    """GLoRI's decoder (CheXFound, arXiv 2502.05142; its layer is ML-Decoder's, arXiv 2111.12933).

    The queries are drawn once and not trained. One layer of a transformer's decoder, without self-attention and with its norms
    after each sum, reads the regions. Each finding's output is read by a vector of its own.

    Args:
        tokens: width of the regions.
        pooled: width of the pooled vector that is read beside each query's output. 0 reads none.
        findings: ``L``, the number of queries.
        width: of the queries.
        attention_heads: how many. They divide ``width``.
        hidden: width of the feed-forward layer.
        dropout: probability of dropout.
    """

    queries: Tensor

    def __init__(
        self, tokens: int, pooled: int, findings: int, *, width: int, attention_heads: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        # Published backbones end in a layer norm. With it here, one learning rate fits towers of any scale.
        self.token_norm = nn.LayerNorm(tokens, elementwise_affine=False)
        self.pooled_norm = nn.LayerNorm(pooled, elementwise_affine=False) if pooled else None
        self.memory = nn.Linear(tokens, width)
        self.register_buffer("queries", torch.randn(findings, width))
        self.attention = nn.MultiheadAttention(width, attention_heads, dropout=dropout, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Parameter(nn.init.xavier_normal_(torch.empty(findings, pooled + width)))
        self.bias = nn.Parameter(torch.zeros(findings))

    def forward(self, tokens: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B,L]`` and maps ``[B,L,N]`` from regions ``[B,N,D]`` and pooled vectors ``[B,D]``.

        A map is the attention of a finding's query, the mean over the attention heads. It sums to 1.
        """
        memory = self.memory(self.token_norm(tokens)).relu()
        x = self.queries.expand(len(tokens), -1, -1)
        x = self.norms[0](x + self.dropout(x))
        message, maps = self.attention(x, memory, memory)
        x = self.norms[1](x + self.dropout(message))
        x = self.norms[2](x + self.dropout(self.contract(self.dropout(self.expand(x).relu()))))
        if self.pooled_norm is not None:
            whole = self.pooled_norm(pooled)[:, None].expand(-1, x.shape[1], -1)
            x = torch.cat([whole, x], dim=2)
        return (x * self.readout).sum(2).float() + self.bias, maps.float()


class AttentiveProbe(MappedTask):
    """Reads findings from a frozen tower by a query for each (GLoRI, the probe of CheXFound).

    A linear probe reads one vector of the whole image. Here each finding has a query, which attends to the regions where it is
    seen. It is trained by the binary cross-entropy of the known labels, never on boxes or masks. GLoRI reads the last four
    blocks of its ViT. This reads the tower's last regions.

    - ``attentive_probe/auroc/<finding>|macro`` measures the logit of the image.
    - ``attentive_probe/map/pointing/<finding>|macro`` and so on measure the attention of the query. They are those of zero-shot
      grounding (:class:`~diptych.evaluation.grounding.Grounding`), over each image and finding with a box or a mask, in a
      test.

    Args:
        image: the tower. It is frozen here, whatever its own setting.
        width: of the queries, a multiple of ``attention_heads``.
        attention_heads: how many.
        hidden: width of the feed-forward layer.
        dropout: probability of dropout.
        pooled: whether the tower's pooled vector is read beside each query's output, as GLoRI's ``cat_cls`` does.
        pictures: number of the first test images that are drawn into the run's ``figures``, with the maps of the findings that
            are labelled there, or else of the most likely one.
        lr: peak learning rate.
        weight_decay: weight decay of AdamW on weight matrices.
        warmup: number of steps of linear warm-up. Below 1, their share of all steps.
        lr_floor: learning rate at the end of the cosine, as a share of ``lr``.
        threshold: logit above which a finding counts as present, for accuracy, F1 and so on. ``zero`` is 0. ``best_f1`` is
            the best on the evaluated split itself, which is optimistic. ``val_f1``, ``val_youden`` and ``val_mcc`` are the
            best on ``val``, which a test reads first.
        resamples: number of bootstrap resamples of the test. 0 gives no intervals.
        optimizer: another optimiser than AdamW, as :class:`~diptych.model.module.AlignmentModule` has it. ``lr`` and
            ``weight_decay`` are then its own.
        schedule: another schedule than warm-up and cosine.

    Raises:
        ConfigError: an argument is out of its range.
    """

    name = "attentive_probe"
    monitor = "val/attentive_probe/auroc/macro"

    def __init__(
        self,
        image: ImageTower,
        *,
        width: int = 768,
        attention_heads: int = 8,
        hidden: int = 2048,
        dropout: float = 0.1,
        pooled: bool = True,
        pictures: int = 8,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup: float = 0.05,
        lr_floor: float = 0.01,
        threshold: ScoreThreshold = "zero",
        resamples: int = 1000,
        optimizer: OptimizerFactory | None = None,
        schedule: ScheduleFactory | None = None,
    ) -> None:
        super().__init__(
            image,
            threshold=threshold,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            lr_floor=lr_floor,
            resamples=resamples,
            optimizer=optimizer,
            schedule=schedule,
        )
        for option, value in (("width", width), ("attention_heads", attention_heads), ("hidden", hidden)):
            check_number(f"AttentiveProbe: {option}", value, least=1, whole=True)
        if width % attention_heads:
            raise ConfigError(
                f"AttentiveProbe: width is {width}; give a multiple of attention_heads, {attention_heads}"
            )
        check_number("AttentiveProbe: dropout", dropout, least=0, below=1)
        check_number("AttentiveProbe: pictures", pictures, least=0, whole=True)
        self.image.freeze()
        self.options = {"width": width, "attention_heads": attention_heads, "hidden": hidden, "dropout": dropout}
        self.pooled, self.pictures = pooled, pictures
        self.decoder: QueryDecoder | None = None

    def configure_model(self) -> None:
        """Make the decoder, when the data set has said how many findings there are."""
        if self.decoder is None:
            self.decoder = QueryDecoder(
                self.image.token_width,
                self.image.width if self.pooled else 0,
                len(self.label_names()),
                width=int(self.options["width"]),
                attention_heads=int(self.options["attention_heads"]),
                hidden=int(self.options["hidden"]),
                dropout=self.options["dropout"],
            )

    def scored(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B,L]`` of radiographs ``[B,1,H,V]``, and the attention of each finding's query ``[B,L,N]``."""
        assert self.decoder is not None  # configure_model comes first
        features = self.image(image)
        logits, maps = self.decoder(features.tokens, features.pooled)
        return logits, maps

    def facts(self) -> dict[str, Any]:
        """The decoder's shape, and what it reads."""
        return {**self.options, "reads": "regions and the pooled vector" if self.pooled else "regions"}

    def draw(self, batch: Batch, logits: Tensor, maps: Tensor) -> None:
        """Draw the maps of the findings that are labelled in an image, or else of the most likely one."""
        findings = self.label_names()
        assert batch.labels is not None  # label_names() has looked
        for row, file in self.picture_files(batch, self.name):
            present = (batch.labels[row] == 1).nonzero().squeeze(1).tolist() or [int(logits[row].argmax())]
            chosen = present[:_PANELS]
            heat = at_pixels(maps[row, chosen] * maps.shape[2], *batch.image.shape[-2:]).cpu().numpy()
            chances = logits[row, chosen].sigmoid().tolist()
            panels = [
                Panel(findings[j], one, f"probability {chance:.2f}")
                for j, one, chance in zip(chosen, heat, chances, strict=True)
            ]
            sample = Sample(
                batch.image[row, 0].cpu().numpy(),
                boxes=None if batch.boxes is None else batch.boxes[row].cpu().numpy(),
                mask=None if batch.masks is None else batch.masks[row].cpu().numpy(),
            )
            draw_maps(sample, panels, findings=findings).save(file)
