"""The data set and the backbone of UNIP in OpenMMLab."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for library in ("mmengine", "mmcv", "mmseg", "cv2"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import crossband.infrared.openmmlab as road  # noqa: E402, I001 - before mmseg
import unip_roads as roads  # noqa: E402
from mmengine.logging import MessageHub  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

from crossband.infrared.data.classes import palette  # noqa: E402
from crossband.infrared.data.synthetic import STREET, make_synthetic  # noqa: E402
from crossband.infrared.training import data_sets, gather  # noqa: E402
from crossband.shared.heads.vit_segmentor import SegmentationViT  # noqa: E402
from crossband.shared.backbones.vit import ViT  # noqa: E402
from crossband.shared.backbones.vit_keys import load_vit, to_layout  # noqa: E402
from crossband.shared.errors import CheckpointError, ConfigError, DataError  # noqa: E402
from crossband.shared.training.sampler import EpochIndex  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("street"), 20, size=(72, 96))


class TestData:
    def make(self, root: Path | None, **options: Any) -> road.InfraredSegDataset:
        built = {"type": "crossband.InfraredSegDataset", "crop": 64, **options}
        return road.plugin.DATASETS.build({**built, **({"data_root": str(root)} if root else {})})

    def test_crops_are_those_of_train(self, data: Path) -> None:
        theirs = self.make(data, scale={"short_side": 80}, seed=4)
        config = roads.our_config(data, "--seed", "4")
        material = gather(config.data, 4)
        ours, _ = data_sets(config, material)
        assert len(theirs) == len(ours) == 14
        for index in (EpochIndex(3, 0), EpochIndex(3, 1), EpochIndex(0, 7)):
            a, b = ours[index], theirs[index]
            image = material.normalisation(b["inputs"][0].numpy())
            torch.testing.assert_close(image, a["image"], rtol=0, atol=0)
            assert b["inputs"].dtype == torch.uint8 and b["inputs"].shape == (3, 64, 64)
            assert torch.equal(b["data_samples"].gt_sem_seg.data[0], a["mask"])
        assert not torch.equal(
            theirs[EpochIndex(3, 0)]["inputs"], theirs[EpochIndex(3, 1)]["inputs"]
        )

    def test_other_samplers_draw_from_numpy(self, data: Path) -> None:
        theirs = self.make(data)
        np.random.seed(1)
        first, second = theirs[2]["inputs"], theirs[2]["inputs"]
        np.random.seed(1)
        assert torch.equal(theirs[2]["inputs"], first) and not torch.equal(first, second)

    def test_whole_images(self, data: Path) -> None:
        theirs = self.make(data, split="test", test_mode=True, scale={"short_side": 90})
        item = theirs[1]
        sample = item["data_samples"]
        assert len(theirs) == 3 and item["inputs"].shape == (3, 90, 120)
        assert sample.gt_sem_seg.shape == (72, 96) == sample.ori_shape
        assert Path(sample.img_path).is_file() and sample.img_shape == (90, 120)
        assert theirs.metainfo["classes"] == list(STREET)
        assert theirs.metainfo["palette"] == [list(c) for c in palette(STREET)]

    def test_what_is_held_back_is_the_same(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "images").symlink_to(data / "images")
        (tmp_path / "masks").symlink_to(data / "masks")
        (tmp_path / "classes.txt").write_text("\n".join(STREET))
        config = roads.our_config(tmp_path, "--data.val_fraction", "0.25")
        material = gather(config.data, 0)
        options = {"val_fraction": 0.25, "seed": 0}
        val = self.make(tmp_path, split="val", test_mode=True, **options)
        assert [item.name for item in val.samples.items] == [item.name for item in material.val]
        assert len(self.make(tmp_path, **options)) == 15

    def test_colours_keep_openmmlabs_order(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
        image = road._AsRead((1.0,) * 3, (2.0,) * 3)(pixels)
        assert np.array_equal(image[0].numpy(), pixels[..., 2])

    def test_mistakes(self, data: Path) -> None:
        MessageHub.get_current_instance().update_info(road._KEY, {}, resumed=False)
        with pytest.raises(ConfigError, match="has no data_root"):
            self.make(None)
        with pytest.raises(ConfigError, match="does not take 'flip'.*Did you mean 'flips'"):
            self.make(data, flip="all")
        with pytest.raises(ConfigError, match="scale .*short"):
            self.make(data, scale={"short": 3})
        with pytest.raises(ConfigError, match="'val' is not trained on"):
            self.make(data, split="val")
        with pytest.raises(DataError, match="has no split 'tset'"):
            self.make(data, split="tset", test_mode=True)
        with pytest.raises(DataError, match="does not exist"):
            self.make(data / "nothing")


class TestBackbone:
    SMALL: dict[str, Any] = {
        "embed_dim": 24, "depth": 3, "num_heads": 3, "out_indices": (2,), "layer_scale_init": 1.0,
    }  # fmt: skip

    @pytest.fixture
    def source(self) -> ViT:
        """A pre-trained ViT of 4 x 4 patches with a final norm and no layer scale."""
        torch.manual_seed(5)
        small = {k: v for k, v in self.SMALL.items() if k != "layer_scale_init"}
        return ViT(**small, img_size=64, final_norm=True)

    def load(self, path: Path, **options: Any) -> Any:
        init = {"type": "Pretrained", "checkpoint": str(path)}
        network = MODELS.build(
            {"type": "crossband.UNIPBackbone", **self.SMALL, "init_cfg": init, "img_size": 96}
            | options
        )
        network.init_weights()
        return network

    @pytest.mark.parametrize("form", ["unip", "dino", "mae", "segmentation"])
    def test_files(self, source: ViT, tmp_path: Path, form: str) -> None:
        state = source.state_dict()
        if form == "dino":
            state = {f"teacher.backbone.{k}": v for k, v in state.items()}
            state |= {"teacher.head.mlp.0.weight": torch.ones(2, 2)}
        elif form == "mae":
            state = state | {
                "mask_token": torch.zeros(1, 1, 8),
                "decoder_embed.bias": torch.ones(8),
            }
        elif form == "segmentation":
            scaled = {f"blocks.{i}.ls{n}.gamma": torch.full((24,), 0.5)
                      for i in range(3) for n in (1, 2)}  # fmt: skip
            inner = to_layout(state | scaled, "beit")
            state = {f"backbone.{k}": v for k, v in inner.items()}
            state |= {
                "decode_head.conv_seg.bias": torch.ones(2),
                "backbone.fpn2.0.bias": torch.ones(3),
            }
        path = tmp_path / "x.pth"
        torch.save({"model": state}, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is left out
            theirs = self.load(path)
        ours = SegmentationViT(**self.SMALL, img_size=96)
        load_vit(ours, path)
        assert ours.pos_embed.shape[1] == 37
        for key, value in ours.state_dict().items():
            assert torch.equal(theirs.state_dict()[key], value), key

    def test_another_size_is_an_error(self, source: ViT, tmp_path: Path) -> None:
        torch.save(source.state_dict(), tmp_path / "x.pth")
        with pytest.raises(CheckpointError):
            self.load(tmp_path / "x.pth", embed_dim=48)

    def test_frozen_for_a_probe(self) -> None:
        network = MODELS.build({"type": "crossband.UNIPBackbone", **self.SMALL, "frozen_stages": 3})
        assert not any(p.requires_grad for p in network.parameters())
        assert MODELS.build({"type": "crossband.UNIPBackbone", "variant": "tiny"}).embed_dim == 192
