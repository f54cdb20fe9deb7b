"""The reports of phantoms: links, labels, doubt, denials and filler."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from diptych_datamodules.phantoms import FINDINGS, ROLES, plan_phantom
from diptych_datamodules.phantoms import wording as w

PLANS = [plan_phantom(i, seed=11) for i in range(400)]
DOUBTFUL = [plan_phantom(i, seed=12, uncertain=0.5, filler=0.5) for i in range(400)]


@pytest.mark.parametrize("plan", PLANS[:60] + DOUBTFUL[:60], ids=lambda p: f"{p.seed}-{p.index}")
def test_links_point_at_the_words_they_claim(plan):
    report = plan.report
    text = report.text
    starts = [link.start for link in report.links]
    assert starts == sorted(starts)
    for link in report.links:
        span = text[link.start : link.end]
        assert link.role in ROLES
        assert span == span.strip()
        assert span
        spec = plan.specs[link.finding] if link.finding is not None else None
        if link.role == "filler":
            assert span in w.FILLER_SENTENCES
            assert (link.start, link.end) in report.sentences
        elif link.role == "negated":
            assert spec is None
            assert link.name not in {s.name for s in plan.specs}
        else:
            assert spec is not None
            assert link.name == spec.name
        if link.role == "side":
            assert span.lower() == spec.side
        if link.role == "severity":
            assert span.lower() in w.SEVERITIES[spec.severity]
        if link.role == "zone" and spec.zone in ("upper", "mid", "lower"):
            assert span.lower() in (*w.ZONES[spec.zone], "base", "apex", "apical")


def test_sentences_cover_the_text():
    for plan in PLANS[:100]:
        text, spans = plan.report.text, plan.report.sentences
        parts = [text[a:b] for a, b in spans]
        assert " ".join(parts) == text.replace("\n", " ")
        for part in parts:
            assert part[0].isupper()
            assert part.endswith(".")
            assert "  " not in part
            assert "{" not in part
            assert "<" not in part
            assert not re.search(r"\b[Aa] [aeiou]", part), part


def test_every_finding_is_named_with_side_zone_and_severity_in_both_sections():
    for plan in PLANS:
        cut = len(plan.report.findings)
        for k, spec in enumerate(plan.specs):
            mine = [link for link in plan.report.links if link.finding == k]
            for section in ([x for x in mine if x.start < cut], [x for x in mine if x.start > cut]):
                roles = {x.role for x in section}
                assert "finding" in roles
                assert ("side" in roles) == (spec.side is not None)
                assert ("severity" in roles) == (spec.severity is not None)
            if spec.name in ("Lung Opacity", "Consolidation", "Nodule", "Atelectasis"):
                assert any(x.role == "zone" for x in mine)


WORDS = {
    "Consolidation": "consolidat",
    "Nodule": "nodul",
    "Pleural Effusion": "effusion",
    "Pneumothorax": "pneumothora",
    "Cardiomegaly": "cardiomegaly",
    "Atelectasis": "atelecta",
}


def test_a_finding_is_asserted_only_where_it_is():
    """An independent reading: outside denials, the word for a finding stands only in reports of patients who have it."""
    for plan in PLANS + DOUBTFUL:
        present = {s.name for s in plan.specs}
        for a, b in plan.report.sentences:
            sentence = plan.report.text[a:b].lower()
            denies = re.match(r"(no |neither |there is no |normal|the lungs are clear|both lungs)", sentence)
            for name, word in WORDS.items():
                if word in sentence:
                    assert (name not in present) if denies else (name in present), (name, sentence)


def test_labels_agree_with_the_findings():
    seen = Counter()
    for plan in PLANS:
        truth = dict(zip(FINDINGS, plan.truth, strict=True))
        assert {n for n, v in truth.items() if v} == {s.name for s in plan.specs}
        for name, value in plan.labels.items():
            assert value == truth[name]
            seen[value] += 1
        assert {n for n, v in truth.items() if v} <= set(plan.labels)
    assert seen[1.0] > 100
    assert seen[0.0] > 100


def test_doubt_gives_uncertain_labels_and_a_hedge():
    uncertain = 0
    for plan in DOUBTFUL:
        hedged = {link.name for link in plan.report.links if link.role == "hedge"}
        for name, value in plan.labels.items():
            if value == -1:
                uncertain += 1
                assert name in hedged
                assert any(s.name == name and s.grade == 0 for s in plan.specs)
    assert uncertain > 20
    assert all(value != -1 for plan in PLANS for value in plan.labels.values())


def test_denials_are_true_and_common():
    denied = Counter(link.name for plan in PLANS for link in plan.report.links if link.role == "negated")
    assert set(denied) == set(FINDINGS)
    for denial in (*w.DENIALS, *w.SUMMARY_DENIALS):
        for _, words in denial.words:
            assert words in denial.text


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.8])
def test_filler_makes_the_asked_share_of_the_sentences(share):
    filler = sentences = 0
    for i in range(200):
        report = plan_phantom(i, seed=21, filler=share).report
        filler += sum(link.role == "filler" for link in report.links)
        sentences += len(report.sentences)
    assert filler / sentences == pytest.approx(share, abs=0.02)


def test_filler_changes_neither_findings_nor_labels():
    for i in range(50):
        bare, full = plan_phantom(i, filler=0.0), plan_phantom(i, filler=0.8)
        assert bare.specs == full.specs
        assert bare.labels == full.labels
        assert len(full.report.text) > len(bare.report.text)


def test_comparisons_only_with_a_prior_study():
    with_prior = [p for p in PLANS if any(k.role == "comparison" for k in p.report.links)]
    assert len(with_prior) > 20
    assert all(p.comparison for p in with_prior)


def test_reports_vary():
    texts = {p.report.text for p in PLANS}
    assert len(texts) > 0.95 * len(PLANS)
    normals = [plan_phantom(i, normal=1.0, filler=0.0).report.text for i in range(2000)]
    assert len(set(normals)) < len(normals)  # equal reports occur, as they do in life


def test_filler_speaks_of_no_finding_and_no_side():
    for sentence in w.FILLER_SENTENCES:
        assert not re.search(
            r"\b(left|right|" + "|".join(WORDS.values()) + r"|opacit|clear|heart|cardiac)\b", sentence.lower()
        )
