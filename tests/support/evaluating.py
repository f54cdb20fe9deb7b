"""A made-up data set, heads and passes for the tests of the evaluators, here and in the pool's processes."""

import hashlib

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
from diptych.head import AlignmentHead
from diptych.types import Batch, TextBatch, TokenEmbedding

WIDTH = 8
FINDINGS = ("Edema", "Mass", "Nodule", "Hernia")


class Cosine(AlignmentHead):
    """A head of pooled vectors, ten times their cosine."""

    def embed_image(self, image):
        raise NotImplementedError

    embed_text = embed_image

    def losses(self, here, world):
        raise NotImplementedError

    def similarity(self, image, text):
        return 10 * image.pooled @ text.pooled.T


class Words(Cosine):
    """A head of tokens: mean over real words of the best region."""

    def similarity(self, image, text):
        best = torch.einsum("ire,twe->itwr", image.tokens, text.tokens).amax(dim=3)
        mask = text.mask.float()
        return (best * mask).sum(dim=2) / mask.sum(dim=1)


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


def vectors(text, n):
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return normalize(torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=-1)


def embed_text(texts):
    """Token embeddings padded to the longest of these texts, with garbage in the padding."""
    words = [vectors(text, len(text.split()) + 1) for text in texts]
    tokens = torch.full((len(texts), max(map(len, words)), WIDTH), 99.0)
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    for i, vector in enumerate(words):
        tokens[i, : len(vector)], mask[i, : len(vector)] = vector, True
    return TokenEmbedding(torch.stack([vector[0] for vector in words]), tokens, mask)


class Radiographs:
    """A data set of ``n`` samples with duplicate reports, several images a patient, and gaps in the labels."""

    def __init__(self, n=83, reports=50, seed=0):
        rng = np.random.default_rng(seed)
        self.n = n
        self.texts = [" ".join(["word"] * (r % 6 + 1)) + f" {r}" for r in rng.integers(0, reports, n)]
        self.group = torch.from_numpy(rng.integers(0, n // 2, n)) * 11
        noise = torch.randn(n, 5, WIDTH, generator=torch.Generator().manual_seed(seed))
        self.regions = normalize(embed_text(self.texts).pooled[:, None] + 0.6 * noise, dim=-1)
        labels = (rng.random((n, len(FINDINGS))) < (0.5, 0.3, 0.1, 0.0)).astype(np.float32)
        labels[rng.random(labels.shape) < 0.1] = -1
        labels[rng.random(labels.shape) < 0.1] = np.nan
        labels[:, 3] = np.where(labels[:, 3] == 1, 0, labels[:, 3])
        self.labels = torch.from_numpy(labels)

    def hashes(self, rows):
        return torch.tensor([int(hashlib.sha256(self.texts[i].encode()).hexdigest()[:12], 16) for i in rows])

    def image(self, rows):
        return TokenEmbedding(self.regions[rows, 0], self.regions[rows], torch.ones(len(rows), 5, dtype=torch.bool))

    def batches(self, rows, size, fill=0, texts=True, labels=True):
        """Batches of the rows; ``fill`` rows that do not count are put in front of the last one's."""
        parts = [list(rows[i : i + size]) for i in range(0, len(rows), size)]
        for part in parts:
            extra = [0] * fill if part is parts[-1] else []
            rows = extra + part
            empty = torch.zeros(len(rows), 1, dtype=torch.int64)
            text = TextBatch(
                empty,
                empty > 0,
                empty,
                empty > 0,
                empty,
                self.hashes(rows),
                empty[:, 0] > 0,
                [self.texts[i] for i in rows],
            )
            valid = torch.tensor([False] * len(extra) + [True] * len(part))
            image = torch.zeros(len(rows), 1, 2, 2, dtype=torch.uint8)
            batch = Batch(
                image=image,
                text=text if texts else None,
                index=torch.tensor(rows),
                valid=valid,
                labels=self.labels[rows] if labels else None,
                group=self.group[rows],
                boxes=None,
                ids=[str(i) for i in rows],
            )
            yield batch, self.image(rows), embed_text(batch.text.raw) if texts else None


def evaluate(evaluator, data, head, rows=None, size=16, findings=FINDINGS, **options):
    evaluator.start(embed_text, findings)
    for batch, image, text in data.batches(range(data.n) if rows is None else rows, size, **options):
        evaluator.update(batch, image, text, head)
    return evaluator.compute(head)


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
