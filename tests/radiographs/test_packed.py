"""A packed data set gives what its folder gives. Stores that are incomplete, damaged or of other options say so."""

import csv
import pickle
import shutil

import numpy as np
import pytest
import torch
from packs import batches, equal, module_of, quiet, same
from PIL import Image
from releases import RELEASES

from diptych.cli.prepare import main
from diptych.data.loading import Loading
from diptych.data.tables import Columns
from diptych.errors import ConfigError, DataError
from diptych.radiographs.manifest import FORMAT, PICTURES
from diptych.radiographs.packed import PackedImage, Store
from diptych_datamodules.tabular import Tabular

OPTIONS = [
    *RELEASES.items(),
    ("rsna", {"labels": "classes", "split": "rsna/mgca-det"}),
    ("siim", {"percent": 40}),
    ("openi", {"section": "impression"}),
    ("chexpert", {"split": "chexpert/official", "frontal": False, "images": "CheXpert-v1.0-small"}),
    ("chexpert", {"split": "chexpert/test500"}),
    ("mimic_cxr", {"views": "all", "per_study": "one", "sentences": 1}),
    ("mimic_cxr", {"section": "none", "views": "lateral", "labels": "negbio"}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(OPTIONS)])
def test_batches_equal_those_of_the_originals(name, options, release):
    root, out = release(name)
    original, packed = (module_of(name, place, options) for place in (root, out))
    assert packed.split_hash == original.split_hash
    assert packed.dropped.counts() == original.dropped.counts()
    assert packed.protocol == original.protocol
    pairs = list(zip(batches(original), batches(packed), strict=True))
    assert len(pairs) >= 2
    assert all(same(one, other) for one, other in pairs)
    assert isinstance(packed.datasets["train"].records[0].path, PackedImage)
    assert not any(path.suffix in {".png", ".jpg", ".dcm"} for path in out.rglob("*"))


def test_a_smaller_input_is_taken_from_a_larger_store(release):
    root, out = release("rsna")
    one, other = (module_of("rsna", place, {"masks": True}, image_size=16) for place in (root, out))
    for mine, its in zip(batches(one), batches(other), strict=True):
        assert (mine.image.float() - its.image.float()).abs().mean() < 4
        assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(mine.boxes, its.boxes, strict=True))
        assert (mine.masks != its.masks).float().mean() < 0.03


def test_small_pictures_are_not_enlarged_and_long_ones_keep_their_sides(tmp_path):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    shapes = {"a.png": (20, 30), "b.png": (100, 40), "c.png": (333, 7)}
    for name, shape in shapes.items():
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(tmp_path / "in" / name)
    quiet("tabular", tmp_path / "in", tmp_path / "out")
    opened = Store(tmp_path / "out")
    read = [opened.read(i) for i in range(3)]
    assert [image.shape for image, _ in read] == [(20, 30), (32, 13), (32, 1)]
    assert [native for _, native in read] == list(shapes.values())
    assert np.array_equal(read[0][0], np.asarray(Image.open(tmp_path / "in" / "a.png")))


def test_a_table_of_ones_own_reads_the_store(tmp_path, release):
    root, out = release("nih")
    images = sorted(root.rglob("*.png"))
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text"])
        writer.writerows([path.relative_to(root), f"Report {i}."] for i, path in enumerate(images))
        writer.writerow(["images_001/none.png", "Nothing."])
    loading = Loading(image_size=32, batch_size=3, workers=0)
    one, other = (
        Tabular(str(tmp_path / "mine.csv"), root=str(place), columns=Columns(), loading=loading)
        for place in (root, out)
    )
    for module in (one, other):
        module.setup("fit")
        assert module.dropped.counts() == {"missing image": 1}
    assert all(same(a, b) for a, b in zip(batches(one), batches(other), strict=True))


@pytest.mark.slow
def test_spawned_workers_read_the_same(release):
    loaders = [
        module_of("mimic_cxr", release("mimic_cxr")[1], {}, **more).train_dataloader()
        for more in ({}, {"workers": 1, "start_method": "spawn"})
    ]
    assert all(same(one, other) for one, other in zip(*loaders, strict=True))


def test_what_a_worker_gets_is_small_and_reads_the_same(release):
    module = module_of("rsna", release("rsna")[1], {"masks": True})
    sent = pickle.dumps(module.datasets["train"])
    there = pickle.loads(sent)
    assert b".dcm" not in sent  # no names
    rng = np.random.default_rng(0)
    for i in range(len(there)):
        one, other = module.datasets["train"].read(i, rng), there.read(i, rng)
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.boxes, other.boxes)
        assert str(there.records[i].path) == str(module.datasets["train"].records[i].path)


