"""A head, a data set, a task, an evaluator and a command are each one file, here outside the project, which stays as it is."""

import json
import sys

import inprocess
import pytest
import yaml
from mini import IMAGE, ROOT, config, write_pairs, write_recipe

import diptych as package
from diptych import plugins
from diptych.plugins import COMMANDS, DATAMODULES, HEADS

OWN = ("own_head", "own_data", "own_task", "own_evaluator", "own_command")


def example(name: str) -> str:
    """The classes of a script of examples/, without the run at its end."""
    return (ROOT / "examples" / f"{name}.py").read_text().partition("\nparser = ")[0]


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Puts one file on the path, and where it is registered by an entry point a distribution beside it, as pip would."""

    def put(name, source, group=None, point=None):
        (tmp_path / f"{name}.py").write_text(source)
        if group is not None:
            info = tmp_path / f"{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[{group}]\n{point}\n")
        plugins.plugins.cache_clear()

    monkeypatch.syspath_prepend(str(tmp_path))
    yield put
    plugins.plugins.cache_clear()
    for name in OWN:
        sys.modules.pop(name, None)


def changed(tmp_path, **parts):
    """The smallest recipe with parts of its model or data replaced."""
    recipe = yaml.safe_load(config(write_pairs(tmp_path / "pairs"), epochs=1))
    for part, values in parts.items():
        recipe[part] = values if "class_path" in values else recipe[part] | values
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "run.yaml"


def test_a_head(add, tmp_path, one_thread):
    add("own_head", example("own_head"), HEADS, "margin = own_head:Margin")
    rows = {row["name"]: row for row in json.loads(inprocess.diptych("heads", "--json").stdout)}
    assert rows["margin"]["class"] == "own_head.Margin"
    results = inprocess.fit_and_test(
        changed(tmp_path), tmp_path / "run", "--model.head", "margin", "--model.head.margin", "0.3"
    )
    assert results["head"] == "Margin"
    assert results["metrics"]["test/retrieval/r@5"]["n"] == 4
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert package.load(best).module.head.margin == 0.3


def test_a_data_set(add, tmp_path, one_thread):
    add("own_data", example("own_data"), DATAMODULES, "squares = own_data:SquareData")
    loading = {"image_size": 32, "batch_size": 8, "workers": 0}
    data = {"class_path": "squares", "init_args": {"train": 32, "loading": loading}}
    results = inprocess.fit_and_test(changed(tmp_path, data=data), tmp_path / "run")
    assert results["data"] == "SquareData"
    assert results["metrics"]["test/retrieval/r@5"]["n"] == 16


TASK = '''
import torch
from torch import Tensor, nn

from diptych import Batch, ImageTower, Metric, TrainedTask
from diptych.evaluation.rows import Rows
from diptych.metrics import bootstrap


class Brightness(TrainedTask):
    """Predicts the mean grey value of a radiograph, 0 to 1."""

    monitor = "val/brightness/error"

    def __init__(self, image: ImageTower, *, lr: float = 1e-2, resamples: int = 50) -> None:
        super().__init__(image, lr=lr, weight_decay=0.0, warmup=0, lr_floor=0.01, resamples=resamples)
        self.linear = nn.Linear(image.width, 1)

    def configure_model(self) -> None:
        self.train_what_is_used(lambda image: [self.image(image).pooled])

    def errors(self, batch: Batch) -> Tensor:
        """``[B,1]``."""
        grey = batch.image.float().mean((1, 2, 3)) / 255
        return (self.linear(self.image(batch.image).pooled) - grey[:, None]).abs()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.errors(batch).mean()

    def begin(self) -> None:
        self.rows = Rows(self.device, 1)

    def collect(self, batch: Batch) -> None:
        self.rows.add(batch, self.errors(batch))

    def finish(self, stage: str, resamples: int) -> None:
        patients, (errors,) = self.rows.gather()
        weights = bootstrap.figure_and_bootstrap(patients.numpy(), resamples)
        means = weights @ errors.numpy()[:, 0] / weights.sum(1)
        self.results = {f"{stage}/brightness/error": Metric.of(means, len(patients))}
'''


def test_a_task(add, tmp_path, one_thread):
    add("own_task", TASK)
    table = write_pairs(tmp_path / "pairs")
    columns = {"patient": "patient", "split": "split"}
    loading = {"image_size": 32, "batch_size": 4, "workers": 0}
    data = ("tabular", {"table": str(table), "columns": columns, "tokenizer": None, "loading": loading})
    image = {"class_path": "TimmImage", "init_args": IMAGE}
    recipe = write_recipe(tmp_path / "task.yaml", ("own_task.Brightness", {"image": image}), data, max_epochs=2)
    results = inprocess.fit_and_test(recipe, tmp_path / "run")
    error = results["metrics"]["test/brightness/error"]
    assert error["n"] == 4
    assert 0 < error["low"] <= error["value"] <= error["high"] < 1


EVALUATOR = '''
import torch

from diptych import Evaluator, Metric


class OwnReport(Evaluator):
    """How far the score of an image with its own report is above the mean of a batch of fixed sentences."""

    def __init__(self, sentences: list[str], name: str = "own_report", resamples: int = 50) -> None:
        super().__init__(name, resamples)
        self.sentences = sentences

    def start(self, embed_text, findings, intervals=True) -> None:
        super().start(embed_text, findings, intervals)
        self._fixed, self._gaps = embed_text(self.sentences), []

    def update(self, batch, image, text, head) -> None:
        rows = self._samples.add(batch)
        own = head.similarity(image.select(rows), text.select(rows)).diagonal()
        self._gaps.append((own - head.similarity(image.select(rows), self._fixed).mean(1)).cpu())

    def compute(self, head) -> dict[str, Metric]:
        weights = self._weights()
        gaps = self._samples.values(torch.cat([torch.zeros(0), *self._gaps])).double().numpy()
        return {"gap": Metric.of(weights @ gaps / weights.sum(1), len(gaps))}

    @property
    def protocol(self):
        return super().protocol | {"sentences": self.sentences}
'''


def test_an_evaluator(add, tmp_path, one_thread):
    add("own_evaluator", EVALUATOR)
    own = {"class_path": "own_evaluator.OwnReport", "init_args": {"sentences": ["There is no nodule."]}}
    recipe = changed(tmp_path, model={"evaluators": [{"class_path": "Retrieval"}, own]})
    results = inprocess.fit_and_test(recipe, tmp_path / "run")
    gap = results["metrics"]["test/own_report/gap"]
    assert gap["n"] == 4
    assert gap["low"] <= gap["value"] <= gap["high"]
    assert results["protocol"]["own_report"]["sentences"] == ["There is no nodule."]


COMMAND = '''
"""Say how many arguments there are."""


def main(arguments):
    print(len(arguments))
'''


def test_a_command(add):
    add("own_command", COMMAND, COMMANDS, "count = own_command:main")
    assert "Say how many arguments there are." in inprocess.diptych("--help").stdout
    done = inprocess.diptych("count", "one", "two")
    assert (done.returncode, done.stdout) == (0, "2\n")
