"""A folder of pictures as data: which files are read, in which order, under which ids, packed or not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diptych.cli.prepare import prepare
from diptych.data.loading import Loading
from diptych.errors import ConfigError, DataError
from diptych_datamodules.folder import PictureFolder

LOADING = Loading(image_size=16, eval_batch_size=2, workers=0)
NAMES = ["B.png", "a/x.jpg", "a/y", "a/é.bmp", "c.TIF"]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    (root / "a").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        kind = {"jpg": "JPEG", "bmp": "BMP", "TIF": "TIFF"}.get(name.rpartition(".")[2], "PNG")
        pixels = np.random.default_rng(i).integers(0, 256, (12, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name, format=kind)
    for name in ("report.txt", "table.csv", "a/script"):
        (root / name).write_text("no picture")
    return root


def read(folder, **options):
    module = PictureFolder(str(folder), loading=LOADING, **options)
    module.setup("predict")
    batches = list(module.test_dataloader())
    ids = [key for batch in batches for key, valid in zip(batch.ids, batch.valid.tolist(), strict=True) if valid]
    return module, ids, np.concatenate([batch.image.numpy() for batch in batches])


def test_pictures_are_found_by_ending_or_content_and_named_by_their_paths(folder, caplog):
    with caplog.at_level("INFO"):
        module, ids, images = read(folder)
    assert ids == NAMES
    assert "3 files are no pictures" in caplog.text
    assert list(module.datasets) == ["test"]
    assert images.shape[1:] == (1, 16, 16)
    assert module.protocol == "folder pictures"


def test_a_packed_folder_gives_the_same(folder, tmp_path):
    (folder / "broken.png").write_bytes((folder / "B.png").read_bytes()[:90])
    prepare("folder", folder, tmp_path / "packed", size=32, per_shard=2, say=lambda line: None)
    (folder / "broken.png").unlink()
    module, ids, images = read(tmp_path / "packed")
    assert ids == NAMES
    np.testing.assert_array_equal(images, read(folder)[2])
    assert [row[:2] for row in module.dropped.rows] == [("truncated image", "broken.png")]


def test_what_is_no_folder_of_pictures_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="there is no such folder"):
        read(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no picture .* lies below it"):
        read(tmp_path / "empty")
