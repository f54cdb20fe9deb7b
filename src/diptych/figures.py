"""Pictures of what a model sees: attention of words over radiographs, and the similarity matrix of a batch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diptych.data import RadiographDataModule, Sample, Split
from diptych.files import replace_picture
from diptych.grounding import Grounding
from diptych.head import Grounds, Observes, WeighsWords
from diptych.loading import AlignmentModel
from diptych.loggers import log_picture
from diptych.module import AlignmentModule

__all__ = ["Figures", "draw_attention", "draw_boxes", "draw_masks", "draw_similarity", "overlay", "sharpest"]

RGB = NDArray[np.uint8]
_INK, _PAPER = (32, 32, 32), (255, 255, 255)
_TINTS = ((60, 200, 90), (240, 90, 60))


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> RGB:
    """A grey picture ``[h,v]`` with an attention map ``[h,v]`` over it, as ``[h,v,3]``.

    The scale is absolute: attention at or below its mean (uniform attention is its mean everywhere) leaves the picture
    as it is; the strongest colour is the map's peak, or three times the mean where the peak is lower.
    """
    ratio = heat / max(float(heat.mean()), 1e-12)
    level = np.clip((ratio - 1) / (max(float(ratio.max()), 3.0) - 1), 0, 1)
    colour = cv2.applyColorMap(np.asarray(level * 255, np.uint8), cv2.COLORMAP_JET)[..., ::-1].astype(np.float32)
    opacity = 0.6 * np.sqrt(level)[..., None]
    return np.asarray(image[..., None] * (1 - opacity) + colour * opacity, np.uint8)


def sharpest(words: Sequence[str], maps: NDArray[np.float32], count: int) -> list[int]:
    """The words whose attention is most concentrated (least entropy), each distinct word once, in reading order."""
    flat = maps.reshape(len(maps), -1).astype(np.float64) + 1e-12
    share = flat / flat.sum(axis=1, keepdims=True)
    entropy = -(share * np.log(share)).sum(axis=1)
    chosen: dict[str, int] = {}
    for i in np.argsort(entropy, kind="stable"):
        chosen.setdefault(words[i].lower(), int(i))
    return sorted(list(chosen.values())[:count])


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def draw_attention(
    sample: Sample, words: Sequence[str], maps: NDArray[np.float32], findings: Sequence[str] = ()
) -> Image.Image:
    """A radiograph, then the same with each word's attention over it, at its own resolution, and the report below.

    Above each map stands the word, and how many times the mean its peak is. Pictures under 256 pixels are enlarged by a
    whole factor, so that words can be read.

    Args:
        sample: the pair; its boxes, or without any its mask, are outlined in every panel.
        words: one a map.
        maps: ``[words,h,v]``.
        findings: names of the boxes' findings.
    """
    height, width = sample.image.shape
    factor = max(1, -(-256 // max(height, width)))
    size = (width * factor, height * factor)
    unit = max(14, size[0] // 20)  # type size
    panels = [np.repeat(sample.image[..., None], 3, axis=2), *(overlay(sample.image, heat) for heat in maps)]
    lines = textwrap.wrap(sample.text or "", max(20, int(size[0] * len(panels) / (unit * 0.55))))
    bar = int(unit * 1.5)
    titles = [f"{word} ({heat.max() / max(heat.mean(), 1e-12):.1f}x)" for word, heat in zip(words, maps, strict=True)]
    sheet = Image.new("RGB", (size[0] * len(panels), bar + size[1] + int(unit * 1.3) * len(lines) + unit), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (title, panel) in enumerate(zip(["radiograph", *titles], panels, strict=True)):
        sheet.paste(Image.fromarray(panel).resize(size, Image.Resampling.BICUBIC), (i * size[0], bar))
        pen.text((i * size[0] + 4, bar // 8), title, fill=_INK, font=_font(unit))
        if sample.boxes is None and sample.mask is not None:
            large = cv2.resize(sample.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            for outline in cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]:
                points = [(int(x) + i * size[0], int(y) + bar) for x, y in outline[:, 0]]
                pen.line([*points, points[0]], fill=(64, 200, 255), width=max(1, size[0] // 256))
        for box in sample.boxes if sample.boxes is not None else ():
            x0, y0, x1, y1 = (float(v) * factor for v in box[:4])
            corners = (i * size[0] + x0, bar + y0, i * size[0] + x1, bar + y1)
            pen.rectangle(corners, outline=(64, 200, 255), width=max(1, size[0] // 256))
            if i == 0 and findings:
                pen.text(
                    (corners[0] + 3, corners[1] + 2),
                    findings[int(box[4])],
                    fill=(64, 200, 255),
                    font=_font(unit * 2 // 3),
                )
    for i, line in enumerate(lines):
        pen.text((4, bar + size[1] + unit // 3 + int(unit * 1.3) * i), line, fill=_INK, font=_font(unit))
    return sheet


def draw_masks(image: NDArray[np.uint8], masks: Mapping[str, NDArray[np.bool_]]) -> Image.Image:
    """A radiograph ``[h,v]``, then the same with each mask ``[h,v]`` tinted and outlined over it, under its name.

    Pictures under 256 pixels are enlarged by a whole factor.
    """
    factor = max(1, -(-256 // max(image.shape)))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    bar = 24
    sheet = Image.new("RGB", (size[0] * (1 + len(masks)), bar + size[1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    grey = np.repeat(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))[..., None], 3, axis=2)
    for place, (name, mask) in enumerate([("radiograph", None), *masks.items()]):
        panel = grey.copy()
        if mask is not None:
            large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            colour = np.array(_TINTS[(place - 1) % len(_TINTS)], np.float32)
            panel[large > 0] = (0.65 * panel[large > 0] + 0.35 * colour).astype(np.uint8)
            lines, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(panel, lines, -1, _TINTS[(place - 1) % len(_TINTS)], 1)
        sheet.paste(Image.fromarray(panel), (place * size[0], bar))
        pen.text((place * size[0] + 4, 3), name, fill=_INK, font=_font(14))
    return sheet


def draw_boxes(
    image: NDArray[np.uint8], boxes: Mapping[str, NDArray[np.floating[Any]]], findings: Sequence[str] = ()
) -> Image.Image:
    """A radiograph ``[h,v]``, then the same with each set of boxes ``[K,5]`` or ``[K,6]`` over it, under its name.

    A box is x0, y0, x1, y1, the finding's index and, where there is one, the confidence; both are written at it. Pictures
    under 256 pixels are enlarged by a whole factor.
    """
    factor = max(1, -(-256 // max(image.shape)))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    bar = 24
    sheet = Image.new("RGB", (size[0] * (1 + len(boxes)), bar + size[1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    grey = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    for place, (name, found) in enumerate([("radiograph", None), *boxes.items()]):
        left = place * size[0]
        sheet.paste(grey, (left, bar))
        pen.text((left + 4, 3), name, fill=_INK, font=_font(14))
        colour = _TINTS[(place - 1) % len(_TINTS)]
        for x0, y0, x1, y1, finding, *score in () if found is None else found.tolist():
            x, y = left + x0 * factor, bar + y0 * factor
            edges = [x, y, max(x, left + x1 * factor - 1), max(y, bar + y1 * factor - 1)]
            pen.rectangle(edges, outline=colour, width=max(1, size[0] // 256))
            said = " ".join([*(f"{value:.2f}" for value in score), *findings[int(finding) : int(finding) + 1]])
            type_size = max(10, size[0] // 24)
            right = left + size[0] - pen.textlength(said, font=_font(type_size)) - 3
            above = edges[1] - type_size - 4 if edges[1] - type_size - 4 >= bar else edges[1] + 2
            pen.text(
                (max(left, min(edges[0], right)), above),
                said,
                fill=colour,
                font=_font(type_size),
                stroke_width=1,
                stroke_fill=_INK,
            )
    return sheet


def draw_similarity(
    scores: NDArray[np.float32], images: Sequence[NDArray[np.uint8]], texts: Sequence[str]
) -> Image.Image:
    """The score of every picture (rows) with every report (columns) ``[n,n]``; the diagonal is outlined where it wins."""
    cell, label = 40, 640
    n = len(images)
    low, high = float(scores.min()), float(scores.max())
    level = np.asarray((scores - low) / max(high - low, 1e-12) * 255, np.uint8)
    colour = cv2.applyColorMap(level, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    sheet = Image.new("RGB", (cell * (n + 1) + label, cell * (n + 1)), _PAPER)
    sheet.paste(
        Image.fromarray(np.ascontiguousarray(colour)).resize((cell * n, cell * n), Image.Resampling.NEAREST),
        (cell, cell),
    )
    pen = ImageDraw.Draw(sheet)
    for i in range(n):
        thumb = Image.fromarray(images[i])
        thumb.thumbnail((cell - 2, cell - 2))
        sheet.paste(thumb, (1, cell * (i + 1) + 1))
        pen.text((cell * (i + 1) + 8, 12), str(i), fill=_INK, font=_font(14))
        pen.text(
            (cell * (n + 1) + 8, cell * (i + 1) + 11),
            f"{i}  {' '.join(texts[i].split())[:84]}",
            fill=_INK,
            font=_font(14),
        )
        best = int(scores[i].argmax())
        mark = (255, 255, 255) if best == i else (255, 80, 80)
        corner = (cell * (best + 1) + 2, cell * (i + 1) + 2)
        pen.rectangle((*corner, corner[0] + cell - 5, corner[1] + cell - 5), outline=mark, width=2)
    return sheet


class Figures(pl.Callback):
    """Draws chosen validation pairs with the attention of words, and a similarity matrix, as PNG and in TensorBoard.

    Where ``data.loading.private`` is set, no report and no word of one is written into a picture.

    Attention is drawn for heads with a ``heatmap``, and that of their own queries for heads that have some; the matrix
    for every head. Where the head weighs words, each has its weight, and a panel shows all maps as they weigh.

    Args:
        pairs: how many pairs to draw; 0 draws nothing at all.
        indices: which pairs of the split, by position; spread evenly over it if not given.
        words: words to draw where a report has them (case does not matter); if not given, those whose attention is
            most concentrated.
        words_per_pair: how many words at most, and half of how many queries.
        matrix: pairs in the similarity matrix.
        every_n_epochs: epochs between two drawings.
    """

    def __init__(
        self,
        pairs: int = 4,
        indices: list[int] | None = None,
        words: list[str] | None = None,
        words_per_pair: int = 4,
        matrix: int = 16,
        every_n_epochs: int = 1,
    ) -> None:
        self.pairs, self.indices, self.words = pairs, indices, words
        self.words_per_pair, self.matrix, self.every_n_epochs = words_per_pair, matrix, every_n_epochs

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw within training, at the chosen epochs."""
        if (
            trainer.state.fn == "fit"
            and not trainer.sanity_checking
            and trainer.current_epoch % self.every_n_epochs == 0
        ):
            self._draw(trainer, pl_module, "val", f"epoch{trainer.current_epoch:03d}")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw pairs of the test split, and what was grounded in it."""
        self._draw(trainer, pl_module, "test", "test")
        if not (trainer.is_global_zero and self.pairs and isinstance(pl_module, AlignmentModule)):
            return
        for evaluator in pl_module.evaluators:
            if not isinstance(evaluator, Grounding):
                continue
            for drawn in evaluator.pictures:
                picture = draw_attention(drawn.sample, [drawn.title], drawn.heat[None], evaluator.findings)
                self._save(
                    trainer, picture, f"test-{evaluator.name}-{drawn.name}", f"test/{evaluator.name}/{drawn.name}"
                )

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule, split: Split, stem: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if not (trainer.is_global_zero and self.pairs and isinstance(module, AlignmentModule)):
            return
        if not isinstance(data, RadiographDataModule) or split not in data.datasets:
            return
        size = len(data.datasets[split])
        training = module.training
        model = AlignmentModel(module, data.loading.image_size, module.device)
        try:
            private = data.loading.private
            chosen = self.indices or np.linspace(0, size - 1, min(self.pairs, size)).astype(int).tolist()
            for index in chosen[: self.pairs]:
                sample = data.native(split, index)
                if sample.text and isinstance(module.head, Grounds):
                    picture = self._attention(model, sample, data.findings, private)
                    self._save(trainer, picture, f"{stem}-attention-{index}", f"{split}/attention/{index}")
                if isinstance(module.head, Observes):
                    shown = replace(sample, text=None) if private else sample
                    picture = self._queries(model, shown, data.findings)
                    self._save(trainer, picture, f"{stem}-queries-{index}", f"{split}/queries/{index}")
            samples = [
                data.native(split, i) for i in np.linspace(0, size - 1, min(self.matrix, size)).astype(int).tolist()
            ]
            texts = [sample.text for sample in samples if sample.text]
            if len(texts) == len(samples):
                images = [sample.image for sample in samples]
                scores = model.similarity(images, texts).float().cpu().numpy()
                picture = draw_similarity(scores, images, [""] * len(texts) if private else texts)
                self._save(trainer, picture, f"{stem}-similarity", f"{split}/similarity")
        finally:
            module.train(training)

    def _attention(
        self, model: AlignmentModel, sample: Sample, findings: Sequence[str], private: bool = False
    ) -> Image.Image:
        words, maps = model.heatmap(sample.image, sample.text or "")
        if self.words is None:
            chosen = sharpest(words, maps, self.words_per_pair)
        else:
            wanted = {word.lower() for word in self.words}
            chosen = [i for i, word in enumerate(words) if word.lower() in wanted][: self.words_per_pair]
        drawn = maps[chosen]
        head, text = model.module.head, sample.text or ""
        if private:
            sample = replace(sample, text=None)
            if self.words is None:  # those asked for stand in the recipe, and are no secret
                words = [f"word {i + 1}" for i in range(len(words))]
        if isinstance(head, WeighsWords) and head.weighs_words and len(words):
            weights = model.importance(sample.image, text)
            words = [f"{word} {weight:.0%}" for word, weight in zip(words, weights, strict=True)]
            whole = np.tensordot(weights, maps, 1)[None]
            return draw_attention(
                sample, ["weighed", *(words[i] for i in chosen)], np.concatenate([whole, drawn]), findings
            )
        return draw_attention(sample, [words[i] for i in chosen], drawn, findings)

    def _queries(self, model: AlignmentModel, sample: Sample, findings: Sequence[str]) -> Image.Image:
        maps = model.observations(sample.image)
        names = [f"query {k}" for k in range(len(maps))]
        chosen = sharpest(names, maps, 2 * self.words_per_pair)
        return draw_attention(sample, [names[k] for k in chosen], maps[chosen], findings)

    @staticmethod
    def _save(trainer: pl.Trainer, picture: Image.Image, name: str, tag: str) -> None:
        replace_picture(Path(trainer.default_root_dir) / "figures" / f"{name}.png", picture)
        log_picture(trainer, picture, tag)
