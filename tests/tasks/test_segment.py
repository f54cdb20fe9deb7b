"""Feature pyramids, and segmentation on them: equations, whole runs, pictures, two processes."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from inprocess import diptych, fit_and_test, results_of
from mini import DDP, IMAGE, SHIPPED, write_masks, write_recipe
from PIL import Image
from pyramids import CONVNEXT, VIT, radiographs, tower
from sklearn.metrics import f1_score, jaccard_score

from diptych.data.loading import Loading
from diptych.errors import ConfigError, DataError
from diptych.model.checkpoint import read_checkpoint
from diptych.radiographs.read import read_mask
from diptych.tasks.segment import Segment, dice_loss, focal_loss, overlaps
from diptych.towers.image import STRIDES, ImageTower, pyramid_indices
from diptych_datamodules.label_matched import LabelMatched
from diptych_datamodules.phantom import Phantom
from diptych_datamodules.phantoms import render
from diptych_datamodules.tabular import Columns, Tabular

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("reductions", "chosen"),
    [
        ([2, 4, 8, 16, 32], [1, 2, 3, 4]),  # ResNet
        ([4, 8, 16, 32], [0, 1, 2, 3]),  # ConvNeXt, Swin
        ([2, 4, 8, 16, 16], [1, 2, 4, 4]),  # output_stride 16
        ([16] * 12, [2, 5, 8, 11]),  # ViT
        ([14], [0, 0, 0, 0]),
    ],
)
def test_which_maps_make_a_pyramid(reductions, chosen):
    assert pyramid_indices(reductions) == chosen


@pytest.mark.parametrize(
    ("name", "args", "sizes"),
    [
        ("resnet10t", None, [(64, 64), (65, 97), (40, 33)]),
        ("convnext_atto", CONVNEXT, [(64, 64), (66, 97)]),
        ("vit_tiny_patch16_224", VIT, [(64, 64), (48, 80)]),
        ("vit_small_patch14_dinov2", VIT, [(56, 70)]),
        ("resnet10t", {**IMAGE["model_args"], "output_stride": 16}, [(64, 64)]),
    ],
)
def test_a_pyramid_has_its_sizes_whatever_the_input(name, args, sizes):
    model = tower(name, args).eval()
    for height, width in sizes:
        with torch.no_grad():
            levels = model.pyramid(radiographs(height, width))
        assert [tuple(level.shape) for level in levels] == [
            (2, c, -(-height // s), -(-width // s)) for c, s in zip(model.pyramid_widths, STRIDES, strict=True)
        ]


def test_the_levels_are_timms_own_maps():
    model = tower().eval()
    image = radiographs(64, 96)
    features = timm.create_model(
        "resnet10t", features_only=True, out_indices=(1, 2, 3, 4), in_chans=1, pretrained=False, **IMAGE["model_args"]
    ).eval()
    features.load_state_dict(model.backbone.state_dict(), strict=False)
    with torch.no_grad():
        expected = features(model(image).pixels)
        for level, other in zip(model.pyramid(image), expected, strict=True):
            torch.testing.assert_close(level, other)


def test_the_last_level_of_a_vit_holds_its_regions():
    model = tower("vit_tiny_patch16_224", VIT).eval()
    image = radiographs(64, 64)
    with torch.no_grad():
        regions = model(image).tokens.transpose(1, 2).view(2, 32, 4, 4)
        levels = model.pyramid(image)
    torch.testing.assert_close(levels[3], torch.nn.functional.avg_pool2d(regions, 2))  # 16 to 32
    middle = model.backbone.forward_intermediates(model(image).pixels, indices=[5], norm=True, intermediates_only=True)
    torch.testing.assert_close(levels[2], middle[0])  # its own stride: as it is


def test_a_tower_without_a_pyramid_and_a_size_it_does_not_take_are_named():
    class Flat(ImageTower):
        def forward(self, image): ...
        def layer_of(self, name): ...

    with pytest.raises(ConfigError, match="Flat has no feature pyramid; choose another"):
        Flat().pyramid(radiographs(32, 32))
    with pytest.raises(ConfigError, match="cannot take images of 50x64, 2 at a time"):
        tower("vit_tiny_patch16_224", VIT).pyramid(radiographs(50, 64))


def test_the_losses_pixel_by_pixel():
    rng = np.random.default_rng(0)
    logits, truth = torch.from_numpy(rng.normal(size=(2, 3, 4))), torch.from_numpy(rng.random((2, 3, 4)) < 0.3).double()
    for gamma in (0.0, 1.5, 2.0):
        total = 0.0
        for x, t in zip(logits.flatten().tolist(), truth.flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-x))
            there = p if t else 1 - p
            total -= (1 - there) ** gamma * math.log(there)
        assert float(focal_loss(logits, truth, gamma)) == pytest.approx(total / 24, rel=1e-12)
    shown = [1 / (1 + math.exp(-x)) for x in logits.flatten().tolist()]
    both = sum(p * t for p, t in zip(shown, truth.flatten().tolist(), strict=True))
    expected = 1 - (2 * both + 0.5) / (sum(shown) + float(truth.sum()) + 0.5)
    assert float(dice_loss(logits, truth, smooth=0.5)) == pytest.approx(expected, rel=1e-12)


def test_a_perfect_prediction_costs_nothing():
    truth = torch.zeros(1, 8, 8)
    truth[:, 2:5, 3:6] = 1
    sure = (2 * truth - 1) * 50
    assert float(focal_loss(sure, truth)) < 1e-6
    assert float(dice_loss(sure, truth)) < 1e-6
    assert float(dice_loss(-50 * torch.ones(1, 8, 8), torch.zeros(1, 8, 8))) < 1e-6  # nothing there, nothing seen
    assert float(dice_loss(-sure, truth)) > 0.9


def test_overlaps_are_those_of_scikit_learn_and_of_empty_masks():
    rng = np.random.default_rng(1)
    truth, predicted = rng.random((12, 6, 7)) < 0.4, rng.random((12, 6, 7)) < 0.5
    truth[0], predicted[1], truth[2], predicted[2] = False, False, False, False
    counts = np.stack([(predicted & truth).sum((1, 2)), predicted.sum((1, 2)), truth.sum((1, 2))], 1).astype(float)
    dice, iou = overlaps(counts)
    for i in range(12):
        empty = not truth[i].any() and not predicted[i].any()
        pair = truth[i].ravel(), predicted[i].ravel()
        assert dice[i] == pytest.approx(1.0 if empty else f1_score(*pair), abs=1e-12)
        assert iou[i] == pytest.approx(1.0 if empty else jaccard_score(*pair), abs=1e-12)
    assert (dice[:3].tolist(), iou[:3].tolist()) == ([0, 0, 1], [0, 0, 1])
    np.testing.assert_allclose(iou, dice / (2 - dice))
    broken = overlaps(np.array([[np.nan, np.nan, 0.0], [np.nan, np.nan, 5.0]]))
    assert np.isnan(broken).all()  # a diverged model has none, not even on an empty mask


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [("resnet10t", None, (33, 50)), ("vit_tiny_patch16_224", VIT, (32, 48)), ("convnext_atto", CONVNEXT, (64, 64))],
)
def test_logits_have_the_size_of_the_image(name, args, size):
    task = Segment(tower(name, args), widths=[16, 8, 8, 8]).eval()
    with torch.no_grad():
        logits = task(radiographs(*size))
    assert logits.shape == (2, *size)
    assert logits.isfinite().all()


def test_a_frozen_tower_stays_as_it_is():
    task = Segment(tower(frozen=True), widths=[16, 8, 8, 8]).train()
    before = {key: value.clone() for key, value in task.image.state_dict().items() if isinstance(value, torch.Tensor)}
    task(radiographs(32, 32)).sum().backward()
    assert not any(module.training for module in task.image.backbone.modules())
    assert task.unet.training
    for key, value in before.items():
        assert torch.equal(value, task.image.state_dict()[key]), key
    assert all(parameter.grad is not None for parameter in task.unet.parameters())


def test_only_what_the_pyramid_uses_is_trained(monkeypatch):
    args = {**VIT, "depth": 4, "class_token": False, "global_pool": "avg"}
    task = Segment(tower("vit_tiny_patch16_224", args), widths=[16, 8, 8, 8])
    monkeypatch.setattr(Segment, "data", SimpleNamespace(loading=Loading(image_size=32)))
    task.train().configure_model()
    assert task.image.training
    task(radiographs(32, 32)).sum().backward()
    for name, parameter in task.named_parameters():
        assert parameter.requires_grad == ("fc_norm" not in name), name
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_what_segment_cannot_take_it_says():
    with pytest.raises(ConfigError, match=r"widths is \[8, 8\]; give 4 positive numbers"):
        Segment(tower(), widths=[8, 8])
    with pytest.raises(ConfigError, match="pictures is -1; give a whole number of 0 or more"):
        Segment(tower(), pictures=-1)
    with pytest.raises(ConfigError, match=r"image_columns.mask is 'm': label_matched reads no masks; use tabular"):
        LabelMatched("a", "b", [], image_columns=Columns(mask="m"))


def recipe(folder, table, name, *, columns=None, frozen=False, **trainer):
    """A YAML of a U-Net on the smallest tower."""
    columns = columns or {"mask": "mask", "patient": "patient", "split": "split", "text": []}
    loading = {"image_size": 32, "eval_batch_size": 4, "batch_size": 5, "workers": 0, "augment": None}
    image = {"class_path": "TimmImage", "init_args": {**IMAGE, "frozen": frozen, "layer_decay": 0.9}}
    options = {"image": image, "widths": [16, 16, 8, 8], "lr": 1e-2, "pictures": 3, "resamples": 50}
    data = {"table": str(table), "columns": columns, "loading": loading}
    return write_recipe(folder / f"{name}.yaml", ("Segment", options), ("tabular", data), **trainer)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """A run that was fitted and tested."""
    folder = tmp_path_factory.mktemp("segment")
    table = write_masks(folder / "masks")
    file, run = recipe(folder, table, "tuned", max_epochs=16), folder / "run"
    fit_and_test(file, run)
    return folder, table, run


def test_a_run_finds_the_rectangles_and_says_how_it_was_measured(segmented):
    result = results_of(segmented[2])
    metrics, protocol = result["metrics"], result["protocol"]["segment"]
    assert set(metrics) == {f"test/segment/{name}/{of}" for name in ("dice", "iou") for of in ("all", "positive")}
    assert metrics["test/segment/dice/positive"]["value"] > 0.8
    assert (metrics["test/segment/dice/all"]["n"], metrics["test/segment/dice/positive"]["n"]) == (
        11,
        protocol["positive"],
    )
    assert protocol["positive"] == sum(i % 4 > 0 for i in range(31, 42))
    assert protocol["threshold"] == "probability above 0.5, fixed"
    assert protocol["tower"] == "trained along"
    config = yaml.safe_load((segmented[2] / "config.yaml").read_text())
    assert config["checkpoint"]["monitor"] == config["early_stopping"]["monitor"] == "val/segment/dice/positive"


def test_the_figures_are_those_of_its_parts_by_hand(segmented):
    _, table, run = segmented
    checkpoint = read_checkpoint(run / "checkpoints" / "best.ckpt")
    task = Segment(tower(), widths=[16, 16, 8, 8]).eval()
    task.load_state_dict(checkpoint["state_dict"])
    rows = [row for row in csv.DictReader(table.open()) if row["split"] == "test"]
    dice, positive = [], []
    for row in rows:
        image = np.array(Image.open(table.parent / row["image"]))
        truth = np.array(Image.open(table.parent / row["mask"])) > 0
        with torch.no_grad():
            predicted = task(torch.from_numpy(image)[None, None])[0].sigmoid().numpy() > 0.5
        total = truth.sum() + predicted.sum()
        dice.append(2 * (truth & predicted).sum() / total if total else 1.0)
        positive.append(bool(truth.any()))
    metrics = results_of(run)["metrics"]
    assert metrics["test/segment/dice/all"]["value"] == pytest.approx(np.mean(dice), abs=1e-6)
    expected = np.mean([value for value, there in zip(dice, positive, strict=True) if there])
    assert metrics["test/segment/dice/positive"]["value"] == pytest.approx(expected, abs=1e-6)


def test_pictures_show_image_truth_and_prediction(segmented):
    _, table, run = segmented
    assert sorted(path.name for path in (run / "figures").iterdir()) == [f"segmentation{i:03d}.png" for i in range(3)]
    sheet = np.array(Image.open(run / "figures" / "segmentation000.png"), dtype=int)
    assert sheet.shape == (24 + 256, 3 * 256, 3)
    first = next(row for row in csv.DictReader(table.open()) if row["split"] == "test")
    truth = np.array(Image.open(table.parent / first["mask"])) > 0
    assert truth.any()
    panel = sheet[24:, 256:512]
    green = (panel[..., 1] - panel[..., 0] > 20)[4::8, 4::8]  # the middle of each enlarged pixel
    assert (green == truth).all()
    assert (sheet[24:, :256].std(axis=2) == 0).all()  # the radiograph stays grey


@pytest.mark.slow
def test_two_processes_segment_as_one(segmented, gloo2):
    """11 images of the test in batches of 4, on two processes."""
    from jobs import two_give

    folder, table, run = segmented
    file = recipe(folder, table, "two", strategy=DDP)
    best = str(run / "checkpoints" / "best.ckpt")
    two_give(gloo2, results_of(run)["metrics"], file, folder / "two", "--ckpt_path", best)
    assert len(list((folder / "two" / "figures").iterdir())) == 3


@pytest.mark.slow
def test_two_processes_train_a_tower_whose_pooled_norm_is_not_used(segmented, gloo2):
    from jobs import on_two

    folder, table, _ = segmented
    file = recipe(folder, table, "vit", strategy=DDP, max_epochs=1)
    args = {**VIT, "depth": 4, "class_token": False, "global_pool": "avg"}
    of = ["--model.image.name", "vit_tiny_patch16_224", "--model.image.model_args", json.dumps(args)]
    on_two(gloo2, "fit", "-c", file, *of, "--run", str(folder / "vit"))


def test_what_the_data_lack_is_said(segmented, tmp_path):
    folder, table, _ = segmented
    columns = {"patient": "patient", "split": "split", "text": []}
    file = recipe(folder, table, "none", columns=columns, max_epochs=1)
    done = diptych("fit", "-c", file, "--run", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "gives no masks; choose data that have some" in done.stderr
    rows = [row.replace("_mask", "") if i > 25 else row for i, row in enumerate(table.read_text().splitlines())]
    (table.parent / "strange.csv").write_text("\n".join(rows).replace("00_mask.png", "").replace("01_mask", "99"))
    data = Tabular(str(table.parent / "strange.csv"), columns=Columns(mask="mask", text=[], split="split"))
    data.setup("fit")
    assert [row[:2] for row in data.dropped.rows] == [("missing mask", "00.png"), ("missing mask", "01.png")]


def test_masks_of_other_sizes_and_kinds(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (40, 60)).astype(np.uint8)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 6:21] = 1
    Image.fromarray(picture).save(tmp_path / "a.png")
    palette = Image.new("P", (30, 20), 3)  # where 3 is black and 0 is not
    palette.putpalette([200, 0, 0, *[0] * 9])
    palette.paste(0, (6, 5, 21, 10))
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png"), mask > 0)
    for name, kind in (("grey", mask), ("rgb", np.stack([mask * 0, mask * 9, mask * 0], 2)), ("bit", mask > 0)):
        Image.fromarray(kind).save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), mask > 0)
    Image.fromarray(mask * 255).save(tmp_path / "lossy.jpg")
    with pytest.raises(DataError, match=r"a mask is a PNG file, and this is JPEG"):
        read_mask(tmp_path / "lossy.jpg")
    with pytest.raises(DataError, match="no such mask file"):
        read_mask(tmp_path / "none.png")
    Image.fromarray(mask[:, :20]).save(tmp_path / "narrow.png")
    (tmp_path / "table.csv").write_text("image,mask,id,split\na.png,grey.png,1,train\na.png,narrow.png,2,train\n")
    data = Tabular(str(tmp_path / "table.csv"), columns=Columns(mask="mask", text=[], id="id", split="split"))
    data.setup("fit")
    stored = data.native("train", 0).mask
    np.testing.assert_array_equal(stored, np.kron(mask, np.ones((2, 2))) > 0)
    with pytest.raises(DataError, match=r"narrow.png is 20x20, of other proportions than its image's 40x60"):
        data.native("train", 1)


@pytest.mark.parametrize("masks", ["lungs", "heart", "findings"])
def test_phantoms_give_masks_drawn_or_cached(masks, tmp_path):
    options = {"train": 3, "val": 1, "test": 1, "size": 48, "normal": 0.0, "masks": masks}
    rendered = Phantom(**options)
    rendered.setup("fit")
    cached = Phantom(**options, cache=str(tmp_path))
    cached.prepare_data()
    cached.setup("fit")
    for i, plan in enumerate(rendered.datasets["train"].plans):
        phantom = render(plan, 48)
        expected = {"heart": phantom.heart, "findings": phantom.masks.any(0)}
        expected["lungs"] = phantom.lungs["left"] | phantom.lungs["right"]
        for data in (rendered, cached):
            np.testing.assert_array_equal(data.native("train", i).mask, expected[masks])
            assert data.native("train", i).mask.any()
    assert masks in rendered.protocol


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("masks", "size", "phantoms", "epochs", "least"), [("lungs", 64, 256, 6, 0.95), ("findings", 64, 300, 8, 0.4)]
)
def test_phantoms_are_segmented(masks, size, phantoms, epochs, least, tmp_path):
    """docs/downstream.md has the figures of the whole recipe."""
    options = ["--data.masks", masks, "--data.size", size, "--data.loading.image_size", size, "--data.train", phantoms]
    options += ["--data.cache", tmp_path / "cache", "--trainer.max_epochs", epochs]
    metrics = fit_and_test(SHIPPED / "phantom/segmentation.yaml", tmp_path / "run", *map(str, options))["metrics"]
    assert metrics["test/segment/dice/positive"]["value"] >= least


@pytest.mark.real
@pytest.mark.slow
def test_lungs_of_other_patients_are_segmented(shared_data, tmp_path):
    """About a minute of one processor."""
    with (shared_data / "seg" / "masks.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["mask_class"] == "lungs" and row["view"] != "L"]
    with (tmp_path / "lungs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    options = ["--data.table", str(tmp_path / "lungs.csv"), "--data.root", str(shared_data / "seg")]
    metrics = fit_and_test(SHIPPED / "real/lungs.yaml", tmp_path / "run", *options)["metrics"]
    assert metrics["test/segment/dice/all"]["n"] == metrics["test/segment/dice/positive"]["n"] > 15
    assert metrics["test/segment/dice/all"]["value"] >= 0.90
