"""ReXGradient-160K: its three files, sections that are missing in several ways, and views in many words."""

import json
import shutil

import pytest

from diptych.data.loading import Loading
from diptych.errors import DataError
from diptych_datamodules.phantoms.layouts.write import write_layout
from diptych_datamodules.rexgradient import Rexgradient

LOADING = Loading(image_size=32, batch_size=4, workers=0)
SPLITS = {"train": "train", "valid": "val", "test": "test"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_layout("rexgradient", 36, tmp_path_factory.mktemp("rexgradient") / "root", seed=2, size=48)


@pytest.fixture(scope="module")
def studies(root):
    return {
        split: json.loads((root / "metadata" / f"{name}_metadata_view_position.json").read_text())
        for name, split in SPLITS.items()
    }


def read(root, **options):
    module = Rexgradient(str(root), loading=LOADING, **options)
    module.setup("fit")
    return module


@pytest.mark.parametrize(
    ("views", "shown"),
    [
        ("frontal", {"PA", "AP", "POSTERO_ANTERIOR", "ANTERO_POSTERIOR"}),
        ("lateral", {"LATERAL", "LL", "LAT"}),
        ("all", None),
    ],
)
@pytest.mark.parametrize("section", ["both", "findings", "impression"])
def test_images_and_texts_are_those_of_the_files(root, studies, views, shown, section):
    module = read(root, views=views, section=section)
    keys = {"both": ["Findings", "Impression"], "findings": ["Findings"], "impression": ["Impression"]}[section]
    left_out = others = read_images = 0
    for split, listed in studies.items():
        expected = {}
        for study in listed.values():
            texts = [study[key] for key in keys if study[key] not in (None, "None", "")]
            for path, view in zip(study["ImagePath"], study["ImageViewPosition"], strict=True):
                if shown is not None and view not in shown:
                    others += 1
                elif texts:
                    key = path.removeprefix("../deid_png/").removesuffix(".png")
                    expected[key] = ("\n\n".join(texts), study["PatientID"])
                else:
                    left_out += 1
        records = module.datasets[split].records if split in module.datasets else []
        assert {record.id: (record.text, record.patient) for record in records} == expected
        read_images += len(expected)
    assert read_images > 5
    assert module.dropped.counts().get("empty report", 0) == left_out
    assert (others > 0) == (views != "all")
    assert left_out > 0 or views == "lateral"
    assert module.counted == 36
    assert f"views {views}, section {section}" in module.protocol


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("PatientID"), "'PatientID' is 'None'"),
        (lambda s: s["ImageViewPosition"].append("PA"), "images and . views"),
        (lambda s: s["ImagePath"].__setitem__(0, "../other/a.png"), r"is no path below ../deid_png"),
        (lambda s: s["ImagePath"].__setitem__(0, "../deid_png/../../a.png"), r"is no path below ../deid_png"),
        (lambda s: [s.pop("Findings"), s.pop("Impression")], "neither of Findings and Impression"),
    ],
)
def test_bad_files_are_named(root, tmp_path, change, message):
    copy = shutil.copytree(root, tmp_path / "copy")
    path = copy / "metadata" / "valid_metadata_view_position.json"
    content = json.loads(path.read_text())
    change(next(iter(content.values())))
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        read(copy)
    assert "study 'pGRDN" in str(caught.value)


def test_an_image_in_two_studies_is_refused(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    path = copy / "metadata" / "test_metadata_view_position.json"
    content = json.loads(path.read_text())
    content["again"] = next(iter(content.values()))
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="stands there twice"):
        read(copy)
