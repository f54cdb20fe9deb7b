"""The module: groups, schedule, logging, precision; checkpoints; and a trained model in Python."""

import math
import pickle
from collections import Counter

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from mini import FINDINGS, IMAGE, TEXT, config, diptych, write_pairs
from PIL import Image

from diptych import load
from diptych.data.loading import Loading
from diptych.data.tables import Columns
from diptych.errors import ConfigError
from diptych.evaluation.retrieval import Retrieval
from diptych.evaluation.zero_shot import ZeroShot
from diptych.model.checkpoint import read_checkpoint
from diptych.model.inference import load_module
from diptych.model.module import AlignmentModule
from diptych.model.optim import parameter_groups, warmup_cosine
from diptych.model.stored import build_module
from diptych.towers.image import TimmImage
from diptych.towers.text import ScratchText
from diptych.training.callbacks import Throughput
from diptych_datamodules.tabular import Tabular
from diptych_heads.global_ import Global
from diptych_heads.local_pooling import LocalPooling

COLUMNS = Columns(patient="patient", split="split", labels=FINDINGS)
VIT = {"name": "vit_tiny_patch16_224", "pretrained": False, "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 2}}


def module(head=Global, image=IMAGE, **options):
    torch.manual_seed(0)
    return AlignmentModule(TimmImage(**image), ScratchText(**TEXT), head, **options)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def data(table, model, **loading):
    options = {"image_size": 32, "batch_size": 4, "eval_batch_size": 4, "workers": 0, **loading}
    return Tabular(str(table), model.tokenizer, columns=COLUMNS, loading=Loading(**options))


def trainer(tmp_path, **options):
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **{"max_epochs": 1, "logger": False, **options},
    )


def test_every_trained_parameter_is_in_one_group_and_only_matrices_decay():
    model = module(LocalPooling)
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    decays = {name: group["weight_decay"] for group in groups for name in group["names"]}
    shapes = dict(model.named_parameters())
    assert all(decays[name] == 0 for name in names if name.endswith("bias") or shapes[name].ndim < 2)
    assert not any(decays[name] for name in names if "norm" in name.lower() or "bn" in name or "scale" in name)
    assert not any(decays[name] for name in names if "position_embeddings" in name)
    assert decays["encoder.image.backbone.conv1.0.weight"] == 0.1


def test_layer_decay_scales_the_rate_by_depth_and_frozen_parameters_are_left_out():
    model = module(image={**VIT, "layer_decay": 0.5, "freeze_layers": 1})
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    tower = model.encoder.image
    assert "encoder.image.backbone.patch_embed.proj.weight" not in rates
    depth = tower.layer_of("backbone.blocks.0.attn.qkv.weight")
    assert rates["encoder.image.backbone.blocks.0.attn.qkv.weight"] == 0.5 ** (tower.num_layers - depth)
    assert (
        rates["encoder.image.backbone.blocks.0.attn.qkv.weight"]
        < rates["encoder.image.backbone.blocks.1.attn.qkv.weight"]
    )
    assert all(rate == 1 for name, rate in rates.items() if name.startswith("head."))


def test_schedule_warms_up_and_ends_at_the_floor():
    factor = warmup_cosine(10, 110, 0.01)
    assert [factor(s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(10) == 1
    assert factor(60) == pytest.approx(0.505)
    assert factor(110) == factor(500) == pytest.approx(0.01)


def test_training_logs_terms_temperature_norm_and_pace(tmp_path, table):
    model = module(LocalPooling, lr=1e-3)
    run = trainer(tmp_path, callbacks=[Throughput()], log_every_n_steps=1)
    run.fit(model, data(table, model))
    logged = run.callback_metrics
    for name in (
        "train/loss", "train/loss/global", "train/loss/local", "train/loss/attention_entropy", "train/gradient_norm",
        "train/reports_cut", "val/loss",
        "train/images_per_second", "train/data_wait", "val/retrieval/r@5", "val/retrieval/image_to_text/median_rank",
    ):  # fmt: skip
        assert name in logged, name
        assert math.isfinite(logged[name]), name
    assert 0 <= logged["train/data_wait"] <= 1
    assert logged["train/images_per_second"] > 0
    model = module(Global)
    run.fit_loop.epoch_progress.reset()
    run = trainer(tmp_path, log_every_n_steps=1)
    run.fit(model, data(table, model))
    assert "train/temperature" in run.callback_metrics


def test_reports_over_the_limit_are_counted(tmp_path, table):
    model = module()
    model.encoder.text.tokenizer.max_tokens = 12
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(model, data(table, model))
    assert run.callback_metrics["train/reports_cut"] == 16


@pytest.mark.parametrize("head", [Global, LocalPooling])
def test_bf16_follows_float32(tmp_path, table, head):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        model = module(head)
        run = trainer(tmp_path, precision=precision, max_steps=1, max_epochs=-1, limit_val_batches=0)
        run.fit(model, data(table, model, augment=None))
        losses[precision] = float(run.callback_metrics["train/loss"])
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=1e-2)


def test_accumulation_clipping_and_the_length_of_the_schedule(tmp_path, table):
    model = module(lr=1e-3)
    run = trainer(tmp_path, accumulate_grad_batches=3, gradient_clip_val=0.1, max_epochs=3, limit_val_batches=0)
    run.fit(model, data(table, model))  # 4 batches an epoch: steps after the 3rd and the 4th
    assert run.global_step == 6
    assert model._total_steps() == 6
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.01)


