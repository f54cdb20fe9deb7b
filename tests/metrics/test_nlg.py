"""Metrics of generated text, and of its findings, against sacrebleu, rouge_score, scikit-learn and slow twins."""

import math
import sys
from collections import Counter
from itertools import pairwise

import generating
import numpy as np
import pytest
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from sklearn.metrics import classification_report, precision_recall_fscore_support

from diptych.errors import ConfigError
from diptych.metrics import generated_text as nlg
from diptych.metrics import measures as metrics
from diptych.metrics.bootstrap import as_metrics
from diptych.metrics.clinical import clinical
from diptych.reports.labeller import FINDINGS

WORDS = ["no", "small", "large", "effusion", "effusions", "pleural", "seen", "heart", "enlarged", "enlargement"]
WORDS += ["nodules", "nodule"]


def texts(n, seed, longest=14):
    rng = np.random.default_rng(seed)
    return [[WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(0, longest))] for _ in range(n)]


def near(candidates, seed):
    """References that share much with the texts."""
    rng = np.random.default_rng(seed)
    return [
        [word if rng.random() < 0.7 else WORDS[rng.integers(len(WORDS))] for word in text] + ["seen"] * rng.integers(3)
        for text in candidates
    ]


PAIRS = [(texts(40, s), near(texts(40, s), s + 1)) for s in (0, 2)] + [(texts(30, 4), texts(30, 5))]
PAIRS += [([[], ["no"]], [["heart"], []]), ([["no", "nodule"]], [["no", "nodule", "seen"]])]


def test_words_are_lower_case_runs_of_letters_and_digits():
    assert nlg.words("No ill-defined 1.5 cm Nodule; ___ isn't ŷ_2.") == [
        *("no", "ill", "defined", "1", "5", "cm", "nodule", "isn", "t", "ŷ", "2")
    ]


@pytest.mark.parametrize(("candidates", "references"), PAIRS)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_is_sacrebleus(candidates, references, order):
    theirs = BLEU(max_ngram_order=order, smooth_method="none", tokenize="none", force=True)
    rng = np.random.default_rng(0)
    weights = np.stack([np.ones(len(candidates), int), *rng.integers(0, 3, (3, len(candidates)))])
    ours = nlg.bleu(metrics.sums(nlg.bleu_counts(candidates, references), weights), order)
    for value, row in zip(ours, weights, strict=True):
        rows = [i for i, times in enumerate(row) for _ in range(times)]
        if rows:
            lines = [" ".join(candidates[i]) for i in rows], [[" ".join(references[i]) for i in rows]]
            assert value == pytest.approx(theirs.corpus_score(*lines).score / 100, abs=1e-9)


@pytest.mark.parametrize(("candidates", "references"), PAIRS)
def test_rouge_l_is_rouge_scores(candidates, references):
    class Split:
        def tokenize(self, text):
            return text.split()

    scorer = RougeScorer(["rougeL"], tokenizer=Split())
    plain, coco = nlg.rouge_l(candidates, references, beta=1.0), nlg.rouge_l(candidates, references)
    for i, (one, other) in enumerate(zip(candidates, references, strict=True)):
        score = scorer.score(" ".join(other), " ".join(one))["rougeL"]
        assert plain[i] == pytest.approx(score.fmeasure, abs=1e-12)
        p, r = score.precision, score.recall
        assert coco[i] == pytest.approx((1 + 1.44) * p * r / (r + 1.44 * p) if p else 0, abs=1e-12)


def slow_meteor(candidates, references):
    """Matches from the end, as nltk takes them; then the equations of the paper with nltk's constants."""
    stem = PorterStemmer().stem
    left, free, pairs = list(range(len(candidates))), list(range(len(references))), []
    for same in (lambda a, b: a == b, lambda a, b: stem(a) == stem(b)):
        for i in reversed(left.copy()):
            j = next((j for j in reversed(free) if same(candidates[i], references[j])), None)
            if j is not None:
                pairs.append((i, j))
                left.remove(i)
                free.remove(j)
    if not pairs:
        return 0.0
    pairs.sort()
    chunks = 1 + sum(b != (a[0] + 1, a[1] + 1) for a, b in pairwise(pairs))
    precision, recall = len(pairs) / len(candidates), len(pairs) / len(references)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return mean * (1 - 0.5 * (chunks / len(pairs)) ** 3)


