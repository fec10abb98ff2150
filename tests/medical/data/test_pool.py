"""The pool: what is found, what is left out, and how often each image is shown."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from crossband.medical.data.colour import read_picture
from crossband.medical.data.pool import (
    BalancedPool,
    PictureStore,
    Pool,
    PoolImages,
    find_pool,
)
from crossband.medical.data.slices import Slice
from crossband.medical.privacy import Names
from crossband.shared.errors import ConfigError, DataError

HIDDEN = Names(False)


def photo(path: Path, seed: int = 0, shape=(20, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def volume(path: Path, slices: int = 6, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).random((12, 10, slices)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 3, 1])), path)
    return path


@pytest.fixture
def roots(tmp_path: Path, put_dicom) -> list[str]:
    """Nine grey images, two volumes of six slices, four CT slices, three colour images."""
    for number in range(9):
        photo(tmp_path / "xray" / f"Doe_{number}.png", number)
    for number in range(2):
        volume(tmp_path / "mri" / "study" / f"Doe_{number}.nii.gz", seed=number)
    for number in range(4):
        stored = np.random.default_rng(number).integers(0, 2000, (9, 9)).astype(np.uint16)
        put_dicom(stored, f"ct{number}", Modality="CT", SeriesInstanceUID="2.25.5",
                  InstanceNumber=9 - number)  # fmt: skip
        (tmp_path / "ct").mkdir(exist_ok=True)
        (tmp_path / f"ct{number}").rename(tmp_path / "ct" / f"IM{number}")
    for number in range(3):
        photo(tmp_path / "histology" / f"{number}.png", number, (16, 16, 3))
    return [str(tmp_path / name) for name in ("xray", "mri", "ct", "histology")]


def test_everything_that_is_an_image_is_found(roots) -> None:
    pool = find_pool(roots, HIDDEN)
    assert pool.counts == {"xray": 9, "mri": 12, "ct": 4, "histology": 3}
    assert [len(s) for s in pool.sources["mri"]] == [6, 6] and len(pool.sources["ct"]) == 1
    assert not pool.skipped and not pool.notes
    assert [item.path.name for item in pool.images["ct"]] == ["IM3", "IM2", "IM1", "IM0"]
    images = PoolImages(pool, PictureStore(), HIDDEN)
    shapes = Counter(images.read(place).shape for place in range(len(images)))
    assert shapes == {(20, 24): 9, (10, 12): 12, (9, 9): 4, (16, 16, 3): 3}
    assert np.array_equal(images.read(0), read_picture(Path(roots[0]) / "Doe_0.png"))
    assert images.counts == pool.counts


def test_the_fingerprint_is_of_names_and_their_order(roots, tmp_path) -> None:
    first = find_pool(roots, HIDDEN)
    assert first.fingerprint == find_pool(roots, HIDDEN).fingerprint
    photo(tmp_path / "xray" / "new.png")
    assert find_pool(roots, HIDDEN).fingerprint != first.fingerprint
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for root in roots:
        Path(root).rename(moved / Path(root).name)
    (moved / "xray" / "new.png").unlink()
    again = find_pool([str(moved / Path(root).name) for root in roots], HIDDEN)
    assert again.fingerprint == first.fingerprint


def test_modalities_have_names(roots, tmp_path) -> None:
    assert list(find_pool([f"cell={roots[3]}"], HIDDEN).sources) == ["cell"]
    both = find_pool([f"any={roots[0]}", f"any={roots[3]}"], HIDDEN)
    assert both.counts == {"any": 12}
    photo(tmp_path / "other" / "xray" / "a.png")
    with pytest.raises(ConfigError, match="Two folders are called xray"):
        find_pool([roots[0], str(tmp_path / "other" / "xray")], HIDDEN)


def test_broken_files_are_listed_without_their_names_and_stop_nothing(roots, tmp_path) -> None:
    (tmp_path / "xray" / "Doe_x.png").write_bytes(b"nothing")
    cut = volume(tmp_path / "mri" / "Doe_y.nii.gz", seed=9)
    cut.write_bytes(cut.read_bytes()[:-300])
    (tmp_path / "ct" / "Doe_z.dcm").write_bytes(b"nothing")
    good = tmp_path / "ct" / "IM1"
    good.write_bytes(good.read_bytes()[:-20])
    pool = find_pool(roots, HIDDEN)
    assert pool.counts == {"xray": 9, "mri": 12, "ct": 3, "histology": 3}
    assert len(pool.skipped) == 4
    assert not any("Doe" in line or str(tmp_path) in line for line in pool.skipped)
    shown = find_pool(roots, Names(True)).skipped
    assert sum("Doe" in line for line in shown) == 3


def test_hidden_files_masks_and_foreign_files_are_left_out(roots, tmp_path) -> None:
    photo(tmp_path / "xray" / ".cache" / "a.png")
    photo(tmp_path / "xray" / ".a.png")
    photo(tmp_path / "xray" / "masks" / "a.png")
    photo(tmp_path / "xray" / "lung_masks" / "a.png")
    photo(tmp_path / "xray" / "a_mask.png")
    volume(tmp_path / "mri" / "labelsTr" / "a.nii.gz")
    volume(tmp_path / "mri" / "a_seg.nii.gz")
    (tmp_path / "mri" / "a.nrrd").write_bytes(b"NRRD")
    (tmp_path / "mri" / "notes.txt").write_text("nothing")
    pool = find_pool(roots, HIDDEN)
    assert pool.counts == {"xray": 9, "mri": 12, "ct": 4, "histology": 3}
    assert pool.notes[0] == "xray: 3 files of masks left out"
    assert pool.notes[1] == "mri: 2 files of masks left out"
    assert pool.notes[2].startswith("mri: 1 files of kinds that are not read")
    assert find_pool([roots[0] + "/masks"], HIDDEN).counts == {"masks": 1}  # asked for


def test_windows_and_axes_are_passed_on(roots, tmp_path) -> None:
    pool = find_pool(roots, HIDDEN, windows={"mri": (0.5, 0.5)}, axis="sagittal")
    assert {(item.low, item.high) for item in pool.images["mri"]} == {(0.25, 0.75)}
    assert pool.counts["mri"] == 24
    assert {item.low for item in pool.images["ct"]} != {0.25}
    with pytest.raises(ConfigError, match="given for pet: the modalities are xray, mri"):
        find_pool(roots, HIDDEN, windows={"pet": (0.5, 0.5)})
    inside = tmp_path / "mri" / "fast"  # what is unpacked there is not found again
    fast = find_pool(roots, HIDDEN, unpack=inside)
    assert find_pool(roots, HIDDEN, unpack=inside).images == fast.images
    inside.rename(tmp_path / "fast")
    fast = find_pool(roots, HIDDEN, unpack=tmp_path / "fast")
    assert {item.path.suffix for item in fast.images["mri"]} == {".npy"}
    slow = find_pool(roots, HIDDEN)
    assert fast.fingerprint == slow.fingerprint
    one, other = (PoolImages(p, PictureStore(), HIDDEN) for p in (slow, fast))
    assert all(np.array_equal(one.read(i), other.read(i)) for i in range(len(one)))


def test_nothing_to_learn_from_is_an_error(tmp_path) -> None:
    with pytest.raises(ConfigError, match="give --data.root"):
        find_pool([], HIDDEN)
    with pytest.raises(DataError, match="not a folder"):
        find_pool([str(tmp_path / "none")], HIDDEN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image or volume"):
        find_pool([str(tmp_path / "empty")], HIDDEN)
    (tmp_path / "empty" / "Doe.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="first that cannot") as caught:
        find_pool([str(tmp_path / "empty")], HIDDEN)
    assert "Doe" not in str(caught.value)


def test_volumes_are_held_back_as_a_whole(roots) -> None:
    pool = find_pool(roots, HIDDEN)
    rest, held = pool.split(0.3, seed=1)
    assert held.counts == {"xray": 3, "mri": 6, "histology": 1}
    assert rest.counts == {"xray": 6, "mri": 6, "ct": 4, "histology": 2}
    of = [{i.path for i in p.images["mri"]} for p in (rest, held)]
    assert not of[0] & of[1]
    assert pool.split(0.3, seed=1)[1].images == held.images
    assert pool.split(0.3, seed=2)[1].images != held.images
    with pytest.raises(ConfigError, match="in \\(0, 1\\)"):
        pool.split(0.0)
    with pytest.raises(ConfigError, match="none can be held back"):
        Pool({"ct": pool.sources["ct"]}).split(0.5)


def flat_pool(**counts: int) -> Pool:
    """Slices that are not read."""
    return Pool(
        {n: [(Slice(Path(f"{n}{i}.npy"), i),) for i in range(k)] for n, k in counts.items()}
    )


def test_smaller_modalities_come_as_often_as_the_largest() -> None:
    pool = flat_pool(ct=100, mri=30, xray=7, us=100)
    images = BalancedPool(pool, PictureStore(), HIDDEN, copies=20)
    assert images.counts == {"ct": 100, "mri": 100, "xray": 100, "us": 100}
    times = Counter(item for _, item in images.entries)
    assert {times[item] for item in pool.images["ct"]} == {1}
    assert {times[item] for item in pool.images["mri"]} == {3, 4}
    assert Counter(times[item] for item in pool.images["xray"]) == {14: 5, 15: 2}
    # Every image is there once as it is, before all duplicates.
    assert images.originals == 237
    assert len({item for _, item in images.entries[:237]}) == 237
    limited = BalancedPool(pool, PictureStore(), HIDDEN, copies=10)
    assert limited.counts == {"ct": 100, "mri": 100, "xray": 70, "us": 100}
    assert BalancedPool(pool, PictureStore(), HIDDEN, copies=1).counts == pool.counts
    other = BalancedPool(pool, PictureStore(), HIDDEN, copies=20, seed=1)
    assert other.entries != images.entries and other.counts == images.counts
    with pytest.raises(ConfigError, match="copies 0"):
        BalancedPool(pool, PictureStore(), HIDDEN, copies=0)


def test_duplicates_are_crops_of_85_to_95_per_cent_in_the_images_size(tmp_path) -> None:
    y, x = np.mgrid[:100, :120]
    for name, count in (("a", 1), ("b", 60)):
        for number in range(count):
            path = tmp_path / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.dstack([x, y, x * 0 + 128]).astype(np.uint8)).save(path)
    pool = find_pool([str(tmp_path / "a"), str(tmp_path / "b")], HIDDEN)
    images = BalancedPool(pool, PictureStore(), HIDDEN, copies=100, seed=3)
    parts, corners = [], []
    for place in range(61, 120):
        assert images.entries[place][0] == "a"
        crop = images.read(place)
        assert crop.shape == (100, 120, 3)
        middle = crop[20:80, 20:100].astype(float)
        wide = (middle[:, -1, 0] - middle[:, 0, 0]).mean() / 79
        high = (middle[-1, :, 1] - middle[0, :, 1]).mean() / 59
        assert wide == pytest.approx(high, abs=0.035)  # of whole grey levels
        parts.append(wide)
        corners.append((crop[50, 60, 0], crop[50, 60, 1]))
        assert np.array_equal(crop, images.read(place))  # the same each time
    assert 0.84 < min(parts) < 0.87 and 0.93 < max(parts) < 0.96
    assert len(set(corners)) > 20
    assert np.array_equal(images.read(0), read_picture(tmp_path / "a" / "0.png"))


def test_an_image_that_breaks_later_is_said_once_and_replaced(roots, capsys) -> None:
    pool = find_pool(roots, HIDDEN)
    images = PoolImages(pool, PictureStore(0.0), HIDDEN)
    (Path(roots[0]) / "Doe_1.png").unlink()
    (Path(roots[0]) / "Doe_2.png").write_bytes(b"nothing")
    for _ in range(2):
        place, pixels = images.read_or_next(1)
        assert place == 3 and np.array_equal(pixels, images.read(3))
    said = capsys.readouterr().err
    assert said.count("skipped:") == 2 and "Doe" not in said
    with pytest.raises(DataError) as caught:
        images.read(1)
    assert "Doe" not in str(caught.value)
    again = pickle.loads(pickle.dumps(images))
    assert again.read_or_next(2)[0] == 3
    for path in Path(roots[0]).iterdir():
        path.unlink()
    with pytest.raises(DataError, match="None of the 9 images"):
        PoolImages(Pool({"x": pool.sources["xray"]}), PictureStore(), HIDDEN).read_or_next(0)


def test_real_packs_are_found(request) -> None:
    packs = request.config.rootpath.parent / "shared" / "data" / "medical"
    if not (packs / "nuclei").is_dir():
        pytest.skip("no data packs")
    pool = find_pool([str(packs / "cxr"), str(packs / "nuclei")], HIDDEN)
    assert pool.counts == {"cxr": 499, "nuclei": 227} and len(pool.notes) == 2
    images = BalancedPool(pool, PictureStore(), HIDDEN)
    assert images.counts == {"cxr": 499, "nuclei": 499}
    colours = [images.read(i).ndim == 3 for i in range(499, 599)]
    assert images.read(0).shape == (224, 224) and 0 < sum(colours) < 60
