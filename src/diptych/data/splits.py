"""Splits: disjoint by patient, with smaller shares inside larger ones, and named by a hash beside every metric."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.checks import check_number
from diptych.errors import ConfigError, DataError

__all__ = ["Fractions", "assert_disjoint", "assign", "fill_splits", "nested_share", "shared_patients", "shuffle_split"]
__all__ += ["split_hash", "uniform"]


def split_hash(splits: Mapping[str, Sequence[str]]) -> str:
    """A hash of which image ids are in which split. The order of ids does not matter.

    >>> split_hash({"train": ["a", "b"], "test": ["c"]}) == split_hash({"test": ["c"], "train": ["b", "a"]})
    True
    """
    digest = hashlib.sha256()
    for name in sorted(splits):
        digest.update(f"[{name}]\n".encode())
        for key in sorted(splits[name]):
            digest.update(key.encode() + b"\n")
    return digest.hexdigest()[:16]


def assert_disjoint(patients: Mapping[str, Sequence[str]], *, source: str) -> None:
    """Refuse splits that share a patient.

    Args:
        patients: for each split the patient of each image, or the image's id if no patient is known.
        source: the file or option that the splits come from, for the message.

    Raises:
        DataError: two splits share patients. The message has the splits, how many, and three of them.
    """
    for first, second, both in shared_patients(patients):
        named = ", ".join(f"'{patient}'" for patient in both[:3])
        raise DataError(
            f"{source}: {len(both)} patient(s) are in both '{first}' and '{second}', as {named}; "
            "give every patient one split (or name the right patient column)"
        )


def shared_patients(patients: Mapping[str, Sequence[str]]) -> list[tuple[str, str, list[str]]]:
    """Every two splits that share patients, and those patients, sorted.

    >>> shared_patients({"train": ["p1", "p2"], "val": ["p3"], "test": ["p2"]})
    [('test', 'train', ['p2'])]
    """
    sets = {name: set(ids) for name, ids in patients.items()}
    names = sorted(sets)
    pairs = [(first, second) for i, first in enumerate(names) for second in names[i + 1 :]]
    return [(a, b, sorted(sets[a] & sets[b])) for a, b in pairs if sets[a] & sets[b]]


def uniform(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on the key and the seed alone.

    >>> round(uniform("p1", seed=0), 3), round(uniform("p1", seed=1), 3)
    (0.742, 0.127)
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest(), "big") / 2**64


def assign(patient: str, fractions: Mapping[str, float], seed: int, turn: float = 0.0) -> str:
    """The split of a patient, drawn by hash. So patients added to a table move none of the others.

    >>> [assign(patient, {"train": 0.5, "test": 0.5}, seed=0) for patient in ("p1", "p2", "p3", "p4")]
    ['test', 'train', 'test', 'test']
    >>> [assign(patient, {"train": 0.5, "test": 0.5}, seed=0, turn=0.5) for patient in ("p1", "p2", "p3", "p4")]
    ['train', 'test', 'train', 'train']

    Args:
        patient: the patient's id.
        fractions: the share of each split. Shares sum to 1.
        seed: another seed gives another assignment.
        turn: the hashes lie on a circle of circumference 1, and are turned so far before the shares are cut off.
    """
    draw, upper = (uniform(patient, seed) + turn) % 1, 0.0
    for name, share in fractions.items():
        upper += share
        if draw < upper:
            return name
    return next(reversed(list(fractions)))


def fill_splits(patients: Sequence[str], sizes: Mapping[str, int], rest: str, seed: int) -> list[str]:
    """Fill splits of exact size with whole patients, in the order of their hash.

    >>> fill_splits(["p1", "p1", "p2", "p3"], {"test": 2}, rest="train", seed=0)
    ['train', 'train', 'test', 'test']

    Args:
        patients: the patient of each image.
        sizes: images of each split but ``rest``. A patient who has more images than there is room for is passed over.
        rest: the split of all other patients.
        seed: another seed gives another assignment.

    Returns:
        The split of each image.

    Raises:
        DataError: whole patients do not fill a split exactly.
    """
    images: dict[str, int] = {}
    for patient in patients:
        images[patient] = images.get(patient, 0) + 1
    order = sorted(images, key=lambda patient: (uniform(patient, seed), patient))
    of_patient: dict[str, str] = {}
    for name, size in sizes.items():
        room = size
        for patient in order:
            if room and patient not in of_patient and images[patient] <= room:
                of_patient[patient] = name
                room -= images[patient]
        if room:
            raise DataError(
                f"the split '{name}' of {size} images cannot be filled with whole patients; {room} are missing"
            )
    return [of_patient.get(patient, rest) for patient in patients]


def shuffle_split(number: int, val: int, test: int, seed: int = 0) -> list[str]:
    """The split of each row, as two calls of scikit-learn's ``train_test_split`` give it in published recipes.

    The first call takes off ``val + test`` rows. The second parts these into validation and test. Both have ``seed``.

    >>> shuffle_split(5, val=1, test=1)
    ['val', 'train', 'test', 'train', 'train']
    """
    first = np.random.RandomState(seed).permutation(number)  # scikit-learn's generator, to the bit
    rest = first[: val + test]
    second = np.random.RandomState(seed).permutation(len(rest))  # as above
    split = np.full(number, "train", dtype="<U5")
    split[rest[second[:val]]] = "val"
    split[rest[second[val:]]] = "test"
    return [str(name) for name in split]


def nested_share(patients: Sequence[str], percent: float, seed: int = 0) -> list[int]:
    """The images of a share of a training split. A smaller share lies within each larger one.

    Whole patients are taken in the order of their hash, until at least ``percent`` of the images are there.

    >>> patients = ["p1", "p1", "p2", "p3"]
    >>> nested_share(patients, 25), nested_share(patients, 75)
    ([2], [0, 1, 2])

    Raises:
        DataError: ``percent`` is not within 0 and 100.
    """
    if not 0 < percent <= 100:
        raise DataError(f"percent is {percent}; give a number above 0 and at most 100")
    images: dict[str, list[int]] = {}
    for index, patient in enumerate(patients):
        images.setdefault(patient, []).append(index)
    wanted = round(len(patients) * percent / 100) or 1
    chosen: list[int] = []
    for patient in sorted(images, key=lambda patient: (uniform(patient, seed), patient)):
        if len(chosen) >= wanted:
            break
        chosen += images[patient]
    return sorted(chosen)


@dataclass(frozen=True)
class Fractions:
    """Shares of the patients in each split, for a table that names no split.

    Args:
        train: share of the patients who train.
        val: share of the patients who validate.
        test: share of the patients who test.
        fold: which fold is the test set, for cross-validation. ``test: 0.2`` makes 5 folds, from 0 to 4. Each patient is in
            the test set of one of them, and the shares are kept. Fold 0 is the split without folds.

    Raises:
        ConfigError: a share is below 0, or shares do not sum to 1, or there is no such fold, or folds of that size do not
            part the patients evenly.
    """

    train: float = 0.7
    val: float = 0.1
    test: float = 0.2
    fold: int = 0

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            check_number(f"fractions.{name}", getattr(self, name), least=0)
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ConfigError(
                f"fractions train {self.train}, val {self.val}, test {self.test} do not sum to 1; make them"
            )
        if self.fold:
            folds = round(1 / self.test) if self.test else 0
            if not folds or abs(folds * self.test - 1) > 1e-6:
                raise ConfigError(
                    f"fractions.fold is {self.fold}, and fractions.test is {self.test}: folds part the patients evenly; "
                    "give test 0.2 for 5 folds, 0.1 for 10, or leave fold out"
                )
            remedy = f"a whole number from 0 to {folds - 1}, as test {self.test} makes {folds} folds"
            check_number("fractions.fold", self.fold, least=0, most=folds - 1, whole=True, remedy=remedy)

    def split(self, patient: str, seed: int) -> str:
        """The split of a patient, by hash."""
        shares = {"train": self.train, "val": self.val, "test": self.test}
        return assign(patient, shares, seed, turn=self.fold * self.test)