def test_duplicate_reports_are_no_negatives_unless_asked(table):
    model = module()
    images = torch.randint(0, 255, (4, 1, 32, 32), dtype=torch.uint8)
    model.tokenizer.learn(["There is an effusion.", "No nodule."])
    text = model.tokenizer(["There is an effusion."] * 4)
    from diptych.types import Batch

    batch = Batch(
        images, text, torch.arange(4), torch.ones(4, dtype=torch.bool), None, torch.arange(4), None, list("abcd")
    )
    model.eval()
    assert float(model._loss(model._pairs(batch))[0]) == pytest.approx(0, abs=1e-6)  # nothing to tell apart
    model.mask_duplicates = False
    assert float(model._loss(model._pairs(batch))[0]) > 0.5 * math.log(4)


def test_what_cannot_be_trained_says_so(tmp_path, table):
    frozen = module(image={**IMAGE, "frozen": True})
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        parameter_groups(frozen, lr=1, weight_decay=0)
    model = module()
    with pytest.raises(ConfigError, match=r"max_epochs or trainer.max_steps"):
        trainer(tmp_path, max_epochs=-1).fit(model, data(table, model))
    with pytest.raises(ConfigError, match="share a name"):
        module(evaluators=[Retrieval(), Retrieval()])


def test_a_test_embeds_each_prompt_once_for_all_evaluators(table, tmp_path, monkeypatch):
    sides = {name: {"positive": [f"{name} is seen"], "negative": ["nothing is seen"]} for name in FINDINGS}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"name": "p", "version": 1, "source": "here", "findings": sides}))
    names = ["diptych", "chexzero", "biovil", "convirt"]
    evaluators = [ZeroShot(f"{tmp_path}/p.yaml", name=f"as_{name}", resamples=0, protocol=name) for name in names]
    model, asked = module(LocalPooling, evaluators=[Retrieval(resamples=0), *evaluators]), Counter()
    model.tokenizer.learn(["effusion nodule is seen nothing normal"] * 5)
    real = model.embed_prompts
    monkeypatch.setattr(model, "embed_prompts", lambda texts: asked.update(texts) or real(texts))
    trainer(tmp_path).test(model, data(table, model), verbose=False)
    assert {"Effusion is seen", "Nodule is seen", "nothing is seen"} < set(asked)
    assert set(asked.values()) == {1}
    assert [model.protocol[f"as_{name}"]["protocol"] for name in names] == names
    assert [model.predictions[f"as_{name}"].settings["protocol"] for name in names] == names


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    """A run of the command line with pictures, tested with its best checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    recipe = yaml.safe_load(config(table, head="local_pooling", epochs=2))
    recipe["figures"] = {"pairs": 2, "words": ["effusion", "Nodule"], "matrix": 4}
    (folder / "run.yaml").write_text(yaml.safe_dump(recipe))
    fit = diptych(
        "fit", "-c", str(folder / "run.yaml"), "--run", str(folder / "run"), "--recovery.every_n_train_steps", "2"
    )
    assert fit.returncode == 0, fit.stderr
    test = diptych("test", "-c", str(folder / "run/config.yaml"), "--run", str(folder / "run"), "--ckpt_path", "best")
    assert test.returncode == 0, test.stderr
    return folder / "run", test.stdout


def test_a_run_leaves_everything_it_promises(run):
    import hashlib
    import json

    folder, printed = run
    results = json.loads((folder / "results.json").read_text())
    best = folder / "checkpoints" / "best.ckpt"
    assert hashlib.sha256(best.read_bytes()).hexdigest() in json.dumps(results)
    metric = results["metrics"]["test/retrieval/r@5"]
    assert set(metric) == {"value", "low", "high", "n"}
    assert metric["n"] == 4
    assert "LocalPooling" in json.dumps(results["head"])
    assert {"torch", "lightning", "diptych"} <= set(results["versions"])
    assert "r@5" in printed
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert any(folder.glob("events.out.tfevents*"))
    assert (folder / "config.yaml").is_file()


def test_pictures_have_the_radiograph_and_the_named_words(run, table):
    folder, _ = run
    pictures = sorted(p.name for p in (folder / "figures").iterdir())
    assert {"epoch001-attention-0.png", "epoch001-similarity.png", "test-similarity.png"} <= set(pictures)
    picture = Image.open(folder / "figures" / "test-attention-0.png")
    assert (
        picture.width / 2 - 112
    ) / 252 == 3  # a panel takes 252, bar and edges 112: the radiograph and two named words
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = [EventAccumulator(str(path)).Reload() for path in folder.glob("events*")]
    images = {tag for event in events for tag in event.Tags()["images"]}
    assert {"val/similarity", "val/attention/0"} <= images


def test_load_gives_what_training_had(run, table):
    folder, _ = run
    model = load(folder / "checkpoints" / "best.ckpt")
    paths = [table.parent / f"{i:03d}.png" for i in range(3)]
    texts = ["There is an effusion.", "There is no effusion. There is a nodule."]
    scores = model.similarity(paths, texts)
    assert scores.shape == (3, 2)
    assert torch.allclose(scores[1:2], model.similarity(paths[1], texts), atol=1e-5)
    grey = np.asarray(Image.open(paths[0]))
    assert torch.allclose(model.similarity(grey, texts), scores[:1], atol=1e-5)
    assert torch.allclose(model.similarity(Image.open(paths[0]).convert("RGB"), texts), scores[:1], atol=1e-5)
    assert torch.allclose(model.encode_image(paths).pooled.norm(dim=1), torch.ones(3), atol=1e-5)
    assert model.encode_text(texts).pooled.shape[0] == 2
    words, maps = model.heatmap(paths[0], texts[1])
    assert words == ["There", "is", "no", "effusion", "There", "is", "a", "nodule"]
    assert maps.shape == (8, 32, 32)
    again = load_module(folder / "checkpoints" / "best.ckpt")
    stored = read_checkpoint(folder / "checkpoints" / "best.ckpt")["state_dict"]
    assert all(torch.equal(v, stored[k]) for k, v in again.state_dict().items() if isinstance(v, torch.Tensor))


def test_a_model_is_loaded_without_the_prompt_files_it_was_validated_with(run, tmp_path):
    checkpoint = read_checkpoint(run[0] / "checkpoints" / "best.ckpt")
    gone = {
        "class_path": "diptych.evaluation.zero_shot.ZeroShot",
        "init_args": {"prompts": str(tmp_path / "gone.yaml")},
    }
    checkpoint["diptych"]["config"]["evaluators"] = [gone]
    torch.save(checkpoint, tmp_path / "moved.ckpt")
    assert load_module(tmp_path / "moved.ckpt").evaluators == []


def test_foreign_and_unfit_checkpoints_are_refused_by_name(run, tmp_path):
    folder, _ = run
    best = folder / "checkpoints" / "best.ckpt"
    checkpoint = read_checkpoint(best)

    def refused(change, message):
        torch.save(change, tmp_path / "x.ckpt")
        with pytest.raises(ConfigError, match=message):
            load(tmp_path / "x.ckpt")

    refused({"state_dict": {"fc.weight": torch.zeros(2)}}, r"not written by diptych; its 1 weights are 1 \(fc.weight\)")
    refused({"weights": 1}, "no state_dict")
    less = {k: v for k, v in checkpoint["state_dict"].items() if "head" not in k}
    refused(
        {**checkpoint, "state_dict": {**less, "extra": torch.zeros(1)}}, r"missing: \d+ \(head.*unexpected: 1 \(extra\)"
    )
    refused({**checkpoint, "diptych": {**checkpoint["diptych"], "config": None}}, "trained from Python")
    broken = {
        **checkpoint["diptych"]["config"],
        "head": {"class_path": "subprocess.Popen", "init_args": {"args": "true"}},
    }
    refused(
        {**checkpoint, "diptych": {**checkpoint["diptych"], "config": broken}},
        "'subprocess.Popen' is no head of the catalogue",
    )
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"state_dict": print}))
    with pytest.raises(ConfigError, match=r"evil.ckpt: refused"):
        load(tmp_path / "evil.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(best.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"cut.ckpt: "):
        load(tmp_path / "cut.ckpt")
    with pytest.raises(ConfigError, match="no such checkpoint"):
        load(tmp_path / "none.ckpt")


def test_global_head_has_no_heatmap_and_says_so(tmp_path, table):
    described = {
        "image": {"class_path": "TimmImage", "init_args": IMAGE},
        "text": {"class_path": "ScratchText", "init_args": TEXT},
        "head": "global",
    }
    built = build_module(described)
    assert isinstance(built.head, Global)
    built.tokenizer.learn(["a report"])
    from diptych.model.inference import TrainedModel

    with pytest.raises(ConfigError, match="Global has no heatmap"):
        TrainedModel(built, 32).heatmap(np.arange(64, dtype=np.uint8).reshape(8, 8), "a report")
