"""Procedural chest radiographs with matching reports, and all their ground truth. Pure numpy and OpenCV, no torch.

A seed and an index decide a phantom. :func:`plan_phantom` fixes the patient, the findings and the report, in a fraction of
a millisecond. :func:`render` draws the plan at any size. :mod:`.layouts` writes collections of phantoms as the public data
sets are laid out on disk.

The modules sample at random, and they draw pictures. Each word has this one meaning here.
"""

from __future__ import annotations

from diptych_datamodules.phantoms.findings import DEVICES, FINDINGS, KINDS, Finding, FindingSpec
from diptych_datamodules.phantoms.plan import (
    PhantomPlan,
    PhantomRadiograph,
    make_phantom,
    plan_phantom,
    render,
    with_findings,
)
from diptych_datamodules.phantoms.report import ROLES, Link, PhantomReport

__all__ = [
    "DEVICES",
    "FINDINGS",
    "KINDS",
    "ROLES",
    "Finding",
    "FindingSpec",
    "Link",
    "PhantomPlan",
    "PhantomRadiograph",
    "PhantomReport",
    "make_phantom",
    "plan_phantom",
    "render",
    "with_findings",
]
