"""Options of intensity and notes of odd images reach every reader: workers, packed stores, reports and loaded models."""

import csv
import json
import shlex

import numpy as np
import pytest
from greys import stretched
from hostile import DEEP, GREY, deep_png, dicom, picture
from inprocess import fit_and_test
from mini import FINDINGS, TEXT, config, write_pairs
from PIL import Image

from diptych import load
from diptych.cli.prepare import main
from diptych.data.loading import Loading
from diptych.data.tables import Columns
from diptych.data.unusable import unusable_images
from diptych.errors import ConfigError, DataError
from diptych.model.inputs import grey_picture
from diptych.radiographs import pictures, presentation
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.letterbox import letterbox
from diptych.radiographs.limits import ImageError
from diptych.radiographs.packed import Store
from diptych.radiographs.read import read_radiograph, read_radiograph_float
from diptych.towers.text import ScratchText
from diptych_datamodules.releases.base import Record, ReleaseDataset
from diptych_datamodules.tabular import Tabular

COLUMNS = Columns(patient="patient", split="split", labels=FINDINGS)
NATIVE = "ExplicitVRLittleEndian"
TAGS = {"WindowCenter": [1500, 1000], "WindowWidth": [900, 300]}
ASKED = Intensity(percentiles=(2, 97), window=1)


@pytest.fixture
def table(tmp_path):
    """24 pairs whose images are DICOM with two windows, in files that are called .png."""
    pairs = write_pairs(tmp_path / "data")
    for i in range(24):
        odd = {"PatientOrientation": ["R", "F"]} if i in (1, 20) else {}
        (pairs.parent / f"{i:03d}.png").write_bytes(dicom(NATIVE, np.roll(DEEP, i, axis=0), **TAGS, **odd))
    return pairs


def make(table, root=None, intensity=ASKED, workers=0, **loading):
    loading = Loading(image_size=32, batch_size=4, eval_batch_size=3, workers=workers, intensity=intensity, **loading)
    tokenizer = ScratchText(**TEXT).tokenizer
    module = Tabular(str(table), tokenizer, root=root, columns=COLUMNS, loading=loading)
    module.prepare_data()
    module.setup("fit")
    return module


