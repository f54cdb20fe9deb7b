"""What a trained model answers in Python: probabilities, calibration, reports, pictures, and the names people try."""

from __future__ import annotations

import copy
import csv
import io
import json

import numpy as np
import pydicom
import pytest
import torch
from mini import IMAGE, TEXT
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian

import diptych
from diptych.errors import ConfigError, DiptychError
from diptych.evaluation.calibration import fit_temperature, label_array, log_loss, probabilities_of
from diptych.evaluation.zero_shot import ZeroShot
from diptych.model.inference import TrainedModel
from diptych.model.inputs import grey_picture
from diptych.model.stored import build_module, weights_hash
from diptych.radiographs.intensity import Intensity
from diptych.types import Batch

CONFIG = {
    "image": {"class_path": "diptych.towers.image.TimmImage", "init_args": IMAGE},
    "text": {"class_path": "diptych.towers.text.ScratchText", "init_args": TEXT},
    "head": "local_pooling",
}
PAIRS = {"Effusion": ("a small left effusion", ["no effusion", "clear lungs"]), "Nodule": ("a nodule", "no nodule")}
CLASSES = {"ill": ["a nodule", "a small left effusion"], "well": "no nodule is seen"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    module = build_module(CONFIG)
    module.tokenizer.learn(["a small left effusion", "no nodule is seen", "clear lungs"])
    return TrainedModel(module, 32)


GREY = np.random.default_rng(0).integers(0, 256, (7, 24, 30), dtype=np.uint8)


def batch_of(model, labels):
    rows = torch.arange(len(GREY))
    valid, ids = torch.ones(len(GREY), dtype=torch.bool), [str(i) for i in rows.tolist()]
    image = model.preprocess(GREY)
    return Batch(image, None, rows, valid, torch.from_numpy(labels), rows, None, ids)


@pytest.mark.parametrize("protocol", ["diptych", "chexzero", "convirt"])
@pytest.mark.parametrize("prompts", [PAIRS, CLASSES], ids=["findings", "classes"])
def test_scores_are_those_of_the_evaluator_and_probabilities_their_softmax(model, tmp_path, protocol, prompts):
    if protocol == "chexzero" and prompts is CLASSES:
        with pytest.raises(ConfigError, match="asks for pairs"):
            model.zero_shot(GREY, prompts=prompts, protocol=protocol)
        return
    table = model.zero_shot(GREY, prompts=prompts, protocol=protocol, batch_size=3)
    kind = "findings" if prompts is PAIRS else "classes"
    as_list = {
        name: {"positive": np.atleast_1d(value[0]).tolist(), "negative": np.atleast_1d(value[1]).tolist()}
        if prompts is PAIRS
        else {"prompts": np.atleast_1d(value).tolist()}
        for name, value in prompts.items()
    }
    (tmp_path / "own.yaml").write_text(json.dumps({"name": "own", "version": 1, "source": "here", kind: as_list}))
    evaluator = ZeroShot(str(tmp_path / "own.yaml"), protocol=protocol, resamples=0)
    evaluator.start(model.embed_text, list(prompts))
    labels = np.eye(2, dtype=np.float32)[np.arange(len(GREY)) % 2]
    batch = batch_of(model, labels)
    evaluator.update(batch, model.module.embed_image(batch.image), None, model.module.head)
    evaluator._gather()
    names, scores, _ = evaluator._table()
    assert list(table.findings) == names == list(prompts)
    np.testing.assert_allclose(table.scores, scores, atol=1e-6)
    exponents = np.exp(np.stack([scores, np.zeros_like(scores)]) if prompts is PAIRS else scores.T[:, :, None])
    twin = exponents / exponents.sum(0)
    np.testing.assert_allclose(table.probabilities, twin[0] if prompts is PAIRS else twin[:, :, 0].T, atol=1e-5)
    assert not table.calibrated
    assert table.how.endswith("; uncalibrated")
    assert table.how.startswith("soft-max of the positive" if prompts is PAIRS else "soft-max over the classes")
    named = model.zero_shot(GREY, prompts=str(tmp_path / "own.yaml"), protocol=protocol)
    np.testing.assert_allclose(named.probabilities, table.probabilities, atol=1e-6)


def test_a_table_reads_prints_and_writes_itself(model, tmp_path):
    Image.fromarray(GREY[0]).save(tmp_path / "=a.png")
    table = model.zero_shot([tmp_path / "=a.png", GREY[1]], findings=["Effusion", "Nodule"])
    assert table.images == (str(tmp_path / "=a.png"), "pictures[1]")
    rows = list(table)
    assert len(table) == len(rows) == 2
    assert rows[1]["image"] == "pictures[1]"
    assert rows[0]["Nodule"] == table["Nodule"][0] == np.asarray(table)[0, 1]
    assert repr(table).splitlines()[0].split() == ["image", "Effusion", "Nodule"]
    assert f"{rows[1]['Effusion']:.3f}" in repr(table).splitlines()[2]
    assert "uncalibrated" in repr(table)
    table.to_csv(tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(row["Effusion"]) for row in read] == table["Effusion"].tolist()
    with pytest.raises(KeyError, match="the table has"):
        table["Edema"]
    odd = model.zero_shot(GREY, findings=["<b>x</b>"])
    assert "<b>" not in odd._repr_html_()
    assert odd._repr_html_().count("<tr>") == 8
    long = model.zero_shot(np.concatenate([GREY] * 4), findings="Nodule")
    assert "8 more rows" in repr(long)
    assert len(model.zero_shot([], findings="Nodule")) == 0


def test_a_name_of_a_set_and_a_part_of_it(model):
    whole = model.zero_shot(GREY[:2], prompts="phantom")
    part = model.zero_shot(GREY[:2], ["Consolidation"], prompts="phantom")
    np.testing.assert_allclose(part["Consolidation"], whole["Consolidation"], atol=1e-6)
    assert part.findings == ("Consolidation",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing is asked; give findings="),
        ({"findings": "phantom"}, "the name of a prompt set; give prompts='phantom'"),
        ({"findings": []}, "give names"),
        ({"findings": [3]}, "give names"),
        ({"findings": {"a": "b"}}, "give it as prompts"),
        ({"findings": ["Edem"], "prompts": "phantom"}, "'Edem' is not in prompt set 'phantom'"),
        ({"prompts": "phantm"}, "no prompt set is called 'phantm'"),
        ({"prompts": ["a"]}, "give the name of a set, or a mapping"),
        ({"prompts": {}}, "give the name of a set, or a mapping"),
        ({"prompts": {"a": "b"}}, "there is one class, 'a'"),
        ({"prompts": {"a": ("b",)}}, "'a' has 1 sides"),
        ({"prompts": {"a": ("b", "c"), "d": "e"}}, "'d' is none"),
        ({"prompts": {"a": {"positive": "b"}}}, "give positive and negative"),
        ({"prompts": {"a": ("b", "")}}, "'a' is ''"),
        ({"findings": ["a"], "protocol": "gloria"}, "gives no probability"),
        ({"findings": ["a"], "protocol": "none"}, "protocol is 'none'"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_what_can(model, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        model.zero_shot(GREY, **options)
    assert "\n" not in str(caught.value)


# -- calibration


def test_the_temperature_has_the_least_loss_of_a_fine_grid():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(400, 3))
    labels = (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(float)
    labels[rng.random(true.shape) < 0.2] = rng.choice([-1.0, np.nan])
    found = fit_temperature(7 * true, labels, classes=False)
    grid = np.geomspace(1, 50, 2001)
    losses = [log_loss(7 * true, labels, False, value) for value in grid]
    assert abs(np.log(found / grid[int(np.argmin(losses))])) < 3e-3
    assert 5.5 < found < 8.5
    drawn = np.array([rng.choice(3, p=row) for row in probabilities_of(true, classes=True)])
    found = fit_temperature(7 * true, drawn, classes=True)
    losses = [log_loss(7 * true, drawn, True, value) for value in grid]
    assert abs(np.log(found / grid[int(np.argmin(losses))])) < 3e-3


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[1.0], [-1.0]], [[1.0], [0.0]], "best temperature is 0"),
        ([[1.0], [-1.0]], [[0.0], [1.0]], "best temperature is infinite"),
        ([[0.0], [0.0]], [[0.0], [1.0]], "best temperature is infinite"),
        ([[1.0], [-1.0]], [[np.nan], [-1.0]], "no known labels"),
        ([[np.inf], [-1.0]], [[1.0], [0.0]], "not finite"),
    ],
)
def test_no_temperature_is_made_up(scores, labels, message):
    with pytest.raises(ConfigError, match=message):
        fit_temperature(np.array(scores), np.array(labels), classes=False)


