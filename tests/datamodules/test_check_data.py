"""``diptych check-data`` on each release's miniature: whole, with something missing, with something broken."""

import csv
import gzip
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from inprocess import diptych
from mini import ROOT, write_pairs
from PIL import Image

from diptych.errors import ConfigError
from diptych_datamodules.phantoms.layouts.write import write_layout
from diptych_datamodules.releases.check import main, spread
from diptych_datamodules.releases.contact_sheet import TILE
from diptych_datamodules.releases.facts import RELEASES

N = 18
# A table, a folder of images, and a pattern of images of each.
SHAPE = {
    "rsna": ("stage_2_train_labels.csv", "stage_2_train_images", "*.dcm"),
    "siim": ("train-rle.csv", "dicom-images-train", "*/*/*.dcm"),
    "nih": ("Data_Entry_2017_v2020.csv", "images_001", "images/*.png"),
    "chestx_det10": ("train.json", "train_data", "*.png"),
    "object_cxr": ("train.csv", "train", "*.jpg"),
    "covidx": ("train.txt", "train", "*.*"),
    "tbx11k": ("lists/TBX11K_train.txt", "imgs", "*/*.png"),
    "openi": ("ecgen-radiology", "NLMCXR_png", "*.png"),
    "ms_cxr": ("MS_CXR_Local_Alignment_v1.1.0.json", "files", "*/*/*/*.jpg"),
    "rexgradient": ("metadata/train_metadata_view_position.json", "deid_png", "*/*/*/*/*/*/*/*.png"),
    "padchest": ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", "0", "*.png"),
    "vindr_cxr": ("annotations/annotations_train.csv", "train", "*.dicom"),
    "chexpert": ("CheXpert-v1.0-small/train.csv", "CheXpert-v1.0-small/train", "*/*/*.jpg"),
    "mimic_cxr": ("mimic-cxr-2.0.0-split.csv.gz", "files", "*/*/*/*.jpg"),
}
MORE = {"nih": "images_002", "padchest": "54"}  # a second folder of images


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Each miniature with the image that it lacks on purpose."""
    folder, made = tmp_path_factory.mktemp("check"), {}

    def get(name):
        if name not in made:
            root = write_layout(name, N, folder / name, seed=2, size=48)
            _, report = check(name, root, folder / "first")
            for key in report["images"]["first"]:
                _, images, pattern = SHAPE[name]
                source = next((root / images).glob(pattern))
                place = _place(name, root, key, source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)
            made[name] = root
        return made[name]

    return get


def _place(name, root, key, source):
    if name == "mimic_cxr":
        rows = csv.DictReader(gzip.decompress((root / SHAPE[name][0]).read_bytes()).decode().splitlines())
        study, patient = next((r["study_id"], r["subject_id"]) for r in rows if r["dicom_id"] == key)
        return root / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}" / f"{key}.jpg"
    folder = root / SHAPE[name][1]
    return folder / key if name == "chexpert" else folder / f"{key}{source.suffix}"


def check(name, root, out, *options):
    """The command's own outcome, and the report that it wrote."""
    done = diptych("check-data", name, "--root", str(root), "--out", str(out), "--workers", "0", *options)
    path = out / "report.json"
    return done, json.loads(path.read_text()) if path.is_file() else None


@pytest.mark.parametrize("name", sorted(SHAPE))
def test_a_complete_set(name, roots, tmp_path):
    done, report = check(name, roots(name), tmp_path, "--part", "--all-images")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("complete, and every image can be read\n")
    assert report["faults"] == []
    read, images = report["read"], report["images"]
    assert read["images"] == read["of"] == sum(rows["images"] for rows in report["splits"].values())
    assert images["missing"] == 0
    assert images["listed"] == images["there"]
    assert report["table"]["total"] == RELEASES[name].total
    for rows in report["splits"].values():
        assert 0 < rows["patients"] <= rows["images"]
        for counted in rows.get("labels", {}).values():
            assert sum(counted.values()) == rows["images"]
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width == 6 * (TILE + 8) + 8
    assert np.asarray(sheet).std() > 20
    part, _ = check(name, roots(name), tmp_path)
    assert part.returncode == 1
    counted, total = (f"{report['table'][key]:,}" for key in ("counted", "total"))
    unit = report["table"]["unit"]
    assert f"NOT COMPLETE: the tables hold {counted} {unit}, the release {total} (--part" in part.stdout
    assert part.stdout.count("NOT COMPLETE") == 1


@pytest.mark.parametrize("name", sorted(SHAPE))
@pytest.mark.parametrize("which", ["table", "folder"])
def test_what_is_missing_is_named_with_where_it_is_obtained(name, which, roots, tmp_path):
    copy = shutil.copytree(roots(name), tmp_path / "copy", ignore=shutil.ignore_patterns("kaggle"))
    victims = [copy / SHAPE[name][which == "folder"]]
    if name in MORE and which == "folder":
        victims.append(copy / MORE[name])
    for victim in victims:
        victim.unlink() if victim.is_file() else shutil.rmtree(victim)
    done, report = check(name, copy, tmp_path / "out", "--part")
    assert done.returncode == 1
    (missing_line,) = [line for line in done.stdout.splitlines() if line.startswith("  MISSING")]
    assert victims[0].name.removesuffix(".gz").removesuffix("_001") in missing_line
    assert "get " in missing_line
    missing = [row for row in report["files"] if row["needed"] and not row["found"]]
    assert len(missing) == 1
    assert missing[0]["obtain"] in missing_line
    assert not (tmp_path / "out" / "sheet.png").exists()


