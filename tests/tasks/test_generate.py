"""Report generation: the search against all sequences, the loss, whole runs, queries of a head, two processes."""

import csv
import itertools
import json
import math
import re
from pathlib import Path

import generating
import numpy as np
import pytest
import torch
import yaml
from generating import REPORTS, batch_of, recipe, tiny
from inprocess import diptych, fit_and_test, results_of
from mini import DDP, IMAGE, SHIPPED, write_pairs
from PIL import Image

from diptych.errors import ConfigError
from diptych.metrics import generated_text as nlg
from diptych.metrics.clinical import clinical
from diptych.model.checkpoint import read_checkpoint
from diptych.reports.labeller import Rules
from diptych.tasks.generate import Decoder, Generate, grid_code
from diptych.tasks.segment import Segment
from diptych.towers.image import TimmImage

pytestmark = pytest.mark.usefixtures("one_thread")
START, END = 2, 3
FOUR = ("Consolidation", "Pleural Effusion", "Pneumothorax", "Cardiomegaly")


def decoder(vocabulary=7, max_tokens=5, scale=6.0):
    torch.manual_seed(3)
    model = Decoder(vocabulary, max_tokens, width=16, layers=2, heads=2, dropout=0.1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)  # far from uniform
    return model, torch.randn(4, 3, 16)


def log_likelihood(model, memory, written):
    """Of the pieces after the start, by whole passes without anything kept."""
    ids = torch.tensor([[START, *written]])
    with torch.no_grad():
        logs = model(memory[None], ids).log_softmax(-1)[0]
    return sum(float(logs[i, piece]) for i, piece in enumerate(written))


def text_of(ids):
    ids = ids.tolist()[1:]
    return tuple(ids[: ids.index(END) + 1] if END in ids else ids)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_search_with_room_for_all_finds_the_best_of_all(penalty):
    model, memory = decoder()
    words, room = [4, 5, 6], model.max_tokens - 1
    every = [(*w, END) for n in range(room) for w in itertools.product(words, repeat=n)]
    every += list(itertools.product(words, repeat=room))  # cut at the end
    reports = model.search(memory, beams=200, length_penalty=penalty, block_ngram=0, never=[0, 1, START])
    for one, ids in zip(memory, reports, strict=True):
        scores = {w: log_likelihood(model, one, w) / len(w) ** penalty for w in every}
        assert text_of(ids) == max(scores, key=scores.get)


def test_one_beam_is_greedy():
    model, memory = decoder(vocabulary=20, max_tokens=12, scale=3.0)
    reports = model.search(memory, beams=1, length_penalty=1.0, block_ngram=0, never=[0, 1, START])
    for one, ids in zip(memory, reports, strict=True):
        written = []
        while len(written) < 11 and END not in written:
            with torch.no_grad():
                logits = model(one[None], torch.tensor([[START, *written]]))[0, -1]
            logits[[0, 1, START]] = -math.inf
            written.append(int(logits.argmax()))
        assert text_of(ids) == tuple(written)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_order_of_a_batch_and_its_company_change_nothing(beams):
    model, memory = decoder(vocabulary=20, max_tokens=12, scale=3.0)
    options = {"beams": beams, "length_penalty": 1.0, "block_ngram": 0, "never": [0, 1, START]}
    texts = [text_of(ids) for ids in model.search(memory, **options)]
    assert len(set(texts)) > 1
    order = torch.tensor([2, 0, 3, 1])
    assert [text_of(ids) for ids in model.search(memory[order], **options)] == [texts[i] for i in order]
    assert [text_of(model.search(one[None], **options)[0]) for one in memory] == texts


def test_no_run_of_pieces_is_written_twice_if_that_is_forbidden():
    model, memory = decoder(vocabulary=7, max_tokens=24, scale=3.0)
    never = [0, 1, START, END]
    pairs = [
        [list(itertools.pairwise(text_of(ids))) for ids in model.search(memory, beams=2, length_penalty=1.0, **options)]
        for options in ({"block_ngram": 0, "never": never}, {"block_ngram": 2, "never": [0, 1, START]})
    ]
    assert any(len(set(runs)) < len(runs) for runs in pairs[0])
    assert all(len(set(runs)) == len(runs) for runs in pairs[1])