@pytest.mark.parametrize(("candidates", "references"), PAIRS)
def test_meteor_against_its_twin(candidates, references):
    expected = [slow_meteor(*pair) for pair in zip(candidates, references, strict=True)]
    np.testing.assert_allclose(nlg.meteor(candidates, references), expected, atol=1e-12)


def test_meteor_counts_stems_and_no_synonyms():
    assert nlg.meteor([["nodules"]], [["nodule"]])[0] == pytest.approx(0.5)
    assert nlg.meteor([["heart"]], [["cardiac"]])[0] == 0


def slow_cider(candidates, references, d):
    """Equations 1 to 3 of arXiv 1411.5726 for one reference an image; for D, equation 4 on counts instead of frequencies."""

    def count(text, gram):
        n = len(gram)
        return sum(tuple(text[i : i + n]) == gram for i in range(len(text) - n + 1))

    values = []
    for candidate, reference in zip(candidates, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            grams = sorted(
                {tuple(text[i : i + n]) for text in (candidate, reference) for i in range(len(text) - n + 1)}
            )

            def vector(text, grams=grams, n=n):
                frequency = 1 if d else max(1, len(text) - n + 1)
                entries = []
                for gram in grams:
                    df = sum(count(other, gram) > 0 for other in references)
                    entries.append(count(text, gram) / frequency * math.log(len(references) / max(1, df)))
                return np.array(entries)

            one, other = vector(candidate), vector(reference)
            norms = np.linalg.norm(one) * np.linalg.norm(other) if len(grams) else 0
            if norms > 0:
                dot = float((np.minimum(one, other) if d else one) @ other) / norms
                total += dot / 4 * (10 * math.exp(-((len(candidate) - len(reference)) ** 2) / 72) if d else 1)
        values.append(total)
    return values


@pytest.mark.parametrize(("candidates", "references"), PAIRS)
@pytest.mark.parametrize("d", [False, True])
def test_cider_against_the_papers_equations(candidates, references, d):
    np.testing.assert_allclose(nlg.cider(candidates, references, d=d), slow_cider(candidates, references, d), atol=1e-9)


def test_a_perfect_text_has_the_highest_values_and_an_empty_one_zero():
    references = [
        "No pleural effusion is seen today",
        "The heart is enlarged and large",
        "Left lower lobe nodule is present",
    ]
    best, none = nlg.scores(references, references), nlg.scores(["", ".", "-"], references)
    for name, value in best.items():
        highest = 10 if name == "cider/d" else 1
        close = 0.003 if "meteor" in name else 1e-9  # one chunk costs a little
        assert value[0] == pytest.approx(highest, abs=close), name
        assert none[name][0] == 0, name
    assert set(nlg.FACTS) == {"words"} | {name.partition("/")[0] for name in best}


def test_values_do_not_depend_on_the_order_of_samples_and_weights_repeat_them():
    candidates, references = ([" ".join(text) for text in part] for part in PAIRS[0])
    order = np.random.default_rng(3).permutation(len(candidates))
    one = nlg.scores(candidates, references)
    other = nlg.scores([candidates[i] for i in order], [references[i] for i in order])
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], atol=1e-12, err_msg=name)
    twice = nlg.scores(candidates, references, np.full((1, len(candidates)), 2))
    assert all(twice[name] == pytest.approx(one[name]) for name in one)


def test_the_common_subsequence_of_long_texts():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = ([str(x) for x in rng.integers(0, 9, 150)] for _ in range(2))
        table = Counter()
        for i in range(len(a)):
            for j in range(len(b)):
                table[i, j] = table[i - 1, j - 1] + 1 if a[i] == b[j] else max(table[i - 1, j], table[i, j - 1])
        assert nlg._common(a, b) == table[len(a) - 1, len(b) - 1]


