"""Pictures of what a model sees: attention of words over radiographs, and the similarity matrix of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np

from diptych.checks import check_choice, check_number
from diptych.data.datamodule import RadiographDataModule, Sample, Split
from diptych.evaluation.grounding import Grounding
from diptych.head import Grounds, Observes
from diptych.model.inference import TrainedModel
from diptych.model.module import AlignmentModule
from diptych.results.attention import Panel, draw_maps, draw_seen, panel_of
from diptych.results.drawing import draw_similarity
from diptych.results.sheet import FORMATS, Sheet
from diptych.training.loggers import log_picture

__all__ = ["Figures"]


class Figures(pl.Callback):
    """Draws chosen validation pairs with the attention of words, and a similarity matrix, as files and in TensorBoard.

    The attention of words is drawn for heads with a ``heatmap``, and the attention of queries for heads with
    ``observations``. The matrix is drawn for every head. All maps of a picture have one scale with a colour bar: attention in
    multiples of the mean region. So what is flat looks flat. Above a map stand the word, its weight in the score where the
    head weighs words, its entropy (0 is one region, 1 is flat) and its peak. The score of the pair stands above all. Where the
    head weighs words, one more panel shows the weighted mean of all maps.

    With ``data.loading.private``, no report and no word of one is written into a picture.

    Args:
        pairs: how many pairs to draw. With 0 nothing at all is drawn.
        indices: which pairs of the split, by position. If not given, they are spread evenly over the split.
        words: which words to draw, where a report has them. Case does not matter. If not given, words of findings come
            first, then the others by their weight, or by how concentrated their attention is. Stop words are left out.
        words_per_pair: the most words of a pair. Twice as many queries are drawn.
        matrix: how many pairs the similarity matrix has.
        every_n_epochs: epochs between two drawings.
        formats: kinds of file, among png, svg and pdf.
        full_colour: the attention that has the strongest colour, in multiples of the mean region, above 1. With it all
            pictures have one scale. If not given, it follows from the highest peak of a picture.
        sides: mark the patient's right (R) on the left, and the left (L) on the right, as radiographs are hung. That is wrong
            for lateral views.

    Raises:
        ConfigError: ``full_colour`` or a format is out of its range.
    """

    def __init__(
        self,
        pairs: int = 4,
        indices: list[int] | None = None,
        words: list[str] | None = None,
        words_per_pair: int = 4,
        matrix: int = 16,
        every_n_epochs: int = 1,
        formats: list[Literal["png", "svg", "pdf"]] | None = None,
        full_colour: float | None = None,
        sides: bool = True,
    ) -> None:
        self.pairs, self.indices, self.words = pairs, indices, words
        self.words_per_pair, self.matrix, self.every_n_epochs = words_per_pair, matrix, every_n_epochs
        self.formats = ["png"] if formats is None else formats
        for kind in self.formats:
            check_choice("figures: formats", kind, FORMATS)
        if full_colour is not None:
            check_number("figures: full_colour", full_colour, above=1)
        self.full_colour, self.sides = full_colour, sides

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw within training, at the chosen epochs."""
        if (
            trainer.state.fn == "fit"
            and not trainer.sanity_checking
            and trainer.current_epoch % self.every_n_epochs == 0
        ):
            self._draw(trainer, pl_module, "val", f"epoch{trainer.current_epoch:03d}")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw pairs of the test split, and the pictures that grounding has chosen."""
        self._draw(trainer, pl_module, "test", "test")
        if not (trainer.is_global_zero and self.pairs and isinstance(pl_module, AlignmentModule)):
            return
        for evaluator in pl_module.evaluators:
            if not isinstance(evaluator, Grounding):
                continue
            for example in evaluator.pictures:
                panel = Panel(example.title, example.heat, f"peak {example.heat.max():.1f}x")
                name = f"{evaluator.name}-{example.name}"
                self._save(
                    trainer,
                    self._maps(example.sample, [panel], evaluator.findings),
                    f"test-{name}",
                    f"test/{evaluator.name}/{example.name}",
                )

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule, split: Split, stem: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if not (trainer.is_global_zero and self.pairs and isinstance(module, AlignmentModule)):
            return
        if not isinstance(data, RadiographDataModule) or split not in data.datasets:
            return
        size = len(data.datasets[split])
        training = module.training
        model = TrainedModel(module, data.loading.image_size, module.device)
        try:
            private = data.loading.private
            chosen = self.indices or np.linspace(0, size - 1, min(self.pairs, size)).astype(int).tolist()
            for index in chosen[: self.pairs]:
                sample = data.native(split, index)
                if sample.text and isinstance(module.head, Grounds):
                    sheet = draw_seen(
                        model.look(sample.image, sample.text),
                        words=self.words,
                        most=self.words_per_pair,
                        full=self.full_colour,
                        sides=self.sides,
                        private=private,
                        sample=sample,
                        findings=data.findings,
                    )
                    self._save(trainer, sheet, f"{stem}-attention-{index}", f"{split}/attention/{index}")
                if isinstance(module.head, Observes):
                    shown = replace(sample, text=None) if private else sample
                    sheet = self._queries(model, shown, data.findings)
                    self._save(trainer, sheet, f"{stem}-queries-{index}", f"{split}/queries/{index}")
            samples = [
                data.native(split, i) for i in np.linspace(0, size - 1, min(self.matrix, size)).astype(int).tolist()
            ]
            texts = [sample.text for sample in samples if sample.text]
            if len(texts) == len(samples):
                images = [sample.image for sample in samples]
                scores = model.similarity(images, texts).float().cpu().numpy()
                sheet = draw_similarity(scores, images, [""] * len(texts) if private else texts)
                self._save(trainer, sheet, f"{stem}-similarity", f"{split}/similarity")
        finally:
            module.train(training)

    def _queries(self, model: TrainedModel, sample: Sample, findings: Sequence[str]) -> Sheet:
        """The maps of the queries whose attention is most concentrated, in their order."""
        maps = model.observe(sample.image)
        entropy, peaks = maps.entropy, maps.peaks
        chosen = sorted(np.argsort(entropy, kind="stable")[: 2 * self.words_per_pair].tolist())
        panels = [
            panel_of(maps, maps.regions[k], f"query {k}", f"entropy {entropy[k]:.2f}, peak {peaks[k]:.1f}x")
            for k in chosen
        ]
        return self._maps(sample, panels, findings)

    def _maps(self, sample: Sample, panels: Sequence[Panel], findings: Sequence[str]) -> Sheet:
        text = sample.text or ""
        return draw_maps(sample, panels, text=text, full=self.full_colour, sides=self.sides, findings=findings)

    def _save(self, trainer: pl.Trainer, sheet: Sheet, name: str, tag: str) -> None:
        for kind in self.formats:
            sheet.save(Path(trainer.default_root_dir) / "figures" / f"{name}.{kind}")
        log_picture(trainer, sheet.image(), tag)
