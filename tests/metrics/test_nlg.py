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
from sklearn.metrics import precision_recall_fscore_support

from diptych.errors import ConfigError
from diptych.metrics import generated_text as nlg
from diptych.metrics import measures as metrics
from diptych.metrics.clinical import clinical
from diptych.reports.labeller import FINDINGS

WORDS = ["no", "small", "large", "effusion", "effusions", "pleural", "seen", "heart", "enlarged", "enlargement"]
WORDS += ["nodules", "nodule"]


def texts(n, seed, longest=14):
    rng = np.random.default_rng(seed)
    return [[WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(0, longest))] for _ in range(n)]


def near(said, seed):
    """References that share much with the texts."""
    rng = np.random.default_rng(seed)
    return [
        [word if rng.random() < 0.7 else WORDS[rng.integers(len(WORDS))] for word in text] + ["seen"] * rng.integers(3)
        for text in said
    ]


PAIRS = [(texts(40, s), near(texts(40, s), s + 1)) for s in (0, 2)] + [(texts(30, 4), texts(30, 5))]
PAIRS += [([[], ["no"]], [["heart"], []]), ([["no", "nodule"]], [["no", "nodule", "seen"]])]


def test_words_are_lower_case_runs_of_letters_and_digits():
    assert nlg.words("No ill-defined 1.5 cm Nodule; ___ isn't ŷ_2.") == [
        *("no", "ill", "defined", "1", "5", "cm", "nodule", "isn", "t", "ŷ", "2")
    ]


@pytest.mark.parametrize(("said", "right"), PAIRS)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_is_sacrebleus(said, right, order):
    theirs = BLEU(max_ngram_order=order, smooth_method="none", tokenize="none", force=True)
    rng = np.random.default_rng(0)
    weights = np.stack([np.ones(len(said), int), *rng.integers(0, 3, (3, len(said)))])
    ours = nlg.bleu(metrics.sums(nlg.bleu_counts(said, right), weights), order)
    for value, row in zip(ours, weights, strict=True):
        drawn = [i for i, times in enumerate(row) for _ in range(times)]
        if drawn:
            lines = [" ".join(said[i]) for i in drawn], [[" ".join(right[i]) for i in drawn]]
            assert value == pytest.approx(theirs.corpus_score(*lines).score / 100, abs=1e-9)


@pytest.mark.parametrize(("said", "right"), PAIRS)
def test_rouge_l_is_rouge_scores(said, right):
    class Split:
        def tokenize(self, text):
            return text.split()

    scorer = RougeScorer(["rougeL"], tokenizer=Split())
    plain, coco = nlg.rouge_l(said, right, beta=1.0), nlg.rouge_l(said, right)
    for i, (one, other) in enumerate(zip(said, right, strict=True)):
        found = scorer.score(" ".join(other), " ".join(one))["rougeL"]
        assert plain[i] == pytest.approx(found.fmeasure, abs=1e-12)
        p, r = found.precision, found.recall
        assert coco[i] == pytest.approx((1 + 1.44) * p * r / (r + 1.44 * p) if p else 0, abs=1e-12)


def slow_meteor(said, right):
    """Matches from the end, as nltk takes them; then the equations of the paper with nltk's constants."""
    stem = PorterStemmer().stem
    left, free, pairs = list(range(len(said))), list(range(len(right))), []
    for same in (lambda a, b: a == b, lambda a, b: stem(a) == stem(b)):
        for i in reversed(left.copy()):
            j = next((j for j in reversed(free) if same(said[i], right[j])), None)
            if j is not None:
                pairs.append((i, j))
                left.remove(i)
                free.remove(j)
    if not pairs:
        return 0.0
    pairs.sort()
    chunks = 1 + sum(b != (a[0] + 1, a[1] + 1) for a, b in pairwise(pairs))
    precision, recall = len(pairs) / len(said), len(pairs) / len(right)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return mean * (1 - 0.5 * (chunks / len(pairs)) ** 3)


@pytest.mark.parametrize(("said", "right"), PAIRS)
def test_meteor_against_its_twin(said, right):
    expected = [slow_meteor(*pair) for pair in zip(said, right, strict=True)]
    np.testing.assert_allclose(nlg.meteor(said, right), expected, atol=1e-12)


def test_meteor_counts_stems_and_no_synonyms():
    assert nlg.meteor([["nodules"]], [["nodule"]])[0] == pytest.approx(0.5)
    assert nlg.meteor([["heart"]], [["cardiac"]])[0] == 0


