"""What a user gets wrong: one clear message (what, where, remedy), exit code 2, nothing trained, no traceback."""

import inprocess
import pytest
from bad_input import cutting, holds, message
from mini import IMAGE

# -- keys, types and names ------------------------------------------------------------------------------------------------

LOADING = "data.init_args.loading"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"modell.lr": 1}, ["unknown option 'modell.lr'", "nearest: model.lr", "diptych fit --help"]),
        ({"model.lrr": 1}, ["unknown option 'model.lrr'", "nearest: model.lr,"]),
        ({"trainer.max_epoch": 1}, ["unknown option 'trainer.max_epoch'", "nearest: trainer.max_epochs"]),
        ({"checkpoint.monitr": "x"}, ["unknown option 'checkpoint.monitr'", "nearest: checkpoint.monitor"]),
        ({"model.image.init_args.stge": 1}, ["unknown option 'stge' of TimmImage", "nearest: stage"]),
        ({"model.text.init_args.depht": 1}, ["unknown option 'depht' of ScratchText", "nearest: depth"]),
        ({"data.init_args.tabel": "x"}, ["unknown option 'tabel' of Tabular", "nearest: table"]),
        ({f"{LOADING}.batchsize": 1}, ["unknown option 'loading.batchsize' of Tabular", "nearest: loading.batch_size"]),
        ({"data.init_args.columns.pation": "x"}, ["'columns.pation' of Tabular", "nearest: columns.patient"]),
        (
            {"model.head": {"class_path": "local_pooling", "init_args": {"poling": "mean"}}},
            ["unknown option 'poling' of LocalPooling", "nearest: pooling"],
        ),
    ],
)
def test_a_wrong_key_in_yaml(write, changes, parts):
    holds(message(inprocess.diptych("fit", "-c", write(changes))), *parts)


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("--model.lrr", ["unknown option 'model.lrr'", "nearest: model.lr,"]),
        ("--model.head.tmperature", ["unknown option 'tmperature' of Global", "nearest: temperature"]),
        ("--data.loading.batchsize", ["'loading.batchsize' of Tabular", "nearest: loading.batch_size"]),
        ("--model.head.pooling", ["unknown option 'pooling' of Global"]),
    ],
)
def test_a_wrong_option(write, option, parts):
    holds(message(inprocess.diptych("fit", "-c", write(), option, "1")), *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model.lr": "fast"}, ["option 'model.lr' is 'fast'", "expected float"]),
        ({"trainer.max_epochs": "x"}, ["option 'trainer.max_epochs' is 'x'", "expected int, null"]),
        ({f"{LOADING}.batch_size": "many"}, ["option 'loading.batch_size' of Tabular is 'many'", "expected int"]),
        (
            {"model.head": {"class_path": "local_pooling", "init_args": {"pooling": "man"}}},
            ["option 'pooling' of LocalPooling is 'man'", "'logsumexp', 'mean', 'max'"],
        ),
    ],
)
def test_a_wrong_type(write, changes, parts):
    holds(message(inprocess.diptych("fit", "-c", write(changes))), *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({f"{LOADING}.batch_size": 0}, ["loading.batch_size is 0", "of 1 or more"]),
        ({"model.head": {"class_path": "local_pooling", "init_args": {"scale": -1}}}, ["scale is -1.0", "above 0"]),
        ({"model.image.init_args.name": "resnet999"}, ["'resnet999'", "nearest: resnet"]),
        ({"model.text.init_args.heads": 5}, ["width=32", "heads=5"]),
        ({"trainer.max_epochs": -1}, ["trainer.max_epochs"]),
        ({"trainer.accelerator": "abacus"}, ["trainer: ", "abacus"]),
        ({"trainer.strategy": "chess"}, ["trainer: ", "chess"]),
        (
            {"checkpoint.monitor": "val/retrieval/r@7"},
            ["'val/retrieval/r@7'", "nearest: val/retrieval/r@"],
        ),
        ({"early_stopping.monitor": "val/lss"}, ["early_stopping.monitor is 'val/lss'", "nearest: val/loss"]),
    ],
)
def test_a_value_that_makes_no_sense(write, tmp_path, changes, parts):
    holds(message(inprocess.diptych("fit", "-c", write(changes), "--run", str(tmp_path / "run"))), *parts)


