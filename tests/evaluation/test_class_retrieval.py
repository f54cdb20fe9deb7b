"""Class-level retrieval against plain loops, on one process and on several."""

import json
import math

import evaluating
import numpy as np
import pytest
import torch
from evaluating import CLASSES, PROMPTS, Constant, Cosine, Radiographs, Words, embed_text, evaluate
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_precision

from diptych.errors import ConfigError, DataError
from diptych.evaluation.class_retrieval import ClassRetrieval, Leaders, hits_at
from diptych.metrics.class_retrieval import hits_among

NAMES = list(CLASSES["classes"])
TEXTS = {"Edema": PROMPTS["findings"]["Edema"]["positive"], "Nodule": ["nodule"]}
TEXTS["Mass"] = ["mass", "mass on the left", "small mass", "small mass on the left"]


@pytest.fixture
def classes(tmp_path):
    return evaluating.write_prompts(tmp_path, CLASSES)


def first(scores, relevant, k, slack):
    """Right ones among the first ``k``, by sorting alone: a wrong one is put before a right one that it ties with."""
    ranked = sorted(range(len(scores)), key=lambda i: (-(scores[i] + (0 if relevant[i] else slack)), relevant[i]))
    return sum(bool(relevant[i]) for i in ranked[:k])


def plain(data, head, texts, rows=None):
    """P@5, P@10, P@100, Hit@1, Hit@5, Hit@10 of each query in both directions, and whose each query is."""
    labels = data.labels[:, :3].numpy() == 1
    chosen = [i for i in range(data.n) if labels[i].sum() == 1]
    real = labels[chosen].argmax(axis=1)
    if texts == "reports":
        strings, of_text = [data.texts[i] for i in chosen], real
    else:
        strings = [text for name in NAMES for text in TEXTS[name]]
        of_text = np.array([NAMES.index(name) for name in NAMES for _ in TEXTS[name]])
    rows = chosen if rows is None else [chosen[i] for i in rows]
    real = labels[rows].argmax(axis=1)
    scores = head.similarity(data.image(rows), embed_text(strings)).numpy()
    slack = 1e-6 * np.abs(scores).max()
    sides = {}
    for side, table, queries, answers in (
        ("image_to_text", scores, real, of_text),
        ("text_to_image", scores.T, of_text, real),
    ):
        hits = [
            [first(row, answers == c, k, slack) for k in (5, 10, 100, 1, 5, 10)]
            for row, c in zip(table, queries, strict=True)
        ]
        hits = np.array(hits)[np.isin(queries, real)]
        sides[side] = np.concatenate([hits[:, :3] / (5, 10, 100), hits[:, 3:] > 0], axis=1)
    return sides, np.array(chosen)


COLUMNS = ["p@5", "p@10", "p@100", "hit@1", "hit@5", "hit@10"]


@pytest.mark.parametrize("texts", ["reports", "prompts"])
@pytest.mark.parametrize("head", [Cosine(), Words(), Constant()], ids=["pooled", "tokens", "constant"])
def test_equals_a_plain_loop(head, texts, classes):
    data, evaluator = Radiographs(n=260), ClassRetrieval(classes, texts, resamples=0)
    metrics = evaluate(evaluator, data, head, size=11)
    sides, chosen = plain(data, head, texts)
    assert set(metrics) == {f"{side}/{name}" for side in sides for name in COLUMNS}
    for side, values in sides.items():
        for name, column in zip(COLUMNS, values.T, strict=True):
            assert metrics[f"{side}/{name}"].value == pytest.approx(column.mean(), abs=1e-12), (side, name)
            assert metrics[f"{side}/{name}"].n == len(column)
    assert evaluator.protocol["excluded"] == {"none of the classes or several": data.n - len(chosen)}
    if isinstance(head, Constant):
        assert metrics["image_to_text/hit@1"].value == metrics["text_to_image/hit@10"].value == 0


