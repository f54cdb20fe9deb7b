"""The named splits against the libraries that published them."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from diptych.data.splits import fill_splits, nested_share, shuffle_split
from diptych.errors import ConfigError, DataError
from diptych_datamodules.releases import protocols
from diptych_datamodules.rsna import Rsna


@pytest.mark.parametrize(
    ("number", "val", "test"), [(26_684, 4_003, 4_003), (26_684, 5_337, 5_337), (12_954, 1_943, 1_944)]
)
def test_shuffled_is_what_scikit_learn_gives(number, val, test):
    from sklearn.model_selection import train_test_split

    rows = np.arange(number)
    train, rest = train_test_split(rows, test_size=val + test, random_state=0)
    first, second = train_test_split(rest, test_size=val, random_state=0)
    got = np.array(shuffle_split(number, val, test))
    for name, expected in (("train", train), ("test", first), ("val", second)):
        assert np.array_equal(np.flatnonzero(got == name), np.sort(expected))


def test_filled_keeps_patients_whole_and_sizes_exact():
    rng = np.random.default_rng(0)
    patients = [f"p{i}" for i in range(300) for _ in range(int(rng.integers(1, 6)))]
    splits = fill_splits(patients, {"val": 97, "test": 101}, "train", seed=0)
    assert Counter(splits)["val"] == 97
    assert Counter(splits)["test"] == 101
    assert len(set(zip(patients, splits, strict=True))) == 300
    assert fill_splits(patients[::-1], {"val": 97, "test": 101}, "train", seed=0) == splits[::-1]
    with pytest.raises(DataError, match="2 are missing"):
        fill_splits(["a", "a", "a"], {"val": 2}, "train", seed=0)


def test_nested_by_patient():
    patients = [f"p{i // 3}" for i in range(600)]
    chosen = [set(nested_share(patients, percent)) for percent in (1, 10, 50, 100)]
    assert [len(part) for part in chosen] == [6, 60, 300, 600]
    assert all(small <= big for small, big in pairwise(chosen))
    for percent in (0, 101):
        with pytest.raises(DataError, match="percent"):
            nested_share(patients, percent)


def test_a_table_of_the_releases_size_must_be_the_release():
    ids = [f"id{i:05d}" for i in range(26_684)]
    with pytest.raises(DataError, match=r"rsna/gloria-cls: the table has the release's 26,684 entries, but others"):
        protocols.split("rsna/gloria-cls", ids, ids)


def test_protocols_add_up_and_leaks_are_in_the_name():
    for name, protocol in protocols.PROTOCOLS.items():
        assert protocol.leaky == name.endswith("-leaky")
        assert protocol.about
        if protocol.rule not in {"given", "shares"}:
            assert len(protocol.hash) == 16
    with pytest.raises(ConfigError, match=r"data.split is 'rsna/gloria'; choose among: rsna/gloria-cls"):
        Rsna("x", split="rsna/gloria")
