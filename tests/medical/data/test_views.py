from __future__ import annotations

import math
import random
from pathlib import Path

import crossband.shared.compat  # noqa: F401 - before torchvision and timm

import numpy as np
import pytest
import torch
from dataset_tester import DatasetTester, assert_same
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from crossband.medical.config import AugmentConfig
from crossband.medical.data.masks import MaskClasses
from crossband.medical.data.records import Record
from crossband.medical.data.transforms import (
    IMAGENET,
    NIH,
    PRETRAINING,
    Normalisation,
    centre_view,
    rand_augment,
    random_box,
    random_view,
)
from crossband.medical.data.views import (
    EvalViews,
    ImagePairs,
    MaskedViews,
    PretrainCrops,
    TrainViews,
    label_of,
)
from crossband.shared.errors import ConfigError, DataError
from crossband.shared.training.sampler import EpochBatchSampler, EpochIndex, item_random

POLICY = "rand-m6-mstd0.5-inc1"
# What the policy may draw, by timm's names.
OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing"),
    *("SolarizeAdd", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing"),
    *("SharpnessIncreasing", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)


class Phantoms:
    """Stands for the store: a grey picture per number, of several shapes."""

    def read(self, path: Path) -> np.ndarray:
        if path.stem == "broken":
            raise DataError("image-0 cannot be read: replace it.")
        return phantom(int(path.stem))


def phantom(number: int, shape: tuple[int, int] | None = None) -> np.ndarray:
    height, width = shape or (60 + 7 * number, 80 - 5 * number)
    y, x = np.mgrid[:height, :width] / max(height, width)
    noise = np.random.default_rng(number).normal(0, 12, (height, width))
    grey = 120 + 90 * np.sin(5 * x + number) * np.cos(7 * y) + noise
    return grey.clip(0, 255).astype(np.uint8)


def records(count: int = 6) -> list[Record]:
    labels = [(1.0, 0.0, math.nan), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    return [Record(Path(f"{i}.png"), f"{i}", labels=labels[i % 3]) for i in range(count)]


class TestPretrainCrops(DatasetTester):
    item = {"image": ((3, 32, 32), torch.float32)}
    length = 6

    def make(self, folder: Path) -> Dataset:
        return PretrainCrops(records(), Phantoms(), 32, seed=3)


class TestTrainViews(DatasetTester):
    item = {"image": ((3, 32, 32), torch.float32)}
    length = 6

    def make(self, folder: Path) -> Dataset:
        known = [Record(r.path, r.name, labels=(0.0, 1.0)) for r in records()]
        return TrainViews(known, Phantoms(), 32, seed=3)

    item["label"] = ((2,), torch.float32)


class TestEvalViews(DatasetTester):
    item = {"image": ((3, 32, 32), torch.float32), "label": ((), torch.int64)}
    length = 6

    def make(self, folder: Path) -> Dataset:
        return EvalViews(records(), Phantoms(), 32, exclusive=True)


class TestMaskedViews(DatasetTester):
    item = {"image": ((3, 32, 32), torch.float32), "mask": ((32, 32), torch.int64)}
    length = 6

    def make(self, folder: Path) -> Dataset:
        pairs = ImagePairs(masked(folder), Phantoms())
        return MaskedViews(pairs, 32, augment=AugmentConfig(), seed=3)


def masked(folder: Path, value: int = 255) -> list[Record]:
    """Return records whose masks are the bright parts of their images."""
    found = []
    for record in records():
        mask = folder / f"mask_{record.name}.png"
        bright = phantom(int(record.name)) > 140
        Image.fromarray(bright.astype(np.uint8) * value).save(mask)
        found.append(Record(record.path, record.name, mask=mask))
    return found


@pytest.mark.parametrize("shape", [(200, 200), (260, 180), (150, 300), (57, 91)])
@pytest.mark.parametrize("statistics", [NIH, IMAGENET])
def test_evaluation_is_torchvisions_and_timms_on_three_equal_channels(
    shape: tuple[int, int], statistics: Normalisation
) -> None:
    from timm.data.transforms_factory import transforms_imagenet_eval
    from torchvision import transforms as T

    pixels = phantom(1, shape)
    rgb = Image.fromarray(np.repeat(pixels[..., None], 3, 2))
    ours = statistics(centre_view(pixels, 112))
    wanted = T.Compose([
        T.Resize(128, T.InterpolationMode.BICUBIC),
        T.CenterCrop(112),
        T.ToTensor(),
        T.Normalize(statistics.mean, statistics.std),
    ])  # fmt: skip
    assert torch.equal(ours, wanted(rgb))
    timms = transforms_imagenet_eval(
        112, interpolation="bicubic", mean=statistics.mean, std=statistics.std, crop_pct=0.875
    )
    torch.testing.assert_close(ours, timms(rgb), rtol=0, atol=1e-6)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_on_one_channel_are_those_on_three(operation: str) -> None:
    from timm.data.auto_augment import AugmentOp

    fill = NIH.fill
    assert fill == 129
    changed = 0
    for number in range(8):
        grey = Image.fromarray(phantom(number, (64, 64)))
        found = []
        for image, colour in ((grey, fill), (grey.convert("RGB"), (fill,) * 3)):
            settings = {
                "img_mean": colour,
                "interpolation": Image.Resampling.BICUBIC,
                "magnitude_std": 0.5,
            }
            random.seed(number)
            found.append(np.asarray(AugmentOp(operation, 1.0, 6, settings)(image)))
        one, three = found
        assert (three == one[..., None]).all()
        changed += not np.array_equal(one, np.asarray(grey))
    assert changed == 0 if operation == "ColorIncreasing" else changed > 0


def test_the_policy_has_these_operations_and_is_timms() -> None:
    from timm.data.auto_augment import rand_augment_transform

    ours = rand_augment(POLICY, NIH.fill)
    assert tuple(operation.name for operation in ours.ops) == OPERATIONS
    settings = {"img_mean": (NIH.fill,) * 3, "interpolation": Image.Resampling.BICUBIC}
    theirs = rand_augment_transform(POLICY, settings)
    grey = Image.fromarray(phantom(2, (64, 64)))
    for seed in range(30):
        found = []
        for policy, image in ((ours, grey), (theirs, grey.convert("RGB"))):
            random.seed(seed)
            np.random.seed(seed)
            found.append(np.asarray(policy(image)))
        assert (found[1] == found[0][..., None]).all()


@pytest.mark.parametrize("policy", ["rand-q7", "augmix-m3", "v0", "rand-m0.5"])
def test_a_policy_that_timm_does_not_know_is_named(policy: str) -> None:
    with pytest.raises(ConfigError, match=f"auto_augment '{policy}'"):
        rand_augment(policy, 128)


def test_random_views_are_torchvisions_crop_of_the_same_box(monkeypatch) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    from crossband.medical.data import transforms

    pixels, box = phantom(3, (120, 150)), (11, 23, 64, 77)
    monkeypatch.setattr(transforms, "random_box", lambda *_: box)
    rgb = Image.fromarray(np.repeat(pixels[..., None], 3, 2))
    wanted = F.resized_crop(rgb, *box, [48, 48], InterpolationMode.BICUBIC)
    draw = np.random.default_rng(0)
    found = np.asarray(random_view(pixels, 48, (0.08, 1.0), 0.0, draw))
    assert (np.asarray(wanted) == found[..., None]).all()
    mirrored = np.asarray(random_view(pixels, 48, (0.08, 1.0), 1.0, draw))
    assert np.array_equal(mirrored[:, ::-1], found)


def test_boxes_have_torchvisions_distribution() -> None:
    from torchvision.transforms import RandomResizedCrop

    shape, scale, draw = (100, 140), (0.3, 0.8), np.random.default_rng(0)
    ours = np.array([random_box(shape, scale, draw) for _ in range(3000)], float)
    torch.manual_seed(0)
    image = torch.zeros(1, *shape)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, scale, [3 / 4, 4 / 3]) for _ in range(3000)], float
    )
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 3000)
    assert (abs(ours.mean(0) - theirs.mean(0)) < 4 * error).all()
    assert ours.std(0) == pytest.approx(theirs.std(0), rel=0.08)
    top, left, height, width = ours.T
    assert (top + height <= 100).all() and (left + width <= 140).all()
    area = height * width / 14000
    assert 0.28 < area.min() and area.max() < 0.82


