"""The rules of tables, and what the base does for every datamodule; test_contract.py has the contract."""

import csv
import gzip
import json
import pickle
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from mini import FINDINGS, TEXT, write_pairs

from diptych.data.loading import Loading
from diptych.data.splits import Fractions, assert_disjoint, assign, split_hash
from diptych.data.tables import Columns, read_table
from diptych.errors import ConfigError, DataError
from diptych.towers.text import ScratchText
from diptych_datamodules.label_matched import LabelMatched, nearest_by_jaccard
from diptych_datamodules.phantom import Phantom
from diptych_datamodules.tabular import Tabular

COLUMNS = Columns(patient="patient", split="split", labels=FINDINGS)
SMALL = Loading(image_size=32, batch_size=4, eval_batch_size=3, workers=0)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def tokenizer():
    return ScratchText(**TEXT).tokenizer


def make(name, table, loading=SMALL):
    return {
        "tabular": lambda: Tabular(str(table), tokenizer(), columns=COLUMNS, loading=loading),
        "label_matched": lambda: LabelMatched(
            str(table),
            str(table),
            FINDINGS,
            tokenizer(),
            image_columns=COLUMNS,
            report_columns=COLUMNS,
            loading=loading,
        ),
    }[name]()


def test_epochs_augment_and_draw_anew_but_validation_never_does(table):
    module = make("label_matched", table)
    module.setup("fit")
    loader = module.train_dataloader()
    seen = {}
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)
        for b in loader:
            for i, image, text in zip(b.index.tolist(), b.image, b.text.raw, strict=True):
                seen.setdefault(i, []).append((image, text))
    assert all(not torch.equal(a[0], b[0]) for a, b in seen.values())
    assert any(a[1] != b[1] for a, b in seen.values())
    first, second = (torch.cat([b.image for b in module.val_dataloader()]) for _ in range(2))
    assert torch.equal(first, second)


