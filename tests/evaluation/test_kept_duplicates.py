"""Retrieval where equal reports are kept apart, against a plain loop."""

import numpy as np
import pytest
import torch
from evaluating import Cosine, Radiographs, Words, embed_text, evaluate

from diptych.evaluation.retrieval import Retrieval


@pytest.mark.parametrize("head", [Cosine(), Words()], ids=["pooled", "tokens"])
def test_kept_duplicates_are_wrong_answers(head):
    """Each image has a text of its own, so equal reports of others are candidates, and tie with it."""
    data = Radiographs()
    folded, kept = Retrieval(resamples=20), Retrieval(resamples=20, duplicates="kept", name="retrieval_kept")
    metrics = evaluate(kept, data, head)
    with torch.no_grad():
        scores = head.similarity(data.image(range(data.n)), embed_text(data.texts)).double().numpy()
    slack, sides = 1e-6 * abs(scores).max(), {}
    for side, table in (("image_to_text", scores), ("text_to_image", scores.T)):
        ranks = [sum(not table[i, j] < table[i, i] - slack for j in range(data.n)) for i in range(data.n)]
        sides[side] = np.array(ranks)
        for k in (1, 5, 10):
            assert metrics[f"{side}/r@{k}"].value == pytest.approx(np.mean(sides[side] <= k), abs=1e-12)
        assert metrics[f"{side}/median_rank"].value == np.median(ranks)
        assert metrics[f"{side}/r@1"].n == data.n
    copies = np.array([data.texts.count(text) for text in data.texts])
    assert (sides["image_to_text"] >= copies).all()
    assert copies.max() > 1
    assert metrics["image_to_text/r@1"].value < evaluate(folded, data, head)["image_to_text/r@1"].value
    assert (kept.protocol["duplicates"][:5], folded.protocol["duplicates"][:7]) == ("kept:", "folded:")
    assert (kept.protocol["texts"], folded.protocol["texts"]) == (data.n, len(set(data.texts)))
    assert kept.predictions.settings["duplicates"] == "kept"
    order = np.random.default_rng(1).permutation(data.n).tolist()
    again = Retrieval(resamples=20, duplicates="kept", keep_bytes=0)
    assert evaluate(again, data, head, rows=order, size=7, fill=2) == metrics
