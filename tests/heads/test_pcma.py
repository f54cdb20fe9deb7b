"""``pcma``: every equation against a slow twin, and what must not change it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import mini
import numpy as np
import pcma_twins as twins
import pytest
import torch
import twins as common
from head_contract import close
from pcma_twins import Step, raw_batch

from diptych.data.datamodule import Sample
from diptych.data.loading import Loading
from diptych.data.tables import Columns
from diptych.errors import ConfigError
from diptych.head import Grounds, gather_pairs
from diptych.model.inference import TrainedModel
from diptych.model.module import AlignmentModule
from diptych.towers.image import TimmImage
from diptych.towers.text import ScratchText
from diptych.training.figures import Figures
from diptych.types import Pairs, map_leaves
from diptych_datamodules.tabular import Tabular
from diptych_heads.equations import pcma as matching
from diptych_heads.global_ import Global
from diptych_heads.pcma import Pcma

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = ["soft", "hungarian", "sinkhorn", "max"]
VARIANTS = [
    {"mask_sentences": True},
    {"matching": "hungarian", "mask_sentences": True},
    {"matching": "sinkhorn", "local_score": True},
    {"matching": "max", "local_score": True, "mask_sentences": False},
    {"text_queries": 4, "local_score": True},
    {"sentence_weights": "even"},
    {"sentence_weights": "learned", "text_queries": 4, "mask_sentences": True},
    {"cce": 0.0},
    {"cce_source": "ema", "cce_layers": 2},
    {"cce_source": "detached"},
]
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
every_kind = pytest.mark.parametrize("kind", KINDS)


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


# Sentences -----------------------------------------------------------------------------------------------------------


def test_an_observation_of_a_report_is_the_mean_of_its_words_through_two_layers():
    step, raw = Step({}).double(), raw_batch()
    _, features = step.features(raw)
    embedded = step.head.embed_text(features)
    row = 3  # its second sentence has two words
    for slot, sentence in enumerate((0, 2)):
        words = features.tokens[row][raw.sentences[row] == sentence]
        expected = step.head.sentence_projection(words.mean(0))
        close(embedded.tokens[row, slot], expected / expected.norm(), 1e-7)
    assert embedded.mask[row].tolist() == [True, True, False, False, False]
    assert embedded.sentence_hash[row].tolist() == [1000, 1005, -1, -1, -1]
    assert (embedded.tokens[row, 2:] == 0).all()


def test_queries_never_see_the_text():
    step, raw = Step({}).double(), raw_batch()
    image, _ = step.embed(raw)
    other, _ = step.embed(replace(raw, text=raw.text.flip(0)))
    close(image.tokens, other.tokens, 0)
    close(image.attention.sum(-1), torch.ones(8, 5, dtype=torch.float64))
    close(image.tokens.norm(dim=-1), torch.ones(8, 5, dtype=torch.float64))


# Terms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_sentences", [True, False])
@pytest.mark.parametrize(("kind", "weights"), [*((kind, "even") for kind in KINDS), ("soft", "learned")])
def test_inter_and_intra_equal_their_twins(kind, weights, mask_sentences):
    options = {"matching": kind, "sentence_weights": weights, "mask_sentences": mask_sentences, "cce": 0.0}
    step, raw = Step(options).double(), raw_batch()
    image, text = step.embed(raw)
    assert weights == "even" or float(text.weights[text.mask].detach().std()) > 0.1
    scores = twins.scores(image, text, kind, mask_sentences)
    assert any(s is None for row in scores for s in row) == mask_sentences  # some pairs share all their sentences
    scale = 1 / 0.07
    expected = {
        "inter": twins.info_nce(scores, raw.hash, scale),
        "intra": twins.intra(image, text, kind, scale),
    }
    terms = step.terms(raw)
    parameters = dict(step.named_parameters())
    for name, value in expected.items():
        close(terms[name], value, 1e-6)
        a, b = (
            torch.autograd.grad(x, list(parameters.values()), allow_unused=True, retain_graph=True)
            for x in (terms[name], value)
        )
        for at, x, y in zip(parameters, a, b, strict=True):
            if y is not None:
                assert relative(x, y) < 1e-6, (name, at)


def test_equal_sentences_are_no_negatives():
    step, raw = Step({"cce": 0.0, "mask_sentences": True}).double(), raw_batch()
    nothing_equal = replace(raw, sentence_hash=torch.arange(32).view(8, 4) + 2000, hash=torch.arange(8))
    assert step.terms(raw)["inter"] < step.terms(nothing_equal)["inter"]
    assert step.terms(raw)["intra"] < step.terms(nothing_equal)["intra"]  # the fifth report says a sentence twice
    everything_equal = replace(raw, sentence_hash=torch.full((8, 4), 2000))
    assert step.terms(everything_equal)["inter"].item() == pytest.approx(0, abs=1e-12)
    assert step.terms(everything_equal)["intra"].item() == pytest.approx(0, abs=1e-12)


def losses(step, raw):
    return step.terms(raw)


@every_variant
def test_terms_have_weights_and_shapes_are_as_promised(options):
    step, raw = Step(options).double(), raw_batch()
    terms = losses(step, raw)
    assert terms.keys() == step.head.weights.keys()
    assert ("cce" in terms) == bool(options.get("cce", 1))
    assert all(term.shape == () and term > 0 for term in terms.values())
    image, text = step.embed(raw)
    assert step.head.similarity(image, text.select(torch.arange(3))).shape == (8, 3)
    close(image.pooled.norm(dim=-1), torch.ones(8, dtype=torch.float64))


@every_variant
def test_padding_changes_neither_losses_nor_similarity(options):
    step, raw = Step(options).double(), raw_batch()
    more = twins.padded(raw)
    for term, value in losses(step, raw).items():
        close(losses(step, more)[term], value, 1e-12)
    close(step.head.similarity(*step.embed(more)), step.head.similarity(*step.embed(raw)), 1e-12)
    close(step.head.heatmap(*step.embed(more))[:, :16], step.head.heatmap(*step.embed(raw)), 1e-12)


@every_variant
def test_order_and_batches_change_no_similarity(options):
    step, raw = Step(options).double().eval(), raw_batch()
    image, text = step.embed(raw)
    assert image.cce is None  # evaluation keeps nothing of the exploration
    assert text.cce is None
    whole = step.head.similarity(image, text)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    close(step.head.similarity(image.select(order), text), whole[order], 1e-12)
    close(step.head.similarity(image, text.select(order)), whole[:, order], 1e-12)
    parts = [
        torch.cat([step.head.similarity(image.select(i), text.select(c)) for c in torch.arange(8).split(3)], 1)
        for i in torch.arange(8).split(5)
    ]
    close(torch.cat(parts), whole, 1e-12)
    assert losses(step, raw).keys() == {"global", "inter", "intra"}


def test_evaluation_ranks_by_the_cosine_or_by_its_sum_with_the_matchings():
    raw = raw_batch()
    even = {"sentence_weights": "even"}
    plain, both = (Step(even | {"local_score": local}).double() for local in (False, True))
    image, text = plain.embed(raw)
    cosine = image.pooled @ text.pooled.T
    close(plain.head.similarity(image, text), cosine)
    scores, _ = matching.pair_scores(image.tokens, text.tokens, text.mask)
    close(both.head.similarity(image, text), cosine + scores)


@every_variant
def test_the_temperature_learns_is_shown_and_is_clamped(options):
    step, raw = Step(options).double(), raw_batch()
    sum(losses(step, raw).values()).backward()
    assert step.head.scale.log_scale.grad.abs() > 1e-4
    with torch.no_grad():
        step.head.scale.log_scale.fill_(50.0)
    assert all(term.isfinite() for term in losses(step, raw).values())
    assert step.head.temperature.item() == pytest.approx(0.01)
    assert not step.head.temperature.requires_grad


def finite(step, raw):
    total = sum(losses(step, raw).values())
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in step.parameters())


@every_variant
def test_one_pair(options):
    finite(Step(options).double(), raw_batch().rows(slice(0, 1)))


@every_variant
def test_reports_of_no_word_and_of_one_word_do_no_harm(options):
    raw = raw_batch()
    mask = raw.mask.clone()
    mask[3] = False
    mask[4, 1:] = False
    short = replace(raw, mask=mask)
    finite(Step(options).double(), short)
    heat = Step(options).double().head.heatmap(*Step(options).double().embed(short))
    close(heat.sum(-1), mask.double())
    finite(Step(options).double(), replace(raw, mask=torch.zeros_like(mask)))


@every_variant
def test_bfloat16_autocast_stays_near_float32(options):
    raw = raw_batch(dtype=torch.float32)
    step = Step(options)
    plain = sum(losses(step, raw).values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = sum(losses(step, raw).values())
        assert step.head.similarity(*step.embed(raw)).dtype == torch.float32
    mixed.backward()
    assert mixed.dtype == torch.float32
    assert abs(mixed.item() - plain.item()) < 1e-2 * plain.item()


def test_undeclared_fields_are_empty_in_the_world_on_one_process_too():
    step, raw = Step({}).double(), raw_batch()
    image, text = step.embed(raw)
    world = gather_pairs(step.head, Pairs(image, text, torch.arange(8), raw.hash))
    numbers = {}
    panels = {"image": world.image, "text": world.text}
    map_leaves(lambda path, x: numbers.update({path: 0 if x is None else x.numel()}), panels)
    assert {path for path, number in numbers.items() if number} == step.head.gathers
    assert "text.cce.words" in numbers


def test_words_are_seen_through_their_sentence():
    step, raw = Step({}).double(), raw_batch()
    assert isinstance(step.head, Grounds)
    image, text = step.embed(raw)
    heatmap = step.head.heatmap(image, text)
    assert heatmap.shape == (8, 16, 9)
    close(heatmap.sum(-1), raw.mask.double())
    for b in range(8):
        real = text.mask[b]
        beyond = torch.stack([(a - image.attention[b].mean(0)).clamp(min=0) for a in image.attention[b]])
        maps = twins.weights(text.tokens[b][real] @ image.tokens[b].T, "soft") @ beyond
        maps = maps / maps.sum(1, keepdim=True)
        for n in range(int(raw.mask[b].sum())):
            slot = int(text.slots[b, n])
            close(heatmap[b, n], maps[slot] if slot >= 0 else maps.mean(0))
    assert (text.slots[3, 3:5] == -1).all()  # of a dropped sentence
    alone = Step({"queries": 1}).double()
    close(alone.head.heatmap(*alone.embed(raw))[0, 0], torch.full((9,), 1 / 9).double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "head pcma: queries is 0; give a whole number of 1 or more"),
        ({"temperature": 0.001}, "head pcma: temperature is 0.001"),
        ({"softness": 0.0}, "head pcma: softness is 0.0"),
        ({"byte_budget": -1}, "head pcma: byte_budget is -1"),
        ({"cce": -1.0}, "head pcma: cce is -1.0"),
        ({"heads": 3}, "width=16: not a multiple of heads=3"),
        ({"cce_layers": 0}, "head cce: layers is 0"),
        ({"joining": "joint", "local_score": False}, "head pcma: local_score is false, but joining joint"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Pcma(twins.DIMS, **{**twins.SMALL, **options})


def test_sentences_count_alike_at_the_start_and_weigh_their_words():
    raw = raw_batch()
    fresh = Pcma(twins.DIMS, **twins.SMALL, sentence_weights="learned").double()
    step = Step({"sentence_weights": "learned"}).double()
    _, features = step.features(raw)
    start = fresh.embed_text(features)
    assert (start.weights[start.mask] == 0.5).all()
    assert (start.weights[~start.mask] == 0).all()

    image, text = step.embed(raw)
    weights = step.head.importance(image, text)
    assert weights.shape == raw.mask.shape
    for b in range(8):
        real = [(int(slot), n) for n, slot in enumerate(text.slots[b]) if slot >= 0]
        assert set(weights[b].nonzero().flatten().tolist()) == {n for _, n in real}
        total = float(text.weights[b][text.mask[b]].sum())
        for slot in {slot for slot, _ in real}:
            words = [n for own, n in real if own == slot]
            close(weights[b, words], (text.weights[b, slot] / total / len(words)).expand(len(words)), 1e-9)
    assert step.head.weighs_words
    even = Step({"sentence_weights": "even"}).double()
    assert not even.head.weighs_words
    with pytest.raises(ConfigError, match="sentence_weights is even"):
        even.head.importance(*even.embed(raw))


# Processes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4])
@every_variant
def test_every_term_and_gradient_equals_one_process(processes, world, options):
    twins.equal_on_processes(processes, world, options, "pcma", raw_batch(), 10)


@pytest.mark.parametrize("what", ["embeddings", "scores"])
def test_a_wrong_gather_is_noticed(gloo2, what):
    options, raw = {"queries": 5, "heads": 2, "cce": 0.0}, common.raw_batch()  # each report as one sentence
    _, expected = common.gradients(common.Step("pcma", options).double(), raw)
    _, gradients = gloo2(common.task_gradients_broken, what, "pcma", options, raw)[0]
    assert max(relative(gradients[name], gradient) for name, gradient in expected.items()) > 0.05


def test_every_parameter_has_a_gradient_and_trains():
    step, raw = Step({}), raw_batch(dtype=torch.float32)
    optimizer = torch.optim.Adam(step.parameters(), lr=3e-3)
    first = step(raw).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss = step(raw)
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None for p in step.parameters())
    assert loss.item() < 0.7 * first


def test_it_trains_in_the_module_is_told_the_step_and_resumes_exactly(tmp_path):
    """The whole way from files; stopped after the second of two epochs' four steps, it ends with the same weights."""
    import lightning.pytorch as pl

    table = mini.write_pairs(tmp_path / "pairs")

    def fit(folder, epochs, checkpoint=None):
        torch.manual_seed(0)
        image = TimmImage(**mini.IMAGE, stage=2)  # 4x4 regions
        head = partial(Pcma, width=16, cce_source="ema", cce_warmup=0.5)
        module = AlignmentModule(image, ScratchText(**mini.TEXT), head, lr=1e-3)
        loading = Loading(image_size=32, batch_size=4, eval_batch_size=4, workers=0)
        columns = Columns(patient="patient", split="split")
        settings = []

        class Watch(pl.Callback):
            def on_train_batch_end(self, trainer, module, *_):
                settings.append((module.head.cce._step, round(module.head.weights["cce"], 6)))
                if trainer.global_step == epochs * 4:
                    trainer.should_stop = True

        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=2,
            min_epochs=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            callbacks=[Watch()],
        )
        trainer.fit(
            module, Tabular(str(table), module.tokenizer, columns=columns, loading=loading), ckpt_path=checkpoint
        )
        trainer.save_checkpoint(folder)
        assert {"train/loss/inter", "train/loss/intra", "train/loss/cce", "train/loss/cce_shuffled"} <= set(
            trainer.callback_metrics
        )
        return module.state_dict(), settings

    whole, settings = fit(tmp_path / "whole.ckpt", 2)
    assert settings == [(0, 0.25), (1, 0.5), (2, 0.75), *((i, 1.0) for i in range(3, 8))]
    _, first = fit(tmp_path / "half.ckpt", 1)
    resumed, rest = fit(tmp_path / "rest.ckpt", 2, str(tmp_path / "half.ckpt"))
    assert first + rest == settings
    assert not [
        n for n, value in whole.items() if isinstance(value, torch.Tensor) and not torch.equal(value, resumed[n])
    ]


