"""Thresholds of zero-shot that are chosen on ``val``: by hand, and in a test of a module."""

import evaluating
import numpy as np
import pytest
from evaluating import Cosine, Radiographs, embed_text, evaluate
from sklearn.metrics import balanced_accuracy_score, f1_score

from diptych.errors import ConfigError
from diptych.evaluation.zero_shot import ZeroShot
from diptych.metrics.bootstrap import as_metrics
from diptych.predictions.kinds import with_draws


def shown(evaluator, data, head, rows):
    evaluator.start(embed_text, evaluating.FINDINGS)
    for batch, image, text in data.batches(rows, 16):
        evaluator.update(batch, image, text, head)


def test_the_threshold_is_the_best_on_val_and_decides_on_test(tmp_path):
    data, evaluator = Radiographs(), ZeroShot(evaluating.write_prompts(tmp_path), "val_youden", resamples=0)
    assert evaluator.wants_val
    rows = list(range(50, 83))
    with pytest.raises(ConfigError, match="threshold is 'val_youden', and no 'val' was seen; call settle"):
        evaluate(evaluator, data, Cosine(), rows=rows)
    shown(evaluator, data, Cosine(), list(range(50)))
    evaluator.settle()
    on_val = ZeroShot(evaluating.write_prompts(tmp_path), resamples=0)
    evaluate(on_val, data, Cosine(), rows=range(50))
    found = evaluate(evaluator, data, Cosine(), rows=rows)
    kept = evaluator.predictions
    checked = 0
    for name in [key[6:] for key in kept.columns if key.startswith("score/")]:
        of_val, of_test = (one.predictions.columns for one in (on_val, evaluator))
        pairs = [(c[f"score/{name}"], c[f"label/{name}"]) for c in (of_val, of_test)]
        (s, y), (scores, labels) = [(s[y >= 0], y[y >= 0]) for s, y in pairs]
        if f"f1/{name}" not in found or len(set(y.tolist())) < 2:
            continue
        best = max(s.tolist(), key=lambda t, s=s, y=y: (round(balanced_accuracy_score(y, s >= t), 12), t))
        assert found[f"f1/{name}"].value == pytest.approx(f1_score(labels, scores >= best), abs=1e-12)
        assert kept.settings["thresholds"][name] == best
        checked += 1
    assert checked >= 2
    assert evaluator.protocol["threshold"] == "best Youden index on val"
    again = as_metrics(with_draws(kept, np.arange(len(rows)))[0])
    assert repr(again) == repr(found)  # from the predictions and settings alone


def test_a_threshold_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="threshold"):
        ZeroShot(evaluating.write_prompts(tmp_path), "val")
    assert not ZeroShot(evaluating.write_prompts(tmp_path)).wants_val