@pytest.mark.parametrize("shape", [(20, 200), (200, 20)])
def test_the_box_of_an_image_too_narrow_for_any_is_its_centre(shape: tuple[int, int]) -> None:
    from torchvision.transforms import RandomResizedCrop

    ours = random_box(shape, (0.9, 1.0), np.random.default_rng(0))
    assert ours == RandomResizedCrop.get_params(torch.zeros(1, *shape), [0.9, 1.0], [3 / 4, 4 / 3])


def test_draws_depend_on_seed_epoch_and_index_alone_and_leave_the_generators_alone() -> None:
    def views(seed: int) -> TrainViews:
        config = AugmentConfig(auto_augment="rand-m9-n4-mstd0.5-inc1")
        return TrainViews(records(), Phantoms(), 32, augment=config, seed=seed)

    data, again = views(1), views(1)
    random.seed(5)
    np.random.seed(5)
    wanted = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    first = data[EpochIndex(4, 2)]
    assert (random.random(), np.random.random()) == wanted
    data[EpochIndex(0, 0)]
    torch.manual_seed(99)
    assert torch.equal(again[EpochIndex(4, 2)]["image"], first["image"])
    for other in (data[EpochIndex(4, 3)], data[EpochIndex(1, 2)], views(2)[EpochIndex(4, 2)]):
        assert not torch.equal(other["image"], first["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_the_same_in_any_number_of_processes(workers: int) -> None:
    data = TrainViews(records(), Phantoms(), 32, seed=1)
    order = EpochBatchSampler(6, 2, seed=0)
    order.set_epoch(3)
    wanted = [data[index]["image"] for batch in order for index in batch]
    loader = DataLoader(data, batch_sampler=order, num_workers=workers)
    found = torch.cat([batch["image"] for batch in loader])
    assert torch.equal(found, torch.stack(wanted))


def test_without_augmentation_only_the_crop_is_left() -> None:
    config = AugmentConfig(crop_min=1.0, flip=0.0, auto_augment="")
    square = [Record(Path("0.png"), "0", labels=(1.0,))]

    class Square(Phantoms):
        def read(self, path: Path) -> np.ndarray:
            return phantom(0, (48, 48))

    data = TrainViews(square, Square(), 48, augment=config)
    # A crop of everything has aspect 1 in few draws: the tenth that fails takes it all.
    boxes = {tuple(data[EpochIndex(0, epoch)]["image"].shape) for epoch in range(5)}
    assert boxes == {(3, 48, 48)}
    assert torch.equal(data[0]["image"], NIH(phantom(0, (48, 48))))


def test_normalisation_is_torchvisions_and_the_papers() -> None:
    assert NIH(np.full((1, 1), 255, np.uint8))[0].item() == pytest.approx((1 - 0.5056) / 0.252)
    assert PRETRAINING == {"nih": NIH, "chexpert": IMAGENET, "mimic": IMAGENET}
    found = IMAGENET(np.array([[0, 51]], np.uint8))
    wanted = [
        [(v - m) / s for v in (0, 0.2)] for m, s in zip(*vars(IMAGENET).values(), strict=True)
    ]
    torch.testing.assert_close(found[:, 0], torch.tensor(wanted))


def test_each_image_is_pretrained_with_the_statistics_of_its_set() -> None:
    def of(record: Record) -> Normalisation:
        return NIH if record.name == "0" else IMAGENET

    mixed = PretrainCrops(records(), Phantoms(), 32, normalisation=of, seed=4)
    single = {
        "0": PretrainCrops(records(), Phantoms(), 32, normalisation=NIH, seed=4),
        "1": PretrainCrops(records(), Phantoms(), 32, normalisation=IMAGENET, seed=4),
    }
    for name, data in single.items():
        assert_same(mixed[int(name)], data[int(name)])


def test_labels_of_findings_and_of_classes() -> None:
    first, second, third = records(3)
    assert label_of(second, False).tolist() == [0, 1, 0]
    assert label_of(first, False)[:2].tolist() == [1, 0] and label_of(first, False)[2].isnan()
    assert [int(label_of(r, True)) for r in (first, second, third)] == [0, 1, 2]
    assert int(label_of(Record(Path("a"), "a", labels=(math.nan, 0.0)), True)) == -1
    assert label_of(first, True).dtype == torch.int64


def test_weights_say_how_often_an_image_is_drawn() -> None:
    weights = [0.0, 1.0, 0.0, 3.0, 0.0, 0.0]
    data = TrainViews(
        [Record(r.path, r.name, labels=(float(r.name),)) for r in records()],
        Phantoms(), 8, augment=AugmentConfig(auto_augment=""), weights=weights,
    )  # fmt: skip
    drawn = [int(data[EpochIndex(i, e)]["label"]) for e in range(100) for i in range(6)]
    assert set(drawn) == {1, 3}
    assert drawn.count(3) / len(drawn) == pytest.approx(0.75, abs=0.06)


def test_a_file_that_cannot_be_read_is_an_error() -> None:
    broken = [Record(Path("broken.png"), "b", labels=(1.0,))]
    for data in (
        PretrainCrops(broken, Phantoms(), 32),
        TrainViews(broken, Phantoms(), 32),
        EvalViews(broken, Phantoms(), 32),
    ):
        with pytest.raises(DataError, match="cannot be read"):
            data[0]


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.6, 0.5), (0.5, 1.5)])
def test_parts_that_cannot_be_are_refused(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match="give two parts between 0 and 1"):
        TrainViews([], Phantoms(), 32, augment=AugmentConfig(crop_min=low, crop_max=high))


