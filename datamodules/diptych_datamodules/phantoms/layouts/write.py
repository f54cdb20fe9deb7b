"""``diptych phantoms``: phantoms written to disk as the public data sets are laid out."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from diptych.checks import check_choice, check_number
from diptych.errors import DataError
from diptych_datamodules.phantoms.findings import FINDINGS, check_mix
from diptych_datamodules.phantoms.layouts.boxed import (
    write_chestx_det10,
    write_covidx,
    write_object_cxr,
    write_tbx11k,
)
from diptych_datamodules.phantoms.layouts.by_json import write_ms_cxr, write_rexgradient
from diptych_datamodules.phantoms.layouts.cohort import (
    BOX_COLUMNS,
    Options,
    box_rows,
    sample_cohort,
    truth_row,
    write_csv,
)
from diptych_datamodules.phantoms.layouts.dicom import rle_encode, write_rsna, write_siim
from diptych_datamodules.phantoms.layouts.padchest import write_padchest
from diptych_datamodules.phantoms.layouts.png import write_nih, write_openi
from diptych_datamodules.phantoms.layouts.reports import write_chexpert, write_mimic_cxr
from diptych_datamodules.phantoms.layouts.vindr_cxr import write_vindr_cxr
from diptych_datamodules.phantoms.plan import check_size, render

__all__ = ["LAYOUTS", "main", "rle_encode", "write_layout", "write_png"]

_STAMP = ".diptych-phantoms.json"


def write_png(n: int, out: Path, options: Options, progress: Callable[[int], None]) -> None:
    """Write ``n`` studies as ``images/*.png`` with ``table.csv`` and ``boxes.csv``.

    ``table.csv`` has image, text, findings, impression, patient, split and a column of 1 or 0 for each finding.
    """
    (out / "images").mkdir()
    table: list[list[object]] = []
    boxes: list[list[object]] = []
    for i, study in enumerate(sample_cohort(n, options)):
        name, report = f"images/{i:06d}.png", study.plan.report
        radiograph = render(study.plan, options.size)
        Image.fromarray(radiograph.image).save(out / name)
        row = [name, report.text, report.findings, report.impression, f"p{study.patient:05d}", study.split]
        table.append([*row, *truth_row(study.plan)])
        boxes += box_rows(name, radiograph)
        progress(i + 1)
    columns = ("image", "text", "findings", "impression", "patient", "split", *FINDINGS)
    write_csv(out / "table.csv", columns, table)
    write_csv(out / "boxes.csv", BOX_COLUMNS, boxes)


Writer = Callable[[int, Path, Options, Callable[[int], None]], None]
LAYOUTS: Mapping[str, Writer] = {
    "png": write_png,
    "mimic_cxr": write_mimic_cxr,
    "chexpert": write_chexpert,
    "rsna": write_rsna,
    "siim": write_siim,
    "nih": write_nih,
    "openi": write_openi,
    "chestx_det10": write_chestx_det10,
    "object_cxr": write_object_cxr,
    "covidx": write_covidx,
    "tbx11k": write_tbx11k,
    "vindr_cxr": write_vindr_cxr,
    "padchest": write_padchest,
    "ms_cxr": write_ms_cxr,
    "rexgradient": write_rexgradient,
}
"""The layouts by name."""


def write_layout(
    layout: str,
    n: int,
    out: Path | str,
    *,
    seed: int = 0,
    size: int = 512,
    mix: Mapping[str, float] | None = None,
    normal: float = 0.3,
    max_findings: int = 3,
    filler: float = 0.3,
    uncertain: float = 0.3,
    held_out: float = 0.2,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Write ``n`` phantoms in a layout. The same arguments give the same files.

    Args:
        layout: one of :data:`LAYOUTS`.
        n: number of studies (``png``, ``mimic_cxr``, ``chexpert``, ``openi``, ``padchest``, ``ms_cxr``,
            ``rexgradient``) or images (the others).
        out: a new or empty folder. Or one that this function wrote before, whose content is then replaced.
        seed: another seed gives another collection.
        size: pixels a side that phantoms are drawn at. DICOM files are 1024x1024 in any case.
        mix: relative frequency of each finding. The layout's own, if not given.
        normal: share of patients without any finding.
        max_findings: most findings in one patient.
        filler: share of filler sentences in the reports.
        uncertain: probability that a mild or small finding is stated with doubt.
        held_out: share of patients, 0 to 0.9, that the layout's own split keeps from training. Validation and test share
            them. Layouts without a split of their own do not use it.
        progress: called with the number of studies written so far.

    Returns:
        The folder.

    Raises:
        ConfigError: an unknown layout, or a number out of range.
        DataError: the folder holds something else or cannot be written.
    """
    check_choice("phantoms: layout", layout, LAYOUTS)
    check_number("phantoms: n", n, least=2, whole=True)
    check_size(size)
    check_number("phantoms: held_out", held_out, least=0, most=0.9)
    options = Options(seed, size, mix, normal, max_findings, filler, uncertain, held_out)
    check_mix(mix)
    options.plan(0)  # every other option is checked before anything is written
    out = Path(out)
    try:
        _claim(out, {"layout": layout, "n": n, "seed": seed, "size": size})
        LAYOUTS[layout](n, out, options, progress)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}); choose another folder with --out"
        ) from None
    return out


def _claim(out: Path, settings: Mapping[str, object]) -> None:
    """Claim a folder: leave a stamp in it, and remove what an earlier run of this command left there."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose another folder with --out")
    stamp = out / _STAMP
    if out.is_dir() and any(out.iterdir()):
        if not stamp.is_file():
            raise DataError(
                f"{out}: the folder is not empty and was not written by 'diptych phantoms'; choose another with --out"
            )
        for name in _CONTENTS:
            old = out / name
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps(settings, indent=1) + "\n")


_CONTENTS = (
    "images", "table.csv", "boxes.csv", "phantom_boxes.csv", "files", "mimic-cxr-reports.zip",
    "mimic-cxr-2.0.0-metadata.csv.gz",
    "mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-2.0.0-chexpert.csv.gz", "mimic-cxr-2.0.0-negbio.csv",
    "mimic-cxr-2.1.0-test-set-labeled.csv", "CheXpert-v1.0-small", "CheXpert", "groundtruth.csv",
    "df_chexpert_plus_240401.csv", "stage_2_train_labels.csv",
    "stage_2_detailed_class_info.csv", "stage_2_train_images", "train-rle.csv", "dicom-images-train",
    "Data_Entry_2017_v2020.csv", "BBox_List_2017.csv", "train_val_list.txt", "test_list.txt", "chexnet", "images_001",
    "images_002", "ecgen-radiology", "NLMCXR_png", "kaggle",
    "train.json", "test.json", "train_data", "test_data", "train", "dev",
    "train.csv", "dev.csv", "val", "test", "train.txt", "val.txt", "test.txt", "train_COVIDx_CXR-3A.txt",
    "test_COVIDx_CXR-3A.txt", "imgs", "lists", "annotations",
    "MS_CXR_Local_Alignment_v1.1.0.json", "metadata", "deid_png",
    "0", "54", "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz",
)  # fmt: skip
"""All that any layout writes into its folder. Nothing else is ever removed from one."""


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    return name.strip(), float(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``diptych phantoms``. ``argv`` is what follows that word on the command line.

    Raises:
        ConfigError, DataError: as :func:`write_layout`.
    """
    parser = argparse.ArgumentParser(
        prog="diptych phantoms",
        description="Write procedural chest radiographs with reports in a public data set's layout.",
    )
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default="png", help="which layout (default: %(default)s)")
    parser.add_argument("--n", type=int, default=200, help="studies or images to write (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder, or one written by this command")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other phantoms (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="pixels a side to draw at (default: %(default)s)")
    parser.add_argument("--normal", type=float, default=0.3, help="share of healthy patients (default: %(default)s)")
    parser.add_argument("--max-findings", type=int, default=3, help="most findings in a patient (default: %(default)s)")
    parser.add_argument(
        "--filler", type=float, default=0.3, help="share of filler sentences, 0 to 0.8 (default: %(default)s)"
    )
    parser.add_argument(
        "--uncertain", type=float, default=0.3, help="share of mild findings stated with doubt (default: %(default)s)"
    )
    parser.add_argument(
        "--held-out", type=float, default=0.2, help="share of patients for validation and test (default: %(default)s)"
    )
    parser.add_argument(
        "--mix",
        type=_weight,
        nargs="+",
        metavar="FINDING=WEIGHT",
        help="relative frequency of findings; others do not occur",
    )
    args = parser.parse_args(argv)
    step = max(1, args.n // 10)

    def count(done: int) -> None:
        if done % step == 0 or done == args.n:
            print(f"{done} of {args.n}", file=sys.stderr, flush=True)

    out = write_layout(
        args.layout,
        args.n,
        args.out,
        seed=args.seed,
        size=args.size,
        mix=dict(args.mix) if args.mix else None,
        normal=args.normal,
        max_findings=args.max_findings,
        filler=args.filler,
        uncertain=args.uncertain,
        held_out=args.held_out,
        progress=count,
    )
    print(f"{args.layout}: {args.n} phantoms in {out}")
