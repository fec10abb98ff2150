from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for library in ("mmengine", "mmcv", "mmseg", "mmdet", "cv2"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import cv2  # noqa: E402
from mmengine.dataset import Compose  # noqa: E402
from torch.utils.data import BatchSampler  # noqa: E402

import crossband.shared.plugins.openmmlab as plugin  # noqa: E402
from crossband.shared.errors import ConfigError, DataError  # noqa: E402
from crossband.shared.training.sampler import EpochBatchSampler  # noqa: E402


class TestData:
    def make(self, root: Path, **options: Any) -> Any:
        pipeline = [
            {"type": "crossband.LoadThermalImage"},
            {"type": "mmseg.LoadAnnotations"},
            {"type": "mmseg.PackSegInputs"},
        ]
        return plugin.DATASETS.build(
            {
                "type": "crossband.FolderSegDataset",
                "data_root": str(root),
                **{"pipeline": pipeline, "max_refetch": 0, **options},
            }
        )

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for index in range(3):
            (tmp_path / "images").mkdir(exist_ok=True)
            (tmp_path / "masks").mkdir(exist_ok=True)
            image = np.full((5, 7), 1000 * index, np.uint16)
            cv2.imwrite(str(tmp_path / "images" / f"{index}.a.png"), image)
            mask = np.full((5, 7), index, np.uint8)
            mask[0, 0] = 255
            cv2.imwrite(str(tmp_path / "masks" / f"{index}.a.png"), mask)
        (tmp_path / "classes.txt").write_text("sky\nroad\n\ncar\n")
        return tmp_path

    def test_items(self, root: Path) -> None:
        data = self.make(root)
        assert data.metainfo["classes"] == ["sky", "road", "car"]
        assert len({tuple(colour) for colour in data.metainfo["palette"]}) == 3
        item = data[2]
        assert item["inputs"].shape == (3, 5, 7)
        labels = item["data_samples"].gt_sem_seg.data
        assert labels.unique().tolist() == [2, 255] and labels[0, 0, 0] == 255

    def test_lists_of_stems_or_file_names(self, root: Path) -> None:
        (root / "val.txt").write_text("2.a\n0.a.png\n")
        data = self.make(root, ann_file="val.txt")
        assert [Path(data.get_data_info(i)["img_path"]).name for i in (0, 1)] == [
            "2.a.png",
            "0.a.png",
        ]

    def test_zero_label(self, root: Path) -> None:
        (root / "classes.txt").write_text("road\ncar\n")
        labels = self.make(root, reduce_zero_label=True)[2]["data_samples"].gt_sem_seg.data
        assert labels.unique().tolist() == [1, 255]

    def test_what_is_wrong_is_named(self, root: Path) -> None:
        (root / "classes.txt").write_text("sky\nroad\n")
        with pytest.raises(DataError, match=r"2\.a\.png has pixels of class 2.*2 classes"):
            self.make(root)[2]
        (root / "masks" / "1.a.png").unlink()
        with pytest.raises(DataError, match=r"1\.a\.png has no mask"):
            self.make(root)
        (root / "val.txt").write_text("9\n")
        with pytest.raises(DataError, match="lists '9'"):
            self.make(root, ann_file="val.txt")
        (root / "classes.txt").unlink()
        with pytest.raises(DataError, match=r"classes\.txt cannot be read"):
            self.make(root)


class TestThermalImage:
    def load(self, path: Path, **options: Any) -> np.ndarray:
        pipeline = Compose([{"type": "crossband.LoadThermalImage", **options}])
        result = pipeline({"img_path": str(path)})
        assert result["img_shape"] == result["ori_shape"] == result["img"].shape[:2]
        assert result["img"].dtype == np.float32
        return result["img"]

    def write(self, path: Path, pixels: np.ndarray) -> Path:
        assert cv2.imwrite(str(path), pixels)
        return path

    def test_depth_is_kept(self, tmp_path: Path) -> None:
        counts = np.arange(7200, 7200 + 600, dtype=np.uint16).reshape(20, 30)
        for suffix in (".png", ".tif"):
            path = self.write(tmp_path / f"x{suffix}", counts)
            image = self.load(path, channels=1, value_range=(7200, 7799))
            assert image.shape == (20, 30, 1)
            expected = (counts - 7200.0) * 255 / 599
            np.testing.assert_allclose(image[..., 0], expected, atol=1e-3)
            assert len(np.unique(image)) == 600

    def test_automatic_range(self, tmp_path: Path) -> None:
        counts = np.linspace(7200, 7799, 1000).round().astype(np.uint16).reshape(20, 50)
        counts[0, 0] = 65535  # a dead pixel
        image = self.load(self.write(tmp_path / "x.png", counts))
        assert image.min() == 0 and image.max() == 255
        assert 126 < np.median(image) < 129
        assert np.array_equal(image[..., 0], image[..., 2])

    def test_eight_bits_keep_their_values(self, tmp_path: Path) -> None:
        pixels = np.arange(200, dtype=np.uint8).reshape(10, 20)
        assert np.array_equal(self.load(self.write(tmp_path / "x.png", pixels))[..., 1], pixels)

    def test_colours(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
        path = self.write(tmp_path / "x.png", pixels)
        assert np.array_equal(self.load(path), cv2.imread(str(path)))  # BGR, as mmcv reads
        with pytest.raises(DataError, match="has colours"):
            self.load(path, channels=1)

    def test_a_uniform_image(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.png", np.full((4, 4), 9000, np.uint16))
        assert np.array_equal(self.load(path), np.zeros((4, 4, 3)))

    def test_settings_are_checked(self) -> None:
        for wrong in ({"value_range": (5, 5)}, {"channels": 2}):
            with pytest.raises(ConfigError):
                plugin.TRANSFORMS.build({"type": "crossband.LoadThermalImage", **wrong})

    def test_real_frames(self, shared_dir: Path) -> None:
        frames = sorted((shared_dir / "data" / "infrared" / "msrs_pairs" / "ir").glob("*.png"))
        image = self.load(frames[0])
        assert image.shape[2] == 3 and image.std() > 5


class TestEpochSampler:
    def make(self, length: int, **options: Any) -> Any:
        return plugin.DATA_SAMPLERS.build(
            {"type": "crossband.EpochSampler", "dataset": range(length), **options}
        )

    def test_batches_are_those_of_train(self) -> None:
        theirs = self.make(11, seed=3)
        ours = EpochBatchSampler(11, 4, seed=3)
        batches = BatchSampler(theirs, 4, drop_last=False)
        assert len(theirs) == 11 and len(batches) == len(ours) == 3
        orders = []
        for epoch in range(2):
            theirs.set_epoch(epoch)
            ours.set_epoch(epoch)
            found = list(batches)
            assert found == list(ours)
            assert {index.epoch for batch in found for index in batch} == {epoch}
            orders.append(found)
        assert orders[0] != orders[1]

    def test_a_resumed_run(self) -> None:
        theirs = self.make(11, seed=3)
        theirs.set_epoch(5)
        whole = list(theirs)
        theirs.start_at(5, 4)
        assert list(theirs) == whole[4:]
        theirs.set_epoch(1)  # mmengine counts from where the run goes on
        again = self.make(11, seed=3)
        again.set_epoch(6)
        assert list(theirs) == list(again)

    def test_in_order(self) -> None:
        assert list(self.make(4, seed=3, shuffle=False)) == [0, 1, 2, 3]
        with pytest.raises(ConfigError, match="has no seed"):
            self.make(4)
