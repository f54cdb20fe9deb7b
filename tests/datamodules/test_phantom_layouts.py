"""Layouts of phantoms: MIMIC-CXR, CheXpert, a plain folder, and the command that writes them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.errors import ConfigError, DataError
from diptych_datamodules.phantoms import FINDINGS
from diptych_datamodules.phantoms.layouts.cohort import Options, sample_cohort
from diptych_datamodules.phantoms.layouts.reports import CHEXPERT_LABELS, MIMIC_LABELS
from diptych_datamodules.phantoms.layouts.write import LAYOUTS, main, write_layout

N = 60
ALPHABETICAL = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,No Finding,"
    "Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
RELEASED = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,"
    "Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


def table(path: Path) -> tuple[str, list[dict[str, str]]]:
    """The header line as it stands in the file, and the rows."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return text.split("\n", 1)[0], list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    made: dict[str, Path] = {}

    def get(layout: str) -> Path:
        if layout not in made:
            made[layout] = write_layout(layout, N, tmp_path_factory.mktemp("layouts") / layout, seed=1, size=64)
        return made[layout]

    return get


# --- MIMIC-CXR


def test_mimic_tables_have_the_releases_columns(written):
    out = written("mimic_cxr")
    header, metadata = table(out / "mimic-cxr-2.0.0-metadata.csv.gz")
    assert header == (
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
        "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
    )
    header, splits = table(out / "mimic-cxr-2.0.0-split.csv.gz")
    assert header == "dicom_id,study_id,subject_id,split"
    assert {r["split"] for r in splits} == {"train", "validate", "test"}
    twice = [k for k, number in Counter(r["dicom_id"] for r in splits).items() if number == 2]
    assert len(twice) == 1
    assert list(dict.fromkeys(r["dicom_id"] for r in splits)) == [r["dicom_id"] for r in metadata]
    for labeller in ("chexpert.csv.gz", "negbio.csv"):  # the latter unpacked, as users do
        assert table(out / f"mimic-cxr-2.0.0-{labeller}")[0] == f"subject_id,study_id,{ALPHABETICAL}"
    header, tested = table(out / "mimic-cxr-2.1.0-test-set-labeled.csv")
    assert header == f"study_id,{ALPHABETICAL}".replace("Lung Opacity", "Airspace Opacity")
    assert {r["study_id"] for r in tested} == {r["study_id"] for r in splits if r["split"] == "test"}
    assert ",".join(MIMIC_LABELS) == ALPHABETICAL


def test_mimic_files_lie_where_the_tables_say(written):
    out = written("mimic_cxr")
    rows = table(out / "mimic-cxr-2.0.0-metadata.csv.gz")[1]
    paths = set()
    for r in rows:
        subject = r["subject_id"]
        path = out / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{r['study_id']}" / f"{r['dicom_id']}.jpg"
        paths.add(path)
        if path.exists():
            with Image.open(path) as image:
                assert image.mode == "L"
                assert image.size == (int(r["Columns"]), int(r["Rows"]))
        assert re.fullmatch(r"([0-9a-f]{8}-){4}[0-9a-f]{8}", r["dicom_id"])
        assert re.fullmatch(r"1\d{7}", subject)
        assert re.fullmatch(r"5\d{7}", r["study_id"])
        assert re.fullmatch(r"2\d{7}", r["StudyDate"])
        hour, minute, second = (int(f"{float(r['StudyTime']):010.3f}"[i : i + 2]) for i in (0, 2, 4))
        assert hour < 24
        assert minute < 60
        assert second < 60
    there = set(out.glob("files/**/*.jpg"))
    assert there < paths
    assert len(there) == len(paths) - 1  # one file is missing
    assert len({r["study_id"] for r in rows}) == N
    assert any(float(r["StudyTime"]) < 100_000 for r in rows)  # needs zero padding
    views = Counter(r["ViewPosition"] for r in rows)
    assert {"PA", "AP", "LATERAL"} <= set(views)
    assert set(views) & {"LAO", "RAO", "SWIMMERS", "PA LLD", "AP AXIAL"}
    assert len(rows) > N


def test_mimic_labels_are_those_of_the_studies(written):
    out = written("mimic_cxr")
    rows = table(out / "mimic-cxr-2.0.0-chexpert.csv.gz")[1]
    keys = [(r["subject_id"], r["study_id"]) for r in rows]
    assert len(set(keys)) == len(keys) == N - N // 23
    assert keys == sorted(keys)
    values = {r[name] for r in rows for name in MIMIC_LABELS}
    assert values == {"", "1.0", "0.0", "-1.0"}
    study_of = {r["dicom_id"]: r["study_id"] for r in table(out / "mimic-cxr-2.0.0-metadata.csv.gz")[1]}
    present = defaultdict(set)
    for r in table(out / "phantom_boxes.csv")[1]:
        present[study_of[r["image"]]].add("Lung Lesion" if r["finding"] == "Nodule" else r["finding"])
    for r in rows:
        positive = {name for name in MIMIC_LABELS if r[name] == "1.0"} - {"No Finding"}
        doubted = {name for name in MIMIC_LABELS if r[name] == "-1.0"}
        assert positive | doubted == present[r["study_id"]]
        assert (r["No Finding"] == "1.0") == (present[r["study_id"]] <= {"Support Devices"})