@pytest.mark.parametrize("name", sorted(SHAPE))
def test_a_lost_and_a_truncated_image_are_named(name, roots, tmp_path):
    copy = shutil.copytree(roots(name), tmp_path / "copy", ignore=shutil.ignore_patterns("kaggle"))
    lost, broken, *_ = sorted((copy / SHAPE[name][1]).glob(SHAPE[name][2]))
    lost.unlink()
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    done, report = check(name, copy, tmp_path / "out", "--part", "--all-images")
    assert done.returncode == 1
    images = report["images"]
    assert images["missing"] == 1
    line = (
        f"images: {images['listed'] - 1:,} of {images['listed']:,} are there, 1 missing: {report['images']['first'][0]}"
    )
    assert line in done.stdout
    assert lost.stem in images["first"][0] or name == "chexpert"
    ((rule, rows),) = report["read"]["unusable"].items()
    assert rule in {"truncated image", "corrupt image", "no image"}
    assert str(broken) in rows[0]["message"]
    assert f"1 {rule}" in done.stdout
    assert str(broken) in done.stdout
    listed = list(csv.DictReader((tmp_path / "out" / "dropped.csv").open()))
    assert [row["id"] for row in listed if row["rule"] == "missing image"] == images["first"]
    assert len(report["faults"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rsna", "--root", "ROOT/none"], "ROOT/none: no such folder; give that of the release as --root"),
        (["rsna"], "check-data rsna: --root is missing"),
        (["rsan", "--root", "ROOT"], "unknown datamodule 'rsan'; known datamodules, nearest first: rsna"),
        (["phantom", "--root", "ROOT"], "'phantom' is neither a release nor a table; known: chestx_det10, chexpert"),
        (["rsna", "--root", "ROOT", "--sample", "0"], "--sample is 0; give a whole number of 1 or more"),
        (["rsna", "--root", "ROOT", "--split", "rsna/gloria"], "data.split is 'rsna/gloria'"),
        (["rsna", "--root", "ROOT", "--sections", "x"], "--help` lists the options"),
        (["--root", "ROOT"], "'--root' stands where the data set's name belongs"),
    ],
)
def test_what_cannot_be_checked_at_all(arguments, message, roots, tmp_path):
    root = str(roots("rsna"))
    done = diptych("check-data", *[word.replace("ROOT", root) for word in arguments])
    assert done.returncode == 2
    assert message.replace("ROOT", root) in done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_a_damaged_table_ends_it_in_one_line(roots, tmp_path):
    copy = shutil.copytree(roots("rsna"), tmp_path / "copy")
    table = copy / "stage_2_train_labels.csv"
    table.write_text(table.read_text().replace(",0\n", ",7\n", 1))
    done, report = check("rsna", copy, tmp_path / "out")
    assert done.returncode == 2
    assert report is None
    assert "has Target '7'" in done.stderr


def test_options_of_the_set_are_those_of_fit(roots, tmp_path):
    options = ["--split", "chexpert/linear", "--sample", "4"]
    done, report = check("chexpert", roots("chexpert"), tmp_path, "--part", *options)
    assert done.returncode == 0, done.stdout
    assert report["protocol"].startswith("chexpert/linear")
    assert "frontal" in report["protocol"]
    assert report["read"]["images"] == 4
    assert "complete; the images read can be used" in done.stdout
    done, report = check("nih", roots("nih"), tmp_path, "--part", "--split", "nih/chexnet")
    assert done.returncode == 1
    assert sum("MISSING" in line and "arnoweng/CheXNet" in line for line in done.stdout.splitlines()) == 2
    options = ["--split", "nih/chexnet", f"--data.lists={roots('nih') / 'chexnet'}"]
    done, report = check("nih", roots("nih"), tmp_path, "--part", *options)
    assert done.returncode == 0, done.stdout
    done, report = check("mimic_cxr", roots("mimic_cxr"), tmp_path, "--part", "--section", "none", "--labels", "negbio")
    assert done.returncode == 0, done.stdout
    assert "views all" in report["protocol"]
    assert report["left_out"] == {"duplicate row": 1}


@pytest.mark.parametrize(("name", "split"), [("chexpert", "chexpert/test500"), ("mimic_cxr", "mimic_cxr/5x200")])
def test_other_splits_than_the_whole(name, split, roots, tmp_path):
    done, report = check(name, roots(name), tmp_path / "out", "--part", "--split", split)
    assert done.returncode == 0, done.stdout
    assert report["protocol"].startswith(split)
    assert report["splits"]["test"]["images"] > 1
    if name == "chexpert":
        copy = shutil.copytree(roots(name), tmp_path / "copy")
        shutil.rmtree(copy / "CheXpert")
        (copy / "groundtruth.csv").unlink()
        done, report = check(name, copy, tmp_path / "out", "--part", "--split", split)
        assert done.returncode == 1
        missing = [line for line in done.stdout.splitlines() if "MISSING" in line]
        assert len(missing) == 2
        assert all("CheXlocalize" in line for line in missing)