class _Reads(pl.LightningModule):
    """Records the ids and images of its batches."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.read = []

    def training_step(self, batch, batch_idx):
        self.read.append((batch.ids, batch.image))

    def configure_optimizers(self):
        return None


def test_a_loop_of_ones_own_reads_what_lightning_reads(table):
    reads = _Reads()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", limit_val_batches=0, use_distributed_sampler=False, **quiet)
    trainer.fit(reads, datamodule=make("tabular", table))
    module = make("tabular", table)
    module.setup("fit")
    loader = module.train_dataloader()
    own = [(batch.ids, batch.image) for _ in range(2) for batch in loader]
    assert [ids for ids, _ in own] == [ids for ids, _ in reads.read]
    assert own[0][0] != own[4][0]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(own, reads.read, strict=True))


def test_enough_validation_samples_are_not_warned_of(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, rows in (("few", 99), ("enough", 100)):
            write_pairs(tmp_path / name, n=rows * 6, size=8)
            module = make("tabular", tmp_path / name / "table.csv")
            module.setup("validate")
    assert [str(one.message).split(";")[0] for one in caught] == ["samples of val: 99"]


def test_batches_move_pin_and_select():
    module = Phantom(tokenizer(), train=4, val=2, test=2, size=32, loading=SMALL)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    chosen = batch.select(torch.tensor([True, False, False, True]))
    assert chosen.ids == [batch.ids[0], batch.ids[3]]
    assert len(chosen.boxes) == len(chosen.text.raw) == 2
    assert batch.to("cpu").text.mask.equal(batch.text.mask)


def test_phantom_boxes_follow_the_picture_and_the_cache_equals_drawing(tmp_path):
    options = {"train": 65, "val": 2, "test": 2, "size": 48, "normal": 0.0}  # so many that other processes draw them
    plain = Phantom(tokenizer(), **options, loading=Loading(image_size=96, batch_size=2, workers=0, augment=None))
    cached = Phantom(tokenizer(), **options, cache=str(tmp_path / "cache"), loading=plain.loading)
    cached.prepare_data()
    plain.setup("fit")
    cached.setup("fit")
    for index in (0, 31, 64):
        fresh, stored = (module.datasets["train"].read(index, np.random.default_rng(0)) for module in (plain, cached))
        assert np.array_equal(fresh.image, stored.image)
        assert np.array_equal(fresh.boxes, stored.boxes)
    for a, b in zip(plain.test_dataloader(), cached.test_dataloader(), strict=True):
        assert torch.equal(a.image, b.image)
        assert all(torch.equal(x, y) for x, y in zip(a.boxes, b.boxes, strict=True))
    native = plain.native("test", 0)
    boxes = next(iter(plain.test_dataloader())).boxes[0]
    assert torch.allclose(boxes[:, :4], torch.from_numpy(native.boxes[:, :4]) * 2)
    before = sorted((tmp_path / "cache").iterdir())
    changed = Phantom(
        tokenizer(), **{**options, "train": 6, "normal": 0.5}, cache=str(tmp_path / "cache"), loading=plain.loading
    )
    changed.prepare_data()
    assert len(sorted((tmp_path / "cache").iterdir())) == 2 * len(before)  # another option, another folder
    reworded = Phantom(tokenizer(), **options, filler=0.6, cache=str(tmp_path / "cache"), loading=plain.loading)
    reworded.prepare_data()
    assert len(sorted((tmp_path / "cache").iterdir())) == 2 * len(before)  # other reports of the same pictures
    few = {**options, "train": 2, "val": 1, "test": 1}
    for share in (1, 1.0):  # a recipe may write either
        Phantom(tokenizer(), **few, mix={"Nodule": share}, cache=str(tmp_path / "cache")).prepare_data()
    assert len(sorted((tmp_path / "cache").iterdir())) == 2 * len(before) + 3
    reworded.setup("fit")
    other, drawn = (module.datasets["train"].read(64, np.random.default_rng(0)) for module in (reworded, plain))
    assert np.array_equal(other.image, drawn.image)
    assert other.text != drawn.text


def test_scratch_vocabulary_is_learned_from_training_reports_alone(table):
    module = make("tabular", table)
    module.setup("fit")
    state = module.tokenizer.state()
    assert "effusion" in state
    assert module.tokenizer.learned
    module.setup("test")
    assert module.tokenizer.state() == state


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_kinds_of_table_read_alike(tmp_path):
    rows = [["image", " text ", "label"], ["a.png", "One, two.", "1"], ["b.png", "", ""]]
    plain = write(tmp_path / "t.csv", rows)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    records = [
        {"image": "a.png", "text": "One, two.", "label": 1},
        {"image": "b.png", "text": float("nan"), "label": None},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pa.Table.from_pylist([{**r, "text": r["text"] if r["label"] else None} for r in records]),
        tmp_path / "t.parquet",
    )
    for name in ("t.csv", "t.csv.gz", "t.jsonl", "t.parquet"):
        got = read_table(tmp_path / name).rows()
        assert [row.text(["text"]) for row in got] == ["One, two.", ""], name
        assert got[0].label("label") == 1
        assert np.isnan(got[1].label("label"))


def test_left_out_rows_are_counted_by_rule_or_refused(tmp_path, table):
    rows = list(csv.reader(table.open()))
    rows[1][1] = "  nan "
    rows[2][0] = "gone.png"
    changed = write(table.parent / "changed.csv", rows)
    module = Tabular(str(changed), tokenizer(), columns=COLUMNS, loading=SMALL)
    module.setup("fit")
    assert module.dropped.counts() == {"empty report": 1, "missing image": 1}
    assert len(module.datasets["train"]) == 14
    module.dropped.write(tmp_path / "dropped.csv")
    assert "gone.png" in (tmp_path / "dropped.csv").read_text()
    with pytest.raises(DataError, match=r"1 empty report, 1 missing image.*strict: false"):
        Tabular(str(changed), tokenizer(), columns=COLUMNS, strict=True, loading=SMALL).setup("fit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].__setitem__(1, "report"), r"no column 'text'; it has, nearest first: .*report"),
        (lambda rows: rows[3].__setitem__(4, "2"), r"line 4, column 'Effusion': the label is '2'"),
        (lambda rows: rows[3].__setitem__(3, "dev"), r"line 4, column 'split': the split is 'dev'"),
        (lambda rows: rows[1].__setitem__(2, "p23"), r"1 patient\(s\) are in both 'test' and 'train', as 'p23'"),
        (lambda rows: rows[3].append("x"), r"line 4: 7 values for 6 columns"),
        (lambda rows: rows[2].__setitem__(0, rows[1][0]), r"lines 2 and 3: both are '000.png'"),
        (lambda rows: [row.__setitem__(1, "") for row in rows[1:]], r"all 24 reports are empty or NaN"),
    ],
)
def test_bad_tables_are_named(table, tmp_path, change, message):
    rows = list(csv.reader(table.open()))
    change(rows)
    changed = write(tmp_path / "bad.csv", rows)
    with pytest.raises(DataError, match=message):
        Tabular(str(changed), tokenizer(), root=str(table.parent), columns=COLUMNS, loading=SMALL).setup("fit")


def test_jaccard_candidates_against_a_loop():
    rng = np.random.default_rng(0)
    reports = rng.random((40, 5)) < 0.4
    for image in [np.zeros(5, bool), *(rng.random((10, 5)) < 0.4)]:
        overlaps = []
        for report in reports:
            a, b = set(np.flatnonzero(image)), set(np.flatnonzero(report))
            overlaps.append(1.0 if not a | b else len(a & b) / len(a | b))
        assert nearest_by_jaccard(image, reports).tolist() == [i for i, o in enumerate(overlaps) if o == max(overlaps)]


def test_reports_are_split_and_pairs_agree_in_labels(table):
    module = make("label_matched", table)
    module.setup("fit")
    reports = {split: set(dataset.texts()) for split, dataset in module.datasets.items()}
    assert not reports["train"] & reports["test"]
    own = {row.id: row.labels for row in module.datasets["train"].rows}
    for batch in module.train_dataloader():
        for key, text in zip(batch.ids, batch.text.raw, strict=True):
            assert ("There is an effusion" in text) == bool(own[key][0])
    shuffled = LabelMatched(
        str(table), str(table), FINDINGS, tokenizer(), image_columns=COLUMNS, report_columns=COLUMNS,
        pairing="shuffled", loading=SMALL,
    )  # fmt: skip
    shuffled.setup("fit")
    assert all(len(c) == 16 for c in shuffled.datasets["train"].candidates)


def test_hashed_splits_are_stable_disjoint_and_in_proportion():
    fractions = {"train": 0.7, "val": 0.1, "test": 0.2}
    assigned = {f"p{i}": assign(f"p{i}", fractions, 0) for i in range(4000)}
    shares = [sum(split == name for split in assigned.values()) / 4000 for name in fractions]
    assert np.allclose(shares, [0.7, 0.1, 0.2], atol=0.03)
    assert assigned != {key: assign(key, fractions, 1) for key in assigned}
    assert Fractions().split("p1", 0) == assigned["p1"]
    assert split_hash({"a": ["1", "2"], "b": ["3"]}) == split_hash({"b": ["3"], "a": ["2", "1"]})
    assert split_hash({"a": ["1", "2"], "b": ["3"]}) != split_hash({"a": ["1"], "b": ["2", "3"]})
    with pytest.raises(DataError, match="1 patient"):
        assert_disjoint({"train": ["x", "y"], "val": ["y"]}, source="here")


def test_options_out_of_range():
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Loading(batch_size=0)
    with pytest.raises(ConfigError, match=r"fractions.val is -0.5; give a number of 0 or more"):
        Fractions(train=1.0, val=-0.5, test=0.5)
    with pytest.raises(ConfigError, match="sum to 1"):
        Fractions(train=0.5, val=0.1, test=0.1)
    with pytest.raises(ConfigError, match="one or the other"):
        Columns(labels=["a"], label_list="b")
    with pytest.raises(ConfigError, match=r"data.train is 0; give a whole number of 1 or more"):
        Phantom(train=0)


def test_datamodules_pickle_before_setup(table):
    module = make("tabular", table)
    assert isinstance(pickle.loads(pickle.dumps(module)), pl.LightningDataModule)
