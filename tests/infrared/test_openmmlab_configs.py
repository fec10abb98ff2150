"""The shipped configs and recipes of UNIP: they parse, and say the same numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

for library in ("mmengine", "mmcv", "mmseg", "cv2"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: extra openmmlab", allow_module_level=True)

import crossband.infrared.openmmlab as road  # noqa: E402, I001 - before mmseg
import unip_roads as roads  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

from crossband.infrared import networks  # noqa: E402
from crossband.infrared.cli import DOMAIN  # noqa: E402
from crossband.infrared.training import window_facts  # noqa: E402
from crossband.infrared.unip.official import from_official  # noqa: E402
from crossband.shared.cli.parser import parse, recipes_of  # noqa: E402
from crossband.shared.training.optimizers import poly_factor  # noqa: E402

CONFIGS = sorted(roads.RECIPES.glob("unip-*.py"))
SIRST = "unip-s_ll-fpn_upernet_sirst-512x512.py"


class TestConfigs:
    def test_there_is_one_for_every_size_and_data_set(self) -> None:
        names = {
            f"unip-{size}_ll-fpn_upernet_{data}-512x512.py"
            for size in "tsb"
            for data in ("soda", "mfnet", "scut", "sirst")
        }
        assert {path.name for path in CONFIGS} == names

    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
    def test_the_network_is_ours(self, path: Path) -> None:
        config = Config.fromfile(path)
        with DefaultScope.overwrite_default_scope("mmseg"), torch.device("meta"):
            theirs = MODELS.build(config.model)
            ours = networks.build(road.describe(config.model))
        state = from_official(theirs.state_dict())
        assert {k: v.shape for k, v in state.items()} == {
            k: v.shape for k, v in ours.state_dict().items()
        }
        # Millions of parameters with 21 classes.
        published = {"t": 10.83, "s": 41.63, "b": 163.17}
        if "soda" in path.name:
            count = sum(p.numel() for p in theirs.parameters()) / 1e6
            assert count == pytest.approx(published[path.name[5]], abs=0.01)

    @pytest.mark.parametrize("name", ["soda", "mfnet", "scut", "sirst"])
    def test_the_numbers_are_the_recipes(self, name: str) -> None:
        config = Config.fromfile(roads.RECIPES / f"unip-s_ll-fpn_upernet_{name}-512x512.py")
        recipe = "sirst_512" if name == "sirst" else name
        ours = parse(DOMAIN.verbs["train"], ["--recipe", recipe, "--data.root", "x"])
        optimizer, wrapper = ours.optimizer, config.optim_wrapper
        assert wrapper.optimizer == {
            "type": "AdamW", "lr": optimizer.lr, "betas": tuple(optimizer.betas),
            "weight_decay": optimizer.weight_decay,
        }  # fmt: skip
        assert wrapper.paramwise_cfg == {
            "decay_rate": optimizer.layer_decay, "decay_positions": optimizer.decay_positions,
        }  # fmt: skip
        assert not optimizer.decay_norm_and_bias
        assert optimizer.layer_decay == 0.85 and optimizer.lr == 1e-4
        model = config.model
        assert model.backbone.img_size == ours.network.img_size == ours.data.crop == 512
        assert model.backbone.drop_path_rate == ours.network.drop_path == 0.1
        assert model.decode_head.dropout_ratio == ours.network.dropout == 0.1
        assert model.auxiliary_head.loss_decode.loss_weight == ours.loss.auxiliary_weight == 0.4
        assert not ours.loss.avg_non_ignore and ours.loss.name == "ce"
        assert model.test_cfg.stride == (window_facts(ours)["stride"],) * 2 == (341, 341)
        own = road._data_config("x", {k: v for k, v in config.train_dataloader.dataset.items()
                                      if k not in ("type", "split")})  # fmt: skip
        for field in ("layout", "channel", "crop", "cat_max_ratio", "flips", "photometric", "val"):
            assert getattr(own, field) == getattr(ours.data, field), field
        assert list(own.ratio) == ours.data.ratio and own.scale == ours.data.scale
        assert config.train_dataloader.batch_size == ours.loader.batch_size == 8
        # Length and warm-up: images of the data sets over the batch.
        images = {"soda": 1168, "mfnet": 784, "scut": 1345, "sirst": 200}[name]
        steps = ours.trainer.max_epochs * -(-images // 8)
        assert config.train_cfg.max_iters == pytest.approx(steps, rel=0.015)
        warmup = config.param_scheduler[0].end - 1
        assert warmup == pytest.approx(ours.schedule.warmup_fraction * steps, rel=0.015)
        assert ours.schedule.name == "poly"
        assert config.param_scheduler[1].end - 1 == config.train_cfg.max_iters

    def test_the_schedule_over_the_whole_length(self) -> None:
        from mmengine.registry import PARAM_SCHEDULERS

        config = Config.fromfile(roads.RECIPES / "unip-s_ll-fpn_upernet_soda-512x512.py")
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
        schedules = [
            PARAM_SCHEDULERS.build(dict(one), default_args={"optimizer": optimizer})
            for one in config.param_scheduler
        ]
        total = config.train_cfg.max_iters
        assert total == 14400
        for step in range(total):
            rate = optimizer.param_groups[0]["lr"]
            if step % 97 == 0 or step < 5 or 1495 < step < 1505 or step > total - 5:
                wanted = 1e-4 * poly_factor(step, total, 1500)
                assert rate == pytest.approx(wanted, rel=1e-6, abs=1e-15), step
            for schedule in schedules:
                schedule.step()

    def test_where_the_data_lie(self, monkeypatch: pytest.MonkeyPatch) -> None:
        path = roads.RECIPES / SIRST
        monkeypatch.delenv("CROSSBAND_DATA_ROOT", raising=False)
        assert Config.fromfile(path).data_root == "data/sirst_v2"
        monkeypatch.setenv("CROSSBAND_DATA_ROOT", "/elsewhere")
        assert Config.fromfile(path).data_root == "/elsewhere"

    def test_recipes_of_the_paper(self) -> None:
        found = recipes_of(DOMAIN.verbs["train"])
        names = {
            "soda", "mfnet", "scut", "msrs", "pst900", "sirst_512", "tiny",
            *(f"{kind}_{data}" for kind in ("linear", "layerwise")
              for data in ("soda", "mfnet", "scut")),
        }  # fmt: skip
        assert names <= found.keys()
        for name in names:
            config = parse(DOMAIN.verbs["train"], ["--recipe", name, "--data.root", "x"])
            description = networks.describe(config.model, config.network, 5)
            if name != "tiny":
                assert config.trainer.max_epochs == 100 and config.loader.batch_size == 8
                assert 100 % config.trainer.check_val_every_n_epoch == 0  # the last is looked at
            if name.startswith(("linear", "layerwise")):
                with torch.device("meta"):
                    model = networks.build(description)
                trained = {n for n, p in model.named_parameters() if p.requires_grad}
                assert trained == {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
                blocks = 4 if name.startswith("linear") else 1
                assert model.decode_head.conv_seg.in_channels == 384 * blocks
