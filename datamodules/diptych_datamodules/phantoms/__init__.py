"""Procedural chest radiographs with matching reports, and all their ground truth. Pure numpy and OpenCV, no torch.

A phantom is decided by a seed and an index: :func:`plan_phantom` fixes the patient, the findings and the report within
a fraction of a millisecond, :func:`render` draws the plan at any size. :mod:`.layouts` writes collections of phantoms as
the public data sets are laid out on disk.
"""

from __future__ import annotations

from diptych_datamodules.phantoms.findings import DEVICES, FINDINGS, KINDS, Finding, FindingSpec
from diptych_datamodules.phantoms.plan import Phantom, PhantomPlan, make_phantom, plan_phantom, render, with_findings
from diptych_datamodules.phantoms.report import ROLES, Link, Report

__all__ = [
    "DEVICES",
    "FINDINGS",
    "KINDS",
    "ROLES",
    "Finding",
    "FindingSpec",
    "Link",
    "Phantom",
    "PhantomPlan",
    "Report",
    "make_phantom",
    "plan_phantom",
    "render",
    "with_findings",
]
