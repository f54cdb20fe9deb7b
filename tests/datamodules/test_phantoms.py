"""Phantoms: determinism, size, anatomy, findings and drawing."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from diptych.errors import ConfigError
from diptych_datamodules.phantom import Phantom
from diptych_datamodules.phantoms import (
    DEVICES,
    FINDINGS,
    KINDS,
    FindingSpec,
    PhantomRadiograph,
    make_phantom,
    plan_phantom,
    render,
    with_findings,
)
from diptych_datamodules.phantoms.canvas import Frame, smooth

PLANS = [plan_phantom(i, seed=11) for i in range(400)]


def every_spec() -> list[FindingSpec]:
    specs = [
        FindingSpec("Support Devices", side, device=d)
        for d, sided in DEVICES.items()
        for side in (("left", "right") if sided else (None,))
    ]
    for name, kind in KINDS.items():
        if name == "Support Devices":
            continue
        for side in ("left", "right") if kind.sided else (None,):
            for zone in kind.zones or (None,):
                specs += [FindingSpec(name, side, zone, degree) for degree in kind.severities]
    return specs


@pytest.fixture(scope="module")
def phantoms() -> list[PhantomRadiograph]:
    return [render(plan, 96) for plan in PLANS[:40]]


# --- determinism


def test_same_seed_and_index_give_the_same_phantom():
    a, b = make_phantom(5, seed=3, size=96), make_phantom(5, seed=3, size=96)
    assert a.plan == b.plan
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.masks, b.masks)
    assert a.findings == b.findings


def test_another_process_gives_the_same_phantom():
    code = "from diptych_datamodules.phantoms import make_phantom\np = make_phantom(7, seed=2, size=64)\n"
    code += "print(p.image.sum(), p.report.text)"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = make_phantom(7, seed=2, size=64)
    assert there.strip() == f"{here.image.sum()} {here.report.text}"


def test_another_seed_or_index_gives_another_phantom():
    first = make_phantom(0, seed=0, size=64)
    assert not np.array_equal(first.image, make_phantom(1, seed=0, size=64).image)
    assert not np.array_equal(first.image, make_phantom(0, seed=1, size=64).image)


def test_import_needs_no_torch():
    code = "import sys, diptych_datamodules.phantoms.layouts.write, diptych_datamodules.phantoms.drawing\n"
    code += "print('torch' in sys.modules)"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == "False"


# --- size


def test_content_does_not_depend_on_the_size():
    for plan in [p for p in PLANS if p.specs][:6]:
        small, large = render(plan, 128), render(plan, 384)
        assert small.plan is large.plan
        for a, b in zip(small.findings, large.findings, strict=True):
            assert (a.name, a.side, a.zone) == (b.name, b.side, b.zone)
            assert np.allclose(np.array(a.box) * 3, b.box, atol=9)
        reduced = large.image.reshape(128, 3, 128, 3).mean(axis=(1, 3))
        assert np.abs(reduced - small.image).mean() < 4
        assert np.corrcoef(reduced.ravel(), small.image.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("size", [16, 50, 224])
def test_any_size_has_complete_truth(size):
    nodule = FindingSpec("Nodule", "left", "upper", "small")
    wires = FindingSpec("Support Devices", device="sternal wires")
    p = render(plan_phantom(3, findings=[nodule, wires]), size)
    assert p.image.shape == (size, size)
    assert p.image.dtype == np.uint8
    assert p.masks.shape == (2, size, size)
    assert p.masks.any(axis=(1, 2)).all()


# --- laterality and anatomy


def test_the_patients_right_is_on_the_images_left():
    for i in range(8):
        p = make_phantom(i, seed=1, size=96, normal=1.0)
        columns = np.arange(96)
        right, left = ((p.lungs[s].sum(0) * columns).sum() / p.lungs[s].sum() for s in ("right", "left"))
        assert right < 40 < 56 < left
        # the apex: the heart reaches farther to the patient's left of the spine than to the right
        heart = (p.heart.sum(0) * columns).sum() / p.heart.sum()
        assert heart > (right + left) / 2 + 2


def test_the_right_diaphragm_stands_higher():
    lower = []
    for i in range(30):  # a film may be turned by a degree or two: look at the mean
        p = make_phantom(i, seed=4, size=192, normal=1.0)
        bottom = {s: np.flatnonzero(p.lungs[s].any(axis=1)).max() for s in ("left", "right")}
        lower.append(bottom["left"] - bottom["right"])
    assert np.mean(lower) > 2


def test_a_findings_side_and_zone_are_where_its_mask_is():
    rows: dict[str, list[float]] = {zone: [] for zone in ("upper", "mid", "lower")}
    for k, spec in enumerate(s for s in every_spec() if s.side and s.name != "Support Devices"):
        p = render(plan_phantom(k, findings=[spec]), 96)
        y, x = p.masks[0].nonzero()
        assert (x.mean() > 48) == (spec.side == "left"), spec
        assert p.masks[0][p.lungs[str(spec.side)]].sum() > 0.6 * p.masks[0].sum(), spec
        if spec.name in ("Nodule", "Lung Opacity"):
            rows[str(spec.zone)].append(y.mean())
    assert max(rows["upper"]) < min(rows["mid"])
    assert max(rows["mid"]) < min(rows["lower"])


@pytest.mark.parametrize("name", [n for n in FINDINGS if n != "Support Devices"])
def test_severity_shows_in_size(name):
    kind = KINDS[name]
    area = []
    for degree in kind.severities:
        side = "left" if kind.sided else None
        spec = FindingSpec(name, side, kind.zones[-1] if kind.zones else None, degree)
        area.append(np.mean([render(plan_phantom(i, findings=[spec]), 96).masks.sum() for i in range(5)]))
    assert area[0] < area[1] < area[2]


# --- findings


def test_masks_boxes_and_specs_agree(phantoms):
    for p in phantoms:
        assert len(p.findings) == len(p.masks) == len(p.plan.specs)
        for finding, mask, spec in zip(p.findings, p.masks, p.plan.specs, strict=True):
            fields = ("name", "side", "zone", "severity", "device")
            assert all(getattr(finding, f) == getattr(spec, f) for f in fields)
            x0, y0, x1, y1 = (int(v) for v in finding.box)
            assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
            assert mask[y0].any()
            assert mask[y1 - 1].any()
            assert mask[:, x0].any()
            assert mask[:, x1 - 1].any()


@pytest.mark.parametrize("spec", every_spec(), ids=lambda s: " ".join(str(v) for v in dataclasses.astuple(s) if v))
def test_every_finding_is_visible_where_its_mask_is(spec):
    plan = plan_phantom(17, seed=5, findings=())
    clean, ill = render(plan, 128), render(with_findings(plan, [spec]), 128)
    change = np.abs(clean.image.astype(float) - ill.image)
    inside = change[ill.masks[0]].mean()
    assert inside > 6, f"{spec}: mean change {inside:.1f} grey levels"
    if spec.name == "Pneumothorax":  # the lung that has fallen together changes too
        assert inside > 2 * change[~ill.masks[0]].mean()
    else:
        assert inside > 5 * change[~ill.masks[0]].mean()


def test_changing_the_findings_leaves_the_patient_alone():
    plan = plan_phantom(9, seed=1)
    left = render(with_findings(plan, [FindingSpec("Nodule", "left", "mid", "large")]), 128)
    right = render(with_findings(plan, [FindingSpec("Nodule", "right", "mid", "large")]), 128)
    apart = ~(left.masks[0] | right.masks[0])
    change = np.abs(left.image.astype(int) - right.image)[apart]
    assert np.median(change) == 0
    assert change.mean() < 1
    words = [re.sub("left|right", "SIDE", p.report.text, flags=re.IGNORECASE) for p in (left, right)]
    assert words[0] == words[1]


def test_one_patient_has_one_body_in_several_studies():
    studies = [plan_phantom(i, patient=2, normal=1.0) for i in range(6)]
    others = [plan_phantom(i, patient=i + 10, normal=1.0) for i in range(6)]
    assert len({(p.sex, p.age) for p in studies}) == 1
    assert len({(p.sex, p.age) for p in others}) > 1

    def breadth(plan):  # of the heart against the lungs: does not change with the position of the patient
        p = render(plan, 192)
        lungs = np.flatnonzero((p.lungs["left"] | p.lungs["right"]).any(axis=0))
        heart = np.flatnonzero(p.heart.any(axis=0))
        return (heart[-1] - heart[0]) / (lungs[-1] - lungs[0])

    def spread(plans):
        return np.std([breadth(p) - 0.02 * (p.view == "AP") for p in plans])

    assert spread(studies) < 0.5 * spread(others)
    assert not np.array_equal(render(studies[0], 64).image, render(studies[1], 64).image)


def test_the_mix_is_respected():
    only = [plan_phantom(i, mix={"Pneumothorax": 1}, normal=0.0) for i in range(100)]
    assert {s.name for p in only for s in p.specs} == {"Pneumothorax"}
    assert all(p.specs for p in only)
    mix = {"Nodule": 3, "Cardiomegaly": 1}
    counts = Counter(plan_phantom(i, mix=mix, normal=0, max_findings=1).specs[0].name for i in range(1500))
    assert counts["Nodule"] / counts["Cardiomegaly"] == pytest.approx(3, rel=0.25)
    every = Counter(s.name for p in PLANS for s in p.specs)
    assert set(every) == set(FINDINGS)


def test_the_share_of_normals_and_the_most_findings_are_respected():
    for share in (0.0, 0.4, 1.0):
        normal = np.mean([not plan_phantom(i, normal=share).specs for i in range(600)])
        assert normal == pytest.approx(share, abs=0.06)
    assert {len(plan_phantom(i, normal=0, max_findings=1).specs) for i in range(100)} == {1}
    assert max(len(p.specs) for p in PLANS) == 3


def test_findings_do_not_fill_the_same_part_of_the_lung():
    for p in PLANS:
        cells = [cell for spec in p.specs for cell in spec.cells]
        assert len(cells) == len(set(cells))


def test_sides_are_balanced():
    sides = Counter(s.side for i in range(1000) for s in plan_phantom(i, seed=8).specs if s.side)
    assert sides["left"] / sides.total() == pytest.approx(0.5, abs=0.06)


# --- drawing


def test_a_smooth_curve_passes_through_its_points():
    points = np.array([(0.0, 0.0), (1.0, 0.2), (1.1, 1.0), (0.1, 0.9)])
    for closed in (True, False):
        curve = smooth(points, closed=closed)
        assert all(np.abs(curve - p).sum(axis=1).min() < 1e-12 for p in points)
    several = smooth(np.stack([points, points + 1]))
    assert np.allclose(several[0], smooth(points))
    assert np.allclose(several[1], smooth(points) + 1)


def test_a_frame_maps_points_and_pixels_alike():
    f = Frame(100, zoom=1.1, tilt=7, shift=(0.02, -0.03))
    for row, column in ((10, 20), (50, 50), (90, 5)):
        x, y = f.pixels(np.array([[f.x[row, column], f.y[row, column]]]))[0]
        assert (x, y) == pytest.approx((column, row), abs=1e-3)


def test_an_ellipse_is_as_wide_as_asked():
    f = Frame(200)
    turn = 0.6
    inside = f.blob(0.1, 0.5, 0.2, 0.05, turn) <= 1
    dx, dy = f.x - 0.1, f.y - 0.5
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    plain = (along / 0.2) ** 2 + (across / 0.05) ** 2 <= 1
    assert (inside != plain).sum() <= 2
    assert inside.sum() == pytest.approx(np.pi * 0.2 * 0.05 * 200**2, rel=0.03)


# --- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": {"Effusion": 1}}, "finding in mix is 'Effusion'; choose among: Pleural Effusion"),
        ({"mix": {"Nodule": -1}}, "weight of 'Nodule' is -1"),
        ({"mix": {"Nodule": 0}}, "no finding has a weight above 0"),
        ({"normal": 1.5}, "normal is 1.5; give a number from 0 to 1"),
        ({"filler": 0.9}, "filler is 0.9; give a number from 0 to 0.8"),
        ({"uncertain": -0.1}, "uncertain is -0.1; give a number from 0 to 1"),
        ({"max_findings": 0}, "max_findings is 0; give a whole number of 1 or more, or set normal=1"),
        ({"seed": -1}, "seed is -1; give a whole number of 0 or more"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        plan_phantom(0, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Nodul"}, "finding is 'Nodul'; choose among: Nodule"),
        ({"name": "Nodule"}, "side of Nodule"),
        ({"name": "Nodule", "side": "middle"}, "side of Nodule is 'middle'; choose among: left, right"),
        ({"name": "Cardiomegaly", "side": "left"}, "Cardiomegaly has no side"),
        ({"name": "Nodule", "side": "left", "severity": "severe"}, "severity of Nodule is 'severe'"),
        (
            {"name": "Pneumothorax", "side": "left", "zone": "lower"},
            "zone of Pneumothorax is 'lower'; choose among: upper",
        ),
        ({"name": "Cardiomegaly", "zone": "lower"}, "Cardiomegaly has no zone"),
        ({"name": "Support Devices"}, "device is ''; choose among: "),
        ({"name": "Support Devices", "device": "sternal wires", "side": "left"}, "sternal wires has no side"),
        ({"name": "Nodule", "side": "left", "device": "port"}, "only 'Support Devices' has one"),
    ],
)
def test_impossible_findings_are_refused(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        FindingSpec(**fields)


@pytest.mark.parametrize("size", [0, 15, 5000])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ConfigError, match=f"size is {size}; give a whole number from 16 to 4096"):
        render(PLANS[0], size)


def test_the_protocol_tells_apart_all_that_makes_another_collection():
    others = [{"seed": 1}, {"size": 32}, {"mix": {"Nodule": 1}}, {"normal": 0.9}, {"max_findings": 1}, {"filler": 0.8}]
    others += [{"section": "impression"}, {"masks": "lungs"}, {}]
    protocols = [Phantom(train=4, val=4, test=6, **options).protocol for options in others]
    assert len(set(protocols)) == len(others)
    assert (
        Phantom(mix={"Nodule": 1, "Consolidation": 2}).protocol
        == Phantom(mix={"Consolidation": 2.0, "Nodule": 1}).protocol
    )