def test_a_table_beside_the_counted_one_may_be_a_part(roots, tmp_path, monkeypatch):
    held = check("chexpert", roots("chexpert"), tmp_path, "--part")[1]["table"]["counted"]
    monkeypatch.setitem(RELEASES, "chexpert", replace(RELEASES["chexpert"], total=held))
    done, report = check("chexpert", roots("chexpert"), tmp_path)
    assert done.returncode == 1
    assert report["faults"] == [
        f"another table is not the release's: {report['protocol']} (--part where that is meant)"
    ]
    assert f"tables: {held} of {held} rows of train.csv, the whole release" in done.stdout


def test_boxes_and_masks_are_drawn(roots, tmp_path):
    for name, colour in (("rsna", (64, 200, 255)), ("siim", (255, 96, 64))):
        check(name, roots(name), tmp_path, "--all-images")
        sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
        assert (sheet == colour).all(axis=2).sum() > 100


def test_a_table_of_ones_own(tmp_path):
    table = write_pairs(tmp_path)
    columns = ["--columns.patient", "patient", "--columns.split", "split", "--columns.labels", "[Effusion, Nodule]"]
    out = tmp_path / "out"
    command = ["check-data", "tabular", "--table", str(table), "--out", str(out), "--workers", "0", *columns]
    done = diptych(*command)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert {split: rows["images"] for split, rows in report["splits"].items()} == {"train": 16, "val": 4, "test": 4}
    rows = list(csv.DictReader(table.open()))
    present = sum(row["Nodule"] == "1" for row in rows)
    assert sum(rows["labels"]["Nodule"]["present"] for rows in report["splits"].values()) == present
    (tmp_path / "003.png").unlink()
    done = diptych(*command)
    assert done.returncode == 1
    assert "23 of 24 are there, 1 missing: 003.png" in done.stdout


def test_a_sample_is_spread_and_seeded():
    sizes = {"train": 700, "val": 100, "test": 200}
    chosen = spread(sizes, 100, seed=0)
    assert [len(chosen[split]) for split in sizes] == [70, 10, 20]
    assert all(len(set(picked)) == len(picked) and max(picked) < sizes[split] for split, picked in chosen.items())
    assert all(np.diff(picked).max() < 20 for picked in chosen.values())
    assert chosen == spread(sizes, 100, seed=0) != spread(sizes, 100, seed=1)
    assert spread(sizes, 5000, 0) == {split: list(range(size)) for split, size in sizes.items()}


def test_help_and_the_list_of_sets():
    listed = diptych("check-data")
    assert listed.returncode == 0
    for name, facts in RELEASES.items():
        assert f"{name:12} {facts.total:,} {facts.unit}" in listed.stdout
    helped = diptych("check-data", "nih", "--help")
    assert helped.returncode == 0
    assert "--all-images" in helped.stdout
    assert "--data.exclude" in helped.stdout
    assert "--all-images" in diptych("check-data", "--help").stdout


def test_what_is_missing_is_found_without_torch(roots, tmp_path):
    copy = shutil.copytree(roots("rsna"), tmp_path / "copy")
    (copy / "stage_2_train_labels.csv").unlink()
    program = (
        "import sys; from diptych_datamodules.releases.check import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as done: print(done.code, 'torch' in sys.modules, 'cv2' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "rsna", "--root", str(copy), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.splitlines()[-1] == "1 False False"


def test_every_release_has_its_facts():
    from diptych.plugins import DATAMODULES, plugins
    from diptych_datamodules.releases.base import Release

    releases = {p.name for p in plugins(DATAMODULES) if isinstance(p.load(), type) and issubclass(p.load(), Release)}
    assert releases == set(RELEASES) == set(SHAPE)


@pytest.mark.parametrize("name", sorted(SHAPE))
def test_every_release_has_a_page_with_one_command_and_a_recipe(name):
    page = (ROOT / "docs/datasets" / f"{name}.md").read_text()
    assert re.findall(r"```sh\n(.*?)```", page, flags=re.S) == [f"diptych check-data {name} --root DIR\n"]
    for word in ("**Get it**", "**Gives**", "**Traps.**", f"{RELEASES[name].total:,}"):
        assert word in page
    named = {ROOT / path for path in re.findall(r"experiments/\w+/\w+\.yaml", page)}
    own = {p for p in (ROOT / "experiments").glob("*/*.yaml") if f"class_path: {name}\n" in p.read_text()}
    assert named == own
    assert len(own) > 0


def test_a_packed_folder_is_sent_to_where_it_is_verified(tmp_path):
    (tmp_path / "packed.json").write_text("{}")
    remedy = r"packed; check what it was made of, or run `diptych prepare siim .*--verify`"
    with pytest.raises(ConfigError, match=remedy):
        main(["siim", "--root", str(tmp_path)])
