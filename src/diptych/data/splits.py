"""Splits: disjoint by patient, nested by fraction, and named by a hash that stands next to every metric."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diptych.errors import ConfigError, DataError

__all__ = ["Fractions", "assert_disjoint", "assign", "filled", "nested", "shared", "shuffled", "split_hash", "uniform"]


def split_hash(splits: Mapping[str, Sequence[str]]) -> str:
    """A hash of which image ids are in which split; the order of ids does not matter."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        digest.update(f"[{name}]\n".encode())
        for key in sorted(splits[name]):
            digest.update(key.encode() + b"\n")
    return digest.hexdigest()[:16]


def assert_disjoint(patients: Mapping[str, Sequence[str]], *, source: str) -> None:
    """Refuse splits that share a patient.

    Args:
        patients: split name to the patient of each of its images (or the image's id where no patient is known).
        source: the file or option the splits come from, for the message.

    Raises:
        DataError: two splits share patients; names the splits, how many, and three of them.
    """
    for first, second, both in shared(patients):
        named = ", ".join(f"'{patient}'" for patient in both[:3])
        raise DataError(
            f"{source}: {len(both)} patient(s) are in both '{first}' and '{second}', as {named}; "
            "give every patient one split (or name the right patient column)"
        )


def shared(patients: Mapping[str, Sequence[str]]) -> list[tuple[str, str, list[str]]]:
    """Every two splits that share patients, and those patients, sorted."""
    sets = {name: set(ids) for name, ids in patients.items()}
    names = sorted(sets)
    pairs = [(first, second) for i, first in enumerate(names) for second in names[i + 1 :]]
    return [(a, b, sorted(sets[a] & sets[b])) for a, b in pairs if sets[a] & sets[b]]


def uniform(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on the key and the seed alone, not on order or company."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest(), "big") / 2**64


def assign(patient: str, fractions: Mapping[str, float], seed: int) -> str:
    """The split of a patient, drawn by hash: adding patients to a table moves none of the others.

    Args:
        patient: the patient's id.
        fractions: split name to its share; shares sum to 1.
        seed: another seed gives another assignment.
    """
    draw, upper = uniform(patient, seed), 0.0
    for name, share in fractions.items():
        upper += share
        if draw < upper:
            return name
    return next(reversed(list(fractions)))


def filled(patients: Sequence[str], sizes: Mapping[str, int], rest: str, seed: int) -> list[str]:
    """Splits of exact size from whole patients, in the order of their hash.

    Args:
        patients: the patient of each image.
        sizes: images of each split but ``rest``. A patient with more images than a split has room for is passed over.
        rest: the split of all others.
        seed: another seed gives another assignment.

    Returns:
        The split of each image.

    Raises:
        DataError: a size cannot be met by whole patients.
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


def shuffled(number: int, val: int, test: int, seed: int = 0) -> list[str]:
    """The split of each row as scikit-learn's ``train_test_split`` gives it when called twice, as published recipes do.

    First ``val + test`` rows are taken off, then these are halved into test and validation, both with ``seed``.
    """
    first = np.random.RandomState(seed).permutation(number)  # scikit-learn's generator, to the bit
    rest = first[: val + test]
    second = np.random.RandomState(seed).permutation(len(rest))  # as above
    split = np.full(number, "train", dtype="<U5")
    split[rest[second[:val]]] = "val"
    split[rest[second[val:]]] = "test"
    return [str(name) for name in split]


def nested(patients: Sequence[str], percent: float, seed: int = 0) -> list[int]:
    """The images of a share of a training split; 1 % lies within 10 %, and that within 100 %.

    Whole patients in the order of their hash, until at least ``percent`` of the images are there.

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
    """Shares of the patients, where the table names no split."""

    train: float = 0.7
    val: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        total = self.train + self.val + self.test
        if min(self.train, self.val, self.test) < 0 or abs(total - 1) > 1e-6:
            raise ConfigError(
                f"fractions train {self.train}, val {self.val}, test {self.test} do not sum to 1; make them"
            )

    def split(self, patient: str, seed: int) -> str:
        """The split of a patient, by hash."""
        return assign(patient, {"train": self.train, "val": self.val, "test": self.test}, seed)
