"""Splits: disjoint by patient, nested by fraction, and named by a hash that stands next to every metric."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from diptych.errors import DataError

__all__ = ["assert_disjoint", "assign", "split_hash", "uniform"]


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
    sets = {name: set(ids) for name, ids in patients.items()}
    names = sorted(sets)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = sorted(sets[first] & sets[second])
            if shared:
                raise DataError(
                    f"{source}: {len(shared)} patient(s) are in both '{first}' and '{second}', as "
                    f"{', '.join(shared[:3])}; give every patient one split (or name the right patient column)"
                )


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
