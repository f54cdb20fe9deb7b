"""Heads, prompts and passes for the tests of the evaluators, here and in the pool's processes."""

import numpy as np
import torch
import yaml
from torch.nn.functional import normalize

from diptych import distributed
from diptych.evaluation import scoring
from diptych.evaluation.class_retrieval import ClassRetrieval
from diptych.evaluation.retrieval import Retrieval
from diptych.evaluation.retrieved_reports import RetrievedReports
from diptych.evaluation.rows import Rows
from diptych.evaluation.zero_shot import ZeroShot
from diptych.testing.samples import FINDINGS, WIDTH, Cosine, Words, embed_text, evaluate, vectors
from diptych.testing.samples import Samples as Radiographs
from diptych.types import Batch

__all__ = ["FINDINGS", "WIDTH", "Cosine", "Radiographs", "Words", "embed_text", "evaluate", "vectors"]


class Constant(Cosine):
    value = 0.0

    def similarity(self, image, text):
        return torch.full((len(image.pooled), len(text.pooled)), self.value)


class Copies(Cosine):
    """A collapsed model: every embedding is the same, and only rounding tells scores apart."""

    def similarity(self, image, text):
        v = normalize(torch.arange(1.0, 65), dim=0)
        scores = v.expand(len(image.pooled), -1) @ v.expand(len(text.pooled), -1).T
        return scores + 1e-7 * torch.rand(scores.shape)


PROMPTS = {
    "name": "test",
    "version": 1,
    "source": "this test",
    "findings": {
        "Edema": {"positive": ["edema here", "edema is seen"], "negative": ["no edema"]},
        "Mass": {"positive": ["mass"], "negative": ["no mass", "not a mass"]},
        "Nodule": {"positive": ["nodule"], "negative": ["no nodule"]},
        "Hernia": {"positive": ["hernia"], "negative": ["no hernia"]},
        "Abnormal": {"positive": ["abnormal"], "negative": ["normal"], "any_of": ["Edema", "Mass", "Nodule"]},
        "Fracture": {"positive": ["fracture"], "negative": ["no fracture"]},
    },
}

CLASSES = {
    "name": "which",
    "version": 1,
    "source": "this test",
    "classes": {
        "Edema": {"prompts": ["edema here", "edema is seen"]},
        "Mass": {"combine": [["", "small"], ["mass"], ["", "on the left"]]},
        "Nodule": {"prompts": ["nodule"]},
    },
}


def write_prompts(folder, content=PROMPTS, **changed):
    path = folder / "prompts.yaml"
    path.write_text(yaml.safe_dump(content | changed, sort_keys=False))
    return str(path)


def task_evaluate(path, classes, shares, sizes):
    """This process's share of the rows, and with it the metrics, count and protocol of each evaluator and head."""
    data, rank = Radiographs(), distributed.rank()
    answers = []
    for head in (Cosine(), Words(), Constant()):
        evaluators = [
            Retrieval(resamples=20),
            Retrieval(resamples=20, keep_bytes=0),
            Retrieval(resamples=20, duplicates="kept"),
            ZeroShot(path, resamples=20),
            ZeroShot(path, threshold="best_f1", resamples=20),
            ZeroShot(classes, resamples=20),
            ZeroShot(path, resamples=20, protocol="chexzero"),
            ZeroShot(path, resamples=20, protocol="gloria", drawn_prompts=1),
            ZeroShot(classes, resamples=20, protocol="convirt"),
        ]
        for evaluator in evaluators:
            found = evaluate(evaluator, data, head, rows=shares[rank], size=sizes[rank], fill=rank)
            answers.append((found, evaluator.count, evaluator.protocol))
    return answers


def task_class_retrieval(classes, shares, sizes):
    """As :func:`task_evaluate`, of class-level retrieval."""
    data, rank = Radiographs(), distributed.rank()
    answers = []
    for head in (Cosine(), Words(), Constant()):
        for texts in ("reports", "prompts"):
            evaluator = ClassRetrieval(classes, texts, resamples=20)
            found = evaluate(evaluator, data, head, rows=shares[rank], size=sizes[rank], fill=rank)
            answers.append((found, evaluator.count, evaluator.protocol))
    return answers


def task_count_twice(shares):
    """Evaluate a share of the rows that holds a row of another process's."""
    evaluate(Retrieval(resamples=0), Radiographs(), Cosine(), rows=shares[distributed.rank()])


def task_ranks(blocks):
    """Ranks from this process's hand-made blocks of scores."""
    column, scores = (torch.tensor(x) for x in blocks[distributed.rank()])
    block = [(column, scores.float())]
    return [ranks.tolist() for ranks in scoring.ranks(block, block, scores.shape[1], torch.device("cpu"))]


def numbered(indices):
    """A batch of samples that have nothing but an index and a patient, two samples each; its last row only fills up."""
    index = torch.tensor([*indices, 0])
    valid = torch.arange(len(index)) < len(indices)
    image = torch.zeros(len(index), 1, 1, 1, dtype=torch.uint8)
    return Batch(image, None, index, valid, None, index // 2, None, [str(i) for i in index.tolist()])


def task_rows(shares):
    """What :class:`Rows` gives of this process's share, collected three samples at a time."""
    share = list(shares[distributed.rank()])
    rows, squares = Rows(torch.device("cpu"), 1, 2), [torch.zeros(0, dtype=torch.int64)]
    for start in range(0, len(share), 3):
        some = share[start : start + 3]
        batch = numbered(some)
        boxes = [torch.tensor([[float(i), float(k)] for k in range(i % 3)]).view(-1, 2) for i in batch.index.tolist()]
        rows.add(batch, batch.index[:, None], boxes)
        squares.append(torch.tensor(some) ** 2)
    patients, (values, all_boxes) = rows.gather()
    texts = rows.samples.texts([f"report {i} \N{GREEK SMALL LETTER ALPHA}" * (i % 4) for i in share])
    in_order = rows.samples.values(torch.cat(squares))
    return patients.tolist(), values.tolist(), all_boxes.tolist(), texts, in_order.tolist()


def training_texts():
    """Reports of training: some equal, one empty, and some of the words of ``Radiographs``."""
    rng = np.random.default_rng(5)
    texts = [" ".join(["word"] * (r % 6 + 1)) + f" {r}" for r in rng.integers(0, 50, 30)]
    return [*texts, texts[3].upper(), " ", "Small pleural effusion.", "word one two three"]


def task_retrieved(shares):
    """This process's share of the rows, and the figures of the nearest training reports."""
    data, rank = Radiographs(n=41), distributed.rank()
    evaluator = RetrievedReports(resamples=20, texts=7)
    evaluator.training_reports = lambda: [(f"p{i}", text) for i, text in enumerate(training_texts())]
    found = evaluate(evaluator, data, Cosine(), rows=shares[rank], size=8 - rank, fill=rank)
    return found, evaluator.count, evaluator.protocol, evaluator.predictions.columns["hypothesis"]
