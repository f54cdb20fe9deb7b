"""Written reports in the json of ReXrank (rexrank.ai, arXiv 2411.15122), a leaderboard of report generation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from diptych.errors import DataError, shown

__all__ = ["read_studies", "rexrank"]


def read_studies(path: Path) -> dict[str, dict[str, Any]]:
    """The studies of one of ReXrank's test sets, by their names, as ``ReXRank_IUXray_test.json`` has them.

    Raises:
        DataError: the file cannot be read, or is not of that form.
    """
    try:
        studies = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as json ({error}); give a test set of ReXrank") from error
    entries = studies.values() if isinstance(studies, dict) else [None]
    if not all(isinstance(entry, dict) and _paths(entry) for entry in entries):
        raise DataError(
            f"{path}: it is no test set of ReXrank, in which each study has an image_path; give a file of its folder data/"
        )
    return dict(studies)


def _paths(entry: Mapping[str, Any]) -> list[str]:
    """The images of a study, the frontal one first."""
    images = entry.get("image_path", entry.get("dicom_id", []))
    every = [entry.get("key_image_path"), *(images if isinstance(images, list) else [images])]
    return [path for path in every if isinstance(path, str) and path]


def _forms(path: str) -> list[str]:
    """A path without its suffix, then without its folders one after the other."""
    parts = PurePosixPath(path).with_suffix("").parts if path else ()
    return ["/".join(parts[start:]) for start in range(len(parts))]


def rexrank(
    studies: Mapping[str, Mapping[str, Any]], ids: Sequence[str], reports: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The studies with the reports that were written of them, as ``model_prediction``.

    A study's report is that of its ``key_image_path``, or else of the first of its images that has one. An image is known by
    the end of its path without the suffix, where that is one image's alone. Otherwise it is known by the study's name before
    a hyphen, as Open-i calls its files.

    >>> studies = {"CXR1_IM-1": {"image_path": ["CXR1_IM-1/0.png"], "split": "test"}}
    >>> rexrank(studies, ["CXR1_IM-1-1001"], ["Clear."])["CXR1_IM-1"]["model_prediction"]
    'Clear.'

    Args:
        studies: one of ReXrank's test sets.
        ids: of the ``n`` images.
        reports: the report that was written of each.

    Raises:
        DataError: a study has no report.
    """
    theirs = Counter(form for entry in studies.values() for path in set(_paths(entry)) for form in _forms(path))
    ours = Counter(form for key in ids for form in _forms(key))
    by_form = {form: n for n, key in enumerate(ids) for form in _forms(key) if ours[form] == 1}
    by_study: dict[str, int] = {}
    for n, key in enumerate(ids):
        by_study.setdefault(PurePosixPath(key).stem.rpartition("-")[0], n)
    result: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    for name, entry in studies.items():
        forms = [form for path in _paths(entry) for form in _forms(path) if theirs[form] == 1]
        found = [by_form[form] for form in (*forms, name) if form in by_form]
        found += [by_study[name]] if name in by_study else []
        if found:
            result[name] = {**entry, "model_prediction": reports[found[0]]}
        else:
            missing.append(name)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(studies)} studies of ReXrank have no written report, the first is {shown(missing[0])}; "
            "test on all its images"
        )
    return result