def slow_cider(said, right, d):
    """Equations 1 to 3 of arXiv 1411.5726 for one reference an image; for D, equation 4 on counts instead of frequencies."""

    def count(text, gram):
        n = len(gram)
        return sum(tuple(text[i : i + n]) == gram for i in range(len(text) - n + 1))

    values = []
    for candidate, reference in zip(said, right, strict=True):
        total = 0.0
        for n in range(1, 5):
            grams = sorted(
                {tuple(text[i : i + n]) for text in (candidate, reference) for i in range(len(text) - n + 1)}
            )

            def vector(text, grams=grams, n=n):
                frequency = 1 if d else max(1, len(text) - n + 1)
                found = []
                for gram in grams:
                    df = sum(count(other, gram) > 0 for other in right)
                    found.append(count(text, gram) / frequency * math.log(len(right) / max(1, df)))
                return np.array(found)

            one, other = vector(candidate), vector(reference)
            norms = np.linalg.norm(one) * np.linalg.norm(other) if len(grams) else 0
            if norms > 0:
                dot = float((np.minimum(one, other) if d else one) @ other) / norms
                total += dot / 4 * (10 * math.exp(-((len(candidate) - len(reference)) ** 2) / 72) if d else 1)
        values.append(total)
    return values


@pytest.mark.parametrize(("said", "right"), PAIRS)
@pytest.mark.parametrize("d", [False, True])
def test_cider_against_the_papers_equations(said, right, d):
    np.testing.assert_allclose(nlg.cider(said, right, d=d), slow_cider(said, right, d), atol=1e-9)


def test_a_perfect_text_has_the_highest_values_and_an_empty_one_zero():
    right = [
        "No pleural effusion is seen today",
        "The heart is enlarged and large",
        "Left lower lobe nodule is present",
    ]
    best, none = nlg.scores(right, right), nlg.scores(["", ".", "-"], right)
    for name, value in best.items():
        highest = 10 if name == "cider/d" else 1
        assert value[0] == pytest.approx(highest, abs=0.003 if "meteor" in name else 1e-9), (
            name
        )  # one chunk costs a little
        assert none[name][0] == 0, name
    assert set(nlg.FACTS) == {"words"} | {name.partition("/")[0] for name in best}


def test_values_do_not_depend_on_the_order_of_samples_and_weights_repeat_them():
    said, right = ([" ".join(text) for text in part] for part in PAIRS[0])
    order = np.random.default_rng(3).permutation(len(said))
    one, other = nlg.scores(said, right), nlg.scores([said[i] for i in order], [right[i] for i in order])
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], atol=1e-12, err_msg=name)
    twice = nlg.scores(said, right, np.full((1, len(said)), 2))
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
    said, real = (rng.choice(values, (50, 14), p=chance) for _ in range(2))
    real[:, 3], real[:, 7] = 0, np.nan  # absent from the references; Lung Lesion is claimed all the same
    said[:, 5] = np.nan  # never found
    weights = np.stack([np.ones(50, int), *rng.integers(0, 3, (4, 50))])
    found, facts = clinical(said, real, weights, uncertain)
    assert facts["absent"] == ["Lung Lesion", "Atelectasis"]
    kept = [i for i, name in enumerate(FINDINGS) if name not in facts["absent"]]
    one, other = (np.isin(x, (1, -1) if uncertain else (1,)) for x in (real, said))
    for average in ("micro", "macro", None):
        columns = kept if average != "micro" else list(range(14))
        expected = precision_recall_fscore_support(one[:, columns], other[:, columns], average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            if average:
                assert found[f"{name}/{average}"].value == pytest.approx(value, abs=1e-9)
            else:
                for column, single in zip(columns, value, strict=True):
                    assert found[f"{name}/{FINDINGS[column]}"].value == pytest.approx(single, abs=1e-9)
    assert not any("Lung Lesion" in name for name in found)
    assert found["f1/micro"].low <= found["f1/micro"].high


def test_recall_is_not_defined_where_no_reference_has_the_finding():
    real = np.zeros((10, 14), np.float32)
    real[0, 1] = 1
    said = real.copy()
    said[1, 1] = 1  # a false alarm
    weights = np.ones((3, 10), int)
    weights[1, 0] = 0  # a resample without the only one
    found, _ = clinical(said, real, weights)
    recall, precision = (found[f"{name}/Cardiomegaly"] for name in ("recall", "precision"))
    assert (recall.value, recall.low, recall.high) == (1, 1, 1)
    assert (precision.value, precision.low) == (0.5, pytest.approx(0.0125))


def test_texts_of_two_processes(gloo2):
    parts = [["Größe 1.5 cm", "", "a\nb"], ["x" * 300]]
    assert gloo2(generating.task_texts, parts) == [[*parts[0], *parts[1]]] * 2
    assert gloo2(generating.task_texts, [[], ["é"]]) == [["é"]] * 2