def test_a_calibrated_model_says_so_and_a_run_keeps_it(model, tmp_path):
    model = copy.deepcopy(model)
    scores = model.zero_shot(GREY, prompts=PAIRS).scores
    labels = (scores > np.median(scores, axis=0)).astype(float)
    labels[0] = 1 - labels[0]
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    kept = model.calibrate(GREY, dict(zip(PAIRS, labels.T, strict=True)), prompts=PAIRS, run=run)
    assert kept.after < kept.before
    assert (kept.images, kept.labels) == (7, 14)
    table = model.zero_shot(GREY, prompts=PAIRS)
    np.testing.assert_allclose(table.probabilities, probabilities_of(scores, False, kept.temperature), atol=1e-6)
    assert table.calibrated
    assert f"temperature {kept.temperature:.4g}, fitted on 7 labelled images" in table.how
    assert not model.zero_shot(GREY, prompts=PAIRS, protocol="chexzero").calibrated
    assert not model.zero_shot(GREY, findings=list(PAIRS)).calibrated
    state = {"state_dict": model.module.state_dict(), "epoch": 0}
    stored = {"config": CONFIG, "head": "local_pooling", "image_size": 32}
    torch.save({**state, "diptych": stored}, run / "checkpoints" / "best.ckpt")
    again = diptych.load(run)
    assert list(again.calibrations.values()) == [kept]
    assert not diptych.load(run / "checkpoints" / "best.ckpt").calibrations
    content = json.loads((run / "calibration.json").read_text())
    for change, message in (({"of": 3}, "no calibration"), ({"of": [{"temperature": 1}]}, "is no calibration")):
        (run / "calibration.json").write_text(json.dumps(content | change))
        with pytest.raises(ConfigError, match=message):
            diptych.load(run)
    (run / "calibration.json").write_text(json.dumps(content | {"weights": "0" * 16}))
    with pytest.warns(UserWarning, match="of other weights, so probabilities are uncalibrated"):
        assert not diptych.load(run).calibrations