def test_the_code_of_a_place_is_its_own_and_does_not_depend_on_the_grid():
    code = grid_code((5, 7), 18).view(5, 7, 18)
    assert torch.cdist(code.flatten(0, 1), code.flatten(0, 1)).add(torch.eye(35)).min() > 0.05
    torch.testing.assert_close(grid_code((3, 4), 18).view(3, 4, 18), code[:3, :4])
    assert (code[..., 16:] == 0).all()


def test_the_loss_piece_by_piece_and_whatever_the_padding():
    task = tiny()
    losses = []
    for to_max in (False, True):
        batch = batch_of(task.tokenizer, to_max=to_max)
        memory = task.memory(batch.image)
        costs, real = task._costs(memory, batch.text)
        losses.append(costs.sum(1).detach())
        for row in range(len(REPORTS)):
            ids = batch.text.input_ids[row][batch.text.attention_mask[row]]
            logs = task.decoder(memory[row, None], ids[None, :-1])[0, :, : task.tokenizer.size].log_softmax(-1)
            expected = -sum(float(logs[i, piece]) for i, piece in enumerate(ids[1:]))
            assert float(costs[row].sum()) == pytest.approx(expected, rel=1e-5)
            assert int(real[row].sum()) == len(ids) - 1
    torch.testing.assert_close(losses[0], losses[1])


def test_two_processes_give_the_gradient_of_one(gloo2):
    loss, gradients = generating.task_step(6)
    for other, theirs in gloo2(generating.task_step, 6):
        assert other == pytest.approx(loss, rel=1e-6)
        assert theirs.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(theirs[name], gradient, msg=name)


@pytest.mark.parametrize("text", [*REPORTS, "Left-sided effusion, 1.5 cm; lungs/heart.", "zyx nodule"])
def test_a_report_comes_back_from_its_pieces(text):
    """But for case and for white space around punctuation."""
    tokenizer = tiny(vocabulary=200).tokenizer
    back = tokenizer.decode(tokenizer([text]).input_ids[0].tolist())
    assert nlg.words(back) == nlg.words(text)
    assert "".join(back.split()) == "".join(text.lower().split()) or not set(text.split()) <= set(" ".join(REPORTS))


