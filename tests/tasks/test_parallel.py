"""The losses of downstream tasks on two processes: those of one process on the whole batch, exactly."""

import parallel
import pytest
import torch


@pytest.mark.parametrize("kind", parallel.LOSSES)
def test_two_processes_give_the_gradient_of_one(kind, gloo2):
    loss, gradient = parallel.task_loss(kind)
    assert gradient.abs().sum() > 0
    for theirs, of_them in gloo2(parallel.task_loss, kind):
        assert theirs == pytest.approx(loss, rel=1e-9)
        torch.testing.assert_close(of_them, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["act", "plain"])
def test_norms_of_towers_are_those_of_the_whole_batch_and_keep_their_activation(kind, gloo2):
    whole = parallel.synced_norm(kind)
    assert (whole[0].min() == 0) == (kind == "act")
    for outputs in gloo2(parallel.synced_norm, kind):
        for theirs, of_one in zip(outputs, whole, strict=True):
            torch.testing.assert_close(theirs, of_one, rtol=1e-9, atol=1e-9)