def test_mimic_reports_are_in_the_zip(written):
    out = written("mimic_cxr")
    studies = {(r["subject_id"], r["study_id"]) for r in table(out / "mimic-cxr-2.0.0-metadata.csv.gz")[1]}
    with zipfile.ZipFile(out / "mimic-cxr-reports.zip") as archive:
        listed = {f"files/p{p[:2]}/p{p}/s{s}.txt" for p, s in studies}
        assert set(archive.namelist()) < listed
        assert len(archive.namelist()) == N - N // 37
        texts = [archive.read(name).decode() for name in sorted(archive.namelist())]
    assert all(t.startswith(" " * 33 + "FINAL REPORT\n EXAMINATION: ") for t in texts)
    assert all(line.startswith(" ") for t in texts for line in t.splitlines())
    assert all(len(line) <= 90 for t in texts for line in t.splitlines())
    both = [t for t in texts if "\n FINDINGS: \n \n " in t and "\n IMPRESSION: \n \n " in t]
    assert len(both) > N / 3
    assert any("FINDINGS:" not in t and "IMPRESSION:" in t for t in texts)
    assert any("FINDINGS:" not in t and "IMPRESSION:" not in t for t in texts)
    assert any("___" in t for t in texts)


# --- CheXpert


def test_chexpert_tables_have_the_releases_columns(written):
    out = written("chexpert")
    for split in ("train", "valid"):
        header, rows = table(out / "CheXpert-v1.0-small" / f"{split}.csv")
        assert header == f"Path,Sex,Age,Frontal/Lateral,AP/PA,{RELEASED}"
        for r in rows:
            release = "CheXpert-v1.0" if split == "valid" else "CheXpert-v1.0-small"  # whatever is on the disk
            pattern = rf"{re.escape(release)}/{split}/patient\d{{5}}/study\d+/view\d_(frontal|lateral)\.jpg"
            assert re.fullmatch(pattern, r["Path"])
            if (path := out / "CheXpert-v1.0-small" / r["Path"].partition("/")[2]).exists():
                with Image.open(path) as image:
                    assert image.mode == "L"
            assert r["Frontal/Lateral"].lower() in r["Path"]
            assert (r["AP/PA"] in ("AP", "PA")) == (r["Frontal/Lateral"] == "Frontal")
        values = {r[name] for r in rows for name in CHEXPERT_LABELS}
        assert values == ({"", "1.0", "0.0", "-1.0"} if split == "train" else {"1.0", "0.0"})
    assert ",".join(CHEXPERT_LABELS) == RELEASED


def test_chexpert_files_and_reports_match(written):
    out = written("chexpert")
    rows = [r for split in ("train", "valid") for r in table(out / "CheXpert-v1.0-small" / f"{split}.csv")[1]]
    files = {str(p.relative_to(out / "CheXpert-v1.0-small")) for p in out.glob("CheXpert-v1.0-small/**/*.jpg")}
    assert rows[0] == rows[1]  # a row twice
    listed = {r["Path"].partition("/")[2] for r in rows}
    assert (len(listed), listed - files) == (len(rows) - 1, {rows[2]["Path"].partition("/")[2]})  # and a file missing
    assert files < listed
    assert len({path.rsplit("/", 1)[0] for path in listed}) == N
    plus = table(out / "df_chexpert_plus_240401.csv")[1]
    assert {r["path_to_image"] for r in plus} == listed
    silent = {r["path_to_image"].rsplit("/", 1)[0] for r in plus if not r["section_impression"]}
    assert len(silent) == 2
    assert all(r["section_impression"] in r["report"] for r in plus)
    share = np.mean([bool(r["section_findings"]) for r in plus])
    assert 0.1 < share < 0.45
    assert all(r["deid_patient_id"] == r["path_to_image"].split("/")[-3] for r in plus)


# --- plain folder


def test_png_folder_is_a_table_that_can_be_trained_on(written):
    out = written("png")
    header, rows = table(out / "table.csv")
    assert header == ",".join(("image", "text", "findings", "impression", "patient", "split", *FINDINGS))
    assert len(rows) == N
    for r in rows:
        with Image.open(out / r["image"]) as image:
            assert (image.mode, image.size) == ("L", (64, 64))
        assert r["text"] == f"{r['findings']}\n{r['impression']}"
        assert {r[name] for name in FINDINGS} <= {"0", "1"}
    header, boxes = table(out / "boxes.csv")
    assert header == "image,finding,side,zone,severity,x0,y0,x1,y1"
    assert {(b["image"], b["finding"]) for b in boxes} == {
        (r["image"], n) for r in rows for n in FINDINGS if r[n] == "1"
    }