def test_a_monitor_of_an_evaluator_that_is_not_there_is_told_before_training(write, tmp_path):
    changes = {"checkpoint.monitor": "val/zero_shot/auroc/macro", "trainer.num_sanity_val_steps": 1}
    done = inprocess.diptych("fit", "-c", write(changes), "--run", str(tmp_path / "run"))
    holds(message(done), "checkpoint.monitor is 'val/zero_shot/auroc/macro'")
    assert "epoch 0" not in done.stderr


@pytest.mark.parametrize(
    ("changes", "options", "parts"),
    [
        (
            {"model.head": "locl_pooling"},
            [],
            ["unknown head 'locl_pooling'", "nearest first: local_pooling, ", "global", "diptych heads"],
        ),
        ({"model.head": {"class_path": "globl"}}, [], ["unknown head 'globl'", "nearest first: global,"]),
        ({}, ["--model.head", "globl"], ["unknown head 'globl'", "nearest first: global,"]),
        ({"model.head": "diptych_heads.global.Global"}, [], ["'diptych_heads.global.Global'", "diptych_heads"]),
        (
            {"model.head": {"class_path": "nowhere.Head"}},
            [],
            ["'nowhere.Head' cannot be imported", "known by name: ", "global, ", "local_pooling"],
        ),
        ({"model.head": {"class_path": "torch.nn.Linear"}}, [], ["'torch.nn.Linear' is no AlignmentHead"]),
        (
            {"data.class_path": "tabula"},
            [],
            ["unknown datamodule 'tabula'", "nearest first: tabular,", "diptych datamodules"],
        ),
        ({}, ["--data", "diptych_heads.global_.Global"], ["is no RadiographDataModule", "tabular"]),
        ({"model.image.class_path": "TimImage"}, [], ["unknown class 'TimImage'", "nearest first: TimmImage"]),
        (
            {"model.evaluators": [{"class_path": "Retrival"}]},
            [],
            ["unknown class 'Retrival'", "nearest first: Retrieval, "],
        ),
        (
            {"model.evaluators": [{"class_path": "ZeroShot", "init_args": {"prompts": "nhi"}}]},
            [],
            ["no prompt set is called 'nhi'", "shipped are nih,", "or give a path"],
        ),
    ],
)
def test_an_unknown_name(write, changes, options, parts):
    holds(message(inprocess.diptych("fit", "-c", write(changes), *options)), *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data": None}, ["missing: data", "-c FILE"]),
        ({"model.head": None}, ["missing: model.head"]),
        ({"data.init_args.table": None}, ["missing: table of Tabular"]),
    ],
)
def test_a_missing_key(write, changes, parts):
    holds(message(inprocess.diptych("fit", "-c", write(changes))), *parts)


def test_a_recipe_that_is_none(tmp_path):
    holds(message(inprocess.diptych("fit", "-c", str(tmp_path / "no.yaml"))), "no.yaml", "does not exist")
    (tmp_path / "torn.yaml").write_text("model: [1,\ndata: }")
    holds(message(inprocess.diptych("fit", "-c", str(tmp_path / "torn.yaml"))), "line 2")
    holds(message(inprocess.diptych("fit")), "missing: model.image, model.text, model.head, data")


# -- data -----------------------------------------------------------------------------------------------------------------


def setting(row, column, value):
    """A change of one cell, or of the whole column where ``row`` is None."""

    def change(rows, folder):
        for i, values in enumerate(rows):
            if row is None or i == row:
                values[column] = value

    return change


def without(rows, folder, *, split):
    return [row for row in rows if row["split"] != split]


