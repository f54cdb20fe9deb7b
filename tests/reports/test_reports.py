from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest

from diptych.errors import DataError
from diptych.reports.text import mirror, sentence_spans, text_hash


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ___ . ", []),
        ("No effusion", ["No effusion"]),
        ("No effusion. Heart is normal.", ["No effusion.", "Heart is normal."]),
        ("no effusion. heart is normal", ["no effusion.", "heart is normal"]),
        ("A nodule of 1.5 cm. Stable.", ["A nodule of 1.5 cm.", "Stable."]),
        (
            "Seen by Dr. Smith, approx. 3 cm vs. prior, e.g. a scar.",
            ["Seen by Dr. Smith, approx. 3 cm vs. prior, e.g. a scar."],
        ),
        ("Rib no. 5 is broken. Is it new? Yes!", ["Rib no. 5 is broken.", "Is it new?", "Yes!"]),
        (
            "Lines, tubes etc. are stable. Lines etc. No change.",
            ["Lines, tubes etc. are stable.", "Lines etc.", "No change."],
        ),
        ("IMPRESSION: 1. Effusion. 2. Nodule.", ["IMPRESSION: 1. Effusion.", "2. Nodule."]),
        ("1. Small effusion\n2. No\npneumothorax", ["1. Small effusion", "2. No\npneumothorax"]),
        ("The line ends at T\n12. No more.", ["The line ends at T\n12.", "No more."]),
        ("Fracture of rib 7. Old.", ["Fracture of rib 7.", "Old."]),
        (
            "FINDINGS:\n\nThe heart\nis large.\n \nIMPRESSION: big",
            ["FINDINGS:", "The heart\nis large.", "IMPRESSION: big"],
        ),
        ("No effusion.No nodule.", ["No effusion.", "No nodule."]),
        ('It is "normal." (So was it.) Done...', ['It is "normal."', "(So was it.)", "Done..."]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_sentence_spans_are_in_order_and_hold_every_letter():
    text = "FINDINGS: 1. PICC at 2.5 cm.\n\nNo change vs. prior.  Dr. A. agrees?\nYes.\n"
    spans = sentence_spans(text)
    assert all(a < b for a, b in spans)
    assert all(first[1] <= second[0] for first, second in pairwise(spans))
    inside = {i for a, b in spans for i in range(a, b)}
    assert all(i in inside for i, c in enumerate(text) if c.isalnum())


def test_hash_folds_space_and_case_and_is_the_same_in_every_process():
    text = "No Pleural\n  effusion. "
    assert text_hash(text) == text_hash("no pleural effusion.")
    assert text_hash(text) != text_hash("no pleural effusions.")
    assert -(2**63) <= text_hash(text) < 2**63
    code = f"from diptych.reports.text import text_hash; print(text_hash({text!r}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == text_hash(text)


MIRRORED = [
    ("Left effusion, right normal.", "Right effusion, left normal."),
    (
        "LEFT-SIDED leftward Right-sided rightmost left-to-right",
        "RIGHT-SIDED rightward Left-sided leftmost right-to-left",
    ),
    ("LUL, RLL and Lt. base; rt hilum", "RUL, LLL and Rt. base; lt hilum"),
    (
        "Levoscoliosis; dextrocardia; dextro-convex; dextroposition",
        "Dextroscoliosis; levocardia; levo-convex; levoposition",
    ),
    (
        "Bilateral bright upright cleft; levofloxacin and dextrose",
        "Bilateral bright upright cleft; levofloxacin and dextrose",
    ),
    ("R/O pneumonia, B/L, 2 L, at L1, RT-PCR", "R/O pneumonia, B/L, 2 L, at L1, RT-PCR"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "twin"), MIRRORED)
def test_mirror(text, twin):
    assert mirror(text) == twin
    assert mirror(twin) == text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Opacity in the L lung", "L"),
        ("Clear (R) base", "R"),
        ("RML collapse", "RML"),
        ("Right middle lobe collapse", "Right middle lobe"),
        ("in the lingula", "lingula"),
        ("If left untreated", "left untreated"),
        ("situs solitus", "situs solitus"),
        ("leftlung", "leftlung"),
        ("LeFt lung", "LeFt"),
        ("s/p RT", "RT"),
    ],
)
def test_mirror_refuses_and_names_the_word(text, word):
    with pytest.raises(DataError, match=f"'{word}'".replace("(", r"\(")):
        mirror(text)
