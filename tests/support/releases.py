"""Options that make each release give all it holds."""

from __future__ import annotations

RELEASES = {
    "rsna": {"masks": True},
    "siim": {},
    "nih": {"boxes": True},
    "covidx": {},
    "tbx11k": {},
    "vindr_cxr": {},
    "padchest": {},
    "ms_cxr": {"split": "ms_cxr/official"},
    "rexgradient": {},
    "openi": {},
    "chestx_det10": {},
    "object_cxr": {"masks": True},
    "chexpert": {"reports": "df_chexpert_plus_240401.csv"},
    "mimic_cxr": {},
}
"""Options that make each release give all it holds."""