def test_pieces_that_are_no_words_are_never_written():
    task = tiny(beams=2)
    never = task.tokenizer.ids_that_are_no_words(96)
    assert task.tokenizer.size < 96
    assert set(range(task.tokenizer.size, 96)) | {0, 1, 2, 4} == set(never)
    reports = task.decoder.search(
        task.memory(batch_of(task.tokenizer).image), beams=2, length_penalty=1.0, block_ngram=0, never=never
    )
    assert not {piece for ids in reports.tolist() for piece in ids[1:] if piece} & set(never)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run that was fitted and tested; 15 images of the test, in batches of 4."""
    folder = tmp_path_factory.mktemp("generate")
    table = write_pairs(folder / "pairs", n=90)
    table.write_text(re.sub(r" Case \d+\.", "", table.read_text()))
    run = folder / "run"
    fit_and_test(recipe(folder, table, "tuned", max_epochs=20), run)
    return folder, table, run


def reports_of(run):
    with (run / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_what_is_there_and_says_how_it_was_measured(written):
    run = written[2]
    result = results_of(run)
    metrics, protocol = result["metrics"], result["protocol"]["generate"]
    assert metrics["test/generate/clinical/f1/micro"]["value"] > 0.9
    assert {name.split("/")[2] for name in metrics} == {*("bleu", "meteor", "rouge_l", "cider", "clinical")}
    assert all(value["n"] == 15 for value in metrics.values())
    assert protocol["labeller"] == {"name": "diptych rules", "version": 2}
    assert "Pneumothorax" in protocol["clinical"]["absent"]
    assert not any("Pneumothorax" in name for name in metrics)
    assert protocol["search"] == {"beams": 2, "length_penalty": 1.0, "block_ngram": 0}
    config_ = yaml.safe_load((run / "config.yaml").read_text())
    assert config_["checkpoint"]["monitor"] == config_["early_stopping"]["monitor"] == "val/generate/log_likelihood"
    texts = " ".join(row["generate/hypothesis"] for row in reports_of(run))
    assert texts.split()[0] not in json.dumps(result["metrics"])  # reports stay in their own file


def test_the_reports_of_the_test_are_written_in_order_and_give_the_figures(written):
    _, table, run = written
    rows = reports_of(run)
    expected = [row for row in csv.DictReader(table.open()) if row["split"] == "test"]
    assert [row["generate/reference"] for row in rows] == [row["text"] for row in expected]
    assert [row["id"] for row in rows] == [row["image"] for row in expected]
    generated, references = ([row[name] for row in rows] for name in ("generate/hypothesis", "generate/reference"))
    metrics = results_of(run)["metrics"]
    for name, value in nlg.scores(generated, references).items():
        assert metrics[f"test/generate/{name}"]["value"] == pytest.approx(float(value[0]), abs=1e-12), name
    labels = Rules()
    figures, _ = clinical(labels(generated), labels(references), np.ones((1, len(rows))))
    for name, metric in figures.items():
        assert metrics[f"test/generate/clinical/{name}"]["value"] == pytest.approx(metric.values[0], abs=1e-12), name


def test_a_checkpoint_brings_its_vocabulary_and_writes_the_same(written, tmp_path):
    _, table, run = written
    checkpoint = read_checkpoint(run / "checkpoints" / "best.ckpt")
    task = Generate(TimmImage(**IMAGE, stage=3), width=32, layers=1, heads=2, vocabulary=128, max_tokens=24, beams=2)
    task.load_state_dict(checkpoint["state_dict"])
    task.eval()
    for row in reports_of(run)[:4]:
        picture = torch.from_numpy(np.array(Image.open(table.parent / row["id"])))
        with torch.no_grad():
            assert task.write(task.memory(picture[None, None])) == [row["generate/hypothesis"]]
    other = table.parent / "other.csv"  # the same pictures, and reports of other words
    other.write_text(table.read_text().replace("effusion", "pneumothorax"))
    file = recipe(tmp_path, other, "other")
    done = diptych(
        "test", "-c", file, "--run", str(tmp_path / "other"), "--ckpt_path", str(run / "checkpoints/best.ckpt")
    )
    assert done.returncode == 0, done.stderr
    assert [row["generate/hypothesis"] for row in reports_of(tmp_path / "other")] == [
        row["generate/hypothesis"] for row in reports_of(run)
    ]
    done = diptych(
        "validate", "-c", file, "--run", str(tmp_path / "val"), "--ckpt_path", str(run / "checkpoints/best.ckpt")
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "val" / "results-val.json").read_text())["metrics"]
    assert {"val/generate/bleu/4", "val/generate/log_likelihood"} <= metrics.keys()
    assert not (tmp_path / "val" / "predictions.csv").exists()


def test_a_diverged_model_has_no_figures(written, tmp_path):
    """It writes all the same, and a labeller would read "No Finding" in it."""
    *_, run = written
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    for name, value in checkpoint["state_dict"].items():
        if name.startswith("decoder.") and value.is_floating_point():
            value.fill_(torch.nan)
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    options = ["--run", str(tmp_path / "bad"), "--ckpt_path", str(tmp_path / "bad.ckpt")]
    done = diptych("test", "-c", str(run / "config.yaml"), *options)
    assert done.returncode == 0, done.stderr
    metrics = results_of(tmp_path / "bad")["metrics"]
    assert "test/generate/clinical/f1/micro" in metrics
    assert {value["value"] for value in metrics.values()} == {None}


@pytest.mark.slow
def test_two_processes_train_a_tower_whose_pooled_norm_is_not_used(written, gloo2):
    from jobs import on_two

    folder, table, _ = written
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False, "global_pool": "avg"}
    vit = {"name": "vit_tiny_patch16_224", "pretrained": False, "model_args": args}
    image = {"class_path": "TimmImage", "init_args": vit}
    file = recipe(folder, table, "vit", image=image, strategy=DDP, max_epochs=1)
    on_two(gloo2, "fit", "-c", file, "--run", str(folder / "vit"))


@pytest.mark.slow
def test_two_processes_write_as_one(written, gloo2):
    """15 images of the test in batches of 4, on two processes."""
    from jobs import two_give

    folder, table, run = written
    file = recipe(folder, table, "two", strategy=DDP)
    best = str(run / "checkpoints" / "best.ckpt")
    two_give(gloo2, results_of(run)["metrics"], file, folder / "two", "--ckpt_path", best)
    both = [[(row["id"], row["generate/hypothesis"]) for row in reports_of(one)] for one in (folder / "two", run)]
    assert both[0] == both[1]


def test_what_generate_cannot_take_it_says():
    tower = TimmImage(**IMAGE)
    for options, message in (
        (
            {"attend": "queries"},
            "attend is 'queries', and TimmImage has no queries; use TrainedImage with queries: true",
        ),
        ({"width": 30, "heads": 4}, "width is 30; give a multiple of heads=4"),
        ({"beams": 0}, "beams is 0; give a whole number of 1 or more"),
        ({"layers": 0}, "layers is 0; give a whole number of 1 or more"),
        ({"dropout": 1.0}, "dropout is 1.0; give a number of 0 or more and below 1"),
        ({"block_ngram": -1}, "block_ngram is -1; give a whole number of 0 or more"),
        ({"vocabulary": 10}, "vocabulary is 10; give a whole number of 77 or more"),
        ({"heads": 0}, "heads is 0; give a whole number of 1 or more"),
        ({"resamples": -1}, r"Generate: resamples is -1; give 0 \(no intervals\) or more"),
        ({"max_tokens": 3}, "max_tokens is 3; give a whole number of 8 or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            Generate(tower, **options)


def test_data_without_reports_and_another_tasks_checkpoint_are_named(written, tmp_path):
    _, table, run = written
    columns = {"patient": "patient", "split": "split", "text": []}
    file = recipe(tmp_path, table, "none", columns=columns, max_epochs=1)
    best = str(run / "checkpoints" / "best.ckpt")
    for command in (["fit"], ["test", "--ckpt_path", best]):
        done = diptych(command[0], "-c", file, "--run", str(tmp_path / "none"), *command[1:])
        assert done.returncode == 2
        assert "gives no reports; choose data that have some" in done.stderr
    content = yaml.safe_load(Path(recipe(tmp_path, table, "seg")).read_text())
    content["model"] = {"class_path": "Segment", "init_args": {"image": content["model"]["init_args"]["image"]}}
    (tmp_path / "seg.yaml").write_text(yaml.safe_dump(content))
    done = diptych("test", "-c", str(tmp_path / "seg.yaml"), "--run", str(tmp_path / "seg"), "--ckpt_path", best)
    assert done.returncode == 2
    assert f"trained for the task {Generate.__module__}.Generate" in done.stderr
    assert Segment.monitor not in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_reports_of_phantoms_name_their_findings(tmp_path):
    """Four large findings, a minute and a half of one processor; docs/downstream.md has the figures of the whole recipe."""
    options = ["--data.train", "1200", "--trainer.max_epochs", "9", "--data.cache", str(tmp_path / "cache")]
    options += ["--data.mix", json.dumps(dict.fromkeys(FOUR, 1))]
    options += ["--data.size", "64", "--data.loading.image_size", "64"]
    metrics = fit_and_test(SHIPPED / "phantom/generation.yaml", tmp_path / "run", *options)["metrics"]
    assert metrics["test/generate/clinical/f1/micro"]["value"] >= 0.8
