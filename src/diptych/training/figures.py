"""Pictures of what a model sees: attention of words over radiographs, and the similarity matrix of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from PIL import Image

from diptych.data.datamodule import RadiographDataModule, Sample, Split
from diptych.evaluation.grounding import Grounding
from diptych.files import replace_picture
from diptych.head import Grounds, Observes, WeighsWords
from diptych.model.inference import TrainedModel
from diptych.model.module import AlignmentModule
from diptych.results.drawing import draw_attention, draw_similarity, sharpest
from diptych.training.loggers import log_picture

__all__ = ["Figures"]


class Figures(pl.Callback):
    """Draws chosen validation pairs with the attention of words, and a similarity matrix, as PNG and in TensorBoard.

    The attention of words is drawn for heads with a ``heatmap``, and the attention of queries for heads with
    ``observations``. The matrix is drawn for every head. Where the head weighs words, the weight stands beside each word,
    and one more panel shows the weighted sum of all maps.

    With ``data.loading.private``, no report and no word of one is written into a picture.

    Args:
        pairs: how many pairs to draw. With 0 nothing at all is drawn.
        indices: which pairs of the split, by position. If not given, they are spread evenly over the split.
        words: which words to draw, where a report has them. Case does not matter. If not given, the words with the most
            concentrated attention are drawn.
        words_per_pair: the most words of a pair. Twice as many queries are drawn.
        matrix: how many pairs the similarity matrix has.
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
        """Draw pairs of the test split, and the pictures that grounding has chosen."""
        self._draw(trainer, pl_module, "test", "test")
        if not (trainer.is_global_zero and self.pairs and isinstance(pl_module, AlignmentModule)):
            return
        for evaluator in pl_module.evaluators:
            if not isinstance(evaluator, Grounding):
                continue
            for example in evaluator.pictures:
                picture = draw_attention(example.sample, [example.title], example.heat[None], evaluator.findings)
                name = f"{evaluator.name}-{example.name}"
                self._save(trainer, picture, f"test-{name}", f"test/{evaluator.name}/{example.name}")

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
        self, model: TrainedModel, sample: Sample, findings: Sequence[str], private: bool = False
    ) -> Image.Image:
        words, maps = model.heatmap(sample.image, sample.text or "")
        if self.words is None:
            chosen = sharpest(words, maps, self.words_per_pair)
        else:
            wanted = {word.lower() for word in self.words}
            chosen = [i for i, word in enumerate(words) if word.lower() in wanted][: self.words_per_pair]
        chosen_maps = maps[chosen]
        head, text = model.module.head, sample.text or ""
        if private:
            sample = replace(sample, text=None)
            if self.words is None:  # words that the recipe names are no secret
                words = [f"word {i + 1}" for i in range(len(words))]
        if isinstance(head, WeighsWords) and head.weighs_words and len(words):
            weights = model.importance(sample.image, text)
            words = [f"{word} {weight:.0%}" for word, weight in zip(words, weights, strict=True)]
            whole = np.tensordot(weights, maps, 1)[None]
            titles = ["weighed", *(words[i] for i in chosen)]
            return draw_attention(sample, titles, np.concatenate([whole, chosen_maps]), findings)
        return draw_attention(sample, [words[i] for i in chosen], chosen_maps, findings)

    def _queries(self, model: TrainedModel, sample: Sample, findings: Sequence[str]) -> Image.Image:
        maps = model.observations(sample.image)
        names = [f"query {k}" for k in range(len(maps))]
        chosen = sharpest(names, maps, 2 * self.words_per_pair)
        return draw_attention(sample, [names[k] for k in chosen], maps[chosen], findings)

    @staticmethod
    def _save(trainer: pl.Trainer, picture: Image.Image, name: str, tag: str) -> None:
        replace_picture(Path(trainer.default_root_dir) / "figures" / f"{name}.png", picture)
        log_picture(trainer, picture, tag)
