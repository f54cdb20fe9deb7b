"""Exact gradients on many processes, with real processes: a mocked collective proves nothing."""

from __future__ import annotations

import pytest
import torch
import twins

VARIANTS = [
    ("global", {}),
    ("global", {"image_weight": 0.75, "projection": "mlp"}),
    ("global", {"loss": "sigmoid"}),
    ("local_pooling", {"learn_scale": True}),
    ("local_pooling", {"byte_budget": 0, "global_weight": 0.3}),
    ("local_pooling", {"pooling": "mean"}),
    ("local_pooling", {"pooling": "max"}),
    ("local_pooling", {"pooling": "mean", "attention": "softmax"}),
    ("local_pooling", {"attention": "raw", "byte_budget": 0}),
]
NAMES = [f"{head}-{'-'.join(map(str, options.values()))}" for head, options in VARIANTS]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


@pytest.fixture(params=[2, 4])
def world(request):
    return request.param


@pytest.fixture
def run(world, processes):
    return lambda function, *args: processes.run(world, function, *args)


@pytest.mark.parametrize(("head", "options"), VARIANTS, ids=NAMES)
def test_loss_and_every_gradient_equal_one_process(run, head, options):
    raw = twins.raw_batch()
    loss, expected = twins.gradients(twins.Step(head, options).double(), raw)
    results = run(twins.task_gradients, head, options, raw)
    assert sum(value for value, _ in results) / len(results) == pytest.approx(loss, rel=1e-10)
    for _, found in results:
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.norm() > 1e-9, f"{name} is not exercised"
            assert relative(found[name], gradient) < 1e-9, name


@pytest.mark.parametrize("what", ["embeddings", "scores"])
@pytest.mark.parametrize("head", ["global", "local_pooling"])
def test_a_wrong_gather_is_noticed(gloo2, head, what):
    raw = twins.raw_batch()
    loss, expected = twins.gradients(twins.Step(head, {}).double(), raw)
    wrong_loss, found = gloo2(twins.task_gradients_broken, what, head, {}, raw)[0]
    assert wrong_loss == pytest.approx(loss, rel=1e-10)  # which is why nobody sees it
    assert max(relative(found[name], gradient) for name, gradient in expected.items()) > 0.05


@pytest.mark.parametrize(("head", "options"), VARIANTS, ids=NAMES)
def test_each_pair_is_scored_once_over_the_job(gloo4, head, options):
    raw = twins.raw_batch()
    if options.get("byte_budget") == 0:  # recomputed in backward, and for that purpose only
        assert sum(gloo4(twins.task_pairs_scored, head, options, raw)) == 2 * 8 * 8
    else:
        assert sum(gloo4(twins.task_pairs_scored, head, options, raw)) == 8 * 8


def test_gather_and_its_gradient(run, world):
    for rank, (everyone, gradient, uneven) in enumerate(run(twins.task_gather, 3)):
        assert everyone[:, 0].tolist() == [r + 1 for r in range(world) for _ in range(3)]
        rows = torch.arange(3.0) + 3 * rank
        torch.testing.assert_close(gradient, rows.unsqueeze(1).expand(3, 2) * sum(range(1, world + 1)))
        assert uneven.shape == (sum(range(1, world + 1)), world + 1)
        assert uneven.sum() == sum((r + 1) ** 2 * (r + 2) for r in range(world))


def test_sizes_sums_flags_and_alone(run, world):
    for rank, (found_rank, size, size_alone, total, flags) in enumerate(run(twins.task_simple, 5)):
        assert (found_rank, size, size_alone, flags) == (rank, world, 1, True)
        assert total.item() == sum(5 + r for r in range(world))


def test_an_error_on_one_process_ends_the_task_and_the_pool_goes_on(gloo2):
    with pytest.raises(pytest.fail.Exception, match=r"(?s)rank 1 of 2.*on purpose"):
        gloo2(twins.task_fail_on_last)
    assert [rank for rank, *_ in gloo2(twins.task_simple, 0)] == [0, 1]


def test_a_sum_over_processes_and_its_gradient(run, world):
    x = torch.randn(world, 3, generator=torch.Generator().manual_seed(0))
    for total, gradient in run(twins.task_sum, x):
        torch.testing.assert_close(total, x.sum(0))
        torch.testing.assert_close(gradient, 2 * x.sum(0) * sum(range(1, world + 1)))