def test_a_centre_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="100 pixels is less than the crop of 112"):
        centre_view(phantom(0), 112, 100)


def test_masks_without_augmentation_are_the_stretched_ones(tmp_path: Path) -> None:
    data = MaskedViews(ImagePairs(masked(tmp_path, 200), Phantoms()), 40)
    item = data[2]
    image = Image.fromarray(phantom(2)).resize((40, 40), Image.Resampling.BILINEAR)
    assert torch.equal(item["image"], NIH(np.asarray(image)))
    mask = Image.fromarray(phantom(2) > 140).resize((40, 40), Image.Resampling.NEAREST)
    assert torch.equal(item["mask"], torch.tensor(np.asarray(mask)).long())
    assert item["mask"].unique().tolist() == [0, 1]


def test_masks_go_where_their_images_go(tmp_path: Path) -> None:
    """A disc in the image and the same disc in the mask stay one disc."""
    y, x = np.mgrid[:96, :96]
    disc = ((y - 40) ** 2 + (x - 55) ** 2 < 20**2).astype(np.uint8)
    path = tmp_path / "disc.png"
    Image.fromarray(disc).save(path)

    class Disc(Phantoms):
        def read(self, path: Path) -> np.ndarray:
            return disc * 200

    pairs = ImagePairs([Record(Path("d"), "d", mask=path)], Disc())
    data = MaskedViews(pairs, 64, augment=AugmentConfig())
    centres = []
    for epoch in range(20):
        item = data[EpochIndex(0, epoch)]
        image, mask = item["image"][0], item["mask"]
        bright = image > (image.max() + image.min()) / 2
        assert (bright != mask.bool()).float().mean() < 0.02
        centres.append(mask.nonzero().double().mean(0))
    assert torch.stack(centres).std(0).min() > 1  # and it moves


