"""Which sample is read when."""

import pytest

from diptych.data.sampling import EvaluationSampler, ResumableLoader, TrainingSampler, mix
from diptych.errors import ConfigError


class Numbers:
    def __len__(self):
        return 23

    def __getitem__(self, draw):
        return draw


def loader(batch_size=2, rank=0, processes=1, workers=0):
    sampler = TrainingSampler(23, batch_size, seed=5, rank=rank, processes=processes)
    return ResumableLoader(Numbers(), batch_sampler=sampler, collate_fn=list, num_workers=workers)


def epochs(resumable, numbers):
    read = []
    for epoch in numbers:
        resumable.batch_sampler.sampler.set_epoch(epoch)
        read += [[(d.index, d.epoch) for d in batch] for batch in resumable]
    return read


def test_epochs_are_different_permutations_and_the_same_for_the_same_seed():
    first, second = epochs(loader(), [0]), epochs(loader(), [1])
    ids = [i for batch in first for i, _ in batch]
    assert len(ids) == len(set(ids)) == 22
    assert [i for b in second for i, _ in b] != ids
    assert epochs(loader(), [0, 1]) == first + second


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 5, 10, 11])
def test_restored_position_goes_on_as_the_uninterrupted_run(stop, workers):
    whole = epochs(loader(), [0, 1, 2])
    resumable = loader(workers=workers)
    resumable.batch_sampler.sampler.set_epoch(0)
    iterator = iter(resumable)
    read = [[(d.index, d.epoch) for d in next(iterator)] for _ in range(stop)]
    state = resumable.state_dict()  # workers have read ahead of this
    del iterator
    again = loader(workers=workers)
    again.load_state_dict(state)
    assert read + epochs(again, [0, 1, 2] if stop < 11 else [1, 2]) == whole


def test_processes_share_one_global_batch():
    one = epochs(loader(batch_size=4), [0])
    two = [epochs(loader(batch_size=2, rank=r, processes=2), [0]) for r in range(2)]
    assert [a + b for a, b in zip(*two, strict=True)] == one
    assert loader(batch_size=4).state_dict() == loader(batch_size=2, processes=2).state_dict()


def test_a_changed_global_batch_is_refused_in_mid_step():
    resumable = loader(batch_size=4)
    with pytest.raises(ConfigError, match=r"sample 2 .* 4 samples a step"):
        resumable.load_state_dict({"epoch": 0, "samples": 2})


def test_too_few_samples_say_how_many_fit():
    with pytest.raises(ConfigError, match="at most 11"):
        TrainingSampler(23, 16, seed=0, rank=0, processes=2)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 7, 10])
def test_evaluation_reads_everything_once_in_equal_batches(size, processes):
    samplers = [EvaluationSampler(size, 2, rank=r, processes=processes) for r in range(processes)]
    draws = [[d for batch in sampler for d in batch] for sampler in samplers]
    assert sorted(d.index for own in draws for d in own if d.valid) == list(range(size))
    assert len({tuple(len(b) for b in sampler) for sampler in samplers}) == 1


def test_seeds_depend_on_every_number_and_their_order():
    assert len({mix(a, b, c) for a in range(8) for b in range(8) for c in range(8)}) == 512
    assert all(0 <= mix(n) < 2**63 for n in range(100))


def passes(resumable, number):
    return [[(d.index, d.epoch) for d in batch] for _ in range(number) for batch in resumable]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_without_a_trainer_goes_on_to_the_next_epoch(workers):
    resumable = loader(workers=workers)
    resumable.advances = True
    assert passes(resumable, 3) == epochs(loader(), [0, 1, 2])
    state = resumable.state_dict()
    next(iter(resumable))  # a pass that is broken off is begun again
    again = loader()
    again.load_state_dict(state)
    again.advances = True
    assert passes(resumable, 1) == passes(again, 1) == epochs(loader(), [3])


def test_set_epoch_is_found_on_the_loader():
    resumable = loader()
    resumable.advances = True
    read = []
    for epoch in (0, 1, 1):
        resumable.set_epoch(epoch)
        read += passes(resumable, 1)
    assert read == epochs(loader(), [0, 1]) + epochs(loader(), [1])
