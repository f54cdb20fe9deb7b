"""Grounding by each image's own text, against plain loops."""

import numpy as np
import pytest
import torch
from grounded import FINDINGS, SIDE, Boxed, Sees, embed_text
from sklearn.metrics import roc_auc_score

from diptych.errors import ConfigError
from diptych.evaluation.grounding import Grounding, word_weights
from diptych.metrics.regions import at_pixels, in_picture

TEXTS = ("a mass there", "small nodule", "there is a large round mass on the left", "one nodule of the apex")


def text_of(row):
    return f"{TEXTS[row % len(TEXTS)]} {row}"


def ground(evaluator, data, head, size=8):
    evaluator.start(embed_text, FINDINGS)
    for batch, image in data.batches(range(data.n), size):
        evaluator.update(batch, image, embed_text([text_of(int(row)) for row in batch.index]), head)
    return evaluator.compute(head)


def slow(data, head):
    """AUROC of each image and finding, one at a time, without padding."""
    found = {name: [] for name in FINDINGS}
    for row in range(data.n):
        words = head.heatmap(data.image([row]), embed_text([text_of(row)]))[0].double()
        heat = at_pixels(words.mean(dim=0)[None], SIDE, SIDE)[0]
        for column, name in enumerate(FINDINGS):
            region = np.zeros((SIDE, SIDE), bool)
            for x0, y0, x1, y1, finding in data.boxes[row].tolist():
                if finding == column:
                    region[max(0, round(y0)) : max(0, round(y1)), max(0, round(x0)) : max(0, round(x1))] = True
            counted = region | in_picture(data.images[row]).numpy()
            if region.any() and not region[counted].all():
                found[name].append(roc_auc_score(region[counted], heat.float().numpy()[counted]))
    return found


def test_each_image_is_looked_at_with_its_own_text():
    data, head = Boxed(), Sees()
    evaluator = Grounding(texts=True, pictures=0, resamples=0)
    metrics = ground(evaluator, data, head)
    expected = slow(data, head)
    assert expected["Hernia"] == []
    assert {name.split("/")[-1] for name in metrics} == {"Mass", "Nodule", "macro"}
    for name in ("Mass", "Nodule"):
        assert metrics[f"auroc/{name}"].n == len(expected[name]) > 5
        assert metrics[f"auroc/{name}"].value == pytest.approx(np.mean(expected[name]), abs=1e-6)
    assert evaluator.protocol["prompts"] == "each image's own text"
    assert evaluator.protocol["map"].startswith("heatmap of all words")
    again = ground(Grounding(texts=True, pictures=0, resamples=0), data, head, size=5)
    assert {name: metric.value for name, metric in again.items()} == {name: m.value for name, m in metrics.items()}


def test_every_word_of_a_text_counts_alike_and_padding_not():
    heat = torch.rand(3, 5, 9, generator=torch.Generator().manual_seed(0)).softmax(dim=2)
    lengths = (5, 2, 1)
    for row, length in enumerate(lengths):
        heat[row, length:] = 0
    for row, (weights, length) in enumerate(zip(word_weights(heat), lengths, strict=True)):
        assert weights.tolist() == pytest.approx([1 / length] * length + [0] * (5 - length)), row


def test_a_set_without_texts_is_refused():
    data = Boxed()
    evaluator = Grounding(texts=True)
    evaluator.start(embed_text, FINDINGS)
    batch, image = next(data.batches(range(4), 4))
    with pytest.raises(ConfigError, match="texts is true, and the data set has no texts"):
        evaluator.update(batch, image, None, Sees())