def test_equals_torchmetrics_where_nothing_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, relevant = rng.normal(size=(1, 40)), rng.random((1, 40)) < 0.3
        leaders = Leaders(1, 10)
        for part in (slice(0, 13), slice(13, 40)):
            leaders.add(torch.from_numpy(scores[:, part]).float(), torch.from_numpy(relevant[:, part]))
        hits = hits_at(leaders.right, leaders.wrong, (1, 5, 10), 0.0)[0]
        both = torch.from_numpy(scores[0]), torch.from_numpy(relevant[0])
        for hit, k in zip(hits.tolist(), (1, 5, 10), strict=True):
            assert hit / k == pytest.approx(float(retrieval_precision(*both, top_k=k)), abs=1e-6)
            assert (hit > 0) == bool(retrieval_hit_rate(*both, top_k=k))


@pytest.mark.parametrize("texts", ["reports", "prompts"])
@pytest.mark.parametrize(
    "shares",
    [
        [range(83)],
        [range(0, 83, 2), range(1, 83, 2)],
        [[*range(70, 83), *range(20)], range(20, 70)],
        [range(83), []],
    ],
    ids=["one", "interleaved", "uneven", "empty"],
)
def test_several_processes_equal_one(shares, texts, processes, classes):
    expected = evaluating.task_class_retrieval(classes, [range(83)], [16])
    for answers in processes.run(
        len(shares), evaluating.task_class_retrieval, classes, [list(s) for s in shares], [8, 5]
    ):
        assert answers == expected


@pytest.mark.parametrize("texts", ["reports", "prompts"])
def test_does_not_depend_on_order_batch_size_or_rows_that_fill_up(texts, classes):
    data = Radiographs()
    expected = evaluate(ClassRetrieval(classes, texts, resamples=20), data, Words())
    order = np.random.default_rng(1).permutation(data.n).tolist()
    for size in (1, 7, 83):
        metrics = evaluate(ClassRetrieval(classes, texts, resamples=20), data, Words(), rows=order, size=size, fill=2)
        assert metrics == expected


def test_interval_with_reports_equals_explicit_resampling_of_queries(classes):
    data = Radiographs(n=150)
    metrics = evaluate(ClassRetrieval(classes, resamples=100, seed=4), data, Cosine())
    sides, chosen = plain(data, Cosine(), "reports")
    group, rng = data.group.numpy(), np.random.default_rng(4)
    names, values = np.unique(group), []
    for _ in range(100):
        sample = names[rng.integers(len(names), size=len(names))]
        rows = [r for g in sample for r in np.flatnonzero(group[chosen] == g)]
        values.append([[sides[side][rows, c].mean() for c in (0, 3)] for side in sides])
    for i, side in enumerate(sides):
        for j, name in enumerate(("p@5", "hit@1")):
            low, high = np.percentile(np.array(values)[:, i, j], [2.5, 97.5])
            assert (metrics[f"{side}/{name}"].low, metrics[f"{side}/{name}"].high) == pytest.approx(
                (low, high), abs=1e-12
            )


def test_interval_with_prompts_ranks_each_resampled_set_anew(classes):
    data = Radiographs(n=150)
    metrics = evaluate(ClassRetrieval(classes, "prompts", resamples=40, seed=4), data, Cosine())
    _, chosen = plain(data, Cosine(), "prompts")
    group, rng = data.group.numpy(), np.random.default_rng(4)
    names, values = np.unique(group), []
    for _ in range(40):
        sample = names[rng.integers(len(names), size=len(names))]
        rows = [int(r) for g in sample for r in np.flatnonzero(group[chosen] == g)]
        values.append(plain(data, Cosine(), "prompts", rows)[0]["text_to_image"].mean(axis=0))
    for c, name in enumerate(COLUMNS):
        low, high = np.percentile(np.array(values)[:, c], [2.5, 97.5])
        metric = metrics[f"text_to_image/{name}"]
        assert (metric.low, metric.high) == pytest.approx((low, high), abs=1e-9), name


