"""Detection on feature pyramids: places and boxes, whole runs, pictures, two processes."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from detection_twins import by_mgca, by_pycocotools, slow_challenge
from inprocess import diptych, fit_and_test, results_of
from mini import DDP, IMAGE, SHIPPED, write_pairs, write_recipe
from PIL import Image
from pyramids import CONVNEXT, VIT, radiographs, tower

from diptych.data.loading import Loading
from diptych.errors import ConfigError
from diptych.model.checkpoint import read_checkpoint
from diptych.results.drawing import draw_boxes
from diptych.tasks.detect import Detect, Detector, clip_boxes, squares
from diptych_datamodules.phantoms.layouts.write import write_layout
from diptych_datamodules.rsna import Rsna

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = {
    f"{name}/{of}" for name in ("ap", "ap50", "ap75", "ap40-75", "mgca/ap40-75") for of in ("macro", "Lung Opacity")
}
NAMES |= {"challenge", "false_alarms", "missed"}


def test_boxes_are_cut_to_the_picture_and_those_of_no_area_left_out():
    boxes = [
        [2, 3, 9, 8, 0],
        [-5, 4, 6, 90, 1],
        [4, 4, 4, 9, 0],
        [30, 2, 40, 9, 2],
        [6, 7, 6.5, 30, 1],
        [9, 9, 2, 3, 0],
    ]
    tensor = torch.tensor(boxes, dtype=torch.float32)
    assert clip_boxes(tensor, (20, 30)).tolist() == [[2, 3, 9, 8, 0], [0, 4, 6, 20, 1], [6, 7, 6.5, 20, 1]]
    assert clip_boxes(tensor, (20, 30), least=1.0).tolist() == [[2, 3, 9, 8, 0], [0, 4, 6, 20, 1]]
    assert clip_boxes(tensor[:0], (20, 30)).shape == (0, 5)


def test_places_are_the_middles_of_the_cells_whatever_the_size():
    boxes = squares((3, 4), (50, 100), 8)
    assert boxes.shape == (12, 4)
    for row in range(3):
        for column in range(4):
            y, x = (row + 0.5) * 50 / 3, (column + 0.5) * 100 / 4
            expected = [x - 4, y - 4, x + 4, y + 4]
            np.testing.assert_allclose(boxes[row * 4 + column].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [("resnet10t", None, (33, 50)), ("vit_tiny_patch16_224", VIT, (32, 48)), ("convnext_atto", CONVNEXT, (64, 64))],
)
def test_towers_of_every_kind_carry_a_detector(name, args, size):
    image = tower(name, args)
    detector = Detector(image.pyramid_widths, 3, 32)
    detector.fcos.score_thresh = 0.0  # all that the head says, untrained as it is
    levels = image.eval().pyramid(radiographs(*size))
    detections = detector(levels, size)
    assert detections.finite.all()
    high = torch.tensor([size[1], size[0]] * 2)
    for boxes in detections.boxes:
        assert 0 < len(boxes) <= 100
        assert ((boxes[:, :4] >= 0) & (boxes[:, :4] <= high)).all()
        assert set(boxes[:, 4].tolist()) <= {0.0, 1.0, 2.0}
        assert (boxes[:, 5].diff() <= 0).all()
    truth = [torch.tensor([[3.0, 4, 20, 30, 2]]), torch.zeros(0, 5)]
    losses = detector(levels, size, truth).losses
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    broken = [level.clone() for level in levels]
    broken[3][1] = torch.nan
    assert detector(broken, size).finite.tolist() == [True, False]


@pytest.mark.parametrize("there", [True, False])
def test_every_parameter_has_a_gradient_even_where_no_image_has_a_box(there):
    """DDP waits for all of them."""
    detector = Detector([8, 8, 16, 16], 2, 32)
    levels = [torch.rand(2, c, 32 // s, 32 // s) for c, s in ((8, 4), (8, 8), (16, 16), (16, 32))]
    truth = [torch.tensor([[3.0, 4, 20, 30, 1]]) if there else torch.zeros(0, 5), torch.zeros(0, 5)]
    sum(detector(levels, (32, 32), truth).losses.values()).backward()
    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []


def test_the_order_of_findings_is_that_of_the_boxes():
    """A head that says finding 1 everywhere, sides of 1.5 strides."""
    detector = Detector([8, 8, 8, 8], 3, 32).eval()
    head = detector.fcos.head
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.classification_head.cls_logits.bias[:] = torch.tensor([-9.0, 9.0, -9.0])
        head.regression_head.bbox_reg.bias[:] = 1.5
        head.regression_head.bbox_ctrness.bias[:] = 9.0
    boxes = detector([torch.rand(1, 8, n, n) for n in (16, 8, 4, 2)], (64, 64)).boxes[0]
    assert (boxes[:, 4] == 1).all()
    assert (boxes[:, 5] > 0.99).all()
    middle = boxes[(boxes[:, :4] == torch.tensor([8.0, 8, 20, 20])).all(1)]  # 14 and 14, plus and minus 6
    assert len(middle) == 1


def set_data(monkeypatch, *findings, size=64):
    """As if a trainer had such data."""
    data = SimpleNamespace(loading=Loading(image_size=size), findings=findings, protocol="some data")
    monkeypatch.setattr(Detect, "data", data)


def test_a_frozen_tower_stays_as_it_is(monkeypatch):
    task = Detect(tower(frozen=True), width=32)
    set_data(monkeypatch, "a", "b")
    task.configure_model()
    task.train()
    before = {key: value.clone() for key, value in task.image.state_dict().items() if isinstance(value, torch.Tensor)}
    sum(task(radiographs(32, 32), [torch.tensor([[3.0, 4, 20, 30, 1]])] * 2).losses.values()).backward()
    assert not any(module.training for module in task.image.backbone.modules())
    for key, value in before.items():
        assert torch.equal(value, task.image.state_dict()[key]), key
    assert all(parameter.grad is not None for parameter in task.detector.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the tower alone is in half precision
        assert task.eval()(radiographs(32, 32)).boxes[0].dtype == torch.float32


def test_what_detect_cannot_take_it_says(monkeypatch):
    with pytest.raises(ConfigError, match="width is 48; give a multiple of 32"):
        Detect(tower(), width=48)
    with pytest.raises(ConfigError, match=r"threshold is 1\.5; give a number from 0 to 1, or null"):
        Detect(tower(), threshold=1.5)
    with pytest.raises(ConfigError, match="Detect: pictures is -1; give a whole number of 0 or more"):
        Detect(tower(), pictures=-1)
    set_data(monkeypatch, "a", size=32)
    with pytest.raises(ConfigError, match=r"loading\.image_size is 32; give more than 32"):
        Detect(tower()).configure_model()
    set_data(monkeypatch)
    with pytest.raises(ConfigError, match="some data has no labels"):
        Detect(tower()).configure_model()


def test_pictures_show_boxes_where_they_are():
    grey = np.full((64, 64), 90, np.uint8)
    boxes = {"truth": np.array([[8.0, 16, 40, 48, 1]]), "prediction": np.array([[0.0, 0, 64, 64, 0, 0.87]])}
    sheet = np.array(draw_boxes(grey, boxes), dtype=int)
    assert sheet.shape == (24 + 256, 3 * 256, 3)
    coloured = sheet.std(axis=2) > 5
    assert not coloured[24:, :256].any()
    rows, columns = np.nonzero(coloured[24:, 256:512])
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (32, 64, 159, 191)
    rows, columns = np.nonzero(coloured[24:, 512:])
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (0, 0, 255, 255)
    named = np.array(draw_boxes(grey, boxes, ["a", "b"]), dtype=int)
    assert set(np.nonzero((named != sheet).any(axis=(1, 2)))[0] - 24) <= {*range(2, 16), *range(48, 64)}  # words alone


def test_a_box_narrower_than_a_pixel_is_drawn():
    boxes = {"prediction": np.array([[5.0, 5, 5.01, 9, 0, 0.5], [64, 5, 64, 9, 0, 0.5]])}
    assert np.array(draw_boxes(np.full((300, 300), 90, np.uint8), boxes)).std(axis=2).any()


def write_boxes(folder, n=60, size=64):
    """The RSNA layout: pictures with a bright rectangle or two, or none."""
    rng = np.random.default_rng(0)
    (folder / "stage_2_train_images").mkdir(parents=True)
    with (
        (folder / "stage_2_train_labels.csv").open("w") as labels,
        (folder / "stage_2_detailed_class_info.csv").open("w") as classes,
    ):
        labels.write("patientId,x,y,width,height,Target\n")
        classes.write("patientId,class\n")
        for i in range(n):
            picture, number = rng.integers(0, 90, (size, size)).astype(np.uint8), (1, 1, 2, 0)[i % 4]
            for left in (0, 32)[:number]:
                y, x, h, w = rng.integers((2, 1, 16, 12), (24, 9, 34, 22))
                picture[y : y + h, left + x : left + x + w] += 150
                box = [16 * int(v) for v in (left + x, y, w, h)]  # in the release's 1024 pixels
                labels.write(f"p{i:02d},{','.join(map(str, box))},1\n")
            if not number:
                labels.write(f"p{i:02d},,,,,0\n")
            classes.write(f"p{i:02d},{'Lung Opacity' if number else 'Normal'}\n")
            Image.fromarray(picture).save(folder / "stage_2_train_images" / f"p{i:02d}.png")
    return folder


def recipe(folder, root, name, *, data=None, **trainer):
    """A YAML of the smallest tower with a detector."""
    loading = {"image_size": 64, "eval_batch_size": 4, "batch_size": 6, "workers": 0, "augment": None}
    options = {"image": {"class_path": "TimmImage", "init_args": IMAGE}, "width": 32, "lr": 1e-2, "pictures": 3}
    data = data or ("rsna", {"root": str(root), "labels": "classes", "loading": loading})
    return write_recipe(folder / f"{name}.yaml", ("Detect", {**options, "resamples": 50}), data, **trainer)


@pytest.fixture(scope="module")
def detected(tmp_path_factory):
    """A run that was fitted and tested."""
    folder = tmp_path_factory.mktemp("detect")
    root = write_boxes(folder / "boxes")
    file, run = recipe(folder, root, "tuned", max_epochs=12), folder / "run"
    fit_and_test(file, run)
    return folder, root, run


def test_a_run_finds_the_rectangles_and_says_how_it_was_measured(detected):
    result = results_of(detected[2])
    metrics, protocol = result["metrics"], result["protocol"]["detect"]
    assert set(metrics) == {f"test/detect/{name}" for name in NAMES}
    assert metrics["test/detect/ap50/macro"]["value"] > 0.8
    assert metrics["test/detect/ap/macro"] == metrics["test/detect/ap/Lung Opacity"]  # absent findings do not count
    assert protocol["absent"] == ["Normal", "No Lung Opacity / Not Normal"]
    assert protocol["boxes"]["Normal"] == 0
    assert metrics["test/detect/false_alarms"]["n"] == protocol["without a box"] > 0
    assert metrics["test/detect/missed"]["n"] == protocol["boxes"]["Lung Opacity"]
    assert protocol["tower"] == "trained along"
    assert protocol["threshold"] == "the highest challenge on val"
    assert 0.05 <= protocol["thresholds"]["challenge"] <= 0.99
    config = yaml.safe_load((detected[2] / "config.yaml").read_text())
    assert config["checkpoint"]["monitor"] == config["early_stopping"]["monitor"] == "val/detect/ap40-75/macro"
    table = diptych("table", str(detected[2]))
    assert table.returncode == 0, table.stderr
    header = next(line for line in table.stdout.splitlines() if line.startswith("| run"))
    columns = ["ap/macro", "ap50/macro", "ap75/macro", "ap40-75/macro", "mgca/ap40-75/macro"]
    columns += ["challenge", "false_alarms", "missed"]
    assert header.replace("|", " ").split() == ["run", *columns]


def test_the_figures_are_those_of_its_parts_by_hand(detected, monkeypatch):
    _, root, run = detected
    checkpoint = read_checkpoint(run / "checkpoints" / "best.ckpt")
    set_data(monkeypatch, "a", "b", "c")
    task = Detect(tower(frozen=True), width=32)
    task.configure_model()
    task.load_state_dict(checkpoint["state_dict"])
    data = Rsna(str(root), labels="classes")
    data.setup("test")
    rows = list(csv.DictReader((root / "stage_2_train_labels.csv").open()))
    predicted, truth = [], []
    for name in data.datasets["test"].ids:
        picture = np.array(Image.open(root / "stage_2_train_images" / f"{name}.png"))
        with torch.no_grad():
            predicted.append(task.eval()(torch.from_numpy(picture)[None, None]).boxes[0].double().numpy())
        mine = [
            [float(row[key]) / 16 for key in ("x", "y", "width", "height")]
            for row in rows
            if row["patientId"] == name and row["x"]
        ]
        truth.append(np.array([[x, y, x + w, y + h, 2] for x, y, w, h in mine]).reshape(-1, 5))
    values = {name.removeprefix("test/detect/"): value["value"] for name, value in results_of(run)["metrics"].items()}
    ious = np.arange(8, 20) / 20
    precision = by_pycocotools(predicted, truth, 3, ious)[:, 2]
    assert values["ap40-75/macro"] == pytest.approx(precision[:8].mean(), abs=1e-6)
    assert values["ap/macro"] == pytest.approx(precision[2:].mean(), abs=1e-6)
    assert (values["ap50/macro"], values["ap75/macro"]) == pytest.approx((precision[2], precision[7]), abs=1e-6)
    assert values["mgca/ap40-75/macro"] == pytest.approx(by_mgca(predicted, truth), abs=1e-6)
    threshold = round(float(task.chosen), 2)
    scores = [slow_challenge(shown, real, threshold) for shown, real in zip(predicted, truth, strict=True)]
    assert values["challenge"] == pytest.approx(np.mean([score for score in scores if score is not None]), abs=1e-6)
    alarms = [
        bool((shown[:, 5] >= threshold).any()) for shown, real in zip(predicted, truth, strict=True) if not len(real)
    ]
    assert values["false_alarms"] == pytest.approx(np.mean(alarms), abs=1e-6)
    assert sorted(path.name for path in (run / "figures").iterdir()) == [f"detection{i:03d}.png" for i in range(3)]


def test_a_diverged_model_has_no_figures_and_a_threshold_is_needed(detected):
    folder, _, run = detected
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    bad = folder / "bad.ckpt"
    options = ("test", "-c", str(run / "config.yaml"), "--run", str(folder / "bad"), "--ckpt_path", str(bad))
    state = checkpoint["state_dict"]
    chosen, state["chosen"] = state["chosen"], torch.tensor(math.nan)
    torch.save(checkpoint, bad)
    done = diptych(*options)
    assert done.returncode == 2
    assert "chose no threshold on val; give one as --model.threshold" in done.stderr
    state["detector.fcos.head.classification_head.cls_logits.bias"][0] = torch.inf
    torch.save(checkpoint, bad)
    done = diptych(*options, "--model.threshold", "0.5")
    assert done.returncode == 0, done.stderr
    metrics = results_of(folder / "bad")["metrics"]
    assert set(metrics) == {f"test/detect/{name}" for name in NAMES}
    assert all(value["value"] is None or math.isnan(value["value"]) for value in metrics.values()), metrics
    assert chosen.isfinite()


def test_what_the_data_lack_is_said(tmp_path):
    columns = {"patient": "patient", "split": "split", "labels": ["Effusion", "Nodule"]}
    loading = {"image_size": 64, "batch_size": 4, "workers": 0}
    table = {"table": str(write_pairs(tmp_path / "pairs")), "columns": columns, "loading": loading}
    file = recipe(tmp_path, None, "none", data=("tabular", table), max_epochs=1)
    done = diptych("fit", "-c", file, "--run", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "gives no boxes; choose data that have some" in done.stderr


@pytest.mark.slow
def test_two_processes_detect_as_one(detected, gloo2):
    """9 images of the test in batches of 4, on two processes; some have no box, some two."""
    from jobs import two_give

    folder, root, run = detected
    file = recipe(folder, root, "two", strategy=DDP)
    best = str(run / "checkpoints" / "best.ckpt")
    two_give(gloo2, results_of(run)["metrics"], file, folder / "two", "--ckpt_path", best)
    assert len(list((folder / "two" / "figures").iterdir())) == 3


@pytest.mark.slow
def test_two_processes_train_a_vit(detected, gloo2):
    from jobs import on_two

    folder, root, _ = detected
    file = recipe(folder, root, "vit", strategy=DDP, max_epochs=1)
    args = {**VIT, "depth": 4, "class_token": False, "global_pool": "avg"}
    of = ["--model.image.name", "vit_tiny_patch16_224", "--model.image.model_args", json.dumps(args)]
    on_two(gloo2, "fit", "-c", file, *of, "--run", str(folder / "vit"))


@pytest.mark.real
def test_real_radiographs_in_the_release_s_layout(shared_data, tmp_path):
    """24 of them: that it runs, not how well."""
    options = ["--data.root", str(shared_data / "rsna_like"), "--trainer.max_epochs", "2"]
    options += ["--data.loading.batch_size", "7"]
    metrics = fit_and_test(SHIPPED / "phantom/rsna_detection.yaml", tmp_path / "run", *options)["metrics"]
    assert metrics["test/detect/missed"]["n"] > 0
    assert 0 <= metrics["test/detect/ap50/macro"]["value"] <= 1
    assert len(list((tmp_path / "run" / "figures").iterdir())) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_boxes_of_phantoms_are_found(tmp_path):
    """In the layout of RSNA; docs/downstream.md has the figures of the whole recipes."""
    root = write_layout("rsna", 300, tmp_path / "rsna", size=96)
    options = ["--data.root", str(root), "--data.loading.batch_size", "8", "--model.width", "32"]
    options += ["--trainer.max_epochs", "7"]
    metrics = fit_and_test(SHIPPED / "phantom/rsna_detection.yaml", tmp_path / "run", *options)["metrics"]
    assert metrics["test/detect/ap50/macro"]["value"] >= 0.6