@pytest.mark.parametrize("labels", [3, [[1, 0, 1]], {"Effusion": [1] * 7}, {"Effusion": [1], "Nodule": [0]}, ["x"] * 7])
def test_labels_of_another_form_are_refused(labels):
    with pytest.raises(ConfigError, match="calibrate: labels are"):
        label_array(labels, list(PAIRS), 7, classes=False)


def test_a_hash_of_weights_is_of_every_weight(model):
    other = copy.deepcopy(model.module)
    assert weights_hash(other) == weights_hash(model.module)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert weights_hash(other) != weights_hash(model.module)


# -- reports and pictures


def test_reports_come_in_the_order_of_the_whole_score(model):
    reports = ["a nodule", "no nodule is seen", "a small left effusion", "a nodule"]
    scores = model.similarity(GREY[0], reports)[0].tolist()
    found = model.retrieve(GREY[0], reports, k=9)
    assert [one.place for one in found] == sorted(range(4), key=lambda i: (-scores[i], i))
    assert [one.rank for one in found] == [1, 2, 3, 4]
    for one in found:
        assert one.report == reports[one.place]
        assert one.score == pytest.approx(scores[one.place], abs=1e-6)
    assert model.retrieve(GREY[0], reports, k=2) == found[:2]
    with pytest.raises(ConfigError, match="retrieve takes one picture, and here are 7"):
        model.retrieve(GREY, reports)
    with pytest.raises(ConfigError, match="no reports to choose from"):
        model.retrieve(GREY[0], [])


def test_a_map_is_a_picture_that_a_notebook_shows(model, tmp_path):
    sheet = model.show(GREY[0], "a small left effusion")
    shown = Image.open(io.BytesIO(sheet._repr_png_()))
    assert shown.format == "PNG"
    assert not list(tmp_path.iterdir())
    sheet.save(tmp_path / "one.png")
    model.show(GREY[0], "a small left effusion", tmp_path / "two.png")
    assert np.array_equal(np.asarray(shown), np.asarray(Image.open(tmp_path / "one.png")))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


# -- inputs


def dicom():
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.dataset.FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns = GREY[0].shape
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.SamplesPerPixel, data.PixelRepresentation, data.PhotometricInterpretation = 1, 0, "MONOCHROME1"
    data.PixelData = (GREY[0].astype(np.uint16) * 16).tobytes()
    return data