def test_class_ids_are_kept_and_checked(tmp_path: Path) -> None:
    three = MaskClasses(("nothing", "lung", "heart"))
    pairs = ImagePairs(masked(tmp_path, 2), Phantoms(), three)
    assert MaskedViews(pairs, 40)[0]["mask"].unique().tolist() == [0, 2]
    pairs = ImagePairs(masked(tmp_path, 4), Phantoms(), three)
    with pytest.raises(DataError, match="class id 4 and there are 3 classes"):
        MaskedViews(pairs, 40)[0]


def test_masks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    none, other, broken = (tmp_path / name for name in ("no.png", "other.png", "broken.png"))
    Image.fromarray(np.zeros((50, 90), np.uint8)).save(other)
    broken.write_bytes(b"nonsense")
    for mask, message in (
        (None, "has no mask"),
        (none, "cannot be read"),
        (broken, "cannot be read"),
        (other, "bring the mask to the size of the image"),
    ):
        data = MaskedViews(ImagePairs([Record(Path("0.png"), "0", mask=mask)], Phantoms()), 40)
        with pytest.raises(DataError, match=message):
            data[0]
    half = tmp_path / "half.png"  # images may be held in memory at a smaller size
    Image.fromarray(np.ones((30, 40), np.uint8)).save(half)
    data = MaskedViews(ImagePairs([Record(Path("0.png"), "0", mask=half)], Phantoms()), 40)
    assert (data[0]["mask"] == 1).all()


def test_areas_of_pretraining_are_between_half_and_all() -> None:
    areas = []
    for index in range(200):
        _, _, height, width = random_box((224, 224), (0.5, 1.0), item_random(0, index))
        areas.append(height * width / 224**2)
    assert 0.48 < min(areas) < 0.55 and 0.9 < max(areas) <= 1.0
