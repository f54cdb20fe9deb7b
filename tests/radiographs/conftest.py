"""Fixtures of these tests: files of an image, and releases that are packed."""

import shutil

import pytest
from hostile import DEEP, dicom

from diptych.cli.prepare import prepare
from diptych.radiographs.intensity import Intensity
from diptych.radiographs.read import open_radiograph
from diptych_datamodules.phantoms.layouts.write import write_layout


@pytest.fixture
def write(tmp_path):
    """Write bytes to a file. Returns its path."""

    def put(raw, name="x"):
        (tmp_path / name).write_bytes(raw)
        return tmp_path / name

    return put


@pytest.fixture
def read_dicom(write):
    """Picture and notes of a DICOM file of these pixels and tags."""

    def read(pixels=DEEP, intensity=Intensity(), name="ExplicitVRLittleEndian", **tags):  # noqa: B008  # frozen
        return open_radiograph(write(dicom(name, pixels, **tags)), intensity)

    return read


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """By a release's name: the folder of its miniature, and the same packed at 32."""
    folder, roots = tmp_path_factory.mktemp("packed"), {}

    def get(name):
        if name not in roots:
            root = write_layout(name, 24, folder / name, seed=2, size=48)
            prepare(name, root, folder / f"{name}-packed", size=32, per_shard=8, say=lambda line: None)
            roots[name] = (root, folder / f"{name}-packed")
        return roots[name]

    return get


@pytest.fixture
def store(release, tmp_path):
    """A packed copy of siim that may be spoilt, and its original."""
    root, out = release("siim")
    return shutil.copytree(out, tmp_path / "out"), root