def test_files_in_memory_are_read_as_files(tmp_path):
    data = dicom()
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    wanted = grey_picture(tmp_path / "a.dcm", "x")
    bare = pydicom.Dataset()
    for element in data:
        bare.add(element)
    raw = (tmp_path / "a.dcm").read_bytes()
    for value in (raw, bytearray(raw), memoryview(raw), data, pydicom.dcmread(tmp_path / "a.dcm"), bare):
        np.testing.assert_array_equal(grey_picture(value, "x"), wanted)
    with pytest.raises(DiptychError, match=r"pictures\[1\]"):
        grey_picture(b"not a picture", "pictures[1]")


def test_files_in_memory_are_pictures_of_a_model(model, tmp_path):
    Image.fromarray(GREY[1]).save(tmp_path / "a.png")
    wanted = model.encode_image(GREY[1]).pooled
    with (tmp_path / "a.png").open("rb") as file:
        for value in (file, (tmp_path / "a.png").read_bytes(), [tmp_path / "a.png"]):
            torch.testing.assert_close(model.encode_image(value).pooled, wanted)
    assert model.encode_image([dicom(), tmp_path / "a.png"]).pooled.shape[0] == 2


def test_preprocess_gives_what_the_tower_takes_and_the_model_takes_it_as_it_is(model):
    one, many = model.preprocess(GREY[0]), model.preprocess(GREY)
    assert (one.shape, one.dtype, many.shape) == ((1, 32, 32), torch.uint8, (7, 1, 32, 32))
    assert model.preprocess([GREY[0]]).shape == (1, 1, 32, 32)
    assert model.preprocess([]).shape == (0, 1, 32, 32)
    assert torch.equal(torch.stack([model.preprocess(grey) for grey in GREY]), many)
    cut = TrainedModel(model.module, 32, intensity=Intensity((10, 90)))
    assert not torch.equal(cut.preprocess(GREY), many)
    for reader in (model, cut):
        expected = reader.encode_image(GREY)
        for given in (reader.preprocess(GREY), torch.stack([reader.preprocess(grey) for grey in GREY])):
            torch.testing.assert_close(reader.encode_image(given).pooled, expected.pooled)
        single = reader.encode_image(reader.preprocess(GREY[0])).pooled
        torch.testing.assert_close(single, expected.pooled[:1], atol=1e-5, rtol=0)
    table = cut.zero_shot(cut.preprocess(GREY), findings="Nodule")
    np.testing.assert_allclose(table.scores, cut.zero_shot(GREY, findings="Nodule").scores, atol=1e-6)


def test_the_range_of_values_can_be_said(model):
    for value, span in (
        (GREY / 255.0, (0, 1)),
        (GREY.astype(np.uint16) * 16, (0, 4080)),
        (torch.from_numpy(GREY) / 255, (0, 1)),
    ):
        assert torch.equal(model.preprocess(value, value_range=span), model.preprocess(GREY))
    for value, span, message in (
        (GREY, (1, 1), "higher one of white"),
        (b"x", (0, 1), "value_range is for arrays"),
        (np.full((9, 9), np.nan), (0, 1), "not finite"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.preprocess(value, value_range=span)


# -- what users of other libraries type


def test_the_habits_of_open_clip_work(model):
    image, text = torch.stack([model.preprocess(grey) for grey in GREY[:2]]), model.tokenizer(["a nodule", "no nodule"])
    images, texts = model.eval().encode_image(image), model.encode_text(text)
    torch.testing.assert_close(texts.pooled, model.encode_text(["a nodule", "no nodule"]).pooled)
    torch.testing.assert_close(model(image, text), model.similarity(GREY[:2], ["a nodule", "no nodule"]))
    assert model.to("cpu") is model
    with pytest.raises(AttributeError, match=r"\.pooled, of length 1"):
        images.norm(dim=-1, keepdim=True)
    with pytest.raises(TypeError, match=r"a\.pooled @ b\.pooled\.T"):
        images @ texts.pooled.T
    with pytest.raises(AttributeError, match=r"has no 'nonsense'$"):
        _ = images.nonsense
    with pytest.raises(ConfigError, match="device 'cuda:77' cannot be used here"):
        model.to("cuda:77")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cuda", r'model\.to\("cuda"\)'),
        ("train", "it never trains"),
        ("logit_scale", r"model\.similarity"),
        ("predict", r"model\.zero_shot"),
        ("get_image_features", r"model\.encode_image\(images\)\.pooled"),
        ("state_dict", r"model\.module"),
        ("encode_images", "it has encode_image"),
    ],
)
def test_other_names_say_the_right_one(model, name, says):
    with pytest.raises(AttributeError, match=says):
        getattr(model, name)