def test_without_nltk_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.translate.meteor_score", None)  # as where it is not installed
    with pytest.raises(ConfigError, match=r"needs nltk for METEOR: pip install 'diptych\[report\]'"):
        nlg.need_nltk()


@pytest.mark.parametrize("uncertain", [False, True])
def test_clinical_figures_are_scikit_learns(uncertain):
    rng = np.random.default_rng(0)
    values, chance = np.array([1, 0, -1, np.nan]), [0.3, 0.2, 0.1, 0.4]
    predicted, real = (rng.choice(values, (50, 14), p=chance) for _ in range(2))
    real[:, 3], real[:, 7] = 0, np.nan  # absent from the references; Lung Lesion is claimed all the same
    predicted[:, 5] = np.nan  # in no generated report
    weights = np.stack([np.ones(50, int), *rng.integers(0, 3, (4, 50))])
    draws, facts = clinical(predicted, real, weights, uncertain)
    figures = as_metrics(draws)
    assert facts["absent"] == ["Lung Lesion", "Atelectasis"]
    shown = [i for i, name in enumerate(FINDINGS) if name not in facts["absent"]]
    one, other = (np.isin(x, (1, -1) if uncertain else (1,)) for x in (real, predicted))
    for average in ("micro", "macro", None):
        columns = shown if average != "micro" else list(range(14))
        expected = precision_recall_fscore_support(one[:, columns], other[:, columns], average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            if average:
                assert figures[f"{name}/{average}"].value == pytest.approx(value, abs=1e-9)
            else:
                for column, single in zip(columns, value, strict=True):
                    assert figures[f"{name}/{FINDINGS[column]}"].value == pytest.approx(single, abs=1e-9)
    assert not any("Lung Lesion" in name for name in figures)
    assert figures["f1/micro"].low <= figures["f1/micro"].high


def test_published_clinical_figures_are_those_of_the_report_that_f1chexbert_prints():
    rng = np.random.default_rng(1)
    values = np.array([1.0, 0, -1, np.nan])
    predicted, real = (rng.choice(values, (40, 14), p=[0.2, 0.3, 0.1, 0.4]) for _ in range(2))
    real[:, 3] = 0  # a finding that no reference has
    predicted[:4], real[2:6] = 0, 0  # reports without findings
    rows = rng.integers(0, 40, 60)
    weights = np.stack([np.ones(40, int), np.bincount(rows, minlength=40)])
    figures, _ = clinical(predicted, real, weights)
    five = ["Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"]
    columns = {14: list(range(14)), 5: [FINDINGS.index(name) for name in five]}
    for draw, own in enumerate((np.arange(40), rows)):
        for number, at in columns.items():
            twin = classification_report(
                real[own][:, at] == 1, predicted[own][:, at] == 1, output_dict=True, zero_division=0
            )
            for average, key in (("micro", "micro avg"), ("macro", "macro avg"), ("example", "samples avg")):
                for name, of_twin in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
                    ours = figures[f"{name}_{number}/{average}"].values[draw]
                    assert ours == pytest.approx(twin[key][of_twin], abs=1e-12), (name, number, average)


def test_recall_is_not_defined_where_no_reference_has_the_finding():
    real = np.zeros((10, 14), np.float32)
    real[0, 1] = 1
    predicted = real.copy()
    predicted[1, 1] = 1  # a false alarm
    weights = np.ones((3, 10), int)
    weights[1, 0] = 0  # a resample without the only one
    figures = as_metrics(clinical(predicted, real, weights)[0])
    recall, precision = (figures[f"{name}/Cardiomegaly"] for name in ("recall", "precision"))
    assert (recall.value, recall.low, recall.high) == (1, 1, 1)
    assert (precision.value, precision.low) == (0.5, pytest.approx(0.0125))


def test_texts_of_two_processes(gloo2):
    parts = [["Größe 1.5 cm", "", "a\nb"], ["x" * 300]]
    assert gloo2(generating.task_texts, parts) == [[*parts[0], *parts[1]]] * 2
    assert gloo2(generating.task_texts, [[], ["é"]]) == [["é"]] * 2
