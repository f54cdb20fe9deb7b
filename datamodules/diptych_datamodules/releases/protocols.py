"""The named splits of the public data sets, as data: rule, sizes, and the hash of the result.

A protocol is computed from the release's table, before any file is looked for. So it does not depend on which images are
there. On a whole release the hash must be the one below. On a part of a release the shares stay, and the name says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diptych.checks import check_choice
from diptych.data.dataset import Split
from diptych.data.splits import assign, fill_splits, shuffle_split, split_hash
from diptych.errors import DataError
from diptych.plugins import nearest

__all__ = ["PROTOCOLS", "Assignment", "Protocol", "choose", "split"]

Rule = Literal["shuffled", "filled", "last", "shares", "given"]


@dataclass(frozen=True)
class Protocol:
    """How a data set is split.

    The rules:

    - ``shuffled``: scikit-learn's ``train_test_split`` twice with seed 0, over the ids in alphabetical order. Where ``rows``
      is set, over the table's rows in their order.
    - ``filled``: whole patients, by hash, into splits of exact size.
    - ``last``: the last ids in alphabetical order validate.
    - ``shares``: each patient by hash.
    - ``given``: the release, or the user, lists the splits.
    """

    rule: Rule
    sizes: Mapping[Split, int]
    """Images of each split. Where ``rows`` is set, its rows. For ``shares``, parts of their sum."""
    about: str
    hash: str = ""
    """:func:`diptych.data.splits.split_hash` on the whole release. Of a subset it is the test's alone. It is
    empty where no public copy of the table is at hand."""
    rows: bool = False
    """Whether rows of the table are split, of which an image may have several."""
    leaky: bool = False
    """Whether an image, or a patient, can be in several splits."""


PROTOCOLS: dict[str, Protocol] = {
    "rsna/gloria-cls": Protocol(
        "shuffled", {"train": 18_678, "val": 4_003, "test": 4_003},
        "GLoRIA (ICCV 2021) and most classification since: 70/15/15 by image.", "0477c8044e48fa12",
    ),
    "rsna/mgca-det": Protocol(
        "shuffled", {"train": 16_010, "val": 5_337, "test": 5_337},
        "MGCA (NeurIPS 2022), detection: 60/20/20 by image.", "045658eff352ef83",
    ),
    "rsna/mrm": Protocol(
        "last", {"train": 25_184, "val": 1_500},
        "MRM (ICLR 2023): the last 1,500 ids validate; its test set are the 3,000 images of stage_2_test_images, whose labels "
        "are not in the Kaggle release: give its test_list.txt as data.test_list.", "cda1c677fe442d09",
    ),
    "siim/image-level": Protocol(
        "filled", {"train": 8_433, "val": 1_807, "test": 1_807},
        "70/15/15 by image.", "b8a93540032fe872",
    ),
    "siim/gloria-rows-leaky": Protocol(
        "shuffled", {"train": 9_067, "val": 1_943, "test": 1_944},
        "GLoRIA (ICCV 2021): 70/15/15 by ROW of the table. An image has as many rows as masks, so 624 images can stand in "
        "several splits: for comparison with published figures alone.", "b7ef50eeeaddfaff", rows=True, leaky=True,
    ),
    "nih/official": Protocol(
        "given", {"test": 25_596},
        "The release's test_list.txt; a tenth of train_val_list.txt's patients, by hash, validates.",
    ),
    "nih/chexnet": Protocol(
        "given", {"train": 78_468, "val": 11_219, "test": 22_433},
        "The lists of the arnoweng/CheXNet repository, 70/10/20 by patient: ANOTHER test set than the release's.",
    ),
    "chestx_det10/official": Protocol(
        "given", {"test": 542},
        "The release's test.json. Training images of its patients are left out, and a tenth of the other patients of "
        "train.json, by hash, validates.",
    ),
    "chestx_det10/official-leaky": Protocol(
        "given", {"test": 542},
        "As published: train.json as it is, with images of the test's patients. For comparison with published figures alone.",
        leaky=True,
    ),
    "object_cxr/dev": Protocol(
        "given", {"test": 1_000},
        "The 1,000 images of dev.csv are the test, since the challenge's own is not public; a tenth of train.csv, by hash, "
        "validates.",
    ),
    "object_cxr/official": Protocol(
        "given", {"train": 8_000, "val": 1_000, "test": 1_000},
        "The challenge's train.csv, dev.csv and test.csv.",
    ),
    "covidx/cxr-4": Protocol(
        "given", {"test": 8_482}, "COVIDx CXR-4: train.txt, val.txt and test.txt of its Kaggle release.",
    ),
    "covidx/cxr-3": Protocol(
        "given", {"test": 400},
        "COVIDx CXR-3, positive or negative (3B): 400 images test, and a tenth of the training patients, by hash, validates.",
    ),
    "covidx/cxr-3a": Protocol(
        "given", {"test": 400},
        "COVIDx CXR-3, three classes (3A): 400 images test, and a tenth of the training patients, by hash, validates.",
    ),
    "covidx/cxr-2": Protocol(
        "given", {"test": 400},
        "COVIDx CXR-2 (V9B): 400 images test, and a tenth of the training patients, by hash, validates.",
    ),
    "tbx11k/val": Protocol(
        "given", {"test": 1_800},
        "TBX11K_val.txt is the test, since the labels of the test are not public; a tenth of TBX11K_train.txt, by hash, "
        "validates.",
    ),
    "vindr_cxr/official": Protocol(
        "given", {"test": 3_000},
        "The release's test of 3,000 images, read by five; a tenth of the 15,000 training images, by hash, validates.",
    ),
    "vindr_cxr/kaggle": Protocol(
        "filled", {"train": 10_500, "val": 1_500, "test": 3_000},
        "The 15,000 labelled images of the VinBigData challenge (2021), 70/10/20 by hash: its own test has no labels.",
        "dc90d4effe0c5776",
    ),
    "padchest/physician": Protocol(
        "given", {"test": 39_053},
        "The 39,053 images that physicians labelled are the test, as CheXzero (Tiu et al., 2022) has it; other images of their "
        "patients are in no split, and a tenth of the other patients, by hash, validates.",
    ),
    "padchest/hash": Protocol(
        "shares", {"train": 70, "val": 10, "test": 20}, "70/10/20 by patient, by hash.",
    ),
    "ms_cxr/all": Protocol(
        "given", {"test": 1_162}, "Every pair of an image and a phrase is in the test, as BioViL (ECCV 2022) has it.",
    ),
    "ms_cxr/official": Protocol("given", {}, "The split of release 1.1.0."),
    "rexgradient/official": Protocol(
        "given", {"train": 238_968, "val": 17_007, "test": 17_029},
        "The release's train, valid and public test, by patient.",
    ),
    "openi/hash": Protocol(
        "shares", {"train": 70, "val": 10, "test": 20}, "70/10/20 by report, by hash.",
    ),
    "openi/r2gen": Protocol(
        "given", {"train": 4_138, "val": 592, "test": 1_180},
        "R2Gen (EMNLP 2020): 2,069/296/590 reports with findings and two images each, as its annotation.json lists them: "
        "give it as data.annotation.",
    ),
    "chexpert/linear": Protocol(
        "filled", {"train": 186_027, "val": 5_000},
        "Frontal images of train.csv, 5,000 of them from patients of their own for validation; the 202 frontal images of "
        "valid.csv are the test.", "e4428a235e2b22a2",
    ),
    "chexpert/official": Protocol(
        "given", {"train": 223_414, "val": 234},
        "train.csv trains and valid.csv, read by radiologists, validates; nothing is left for a test.",
    ),
    "chexpert/test500": Protocol(
        "given", {"train": 223_414, "val": 234, "test": 668},
        "As chexpert/official, and the test set of 500 studies (518 frontal images) that radiologists read, published with "
        "CheXlocalize (2022).",
    ),
    "chexpert/5x200": Protocol(
        "given", {"val": 5_000, "test": 1_000},
        "GLoRIA (ICCV 2021): 200 frontal images each that show one of five findings alone, drawn from train.csv by hash; their "
        "patients are in no other split, and 5,000 images of others validate.", "4e4925ac92bd47c5",
    ),
    "chexpert/8x200": Protocol(
        "given", {"val": 5_000, "test": 1_600},
        "The same with ConVIRT's (MLHC 2022) eight classes, without its radiologist's choice among them.", "228e3ea30da4f897",
    ),
    "mimic_cxr/official": Protocol(
        "given", {"train": 368_960, "val": 2_991, "test": 5_159},
        "The split table of MIMIC-CXR-JPG; 'validate' validates.",
    ),
    "mimic_cxr/5x200": Protocol(
        "given", {"val": 2_991, "test": 1_000},
        "200 frontal images each, of as many studies, that show one of five findings alone by CheXpert's labeller, drawn by "
        "hash from the official training images; their patients leave training, and the official test is not used.",
    ),
}  # fmt: skip
"""All protocols by name."""


def choose(name: str, data_set: str) -> Protocol:
    """The protocol of a data set.

    Raises:
        ConfigError: it has none of that name. The message lists them, the most similar first.
    """
    own = [known for known in PROTOCOLS if known.startswith(f"{data_set}/")]
    check_choice("data.split", name, nearest(name, own))
    return PROTOCOLS[name]


@dataclass(frozen=True)
class Assignment:
    """The splits that a protocol gives to a table."""

    splits: list[str]
    """The split of each image (or row), in the table's order."""
    name: str
    """The protocol's name, and the size of the table if it is a part of the release."""


