"""Few-shot segmentation: masks of a few images carried to others by the correlation of features, without training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.checks import check_choice, check_number
from diptych.errors import ConfigError, DataError
from diptych.evaluation.rows import Rows
from diptych.files import replace_picture
from diptych.metrics import bootstrap
from diptych.metrics import measures as metrics
from diptych.metrics.regions import in_picture
from diptych.predictions.base import Predictions
from diptych.results.drawing import draw_masks
from diptych.tasks.base import Task
from diptych.tasks.segment import overlaps
from diptych.towers.image import STRIDES, ImageTower
from diptych.types import Batch

__all__ = ["FewShot", "carry_mask"]


def carry_mask(query: Tensor, support: Tensor, share: Tensor, temperature: float) -> Tensor:
    """The mask of a query, carried over from its support: ``m_q = sum_s softmax_s(cos(q, s) / temperature) share_s``.

    Every place of the query is compared with every place of the support, wherever it lies (global correlation). The mean
    of the support is subtracted from all features first, since the features of a radiograph are mostly alike.

    >>> support = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> carry_mask(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), support, torch.tensor([1.0, 0.0]), temperature=0.1).round()
    tensor([1., 0.])

    Args:
        query: features ``[N,D]`` of the query's places.
        support: features ``[S,D]`` of all places of all supporting images.
        share: share of each place ``[S]`` that is in the mask, 0 to 1.
        temperature: above 0. The lower it is, the fewer places of the support count.

    Returns:
        Share of each place ``[N]`` of the query that is in the mask, 0 to 1.
    """
    centre = support.mean(0)
    query, support = (F.normalize(x - centre, dim=-1) for x in (query, support))
    return (query @ support.T / temperature).softmax(-1) @ share


class FewShot(Task):
    """Episodic few-shot segmentation on the features of the frozen tower. ``diptych test`` does all of it.

    In each episode a few images of ``train`` with a mask are the support, the same for all queries. Every image of ``test``
    with a mask is a query. Its mask is carried over from the support (:func:`carry_mask`), place by place of one level of
    the tower's feature pyramid. It is then interpolated to the pixels of the network's input.

    Each metric is a mean over the queries of the mean over the episodes. Intervals are a bootstrap over patients.

    - ``few_shot/<k>-shot/dice`` and ``iou`` count the pixels of which more than half is in the mask.
    - ``auroc`` is that of the pixels, without a threshold.

    Args:
        image: the tower. It is frozen here, whatever its own setting.
        shots: numbers of supporting images that are evaluated.
        episodes: how many supports are drawn. With fewer shots, the first images of the same support are taken.
        stride: stride of the pyramid's level: 4, 8, 16 or 32 pixels.
        temperature: above 0. The lower it is, the fewer places of the support count.
        seed: seed of the draw of supports.
        pictures: number of the first queries that are drawn into the run's ``figures``, with the most shots.
        resamples: number of bootstrap resamples. 0 gives no intervals.

    Raises:
        ConfigError: an argument is out of its range, or the tower has no feature pyramid.
    """

    trains = False

    def __init__(
        self,
        image: ImageTower,
        *,
        shots: Sequence[int] = (1, 5),
        episodes: int = 5,
        stride: int = 16,
        temperature: float = 0.1,
        seed: int = 0,
        pictures: int = 8,
        resamples: int = 1000,
    ) -> None:
        super().__init__(image)
        if not image.pyramid_widths:
            raise ConfigError(f"FewShot: {type(image).__name__} has no feature pyramid; choose another image tower")
        check_choice("FewShot: stride", stride, STRIDES)
        if not shots or min(shots) < 1 or len(set(shots)) < len(shots):
            raise ConfigError(f"FewShot: shots is {list(shots)}; give different numbers of 1 or more")
        check_number("FewShot: temperature", temperature, above=0)
        for name, value, least in (("episodes", episodes, 1), ("pictures", pictures, 0), ("resamples", resamples, 0)):
            check_number(f"FewShot: {name}", value, least=least, whole=True)
        self.image.freeze()
        self.shots, self.episodes, self.stride, self.temperature = tuple(shots), episodes, stride, temperature
        self.seed, self.pictures, self.resamples = seed, pictures, resamples

    def _places(self, image: Tensor) -> Tensor:
        """Features ``[B,N,D]`` of the places of the chosen level."""
        level = self.image.pyramid(image)[STRIDES.index(self.stride)]
        return level.flatten(2).transpose(1, 2).float()

    def _support_of(self, episode: int) -> tuple[Tensor, Tensor]:
        """Features ``[k,N,D]`` and mask shares ``[k,N]`` of an episode's support, the same on every process.

        Raises:
            DataError: ``train`` has too few images with a mask.
        """
        number, places, shares = max(self.shots), [], []
        size = len(self.data.datasets["train"])
        for index in np.random.default_rng([self.seed, episode]).permutation(size).tolist():
            batch = self.data.batch("train", [index]).to(self.device)
            mask = self.masks_of(batch)
            if mask.any():
                side = -(-batch.image.shape[-1] // self.stride)
                places.append(self._places(batch.image))
                shares.append(F.interpolate(mask[:, None].float(), (side, side), mode="area").flatten(1))
            if len(places) == number:
                return torch.cat(places), torch.cat(shares)
        raise DataError(
            f"FewShot: 'train' of {self.data.protocol} has {len(places)} images with a mask; shots of {number} need as many"
        )

    def on_test_epoch_start(self) -> None:
        """Draw the support of each episode, and compute its features."""
        if "train" not in self.data.datasets:
            raise DataError(f"FewShot: {self.data.protocol} has no 'train' split to draw supporting images from")
        self._support = [self._support_of(episode) for episode in range(self.episodes)]
        self._rows = Rows(self.device, 1, len(self.shots) * self.episodes * 3)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Carry the masks of every support to the queries of a batch, and measure them."""
        masks, places = self.masks_of(batch), self._places(batch.image)
        files = dict(self.picture_files(batch, "few_shot"))
        queries = masks.flatten(1).any(1)
        values = torch.full((len(batch), len(self.shots), self.episodes, 3), torch.nan)
        for i in (queries & batch.valid).nonzero().squeeze(1).tolist():
            truth, picture = masks[i].cpu(), in_picture(batch.image[i].cpu()).numpy()
            for j, shots in enumerate(self.shots):
                maps = torch.stack([self._map(places[i], *support, shots, truth) for support in self._support])
                predicted = maps > 0.5
                counts = torch.stack(
                    [x.flatten(1).sum(1) for x in (predicted & truth, predicted, truth.expand_as(predicted))], dim=1
                )
                for m, overlap in enumerate(overlaps(counts.double().numpy())):
                    values[i, j, :, m] = torch.from_numpy(overlap).float()
                pixels = picture | truth.numpy()
                for e, heat in enumerate(maps.numpy()):
                    values[i, j, e, 2] = float(metrics.auroc(heat[pixels], truth.numpy()[pixels])[0])
                if not maps.isfinite().all():
                    values[i, j] = torch.nan
                if shots == max(self.shots) and i in files:
                    outlines = {"truth": truth.numpy(), f"{shots} shots": predicted[0].numpy()}
                    replace_picture(files[i], draw_masks(batch.image[i, 0].cpu().numpy(), outlines))
        self._rows.add(batch, queries[:, None], values.flatten(1))

    def _map(self, query: Tensor, support: Tensor, share: Tensor, shots: int, truth: Tensor) -> Tensor:
        """The mask carried to a query ``[N,D]`` from the first ``shots`` images of a support, at the pixels of ``truth``."""
        with torch.autocast(query.device.type, enabled=False):  # a cosine is divided by the temperature
            mask = carry_mask(query, support[:shots].flatten(0, 1), share[:shots].flatten(), self.temperature)
        side = round(len(mask) ** 0.5)
        grid = mask.view(1, 1, side, side)
        return F.interpolate(grid, truth.shape, mode="bilinear", align_corners=False)[0, 0].cpu()

    def on_test_epoch_end(self) -> None:
        """Compute the metrics over the whole set."""
        patients, (queries, flat) = self._rows.gather()
        values = flat.double().numpy().reshape(len(patients), len(self.shots), self.episodes, 3)
        is_query = queries[:, 0].bool().numpy()
        if not is_query.any():
            raise DataError(f"FewShot: no image of 'test' of {self.data.protocol} has a mask that is not empty")
        columns = {"query": is_query.astype(np.int64)} | {
            f"{shots}-shot/episode{episode}/{name}": values[:, j, episode, m]
            for j, shots in enumerate(self.shots)
            for episode in range(self.episodes)
            for m, name in enumerate(("dice", "iou", "auroc"))
        }
        kept = Predictions("episodes", columns, {"resamples": self.resamples, "seed": 0})
        figures, _ = self.figures(self._rows, patients.numpy(), "few_shot", kept)
        self.results = bootstrap.as_metrics(figures, "test/few_shot/")
        by_episode = values[is_query].mean(axis=0)  # [shots,episodes,3]
        self.protocol["few_shot"] = {
            "support": f"{self.episodes} episodes, drawn from 'train' with seed {self.seed}, the same for all queries",
            "features": f"stride {self.stride}, tower frozen and in evaluation mode",
            "temperature": self.temperature,
            "threshold": "more than half of a pixel, fixed",
            "queries": "images of 'test' whose mask is not empty at the network's input",
            "measured": "at the network's input; dice and iou with its padding, auroc without",
            "images": int(is_query.sum()),
            "dice of each episode": {f"{k}-shot": by_episode[j, :, 0].tolist() for j, k in enumerate(self.shots)},
            "interval": bootstrap.interval_name(self.resamples, "patients of the mean over episodes"),
        }
        self.log_results()