def test_queries_and_words_are_drawn(tmp_path):
    torch.manual_seed(0)
    text = ScratchText(**mini.TEXT)
    text.tokenizer.learn(["There is an effusion. No nodule is seen."])
    module = AlignmentModule(TimmImage(**mini.IMAGE, stage=2), text, partial(Pcma, width=16, queries=5))
    model = TrainedModel(module, 32)
    picture = np.random.default_rng(0).integers(0, 255, (48, 40)).astype(np.uint8)
    assert model.observations(picture).shape == (5, 48, 40)
    words, maps = model.heatmap(picture, "There is an effusion. No nodule is seen.")
    assert maps.shape == (len(words), 48, 40)
    assert np.array_equal(maps[0], maps[3])  # a sentence has one map
    assert not np.allclose(maps[0], maps[4])
    global_only = TrainedModel(AlignmentModule(TimmImage(**mini.IMAGE), text, Global), 32)
    with pytest.raises(ConfigError, match="the head Global has no queries to draw"):
        global_only.observations(picture)
    sample = Sample(picture, "There is an effusion.")
    assert (
        Figures(words_per_pair=2)._queries(model, sample, []).height > Figures()._queries(model, sample, []).height / 2
    )
    seen = model.observe(picture)
    assert np.allclose(seen.regions.mean(axis=(1, 2)), 1, rtol=1e-4)
    assert np.allclose(seen.native, model.observations(picture) * 16)