def dropping(column):
    return lambda rows, folder: [{k: v for k, v in row.items() if k != column} for row in rows]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (dropping("text"), ["table.csv: no column 'text'", "image", "set columns"]),
        (dropping("Nodule"), ["no column 'Nodule'"]),
        (dropping("patient"), ["no column 'patient'"]),
        (setting(2, "Nodule", "2"), ["table.csv, line 4, column 'Nodule'", "label is '2'", "1 (present)"]),
        (setting(5, "Effusion", "maybe"), ["line 7, column 'Effusion'", "label is 'maybe'"]),
        (setting(5, "Effusion", "0.5"), ["line 7, column 'Effusion'", "label is '0.5'"]),
        (setting(None, "text", "NaN"), ["column(s) text", "all 24 reports are empty or NaN"]),
        (setting(23, "patient", "p0"), ["1 patient(s) are in both 'test' and 'train', as 'p0'", "one split"]),
        (setting(3, "split", "holdout"), ["line 5, column 'split'", "'holdout'", "write one of"]),
        (setting(3, "image", "000.png"), ["lines 2 and 5", "'000.png'"]),
        (lambda rows, folder: without(rows, folder, split="val"), ["no 'val' split", "train, test"]),
        (lambda rows, folder: without(rows, folder, split="train"), ["no 'train' split", "val, test"]),
        (lambda rows, folder: rows[:2] + rows[16:], ["2 training samples", "loading.batch_size 4", "at most 2"]),
    ],
)
def test_a_table_that_cannot_be_used(spoil, change, parts):
    holds(message(inprocess.diptych("fit", *spoil(change))), *parts)


def test_a_test_split_that_is_not_there(spoil):
    options = spoil(lambda rows, folder: without(rows, folder, split="test"))
    holds(message(inprocess.diptych("test", *options, "--ckpt_path", "none")), "no 'test' split", "train, val")


def test_a_few_empty_reports_are_left_out_counted_and_listed_or_refused(spoil, tmp_path):
    options = spoil(setting(1, "text", "nan"))
    done = inprocess.diptych("fit", *options)
    assert done.returncode == 0, done.stderr
    assert "15 train" in done.stderr
    assert "left out 1 (empty report)" in done.stderr
    assert "001.png" in (tmp_path / "run" / "dropped.csv").read_text()
    holds(
        message(inprocess.diptych("fit", *options, "--overwrite", "--data.strict", "true")),
        "1 empty report",
        "'001.png'",
        "strict: false",
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["003.png", "018.png"])  # one of training, one of validation
def test_an_unreadable_image(spoil, name, workers):
    holds(message(inprocess.diptych("fit", *spoil(cutting(name), workers=workers))), f"/{name}: ", "PNG", "truncated")


@pytest.mark.parametrize("head", ["global", "local_pooling"])
def test_a_batch_of_one_teaches_nothing(spoil, head):
    options = spoil(lambda rows, folder: None, batch_size=1)
    holds(message(inprocess.diptych("fit", *options, "--model.head", head)), "loading.batch_size is 1", "at least 2")


@pytest.mark.parametrize("head", ["global", "local_pooling"])
def test_an_evaluation_batch_of_one_is_as_good_as_another(spoil, tmp_path, head):
    options = spoil(lambda rows, folder: None)
    assert inprocess.diptych("fit", *options, "--model.head", head).returncode == 0
    metrics = []
    for size in ("1", "4"):
        words = ["--ckpt_path", "best", "--data.loading.eval_batch_size", size, "--model.head", head]
        done = inprocess.diptych("test", *options, *words)
        assert done.returncode == 0, done.stderr
        metrics.append((tmp_path / "run" / "results.json").read_text().split('"protocol"')[0])
    assert metrics[0] == metrics[1]
    assert "NaN" not in metrics[0]


def test_a_tower_that_cannot_take_its_batch(write, tmp_path):
    vit = {**IMAGE, "name": "vit_tiny_patch16_224", "model_args": {"embed_dim": 32, "depth": 1, "num_heads": 2}}
    recipe = write({"model.image.init_args": vit, f"{LOADING}.image_size": 40})
    error = message(inprocess.diptych("fit", "-c", recipe, "--run", str(tmp_path / "run")))
    holds(error, "image tower 'vit_tiny_patch16_224'", "40x40", "loading.image_size")
