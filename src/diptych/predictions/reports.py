"""Written reports and their references as predictions, for every way to obtain them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych import distributed
from diptych.errors import ConfigError
from diptych.files import replace_text
from diptych.metrics import generated_text as nlg
from diptych.metrics.radeval import Scored, radeval_scores
from diptych.predictions.base import Array, Column, Predictions, named
from diptych.predictions.reading import Tested
from diptych.predictions.rexrank import read_studies, rexrank
from diptych.reports.labeller import FINDINGS, Labeller
from diptych.reports.r2gen import R2GenText

__all__ = ["compared", "scored_once", "with_radeval", "write_rexrank"]


def scored_once(names: Sequence[str], written: Sequence[str], expected: Sequence[str]) -> Scored:
    """Metrics of radeval, computed by the first process for all. Collective."""
    here = radeval_scores(names, written, expected) if distributed.rank() == 0 else Scored()
    first: Scored = distributed.gather_objects(here)[0]
    return first


def compared(
    written: Sequence[str],
    expected: Sequence[str],
    labeller: Labeller,
    *,
    uncertain: bool,
    resamples: int,
    seed: int = 0,
    rules: R2GenText | None = None,
    radeval: Sequence[str] = (),
    likelihood: Array | None = None,
) -> tuple[Predictions, dict[str, Any], list[str]]:
    """The columns of ``n`` written reports, facts for the protocol, and lines on what was not computed. Collective.

    Args:
        written: the reports.
        expected: the reference of each.
        labeller: reads findings in both.
        uncertain: whether an uncertain finding counts as present.
        resamples: draws of the bootstrap.
        seed: of the draws.
        rules: published rules for both texts. None compares them as they are.
        radeval: names of metrics of radeval.
        likelihood: the log-likelihood ``[n]`` of each reference.
    """
    if rules is not None:
        written = [rules.hypothesis(text) for text in written]
        expected = [rules.reference(text) for text in expected]
    scored = scored_once(radeval, written, expected)
    columns: dict[str, Column] = {
        "reference": expected,
        "hypothesis": written,
        **({} if likelihood is None else {"log_likelihood": likelihood}),
        **named("reference_label", FINDINGS, labeller(expected)),
        **named("hypothesis_label", FINDINGS, labeller(written)),
        **{f"radeval/{name}": column for name, column in scored.columns.items()},
    }
    settings: dict[str, Any] = {"uncertain": uncertain, "resamples": resamples, "seed": seed}
    facts: dict[str, Any] = {"text": nlg.FACTS, "labeller": labeller.origin}
    if rules is not None:
        settings["words"] = "blanks"
        facts |= {"text": {**nlg.FACTS, "words": nlg.BLANKS}, "rules": rules.facts}
    if scored.columns:
        facts["radeval"] = scored.version
    return Predictions("reports", columns, settings), facts, scored.lines


def _texts(kept: Predictions, column: str) -> list[str]:
    return [str(text) for text in kept.columns[column]]  # type: ignore[union-attr]  # a column of texts


def _of_reports(tested: Tested, option: str) -> dict[str, Predictions]:
    """The predictions that are reports.

    Raises:
        ConfigError: none are.
    """
    found = {name: kept for name, kept in tested.predictions.items() if kept.kind == "reports"}
    if not found:
        raise ConfigError(f"{option} is for written reports, and the file has none; leave it out")
    return found


def with_radeval(tested: Tested, names: Sequence[str], *, download: bool) -> tuple[Tested, str, list[str]]:
    """Predictions with columns of radeval's metrics, radeval's version, and lines on what was not computed.

    Args:
        tested: predictions, with reports among them.
        names: of :data:`diptych.metrics.radeval.RADEVAL`.
        download: whether radeval may fetch models.

    Raises:
        ConfigError: no reports are among them, or a name is not known.
    """
    changed, version, lines = dict(tested.predictions), "", []
    for name, kept in _of_reports(tested, "--radeval").items():
        scored = radeval_scores(names, _texts(kept, "hypothesis"), _texts(kept, "reference"), download=download)
        columns: dict[str, Column] = {
            **kept.columns,
            **{f"radeval/{key}": column for key, column in scored.columns.items()},
        }
        changed[name] = replace(kept, columns=columns)
        version = scored.version if scored.columns else version
        lines += [f"{name}: {line}" for line in scored.lines]
    return replace(tested, predictions=changed), version, lines


def write_rexrank(tested: Tested, studies: Path, out: Path) -> int:
    """Write the reports as ReXrank reads them, and return the number of studies.

    Args:
        tested: predictions, with one column of written reports.
        studies: one of ReXrank's test sets.
        out: the file to write.

    Raises:
        ConfigError: not one column holds written reports.
        DataError: the test set cannot be read, or a study has no report.
    """
    found = _of_reports(tested, "--rexrank")
    if len(found) > 1:
        raise ConfigError(f"--rexrank: the file has reports of {', '.join(found)}; leave the columns of one in it")
    (kept,) = found.values()
    entries: Mapping[str, Any] = rexrank(read_studies(studies), tested.ids, _texts(kept, "hypothesis"))
    replace_text(out, json.dumps(entries, indent=4, ensure_ascii=False) + "\n")
    return len(entries)
