"""R2Gen's rules for texts, against a twin written from its public code in another form, and by hand."""

import math
import pickle
import random
import re

import pytest
from mini import installed

from diptych.errors import ConfigError
from diptych.reports.r2gen import R2GEN, R2GenText, clean

GONE = ".,?;*!%^&_+()[]{}:<=>@\"'/\\"


def twin(report, mimic):
    """The cleaned text, sentence by sentence, by regular expressions and a filter of letters."""
    if mimic:
        report = report.replace("\n", " ")
        for mark in "_ ":
            report = re.sub(re.escape(mark) + "+", lambda m: m[0][: math.ceil(len(m[0]) / 128)], report)
    report = re.sub(r"\.+", lambda m: "." * math.ceil(len(m[0]) / (256 if mimic else 8)), report)
    report = re.sub(r"1\. ", "", report)
    for digit in "2345":
        report = re.sub(rf"\. {digit}\. ", ". ", report)
    for digit in "2345":
        report = re.sub(rf" {digit}\. ", ". ", report)
    sentences = re.split(r"\. ", report.strip().lower())
    kept = ["".join(letter for letter in sentence if letter not in GONE).strip() for sentence in sentences]
    return " . ".join(kept) + " ."


def odd_texts(n):
    rng = random.Random(0)
    parts = [
        *"ab1234567890XT-.,:;_()[]<>=@'\"/\\?!%\n ",
        ". ",
        ". ",
        "  ",
        "...",
        "____",
        " 2. ",
        ". 3. ",
        "1. ",
        "XXXX",
        "No ",
    ]
    return ["".join(rng.choices(parts, k=rng.randrange(60))) for _ in range(n)]


@pytest.mark.parametrize("mimic", [False, True])
def test_the_cleaning_is_that_of_a_twin(mimic):
    for text in odd_texts(3000):
        assert clean(text, mimic) == twin(text, mimic).split(), repr(text)


@pytest.mark.real
def test_the_cleaning_of_real_findings_is_that_of_a_twin_and_the_studies_are_as_many_as_published():
    from diptych_datamodules.openi import read_reports

    reports = read_reports(installed("torchxrayvision", "data/NLMCXR_reports.tgz"))
    chosen = [report.findings for report in reports if report.findings and len(report.images) > 1]
    assert len(chosen) == 2069 + 296 + 590
    for text in chosen:
        assert clean(text) == twin(text, False).split()


@pytest.mark.parametrize(
    ("text", "mimic", "expected"),
    [
        ("The lungs are clear. No effusion.", False, "the lungs are clear . no effusion ."),
        ("1. Old rib fracture. 2. XXXX opacity, T4-T5.", False, "old rib fracture . xxxx opacity t4-t5 ."),
        ("Clear lungs.. Heart (size) normal: 1.5 cm?", False, "clear lungs . heart size normal 15 cm ."),
        ("Findings: ___ year\nold  man; SVC/RA.", True, "findings year old man svcra ."),
        ("", False, "."),
    ],
)
def test_by_hand(text, mimic, expected):
    assert " ".join(clean(text, mimic)) == expected


@pytest.mark.parametrize(("name", "cut", "least"), [("r2gen/openi", 60, 3), ("r2gen/mimic_cxr", 100, 10)])
def test_rare_words_and_the_cut_are_as_its_numbers_have_them(name, cut, least):
    """Words become numbers with 0 before and after, the list is cut, and numbers become words up to the next 0."""
    rng, mimic = random.Random(1), name.endswith("mimic_cxr")
    words = [f"w{i}" for i in range(300)]
    often = [1 / (i + 1) for i in range(300)]
    texts = [
        ". ".join(" ".join(rng.choices(words, often, k=9)) for _ in range(rng.randrange(1, 20))) + "."
        for _ in range(90)
    ]
    counts = {}
    for text in texts:
        for word in twin(text, mimic).split():
            counts[word] = counts.get(word, 0) + 1
    vocabulary = sorted([*(word for word, n in counts.items() if n >= least), "<unk>"])
    assert 20 < len(vocabulary) < 300
    number = {word: i + 1 for i, word in enumerate(vocabulary)}
    rules = R2GenText(name, [(f"p{i}", text) for i, text in enumerate(texts)])
    rules = pickle.loads(pickle.dumps(rules))
    for text in (*texts, *odd_texts(50)):
        ids = [0, *(number.get(word, number["<unk>"]) for word in twin(text, mimic).split()), 0][:cut]
        expected = []
        for i in ids[1:]:
            if i == 0:
                break
            expected.append(vocabulary[i - 1])
        assert rules.reference(text).split() == expected
        assert rules.hypothesis(text).split()[: cut - 1] == expected
        assert len(rules.hypothesis(text).split()) <= cut
    assert max(len(rules.hypothesis(text).split()) for text in texts) == cut


def test_what_is_written_is_not_changed_again():
    rules = R2GenText("r2gen/openi", [(f"p{i}", "No effusion. Clear lungs, T4-T5.") for i in range(3)])
    once = rules.reference("No new effusion. Clear lungs.")
    assert once == "no <unk> effusion . clear lungs ."
    assert rules.reference(once) == rules.hypothesis("no < unk > effusion. clear lungs.") == once


def test_words_are_counted_once_a_report_for_open_i_and_once_an_image_for_mimic():
    two = [("p", "Rare word.")] * 2 + [("q", "Rare word.")]
    assert "rare" not in R2GenText("r2gen/openi", two).known
    assert "rare" in R2GenText("r2gen/openi", [*two, ("r", "Rare.")]).known
    assert "rare" in R2GenText("r2gen/openi", [(None, text) for _, text in two]).known
    assert "rare" in R2GenText("r2gen/mimic_cxr", [("p", "Rare word.")] * 10).known


def test_other_names_are_refused():
    with pytest.raises(ConfigError, match="protocol is 'r2gen'; choose among: r2gen/openi, r2gen/mimic_cxr"):
        R2GenText("r2gen", [])
    assert set(R2GEN) == {"r2gen/openi", "r2gen/mimic_cxr"}
