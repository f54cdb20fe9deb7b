"""Pictures and tables of figures in each logger that takes them. W&B and MLflow are tried where they are installed."""

import json
import math
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from diptych.metrics.bootstrap import Metric
from diptych.training.loggers import log_figures, log_picture

FIGURES = {"test/retrieval/r@5": Metric(0.76, 0.7, 0.8125, 286), "test/auroc": Metric(0.9, math.nan, math.nan, 9)}
ROWS = ["| test/retrieval/r@5 | 0.760 | 0.700 | 0.812 | 286 |", "| test/auroc         | 0.900 | -     | -     | 9   |"]


def log_all(*loggers):
    trainer = SimpleNamespace(loggers=list(loggers), global_step=3)
    log_picture(trainer, Image.new("RGB", (3000, 40), (250, 0, 0)), "test/attention/0")
    log_figures(trainer, FIGURES, "results")
    for logger in loggers:
        logger.save()
        logger.finalize("success")


def test_tensorboard_has_the_picture_and_the_table_and_csv_is_left_alone(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_all(TensorBoardLogger(tmp_path, name="", version=""), CSVLogger(tmp_path / "csv"))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (picture,) = events.Images("test/attention/0")
    assert (picture.step, picture.width) == (3, 2048)
    (text,) = events.Tensors("results/text_summary")
    assert text.tensor_proto.string_val[0].decode().splitlines()[2:] == ROWS
    assert not list((tmp_path / "csv").rglob("*.png"))


def test_mlflow_has_the_picture_and_the_table_as_artifacts(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    log_all(MLFlowLogger(tracking_uri=f"file:{tmp_path}"))
    (picture,) = tmp_path.rglob("artifacts/test/attention/*.png")
    assert picture.name == "0-000003.png"
    with Image.open(picture) as found:
        assert found.size == (2048, 27)
    (table,) = tmp_path.rglob("artifacts/results.md")
    assert table.read_text().splitlines()[2:] == ROWS


def test_wandb_has_the_picture_and_the_table_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    log_all(logger)
    wandb.finish()
    (picture,) = tmp_path.rglob("files/media/images/test/attention/*.png")
    with Image.open(picture) as found:
        assert found.size == (2048, 27)
    (table,) = tmp_path.rglob("files/media/table/*.json")
    found = json.loads(table.read_text())
    assert found["columns"] == ["figure", "value", "low", "high", "n"]
    assert found["data"][0] == ["test/retrieval/r@5", 0.76, 0.7, 0.8125, 286]
