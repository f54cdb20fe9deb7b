"""The contract suite of datamodules: each one of a gallery breaks its rule. tests/datamodules has those of this package."""

from dataclasses import replace

import numpy as np
import pytest

from diptych import Loading, RadiographDataModule, RadiographDataset, Sample, ScratchText
from diptych.data.sampling import EvaluationSampler
from diptych.testing import BrokenContract, check_datamodule
from diptych.testing.datamodules import RULES

pytestmark = pytest.mark.usefixtures("one_thread")


class Pictures(RadiographDataset):
    def __init__(self, split, n):
        self.ids = [f"{split}-{i}" for i in range(n)]
        self.patients = list(self.ids)

    def read(self, index, rng):
        picture = np.random.default_rng(index).integers(0, 255, (24, 24)).astype(np.uint8)
        return Sample(picture, text=f"Report {index}.", labels=np.array([index % 2], np.float32))

    def texts(self):
        return (f"Report {i}." for i in range(len(self)))


class Right(RadiographDataModule):
    holds = frozenset({"image", "text", "labels"})
    findings = ("Odd",)
    pictures = Pictures

    def __init__(self):
        tokenizer = ScratchText(width=16, depth=1, heads=2, vocabulary=256, max_tokens=16).tokenizer
        super().__init__(tokenizer, Loading(image_size=24, batch_size=4, eval_batch_size=3, workers=0, augment=None))

    @property
    def protocol(self):
        return "made up"

    def build(self):
        return {split: self.pictures(split, n) for split, n in (("train", 12), ("val", 4), ("test", 5))}


class TwoIds(Right):
    def build(self):
        built = super().build()
        built["test"].ids = ["same"] * 5
        return built


class PromisesBoxes(Right):
    holds = Right.holds | {"boxes"}


class Moody(Pictures):
    calls = 0

    def read(self, index, rng):
        Moody.calls += 1
        return Sample(super().read(index, rng).image, text=f"Report {Moody.calls}.", labels=np.zeros(1, np.float32))


class KeepsState(Right):
    pictures = Moody


class AnotherView(Pictures):
    calls = 0

    def read(self, index, rng):
        AnotherView.calls += 1
        sample = super().read(index, rng)
        return replace(sample, others=(None, sample.image + np.uint8(AnotherView.calls % 2)))


class OtherImagesKeepState(Right):
    others = 2
    pictures = AnotherView


class Colours(Pictures):
    def read(self, index, rng):
        sample = super().read(index, rng)
        box = np.array([[0, 0, 30, 10, 0]], np.float32)
        return Sample(sample.image, text=sample.text, labels=sample.labels, boxes=box)


class BoxesOutside(Right):
    holds = Right.holds | {"boxes"}
    pictures = Colours


class OwnSampler(Right):
    def test_dataloader(self):
        loader = super().test_dataloader()
        loader.batch_sampler.batches = EvaluationSampler(5, 3, rank=0, processes=1).batches
        return loader


class Reports(Pictures):
    def texts(self):
        return iter(())


class NoReports(Right):
    pictures = Reports

    def setup(self, stage):
        super().setup("test")
        self.tokenizer.learn(["Report 1."] * 9, [str(i) for i in range(9)])


BROKEN = {
    TwoIds: "splits",
    PromisesBoxes: "batches",
    KeepsState: "samples",
    OtherImagesKeepState: "samples",
    BoxesOutside: "samples",
    OwnSampler: "evaluation",
    NoReports: "reports",
}


def test_the_gallery_is_built_on_a_right_datamodule():
    check_datamodule(Right())
    assert set(BROKEN.values()) == set(RULES) - {"order"}


@pytest.mark.parametrize(("kind", "rule"), BROKEN.items(), ids=lambda x: getattr(x, "__name__", x))
def test_a_broken_datamodule_is_caught_by_the_rule_that_it_breaks(kind, rule):
    with pytest.raises(BrokenContract, match=f"datamodule {kind.__name__} breaks the rule '{rule}'") as caught:
        check_datamodule(kind())
    assert caught.value.rule == rule


def test_an_order_that_is_not_of_the_epoch(monkeypatch):
    module = Right()
    module.setup("fit")
    plain = module.train_dataloader
    loaders = []

    def other():
        loader = plain()
        loaders.append(loader)
        loader.batch_sampler.seed = len(loaders)
        return loader

    monkeypatch.setattr(module, "train_dataloader", other)
    with pytest.raises(BrokenContract, match="rule 'order'"):
        check_datamodule(module)