# --- what cannot be used


@pytest.mark.parametrize("name", ["siim", "mimic_cxr"])
def test_unusable_images_are_listed_and_counted_as_when_they_are_checked(name, release, tmp_path):
    root = shutil.copytree(release(name)[0], tmp_path / "in")
    images = sorted(path for path in root.rglob("*") if path.suffix in {".jpg", ".dcm"})
    whole = module_of(name, root, {})
    used = [record.path for record in whole.datasets["train"].records]
    used[0].write_bytes(used[0].read_bytes()[: used[0].stat().st_size // 2])
    used[1].write_bytes(b"nothing of the kind")
    output = quiet(name, root, tmp_path / "out")[1]
    assert f"; {len(images) - 2} images, " in output
    checked = module_of(name, root, {}, check_images=True)
    packed = module_of(name, tmp_path / "out", {})
    assert packed.dropped.counts() == checked.dropped.counts() != whole.dropped.counts()
    rows = [(rule, key, why.replace(str(tmp_path / "out"), str(root))) for rule, key, why in packed.dropped.rows]
    assert sorted(rows) == sorted(checked.dropped.rows)
    assert packed.split_hash == checked.split_hash
    listed = list(csv.DictReader(next(tmp_path.glob("out/packed/*/unusable.csv")).open()))
    assert {row["file"] for row in listed} == {str(path.relative_to(root)) for path in used[:2]}
    with pytest.raises(DataError, match=r"image.*strict: false"):
        module_of(name, tmp_path / "out", {"strict": True})


def test_a_flipped_byte_is_named_and_made_anew(store, release):
    out, root = store
    shard = sorted(out.glob("packed/*/*.bin"))[2]
    raw = bytearray(shard.read_bytes())
    raw[100] ^= 1
    shard.write_bytes(raw)
    opened = Store(out)
    assert opened.read(15)[0].size
    with pytest.raises(DataError, match=r"shard 00002 is damaged.*checksum of '.*\.dcm'.*--verify`"):
        opened.read(16)
    with pytest.raises(DataError, match=r"checksum"):
        pickle.loads(pickle.dumps(opened)).read(16)
    with pytest.raises(DataError, match=r"1 of 4 shards.*00002 is damaged"):
        main(["siim", "--out", str(out), "--verify"])
    main(["siim", "--root", str(root), "--out", str(out), "--size", "32", "--per-shard", "8", "--verify"])
    main(["siim", "--out", str(out), "--verify"])
    assert equal(out, release("siim")[1])


def test_cut_and_mixed_up_shards_are_named_at_the_start(store):
    out, _ = store
    shards, indices = (sorted(out.glob(f"packed/*/*.{kind}")) for kind in ("bin", "index"))
    whole = shards[1].read_bytes(), indices[1].read_bytes()
    for spoilt, message in [
        ((whole[0][:-1], whole[1]), r"00001 is damaged .*bytes of pixels"),
        ((whole[0], whole[1][:-9]), r"00001 is damaged .*checksum"),
        ((whole[0], whole[1].replace(b"dicom", b"dikom", 1)), r"00001 is damaged .*checksum"),
        ((whole[0], indices[2].read_bytes()), r"00001 is damaged .*of another store"),
    ]:
        shards[1].write_bytes(spoilt[0])
        indices[1].write_bytes(spoilt[1])
        with pytest.raises(DataError, match=message) as caught:
            Store(out)
        assert "\n" not in str(caught.value)


def test_another_version_says_so(store):
    out, _ = store
    text = (out / "packed.json").read_text()
    (out / "packed.json").write_text(text.replace(f'"pictures": {PICTURES}', '"pictures": 0'))
    with pytest.raises(
        DataError,
        match=rf"pictures of version 0, and this diptych reads {FORMAT} and {PICTURES}; run `diptych prepare`",
    ):
        Store(out)
    (out / "packed.json").write_text(text[:40])
    with pytest.raises(DataError, match=r"damaged \(JSONDecodeError\); run `diptych prepare` again"):
        Store(out)


def test_a_larger_input_than_the_store_is_refused(store):
    with pytest.raises(ConfigError, match=r"image_size is 64, and .* is packed at 32 pixels.*--size 64"):
        module_of("siim", store[0], {}, image_size=64)