def expected(table, key, intensity=ASKED):
    return letterbox(read_radiograph(table.parent / key, intensity), 32)[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_it_reaches_the_workers(table, workers):
    module = make(table, workers=workers, check_images=True)
    for batch in module.test_dataloader():
        for key, image in zip(batch.ids, batch.image, strict=True):
            assert np.array_equal(image[0], expected(table, key))
            assert not np.array_equal(image[0], expected(table, key, Intensity()))


def test_a_packed_store_is_of_its_intensity(table, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["tabular", "--root", str(table.parent), "--out", str(out), "--size", "32", "--workers", "1"]
    main([*command, "--percentiles", "2", "97", "--window", "1"])
    assert f"noted 2 image(s): {presentation.MIRRORED}" in capsys.readouterr().out
    key = Store(out).manifest.key
    listed = list(csv.reader((out / "packed" / key / "notes.csv").open()))
    assert listed == [["note", "file"], *([presentation.MIRRORED, f"{i:03d}.png"] for i in (1, 20))]
    original, packed = make(table), make(table, str(out))
    for one, other in zip(original.test_dataloader(), packed.test_dataloader(), strict=True):
        assert np.array_equal(one.image, other.image)
        assert one.notes == other.notes
    with pytest.raises(ConfigError, match=r"percentiles=None, window=0.* is packed with .*percentiles=\(2") as caught:
        make(table, str(out), Intensity())
    main(shlex.split(str(caught.value).split("`")[1])[2:])
    assert Store(out).manifest.key != key
    assert Store(out).manifest.intensity == Intensity()
    make(table, str(out), Intensity())
    with pytest.raises(ConfigError, match=r"run `diptych prepare .*--percentiles 2 97 --window none"):
        make(table, str(out), Intensity((2, 97), None))


@pytest.mark.parametrize("wrong", [["--window", "x"], ["--percentiles", "9", "3"]])
def test_options_of_prepare_are_judged(wrong, table, tmp_path):
    with pytest.raises(ConfigError, match=r"--window is 'x'|intensity\.percentiles is \[9"):
        main(["tabular", "--root", str(table.parent), "--out", str(tmp_path / "out"), *wrong])


def test_notes_are_counted_by_image(table, monkeypatch):
    messages = []
    for name in ("rank_zero_info", "rank_zero_warn"):
        monkeypatch.setattr(f"diptych.data.datamodule.{name}", messages.append)
    module = make(table, workers=1)
    messages.clear()
    for _ in range(2):  # epochs
        for batch in (*module.train_dataloader(), *module.test_dataloader()):
            module.on_before_batch_transfer(batch, 0)
    assert module.notes.counts() == {presentation.MIRRORED: 2}
    assert sum("such images are counted" in line for line in messages) == 1
    module.teardown("fit")
    assert f"noted 2 image(s): {presentation.MIRRORED}" in "\n".join(messages)
    module = make(table, check_images=True)
    assert f"noted 2 image(s): {presentation.MIRRORED}" in "\n".join(
        messages
    )  # before the run, where all images are read


def test_the_kept_answer_is_of_its_options(table, tmp_path):
    datasets = make(table).datasets
    first = unusable_images(datasets, 0, "fork", tmp_path)
    assert first == ([], [("train", 1, (presentation.MIRRORED,)), ("test", 0, (presentation.MIRRORED,))])
    assert unusable_images(datasets, 0, "fork", tmp_path) == first
    stored = json.loads((tmp_path / "images.json").read_text())
    for dataset in datasets.values():
        dataset.intensity = Intensity()
    unusable_images(datasets, 0, "fork", tmp_path)
    assert json.loads((tmp_path / "images.json").read_text())["samples"] != stored["samples"]


def test_a_run_stores_it_and_its_model_reads_so(table, tmp_path):
    recipe = tmp_path / "run.yaml"
    recipe.write_text(config(table, epochs=1, intensity={"percentiles": [2, 97], "window": 1}))
    results = fit_and_test(recipe, tmp_path / "run")
    assert results["protocol"]["intensity"] == {"percentiles": [2, 97], "window": 1}
    model = load(next((tmp_path / "run").rglob("best*.ckpt")))
    assert model.intensity == ASKED
    path = table.parent / "020.png"
    as_trained = model.encode_image(read_radiograph(path, ASKED).astype(np.int32)).pooled
    assert np.allclose(model.encode_image(path).pooled, model.encode_image(str(path)).pooled)
    other = load(next((tmp_path / "run").rglob("best*.ckpt")))
    other.intensity = Intensity()
    assert not np.allclose(model.encode_image(path).pooled, other.encode_image(path).pooled)
    assert as_trained.shape == (1, as_trained.shape[1])
    grey = Image.fromarray(GREY)
    low, high = np.percentile(GREY, [2, 97], method="inverted_cdf")
    cut = np.rint(np.clip((GREY.astype(float) - low) / (float(high) - low), 0, 1) * 255).astype(np.uint8)
    for one in (grey, GREY, GREY.astype(np.float32)):
        assert np.array_equal(grey_picture(one, "one", model.intensity), cut)


# --- percentiles, and options that cannot be


@pytest.mark.parametrize("make", [lambda x: dicom(NATIVE, x, BitsStored=16, HighBit=15), deep_png])
def test_percentiles_bear_hot_pixels_and_frames(make, write):
    hot = DEEP.copy()
    hot[5, 5] = 65535
    hot[:1] = 0
    path = write(make(hot))
    assert len(np.unique(read_radiograph(path))) < 20
    got = read_radiograph(path, Intensity(percentiles=(2, 99)))
    low, high = np.percentile(hot, [2, 99], method="inverted_cdf")
    assert np.array_equal(got, stretched(hot, low, high))
    assert len(np.unique(got)) > 200
    exact = read_radiograph_float(path, Intensity(percentiles=(2, 99)))
    assert np.abs(exact * 255 - got).max() <= 0.5001


def test_percentiles_hold_for_every_kind_of_picture_and_leave_padding_out(write):
    asked = Intensity(percentiles=(5, 90))
    low, high = np.percentile(GREY, [5, 90], method="inverted_cdf")
    for raw in (
        picture(Image.fromarray(GREY), "PNG"),
        picture(Image.fromarray(GREY.astype(np.int32)), "TIFF"),
        picture(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
        dicom(NATIVE, GREY),
    ):
        assert np.array_equal(read_radiograph(write(raw), asked), stretched(GREY, low, high))
    padded = DEEP.copy()
    padded[:40] = 4095
    low, high = np.percentile(DEEP[40:], [5, 90], method="inverted_cdf")
    got = read_radiograph(write(dicom(NATIVE, padded, PixelPaddingValue=4095)), asked)
    assert np.array_equal(got[40:], stretched(DEEP[40:], low, high))
    with pytest.raises(ImageError, match=r"flat between its percentiles 1 and 3"):
        read_radiograph(write(dicom(NATIVE, np.where(DEEP > 1500, DEEP, 0))), Intensity(percentiles=(1, 3)))


@pytest.mark.parametrize("wrong", [{"percentiles": (9, 9)}, {"percentiles": (-1, 9)}, {"percentiles": (1, 101)},
                                   {"percentiles": (float("nan"), 9)}, {"window": -1}])  # fmt: skip
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"intensity\.(percentiles|window) is"):
        Intensity(**wrong)


@pytest.mark.parametrize("stored", ["x", [1], {"window": "0"}, {"percentiles": 5}, {"percentiles": [1, "x"]}, {"more": 1},
                                    {"window": True}, {"percentiles": [1, 2, 3]}, {"percentiles": [50, 1]}])  # fmt: skip
def test_what_a_file_says_of_intensity_is_judged(stored):
    with pytest.raises(ConfigError):
        Intensity.of(stored, source="x.ckpt")
    asked = Intensity((0.5, 99.5), None)
    assert Intensity.of(asked.plain(), source="x") == asked
    assert Intensity.of(None, source="x") == Intensity()


# --- what is drawn on a picture follows it


def test_boxes_of_a_release_follow_pixels_that_are_not_square(tmp_path):
    """Boxes are of the stored pixels: a box around a bright patch is around it still."""
    pixels = np.zeros((64, 64), np.uint16)
    pixels[8:24, 32:48] = 4000

    class Small(ReleaseDataset):
        side = 64

        def mask(self, record):
            return pixels > 0

    (tmp_path / "x.dcm").write_bytes(dicom(NATIVE, pixels, PixelAspectRatio=[2, 1]))
    box = np.array([[32, 8, 48, 24, 0]], np.float32)
    record = Record("x", tmp_path / "x.dcm", "x", labels=np.ones(1, np.float32), boxes=box)
    sample = Small([record]).read(0, np.random.default_rng(0))
    assert sample.image.shape == (128, 64)
    assert sample.notes == (presentation.OBLONG,)
    x0, y0, x1, y1 = sample.boxes[0, :4].astype(int)
    assert (sample.image[y0 + 1 : y1 - 1, x0:x1] > 250).all()
    assert sample.image[y0:y1, x0:x1].sum() > 0.97 * sample.image.sum()
    assert (sample.mask != (sample.image > 127)).mean() < 0.02


@pytest.mark.parametrize("stored", [True, False])
def test_masks_of_a_table_follow_pixels_that_are_not_square(stored, tmp_path):
    pixels = np.zeros((64, 64), np.uint16)
    pixels[8:24, 32:48] = 4000
    mask = (pixels > 0) if stored else np.repeat(pixels > 0, 2, axis=0)
    (tmp_path / "x.dcm").write_bytes(dicom(NATIVE, pixels, PixelSpacing=[0.2, 0.1]))
    Image.fromarray(mask).save(tmp_path / "m.png")
    (tmp_path / "t.csv").write_text("image,mask,split\nx.dcm,m.png,train\n")
    columns = Columns(text=[], mask="mask", split="split")
    module = Tabular(str(tmp_path / "t.csv"), columns=columns, loading=Loading(workers=0))
    module.setup("test")
    sample = module.native("train", 0)
    assert sample.mask.shape == sample.image.shape == (128, 64)
    assert (sample.mask != (sample.image > 127)).mean() < 0.02


def test_a_mask_of_a_picture_turned_by_exif_is_upright_or_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "x.jpg", exif=exif.tobytes())
    upright = GREY > 120
    (tmp_path / "t.csv").write_text("image,mask,split\nx.jpg,m.png,train\n")
    columns = Columns(text=[], mask="mask", split="split")
    module = Tabular(str(tmp_path / "t.csv"), columns=columns, loading=Loading(workers=0))
    Image.fromarray(upright).save(tmp_path / "m.png")
    module.setup("test")
    assert np.array_equal(module.native("train", 0).mask, upright)
    Image.fromarray(np.rot90(upright)).save(tmp_path / "m.png")
    with pytest.raises(
        DataError, match=rf"of other proportions.*{pictures.TURNED}; give the mask of this image, upright"
    ):
        module.native("train", 0)
