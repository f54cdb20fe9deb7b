"""MIMIC-CXR as released: sections of reports, views, studies, sentences, labels and what is left out."""

import csv
import gzip
import io
import re
import shutil
import zipfile
from collections import Counter

import numpy as np
import pytest
from mini import TEXT

from diptych.data.loading import Loading
from diptych.errors import ConfigError, DataError
from diptych.reports.text import sentence_spans
from diptych.towers.text import ScratchText
from diptych_datamodules.mimic_cxr import FINDINGS, MimicCxr, choose_text, find_sections
from diptych_datamodules.phantoms.layouts.write import write_layout
from diptych_datamodules.releases.subsets import COMPETITION

LOADING = Loading(image_size=32, batch_size=4, eval_batch_size=4, workers=0)
TABLES = ("split", "metadata", "chexpert")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_layout("mimic_cxr", 40, tmp_path_factory.mktemp("mimic") / "it", seed=2, size=32)


def made(root, **options):
    module = MimicCxr(str(root), loading=LOADING, **options)
    module.setup("test")
    return module


def everything(module):
    return [record for dataset in module.datasets.values() for record in dataset.records]


def rows(root, name):
    path = root / name
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    return list(csv.DictReader(io.StringIO(text)))


def rewrite(root, name, change):
    (path,) = root.glob(f"mimic-cxr-2.0.0-{name}.csv*")
    raw, packed = path.read_bytes(), path.suffix == ".gz"
    changed = change((gzip.decompress(raw) if packed else raw).decode()).encode()
    path.write_bytes(gzip.compress(changed) if packed else changed)


# -- sections ---------------------------------------------------------------------------------------------------------