# --- all layouts


def patients_of_splits(layout: str, out: Path) -> dict[str, set[str]]:
    patients = defaultdict(set)
    if layout == "png":
        for r in table(out / "table.csv")[1]:
            patients[r["split"]].add(r["patient"])
    elif layout == "mimic_cxr":
        for r in table(out / "mimic-cxr-2.0.0-split.csv.gz")[1]:
            patients[r["split"]].add(r["subject_id"])
    else:
        for split in ("train", "valid"):
            patients[split] = {r["Path"].split("/")[2] for r in table(out / "CheXpert-v1.0-small" / f"{split}.csv")[1]}
    return patients


@pytest.mark.parametrize("layout", ["png", "mimic_cxr", "chexpert"])
def test_no_patient_is_in_two_splits(written, layout):
    patients = patients_of_splits(layout, written(layout))
    assert len(patients) == (2 if layout == "chexpert" else 3)
    assert all(patients.values())
    assert sum(len(p) for p in patients.values()) == len(set().union(*patients.values()))
    assert len(set().union(*patients.values())) < N  # some patients have several studies


def test_cohort_patients_keep_one_split_and_one_body():
    studies = sample_cohort(500, Options(seed=3))
    of = defaultdict(set)
    for s in studies:
        of[s.patient].add((s.split, s.plan.sex, s.plan.age))
    assert all(len(v) == 1 for v in of.values())
    shares = Counter(s.split for s in studies)
    assert shares["train"] / 500 == pytest.approx(0.8, abs=0.06)
    assert {s.split for s in sample_cohort(12, Options())} == {"train", "val", "test"}


def test_a_miniature_may_be_mostly_for_tests():
    studies = sample_cohort(500, Options(seed=3, held_out=0.8))
    of = {s.patient: s.split for s in studies}
    shares = Counter(of.values())
    for split, share in {"train": 0.2, "val": 0.4, "test": 0.4}.items():
        assert shares[split] / len(of) == pytest.approx(share, abs=0.01)
    before = sample_cohort(500, Options(seed=3))
    assert [(s.patient, s.plan.sex, s.plan.age) for s in studies] == [
        (s.patient, s.plan.sex, s.plan.age) for s in before
    ]
    with pytest.raises(ConfigError, match=r"held_out is 0\.95; give a number from"):
        write_layout("nih", 4, "nowhere", held_out=0.95)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_the_same_arguments_write_the_same_bytes(tmp_path, layout):
    a, b = (write_layout(layout, 4, tmp_path / name, seed=5, size=32) for name in ("a", "b"))
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
    assert all((a / f).read_bytes() == (b / f).read_bytes() for f in files)
    c = write_layout(layout, 4, tmp_path / "c", seed=6, size=32)
    assert any(not (c / f).exists() or (a / f).read_bytes() != (c / f).read_bytes() for f in files)


def test_the_command_writes_counts_and_names_the_folder(tmp_path, capsys):
    options = ["--layout", "png", "--n", "5", "--size", "32", "--mix", "Nodule=2", "Cardiomegaly=1", "--out"]
    main([*options, str(tmp_path / "x")])
    message = capsys.readouterr()
    assert message.out == f"png: 5 phantoms in {tmp_path / 'x'}\n"
    assert message.err.splitlines()[-1] == "5 of 5"
    assert {b["finding"] for b in table(tmp_path / "x" / "boxes.csv")[1]} <= {"Nodule", "Cardiomegaly"}


def test_our_own_folder_is_written_anew(tmp_path):
    out = write_layout("rsna", 2, tmp_path / "x", size=32)
    write_layout("png", 3, out, size=32)
    assert sorted(p.name for p in out.iterdir()) == [".diptych-phantoms.json", "boxes.csv", "images", "table.csv"]
    assert json.loads((out / ".diptych-phantoms.json").read_text()) == {"layout": "png", "n": 3, "seed": 0, "size": 32}


def test_a_strange_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "table.csv").write_text("mine")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}: the folder is not empty")) as error:
        write_layout("png", 3, tmp_path, size=32)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    with pytest.raises(DataError, match="is a file"):
        write_layout("png", 3, tmp_path / "table.csv", size=32)
    with pytest.raises(DataError, match="cannot be written"):
        write_layout("png", 3, tmp_path / "table.csv" / "below", size=32)


@pytest.mark.parametrize(
    ("layout", "n", "options", "message"),
    [
        ("mimic", 3, {}, "layout is 'mimic'; choose among: png, mimic_cxr"),
        ("png", 1, {}, "n is 1; give a whole number of 2 or more"),
        ("png", 3, {"size": 7}, "size is 7"),
        ("png", 3, {"filler": 2.0}, "filler is 2.0"),
        ("png", 3, {"mix": {"Pneumonia": 1.0}}, "finding in mix is 'Pneumonia'"),
    ],
)
def test_bad_options_write_nothing(tmp_path, layout, n, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        write_layout(layout, n, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()
