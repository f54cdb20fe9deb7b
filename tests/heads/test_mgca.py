"""MGCA: its three terms against loops, and what every head must hold to."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import head_contract
import lightning.pytorch as pl
import mini
import pytest
import torch
import twins
from head_contract import close, losses
from mgca_twins import losses_twin, shares_twin, sinkhorn_twin
from torch import nn

from diptych.data.loading import Loading
from diptych.data.tables import Columns
from diptych.errors import ConfigError
from diptych.head import FollowsTraining, Grounds
from diptych.model.module import AlignmentModule
from diptych.model.optim import parameter_groups
from diptych.nn import functional as F
from diptych.testing import heads as contract
from diptych.towers.image import TimmImage
from diptych.towers.text import ScratchText
from diptych_datamodules.tabular import Tabular
from diptych_heads.mgca import MGCA, assign, clipped_shares, token_loss

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"hidden": 24, "prototypes": 12, "frozen_epochs": 0, "learn_temperature": True}
# Batch normalisation takes a constant off, so these biases of the stand-in towers have no gradient in any job.
NO_GRADIENT = {"regions.bias", "words.bias"}


def step_of(**options):
    return twins.Step("mgca", SMALL | options).double()


def test_every_term_and_gradient_equal_the_loops():
    raw = twins.raw_batch()
    step, twin = step_of(), step_of()
    terms = losses(step, raw)
    expected = losses_twin(dict(twin.head.named_parameters()), *twin.features(raw), raw.hash)
    assert terms.keys() == expected.keys() == step.head.weights.keys()
    for name in expected:
        close(terms[name], expected[name])
        step.zero_grad()
        twin.zero_grad()
        terms[name].backward(retain_graph=True)
        expected[name].backward(retain_graph=True)
        gradients = {n: p.grad for n, p in twin.named_parameters()}
        for n, p in step.named_parameters():
            zero = torch.zeros_like(p)
            close(zero if p.grad is None else p.grad, zero if gradients[n] is None else gradients[n], 1e-8)


def test_shares_are_clipped_over_real_words_and_sum_to_one():
    generator = torch.Generator().manual_seed(1)
    attention = torch.rand(5, 30, generator=generator, dtype=torch.float64)
    mask = torch.arange(30) < torch.tensor([[30], [17], [2], [1], [0]])
    shares = clipped_shares(attention, mask, 0.1, 0.9)
    for row, weights, real in zip(shares, attention, mask, strict=True):
        close(row[real], shares_twin(weights[real]) if real.any() else row[real], 1e-12)
        assert (row[~real] == 0).all()
    close(shares.sum(1), torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64), 1e-12)
    even = clipped_shares(torch.ones(2, 8), torch.ones(2, 8, dtype=torch.bool), 0.1, 0.9)
    close(even, torch.full((2, 8), 1 / 8), 1e-7)


def test_codes_use_all_prototypes_alike():
    generator = torch.Generator().manual_seed(2)
    scores = F.dot_products(
        F.unit(torch.randn(40, 6, generator=generator)), F.unit(torch.randn(5, 6, generator=generator))
    )
    codes = assign(scores, 0.05, 3)
    close(codes, sinkhorn_twin(scores), 1e-5)
    close(codes.sum(1), torch.ones(40), 1e-6)
    close(assign(scores, 0.05, 200).sum(0), torch.full((5,), 8.0), 1e-3)  # 40 pairs, 5 prototypes
    extreme = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    assert assign(extreme, 0.02, 3).isfinite().all()


# What every head must hold to ------------------------------------------------------------------------------------------


def test_padding_changes_neither_losses_nor_statistics():
    step, raw = step_of(), twins.raw_batch()
    again = copy.deepcopy(step)
    padding = torch.randn(8, 5, 3, dtype=torch.float64)
    padded = replace(raw, text=torch.cat([raw.text, padding], 1), mask=nn.functional.pad(raw.mask, (0, 5)))
    for term, value in losses(step, raw).items():
        close(losses(again, padded)[term], value, 1e-12)
    again = copy.deepcopy(step)
    step.embed(raw)
    again.embed(padded)
    for (name, a), b in zip(step.named_buffers(), again.buffers(), strict=True):
        close(b, a, 1e-12)
        assert name.endswith(("running_mean", "running_var"))


def test_order_and_batches_change_no_similarity():
    contract.batch_independence(head_contract.case("mgca", SMALL))
    step, raw = step_of(), twins.raw_batch()
    step.embed(raw)
    image, text = step.eval().embed(raw)
    close(step.head.similarity(image, text), image.pooled @ text.pooled.T, 1e-12)
    close(
        step.embed(raw.rows(slice(2, 5)))[0].tokens, image.tokens[2:5], 1e-12
    )  # in evaluation rows are embedded alone
    close(step.embed(raw.rows(slice(2, 5)))[1].pooled, text.pooled[2:5], 1e-12)


TERMS = [
    {},
    *(
        {f"{term}_weight": 0.0 for term in ("instance", "token", "prototype") if term != alone}
        for alone in ("instance", "token", "prototype")
    ),
]


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("options", TERMS, ids=["all", "instance", "token", "prototype"])
def test_loss_and_every_gradient_equal_one_process(processes, world, options):
    raw = twins.raw_batch()
    options = SMALL | options
    loss, expected = twins.gradients(twins.Step("mgca", options).double(), raw)
    results = processes.run(world, twins.task_gradients, "mgca", options, raw)
    assert sum(value for value, _ in results) / world == pytest.approx(loss, rel=1e-10)
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for _, gradients in results:
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            exercised = gradient.norm() > 1e-9
            assert exercised or len(options) > len(SMALL) or name in NO_GRADIENT, f"{name} is not exercised"
            scale = float(gradient.norm()) if exercised else largest
            assert float((gradients[name] - gradient).norm()) < 1e-9 * scale, name


@pytest.mark.parametrize("wrong", ["embeddings", "scores", "statistics"])
def test_a_wrong_gather_is_noticed(gloo2, wrong):
    raw = twins.raw_batch()
    _, expected = twins.gradients(twins.Step("mgca", SMALL).double(), raw)
    _, gradients = gloo2(twins.task_gradients_broken, wrong, "mgca", SMALL, raw)[0]
    relative = [(gradients[n] - g).norm() / g.norm() for n, g in expected.items() if n not in NO_GRADIENT]
    assert max(relative) > 0.05


def test_each_pair_is_scored_once_over_the_job(gloo4):
    raw = twins.raw_batch()
    prototypes = 2 * 8 * SMALL["prototypes"]  # both panels' pairs with the prototypes
    assert sum(gloo4(twins.task_pairs_scored, "mgca", SMALL, raw)) == 8 * 8 + prototypes


def test_the_temperature_learns_is_shown_and_is_clamped():
    head_contract.the_temperature_learns_is_shown_and_is_clamped("mgca", SMALL)
    assert step_of().head.temperature.item() == pytest.approx(0.07)
    assert not twins.HEADS["mgca"](twins.DIMS).scale.log_scale.requires_grad  # published: fixed


@pytest.mark.parametrize("case", ["one pair", "an empty report", "empty reports", "one-word reports"])
def test_small_and_empty_inputs_give_numbers(case):
    raw = twins.raw_batch()
    if case == "one pair":
        raw = raw.rows(slice(0, 1))
    elif case == "an empty report":
        raw.mask[3] = False
    elif case == "empty reports":
        raw.mask[:] = False
    else:
        raw.mask[:, 1:] = False
    for dtype in (torch.float32, torch.float64):
        step = twins.Step("mgca", SMALL).to(dtype)
        terms = losses(step, replace(raw, image=raw.image.to(dtype), text=raw.text.to(dtype)))
        total = sum(terms.values())
        total.backward()
        assert total.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in step.parameters())
        if case == "empty reports":
            assert terms["token"] == 0


def test_an_empty_report_weighs_nothing_in_the_token_term():
    step, raw = step_of(), twins.raw_batch()
    raw.mask[3] = False
    image, text = step.embed(raw)
    with_words = torch.tensor([0, 1, 2, 4, 5, 6, 7])
    close(
        step.head._token_term(image, text),
        step.head._token_term(image.select(with_words), text.select(with_words)) * 7 / 8,
        1e-12,
    )


def test_bfloat16_autocast_stays_near_float32():
    raw = twins.raw_batch(dtype=torch.float32)
    step = twins.Step("mgca", SMALL)
    plain = losses(step, raw)
    sum(plain.values()).backward()
    expected = torch.cat([p.grad.flatten() for p in step.parameters() if p.grad is not None])
    step.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = losses(step, raw)
        assert step.head.similarity(*step.embed(raw)).dtype == torch.float32
        assert step.head.heatmap(*step.embed(raw)).dtype == torch.float32
    for name, term in plain.items():
        assert mixed[name].dtype == torch.float32
        assert abs(mixed[name].item() - term.item()) < 1e-2 * term.item(), name
    sum(mixed.values()).backward()
    actual = torch.cat([p.grad.flatten() for p in step.parameters() if p.grad is not None])
    assert (actual - expected).norm() < 0.05 * expected.norm()


def test_equal_reports_are_not_negatives_of_each_other():
    step, raw = step_of(), twins.raw_batch()
    apart = losses(step, replace(raw, hash=torch.arange(8)))
    together = losses(step, raw)
    assert apart["instance"] > together["instance"]
    close(apart["token"], together["token"], 1e-12)


def test_words_are_grounded_by_the_token_terms_attention():
    step, raw = step_of(), twins.raw_batch()
    assert isinstance(step.head, Grounds)
    image, text = step.embed(raw)
    heatmap = step.head.heatmap(image, text)
    assert heatmap.shape == (8, 6, 9)
    close(heatmap.sum(-1), raw.mask.double())
    expected = torch.stack([torch.dot(text.tokens[2, 1], v) / 0.1 for v in image.tokens[2]]).softmax(0)
    assert raw.mask[2, 1]
    close(heatmap[2, 1], expected)


@pytest.mark.slow
def test_the_token_term_compiles_as_one_graph():
    step, raw = step_of(), twins.raw_batch()
    image, text = step.embed(raw)
    arguments = (
        text.tokens,
        text.mask,
        image.tokens,
        image.mask,
        clipped_shares(text.attention, text.mask, 0.1, 0.9),
        0.1,
    )
    actual, expected = (
        (value := function(*arguments), *torch.autograd.grad(value, [image.tokens, text.tokens], retain_graph=True))
        for function in (torch.compile(token_loss, fullgraph=True), token_loss)
    )
    for a, b in zip(actual, expected, strict=True):
        close(a, b)


# What is MGCA's own ----------------------------------------------------------------------------------------------------


def test_attention_decides_what_a_token_weighs():
    step, raw = step_of(), twins.raw_batch()
    image, text = step.embed(raw)
    for panel in ("image", "text"):
        fields = {"image": image, "text": text}
        fields[panel] = replace(fields[panel], attention=fields[panel].attention.flip(1))
        assert abs(step.head._token_term(**fields) - step.head._token_term(image, text)) > 1e-4
    features = step.features(raw)[0]
    uniform = step.head.embed_image(replace(features, attention=None))
    close(uniform.attention, torch.ones(8, 9, dtype=torch.float64))
    with pytest.raises(ConfigError, match="head mgca: the text tower gives no attention"):
        step.head.embed_text(replace(step.features(raw)[1], attention=None))
    assert step.head.needs == {"text.attention"}
    assert step.head.wants == {"image.attention"}


def test_prototypes_stand_still_in_the_first_epoch_and_do_not_decay():
    step, raw = step_of(frozen_epochs=1), twins.raw_batch()
    assert isinstance(step.head, FollowsTraining)
    groups = parameter_groups(step, lr=0.1, weight_decay=0.5)
    assert [g["weight_decay"] for g in groups for name in g["names"] if name == "head.prototypes"] == [0.0]
    optimizer = torch.optim.AdamW(groups)
    before = step.head.prototypes.detach().clone()
    for epoch, still in ((0, True), (0, True), (1, False)):
        step.head.start_step(epoch, step=0, total_steps=10)
        optimizer.zero_grad()
        terms = losses(step, raw)
        terms["prototype"].backward()
        assert step.head.image_projection.outer.weight.grad.norm() > 1e-3  # the panels learn to agree all the same
        assert (step.head.prototypes.grad.norm() == 0) == still
        optimizer.step()
        assert torch.equal(step.head.prototypes, before) == still


def test_the_length_of_a_prototype_does_not_matter():
    step, raw = step_of(), twins.raw_batch()
    value = losses(step, raw)["prototype"]
    with torch.no_grad():
        step.head.prototypes.mul_(3.0)
    close(losses(step, raw)["prototype"], value)


def test_frozen_prototypes_are_exact_under_ddp(gloo2):
    raw = twins.raw_batch()
    options = SMALL | {"frozen_epochs": 1}
    _, expected = twins.gradients(twins.Step("mgca", options).double(), raw)
    assert expected["head.prototypes"].norm() == 0
    for _, gradients in gloo2(twins.task_gradients, "mgca", options, raw):
        assert gradients["head.prototypes"].norm() == 0
        for name in expected.keys() - NO_GRADIENT - {"head.prototypes"}:
            assert (gradients[name] - expected[name]).norm() < 1e-9 * expected[name].norm(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; give a number of 0.01 or more"),
        ({"epsilon": 0.001}, "epsilon is 0.001; give a number of 0.02 or more"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations is 0; give a whole number of 1 or more"),
        ({"low_quantile": 0.9, "high_quantile": 0.1}, "high_quantile is 0.1; give a number from 0.9 to 1"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=f"head mgca: {message}"):
        MGCA(twins.DIMS, **options)


# In the module ---------------------------------------------------------------------------------------------------------

TINY = {"width": 16, "hidden": 16, "prototypes": 8}


def module(image=mini.IMAGE, **options):
    torch.manual_seed(0)
    head = functools.partial(MGCA, **TINY, **options)
    return AlignmentModule(TimmImage(**image), ScratchText(**mini.TEXT), head, lr=1e-3)


def fit(folder, table, model, **options):
    columns = Columns(patient="patient", split="split", labels=mini.FINDINGS)
    loading = Loading(image_size=32, batch_size=4, eval_batch_size=4, workers=0)
    checkpoint, options = options.pop("ckpt_path", None), {"logger": False, "enable_checkpointing": False, **options}
    trainer = pl.Trainer(
        accelerator="cpu", default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **options
    )
    trainer.fit(model, Tabular(str(table), model.tokenizer, columns=columns, loading=loading), ckpt_path=checkpoint)
    return trainer


def test_towers_give_attention_only_where_a_head_asks():
    vit = {"name": "vit_tiny_patch16_224", "pretrained": False}
    vit["model_args"] = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    encoder = module().encoder
    assert encoder.text.attention
    assert not encoder.image.attention  # a ResNet has none to give
    assert module(vit).encoder.image.attention
    plain = AlignmentModule(TimmImage(**vit), ScratchText(**mini.TEXT), twins.HEADS["local_pooling"])
    assert not plain.encoder.text.attention
    assert not plain.encoder.image.attention


def test_a_tower_that_cannot_give_what_the_head_needs_is_refused(tmp_path, monkeypatch):
    model = module()
    monkeypatch.setattr(model.encoder.text, "gives_attention", False)
    with pytest.raises(ConfigError, match=r"the head MGCA needs text\.attention, which the towers do not give"):
        fit(tmp_path, mini.write_pairs(tmp_path / "pairs"), model, max_steps=1)


class Told(pl.Callback):
    """What the head knew, and which prototypes there were, after each step; a checkpoint in mid-epoch."""

    def __init__(self, save=None):
        self.save, self.steps = save, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        head = pl_module.head
        self.steps.append((trainer.current_epoch, head.epoch, head.prototypes.detach().clone()))
        if self.save and trainer.global_step == 6:
            trainer.save_checkpoint(self.save)


def test_trains_and_knows_the_epoch_after_a_resume_in_mid_epoch(tmp_path):
    table = mini.write_pairs(tmp_path / "pairs")  # 4 steps an epoch
    whole, resumed = Told(tmp_path / "six.ckpt"), Told()
    model = module()
    start = model.head.prototypes.detach().clone()
    run = fit(tmp_path, table, model, max_epochs=2, callbacks=[whole])
    assert all(run.callback_metrics[f"train/loss/{term}"].isfinite() for term in ("instance", "token", "prototype"))
    assert run.callback_metrics["val/loss"].isfinite()
    assert run.callback_metrics["train/temperature"] == pytest.approx(0.07)
    assert [epoch for _, epoch, _ in whole.steps] == [0] * 4 + [1] * 4
    assert all(torch.equal(prototypes, start) == (epoch == 0) for epoch, _, prototypes in whole.steps)
    again = module()
    fit(tmp_path, table, again, max_epochs=2, callbacks=[resumed], ckpt_path=str(tmp_path / "six.ckpt"))
    assert [epoch for _, epoch, _ in resumed.steps] == [1, 1]
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert model.head.word_projection.inner_norm.running_mean.norm() > 0