TITLE = "                                 FINAL REPORT\n "


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (f"{TITLE}INDICATION:  Cough.\n \n FINDINGS: \n \n Clear.\n Small heart.\n \n IMPRESSION: \n \n Normal.\n",
         {"findings": "Clear.\n Small heart.", "impression": "Normal."}),
        (f"{TITLE}CHEST, TWO VIEWS:  Clear.\n \n CONCLUSION:  Normal.\n", {"findings": "Clear.", "impression": "Normal."}),
        (f"{TITLE}FINDINGS AND IMPRESSION:  Clear.\n", {"impression": "Clear."}),
        (f"{TITLE}IMPRESSON:  Clear.\n", {"impression": "Clear."}),
        # a title that looks like a header is empty, and no section
        (f"{TITLE}CHEST, PA LATERAL:\n \n INDICATION:  Cough.\n \n Clear.\n \n Normal.\n",
         {"last_paragraph": "Clear.\n \n Normal."}),
        # the last of equal names counts, an empty one never
        (f"{TITLE}FINDINGS:  One.\n \n FINDINGS:  Two.\n \n IMPRESSION:  Three.\n \n IMPRESSION:\n \n",
         {"findings": "Two.", "impression": "Three."}),
        # after a header the line that it stands on holds no other
        (f"{TITLE}IMPRESSION:  NOTE:  Clear.\n", {"impression": "NOTE:  Clear."}),
        # a name that holds a main section's, before the words for views
        (f"{TITLE}COMPARISON CHEST:  None.\n \n Clear.\n", {"last_paragraph": "Clear."}),
        # small letters, or no space before it, make no header
        (f"{TITLE}IMPRESSION:  Clear.\n Findings: none.\nFINDINGS: none.\n",
         {"impression": "Clear.\n Findings: none.\nFINDINGS: none."}),
        ("Just one line.", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_sections(report, expected):
    sections = find_sections(report)
    names = sections.keys() & {"findings", "impression", "last_paragraph"}
    assert {name: sections[name] for name in names} == expected


def test_which_section_is_the_text():
    whole = {"findings": "Clear.\n Small heart.", "impression": "Normal.", "last_paragraph": "Tail."}
    assert choose_text(whole, "both", ()) == "Clear.\nSmall heart.\n\nNormal."
    assert choose_text(whole, "findings", ("impression",)) == "Clear.\nSmall heart."
    assert choose_text({"impression": "Normal."}, "findings", ("impression", "last_paragraph")) == "Normal."
    assert choose_text({"last_paragraph": "Tail."}, "findings", ("impression", "last_paragraph")) == "Tail."
    assert choose_text({"last_paragraph": "Tail."}, "both", ()) == ""


@pytest.mark.parametrize(
    ("report", "text"),
    [  # as create_section_files.py of MIMIC-CXR chooses: impression, findings, last paragraph, comparison
        (f"{TITLE}COMPARISON:  Chest of ___.\n The lungs are clear.\n", "Chest of ___.\nThe lungs are clear."),
        (f"{TITLE}COMPARISON:  None.\n \n The lungs are clear.\n", "The lungs are clear."),
        (f"{TITLE}COMPARISON:  None.\n", ""),
        (f"{TITLE}COMPARISON:  One.\n \n FINDINGS:  Clear.\n", "Clear."),
        (f"{TITLE}COMPARISON:  One.\n \n IMPRESSION:  ___\n \n FINDINGS:  Clear.\n", "Clear."),
        (f"{TITLE}FINDINGS:  Clear.\n \n IMPRESSION:  Normal.\n", "Normal."),
        (f"{TITLE}HISTORY:  Cough.\n", ""),
    ],
)
def test_the_choice_of_the_official_script(report, text):
    assert choose_text(find_sections(report), "impression", ("findings", "last_paragraph", "comparison")) == text
    assert choose_text(find_sections(report), "both", ("last_paragraph",)) != "Chest of ___.\nThe lungs are clear."


def test_comparison_from_reports_and_from_the_official_table(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    frontal = everything(made(copy))[0]
    path = f"files/p{frontal.patient[:2]}/p{frontal.patient}/s{frontal.study}.txt"
    with zipfile.ZipFile(copy / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr(path, f"{TITLE}COMPARISON:  Chest of ___.\n The lungs are clear.\n")
    table = tmp_path / "mimic_cxr_sectioned.csv"
    table.write_text(f'study,impression,findings,last_paragraph,comparison\ns{frontal.study},,,,"Of ___.\n Clear."\n')
    for options, text in (({}, "Chest of ___.\nThe lungs are clear."), ({"sectioned": str(table)}, "Of ___.\nClear.")):
        module = MimicCxr(str(copy), loading=LOADING, fallback="comparison", **options)
        module.datasets = module.build()
        assert {(record.study, record.text) for record in everything(module)} == {(frontal.study, text)}
    module = MimicCxr(str(copy), fallback=["last_paragraph", "comparison"])
    assert "section both, else last_paragraph, else comparison" in module.protocol


# -- the miniature ----------------------------------------------------------------------------------------------------


def test_official_split_and_what_is_left_out(root):
    module = made(root)
    split_rows = {row["dicom_id"]: row for row in rows(root, "mimic-cxr-2.0.0-split.csv.gz")}
    views = {row["dicom_id"]: row["ViewPosition"] for row in rows(root, "mimic-cxr-2.0.0-metadata.csv.gz")}
    frontal = [key for key, view in views.items() if view in {"PA", "AP"}]
    assert module.dropped.counts() == {"duplicate row": 1, "missing image": 1, "empty report": 1, "no report": 1}
    assert len(everything(module)) == len(frontal) - 3
    for which, name in (("train", "train"), ("val", "validate"), ("test", "test")):
        for record in module.datasets[which].records:
            assert split_rows[record.id]["split"] == name
            assert split_rows[record.id]["subject_id"] == record.patient
            assert views[record.id] in {"PA", "AP"}
            assert record.path.name == f"{record.id}.jpg"
    assert module.protocol == (
        f"mimic_cxr/official (a part: {len(split_rows)} images), views frontal, all of a study, section both, "
        "else last_paragraph, labels chexpert"
    )


def test_views_and_one_image_of_a_study(root):
    views = {row["dicom_id"]: row["ViewPosition"] for row in rows(root, "mimic-cxr-2.0.0-metadata.csv.gz")}
    frontal, lateral, whole = (everything(made(root, views=name)) for name in ("frontal", "lateral", "all"))
    assert {views[record.id] for record in lateral} == {"LATERAL", "LL"}
    rest = {record.id for record in whole} - {record.id for record in frontal + lateral}
    assert {views[key] for key in rest} & {"LAO", "RAO", "SWIMMERS", "PA LLD", "AP AXIAL"}
    assert max(Counter(record.study for record in whole).values()) == 2
    one = everything(made(root, views="all", per_study="one"))
    assert max(Counter(record.study for record in one).values()) == 1
    seen = {record.study: views[record.id] for record in one}
    for record in frontal:
        assert seen[record.study] in {"PA", "AP"}
    texts = {}
    for record in whole:
        assert texts.setdefault(record.study, record.text) == record.text


def test_texts_are_those_of_the_studies(root, tmp_path):
    """From the zip, from a tree beside the images, and from the official script's table."""
    zipped = made(root)
    tree = shutil.copytree(root, tmp_path / "tree")
    with zipfile.ZipFile(tree / "mimic-cxr-reports.zip") as archive:
        archive.extractall(tree)
        reports = {name.split("/")[-1][1:-4]: archive.read(name).decode() for name in archive.namelist()}
    (tree / "mimic-cxr-reports.zip").unlink()
    apart = tmp_path / "apart"
    for path in tree.glob("files/*/*/*.txt"):
        (apart / path.relative_to(tree / "files")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, apart / path.relative_to(tree / "files"))
    table = tmp_path / "mimic_cxr_sectioned.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["study", "impression", "findings", "last_paragraph", "comparison"])
        for study, report in reports.items():
            sections = find_sections(report)
            writer.writerow(
                [f"s{study}", *(sections.get(k, "") for k in ("impression", "findings", "last_paragraph")), ""]
            )
    others = [made(tree), made(root, reports=str(apart)), made(root, sectioned=str(table))]
    assert "of mimic_cxr_sectioned.csv" in others[2].protocol
    for record in everything(zipped):
        written = [line.strip() for line in reports[record.study].splitlines()]
        assert record.text
        assert {line for line in record.text.splitlines() if line} <= set(written)
        assert record.text.splitlines()[-1] == [line for line in written if line][-1]
        assert not re.search(r"FINDINGS|IMPRESSION|CONCLUSION|VIEWS|FINAL REPORT|^ ", record.text)
    for other in others:
        assert [record.text for record in everything(other)] == [record.text for record in everything(zipped)]
        assert other.dropped.counts() == zipped.dropped.counts()
    counted = [made(root, fallback=f).dropped.counts()["empty report"] for f in ((), ("last_paragraph",))]
    assert counted[0] > counted[1] == 1
    with pytest.raises(DataError, match=r"no report of any study in it; get mimic-cxr-reports\.zip"):
        made(root, reports=str(tmp_path / "none"))
    silent = made(root, section="none", reports=str(tmp_path / "none"))
    assert all(record.text is None for record in everything(silent))
    assert "no text" in silent.protocol
    assert set(silent.dropped.counts()) == {"duplicate row", "missing image"}


def test_labels_of_either_labeller_and_of_the_radiologist(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    rewrite(copy, "negbio", lambda text: text.replace(",1.0", ",-1.0"))
    module, other = made(copy), made(copy, labels="negbio", test_labels="radiologist")
    table = {row["study_id"]: row for row in rows(root, "mimic-cxr-2.0.0-chexpert.csv.gz")}
    tested = {row["study_id"]: row for row in rows(root, "mimic-cxr-2.1.0-test-set-labeled.csv")}
    missing = 0
    for which, dataset in module.datasets.items():
        for record, twin in zip(dataset.records, other.datasets[which].records, strict=True):
            row = table.get(record.study, {})
            missing += not row
            plain = [float(row.get(name) or "nan") for name in FINDINGS]
            assert np.array_equal(record.labels, plain, equal_nan=True)
            if which == "test":
                named = {**tested[record.study], "Lung Opacity": tested[record.study]["Airspace Opacity"]}
                changed = [float(named[name] or "nan") for name in FINDINGS]
            else:
                changed = [-1.0 if value == 1 else value for value in plain]
            assert np.array_equal(twin.labels, changed, equal_nan=True)
    assert missing  # a study without a row
    assert "labels negbio, test by radiologist" in other.protocol
    (copy / "mimic-cxr-2.1.0-test-set-labeled.csv").unlink()
    with pytest.raises(DataError, match=r"get MIMIC-CXR-JPG 2\.1\.0"):
        made(copy, test_labels="radiologist")


def test_tables_may_be_unpacked_or_named_by_the_newer_release(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    assert (copy / "mimic-cxr-2.0.0-negbio.csv").is_file()  # unpacked in the miniature
    for name, version in zip(TABLES, ("2.0.0", "2.1.0", "2.0.0"), strict=True):
        path = copy / f"mimic-cxr-2.0.0-{name}.csv.gz"
        (copy / f"mimic-cxr-{version}-{name}.csv").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert made(copy).split_hash == made(root).split_hash


def test_5x200_is_of_training_images_that_show_one_finding_alone(root, tmp_path):
    from lightning.pytorch import Trainer

    official = made(root)
    module = MimicCxr(str(root), split="mimic_cxr/5x200", section="none", loading=LOADING)
    module.trainer = Trainer(default_root_dir=tmp_path / "run", accelerator="cpu", logger=False)
    module.setup("test")
    split_rows = {row["dicom_id"]: row for row in rows(root, "mimic-cxr-2.0.0-split.csv.gz")}
    views = {row["dicom_id"]: row["ViewPosition"] for row in rows(root, "mimic-cxr-2.0.0-metadata.csv.gz")}
    table = {row["study_id"]: row for row in rows(root, "mimic-cxr-2.0.0-chexpert.csv.gz")}
    expected = {}
    for key, row in split_rows.items():
        labels = table.get(row["study_id"], {})
        shown = [name for name in FINDINGS if labels.get(name) in {"1.0", "-1.0"} and name != "No Finding"]
        alone = len(shown) == 1 and shown[0] in COMPETITION and labels[shown[0]] == "1.0"
        if alone and row["split"] == "train" and views[key] in {"PA", "AP"}:
            expected[key] = shown[0]
    assert module.chosen == expected
    assert len(expected) >= 3
    studies = [split_rows[key]["study_id"] for key in module.chosen]
    assert len(set(studies)) == len(studies)
    tested = {split_rows[key]["subject_id"] for key in expected}
    assert set(module.datasets["test"].ids) <= set(expected)
    assert len(module.datasets["test"]) >= len(expected) - 1  # one file is missing
    left = {record.patient for record in module.datasets["train"].records}
    assert left == {r.patient for r in made(root, section="none").datasets["train"].records} - tested
    assert set(official.datasets["val"].ids) <= set(module.datasets["val"].ids)
    assert {split_rows[key]["split"] for key in module.datasets["val"].ids} == {"validate"}
    assert module.protocol.startswith("mimic_cxr/5x200 (")
    assert "0 Edema" in module.protocol  # phantoms have none
    written = tmp_path / "run" / "mimic_cxr_5x200.csv"
    again = made(root, split="mimic_cxr/5x200", section="none", subset=str(written))
    assert again.split_hash == module.split_hash
    assert "listed by mimic_cxr_5x200.csv" in again.protocol
    written.write_text(written.read_text() + f"{official.datasets['test'].ids[0]},Edema\n")
    with pytest.raises(DataError, match=r"no frontal image of .*the training images"):
        made(root, split="mimic_cxr/5x200", subset=str(written))
    with pytest.raises(ConfigError, match=r"data.subset lists the test of mimic_cxr/5x200, not of mimic_cxr/official"):
        MimicCxr("x", subset="a.csv")
    with pytest.raises(
        ConfigError, match=r"5x200 is of frontal images with the labeller's labels, not data.views 'all'"
    ):
        MimicCxr("x", split="mimic_cxr/5x200", views="all")


def test_sentences_are_drawn_anew_each_epoch_and_from_the_given_numbers_alone(root):
    whole, some = made(root), made(root, sentences=2)
    train, plain = some.datasets["train"], whole.datasets["train"]
    texts_read = set()
    for index, record in enumerate(plain.records):
        sentences = [record.text[a:b] for a, b in sentence_spans(record.text)]
        for seed in range(3):
            text = train.read(index, np.random.default_rng(seed)).text
            assert text == train.read(index, np.random.default_rng(seed)).text
            at = [sentences.index(text[a:b]) for a, b in sentence_spans(text)] if len(sentences) > 2 else []
            assert at == sorted(set(at))
            assert len(at) == (2 if len(sentences) > 2 else 0)
            assert len(sentences) > 2 or text == record.text
            texts_read.add((index, text))
    assert len(texts_read) > 1.5 * len(train)
    assert list(train.texts()) == list(plain.texts())  # the vocabulary is of whole reports
    assert all(some.native("val", i).text == r.text for i, r in enumerate(whole.datasets["val"].records))
    assert "2 sentences a time" in some.protocol


def test_sentences_are_the_same_after_a_restart(root):
    def run(start):
        module = MimicCxr(str(root), ScratchText(**TEXT).tokenizer, sentences=1, loading=LOADING)
        module.setup("fit")
        loader = module.train_dataloader()
        loader.load_state_dict({"epoch": 1, "samples": start * LOADING.batch_size})
        return [(batch.ids, batch.text.raw) for batch in loader]

    assert run(2) == run(0)[2:]
    assert len(run(2)) > 1


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("split", ",validate", ",valid", "is in 'valid'; a split is train, validate or test"),
        ("split", "subject_id", "subject", "no column 'subject_id'"),
        ("chexpert", ",-1.0", ",-2.0", "has the label '-2.0'"),
        ("metadata", "ViewPosition", "View", "no column 'ViewPosition'"),
    ],
)
def test_bad_tables_are_named(root, tmp_path, table, old, new, message):
    copy = shutil.copytree(root, tmp_path / "copy")
    rewrite(copy, table, lambda text: text.replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        made(copy)
    assert f"mimic-cxr-2.0.0-{table}.csv.gz" in str(caught.value)


def test_tables_that_do_not_fit_together_are_refused(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    rewrite(copy, "metadata", lambda text: text[: text.rstrip().rfind("\n") + 1])
    with pytest.raises(DataError, match=r"no row for '.*get both of one release"):
        made(copy)
    twice = shutil.copytree(root, tmp_path / "twice")
    rewrite(twice, "split", lambda text: text + text.splitlines()[1].rpartition(",")[0] + ",test\n")
    first = rows(root, "mimic-cxr-2.0.0-split.csv.gz")[0]
    if first["split"] == "test":
        pytest.fail("choose another seed: the first row must not be a test row")
    with pytest.raises(DataError, match="stands there twice, and not the same"):
        made(twice)
    shutil.rmtree(twice / "files")
    shutil.copy(root / "mimic-cxr-2.0.0-split.csv.gz", twice)
    with pytest.raises(DataError, match="no image in it; unpack MIMIC-CXR-JPG"):
        made(twice)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe FINDINGS", "not text"), (b" " * (2**20 + 1), "which is no report"), (None, "cannot be read")],
)
def test_bad_reports_are_named(root, tmp_path, content, message):
    path = tmp_path / "mimic-cxr-reports.zip"
    if content is None:
        whole = (root / path.name).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:
        with zipfile.ZipFile(root / path.name) as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bad:
            for name in good.namelist():
                bad.writestr(name, content)
    with pytest.raises(DataError, match=message) as caught:
        made(root, reports=str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_that_contradict_each_other():
    with pytest.raises(ConfigError, match=r"data.sentences is 2 with data.section 'none'"):
        MimicCxr("x", section="none", sentences=2)
    with pytest.raises(ConfigError, match=r"data.reports and data.sectioned are both given"):
        MimicCxr("x", reports="a", sectioned="b")
    with pytest.raises(ConfigError, match=r"data.split is 'validate'; choose among: mimic_cxr/official"):
        MimicCxr("x", split="validate")


def test_where_the_first_missing_image_was_looked_for(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    for path in copy.glob("files/*/*/*/*.jpg"):
        path.rename(path.with_suffix(".jpeg2000"))
    place = r"\S*/files/p1\d/p1\d{7}/s\d{8}/[-0-9a-f]{44}.jpg, but \S*/s\d{8} holds"
    with pytest.raises(DataError, match=f"first was looked for at {place}"):
        made(copy)