def split(name: str, ids: Sequence[str], patients: Sequence[str], given: Sequence[str] = ()) -> Assignment:
    """Assign every image (or row) of a table to a split.

    Args:
        name: of the protocol, in :data:`PROTOCOLS`.
        ids: of each image. For a protocol on rows, of each row.
        patients: of each image. The id, if no patient is known.
        given: the split of each image, for a protocol of the rule ``given``.

    Raises:
        DataError: the table has the release's size, and another content. Or a list of the user has another size.
    """
    protocol = PROTOCOLS[name]
    number, total = len(ids), sum(protocol.sizes.values())
    if protocol.rule == "given":
        for which, size in protocol.sizes.items():
            if given.count(which) > size:
                raise DataError(
                    f"{name}: {given.count(which)} images in '{which}', not {size}; use the lists of that name"
                )
        whole = all(given.count(which) == size for which, size in protocol.sizes.items())
        return Assignment(list(given), name if whole else f"{name} (a part: {len(given):,} images)")
    if protocol.rule == "shares":
        shares = {str(which): size / total for which, size in protocol.sizes.items()}
        return Assignment([assign(patient, shares, 0) for patient in patients], name)
    sizes = {which: size if number == total else round(size * number / total) for which, size in protocol.sizes.items()}
    val, test = sizes.get("val", 0), sizes.get("test", 0)
    if protocol.rule == "filled":
        splits = fill_splits(
            patients, {str(which): sizes[which] for which in sizes if which != "train"}, "train", seed=0
        )
    else:
        order = list(range(number)) if protocol.rows else sorted(range(number), key=lambda i: ids[i])
        ranked = (
            ["train"] * (number - val) + ["val"] * val if protocol.rule == "last" else shuffle_split(number, val, test)
        )
        splits = [""] * number
        for place, index in enumerate(order):
            splits[index] = ranked[place]
    if number != total:
        return Assignment(splits, f"{name} (a part: {number:,} of {total:,})")
    computed = split_hash({w: [key for key, s in zip(ids, splits, strict=True) if s == w] for w in sizes})
    if protocol.hash and computed != protocol.hash:
        raise DataError(
            f"{name}: the table has the release's {total:,} entries, but others (split {computed}, not {protocol.hash})"
        )
    return Assignment(splits, name)