def test_many_weightings_of_one_query_equal_explicit_sets():
    rng = np.random.default_rng(2)
    for n in (5, 60, 400):
        scores, relevant = np.round(rng.normal(size=n), 1), rng.random(n) < 0.3
        scores[0], scores[1] = np.nan, np.nan
        relevant[:2] = True, False
        weights = rng.integers(0, 3, size=(7, n))
        counts = hits_among(scores, relevant, (1, 5, 10), 0.05, weights)
        plainly = np.where(np.isnan(scores), np.where(relevant, -1e9, 1e9), scores)
        for row, hits in zip(weights, counts, strict=True):
            rows = np.repeat(np.arange(n), row)
            rows = rows[rows > 0]  # a right one without a score is never found
            assert hits.tolist() == [first(plainly[rows], relevant[rows], k, 0.05) for k in (1, 5, 10)]


def test_scores_that_are_no_numbers_are_the_worst(classes):
    head = Constant()
    for head.value in (math.nan, math.inf):
        for texts in ("reports", "prompts"):
            metrics = evaluate(ClassRetrieval(classes, texts, resamples=0), Radiographs(), head)
            assert metrics["image_to_text/hit@1"].value == metrics["text_to_image/hit@10"].value == 0


def test_absent_classes_ceilings_and_chance_are_told(classes):
    data, evaluator = Radiographs(), ClassRetrieval(classes, "prompts", resamples=0)
    data.labels[:, 2] = 0
    metrics = evaluate(evaluator, data, Cosine())
    protocol = json.loads(json.dumps(evaluator.protocol))
    assert protocol["absent"] == ["Nodule"]
    assert metrics["text_to_image/p@5"].n == 6  # two prompts of edema, four of mass
    assert protocol["candidates"] == {"Edema": 2, "Mass": 4, "Nodule": 1}
    edema, mass = protocol["images"]["Edema"], protocol["images"]["Mass"]
    assert protocol["ceiling"]["image_to_text/p@5"] == pytest.approx((edema * 0.4 + mass * 0.8) / (edema + mass))
    assert protocol["chance"]["text_to_image"] == pytest.approx((2 * edema + 4 * mass) / 6 / (edema + mass))
    assert "ConVIRT" in protocol["definition"]


def test_a_perfect_model_reaches_the_ceiling(classes):
    class Oracle(Cosine):
        def similarity(self, image, text):
            return image.pooled @ text.pooled.T

    data, evaluator = Radiographs(), ClassRetrieval(classes, resamples=0)
    data.labels[:] = 0
    data.labels[torch.arange(data.n), torch.arange(data.n) % 3] = 1
    data.texts = [f"{NAMES[i % 3]}" for i in range(data.n)]
    data.regions = embed_text(data.texts).pooled[:, None].expand(-1, 5, -1)
    metrics = evaluate(evaluator, data, Oracle())
    assert metrics["image_to_text/p@10"].value == metrics["text_to_image/hit@1"].value == 1
    assert metrics["image_to_text/p@100"].value == pytest.approx(evaluator.protocol["ceiling"]["image_to_text/p@100"])


def test_a_set_without_reports_or_labels_is_skipped_and_some_without_are_refused(classes):
    data, evaluator = Radiographs(), ClassRetrieval(classes)
    assert evaluate(evaluator, data, Cosine(), texts=False) == {}
    assert evaluator.protocol["skipped"] == "the data set has no reports"
    assert evaluate(evaluator, data, Cosine(), findings=(), labels=False) == {}
    assert evaluator.protocol["skipped"] == "the data set has no labels"
    with pytest.raises(DataError, match="hold no labels"):
        evaluate(evaluator, data, Cosine(), labels=False)
    evaluator.start(embed_text, evaluating.FINDINGS)
    for rows, texts in ((range(20), True), (range(20, 30), False)):
        for batch, image, text in data.batches(rows, 10, texts=texts):
            evaluator.update(batch, image, text, Cosine())
    with pytest.raises(DataError, match="only 20 of 30 samples have a report"):
        evaluator.compute(Cosine())


def test_arguments_are_checked(tmp_path, classes):
    with pytest.raises(ConfigError, match="has findings, not classes"):
        ClassRetrieval("rsna")
    with pytest.raises(ConfigError, match="at least one cut-off"):
        ClassRetrieval(classes, hits=(0,))
    with pytest.raises(ConfigError, match=r"asks for Edema, Mass, Nodule; the data set labels Edema, Mass;"):
        evaluate(ClassRetrieval(classes), Radiographs(), Cosine(), findings=("Edema", "Mass"))
