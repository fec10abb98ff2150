from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from crossband.shared.backbones import hornet, transnext, unireplknet
from crossband.shared.backbones.base import (
    ImageClassifier,
    drop_path_rates,
    load_backbone,
    take_indices,
)
from crossband.shared.checkpoints import save_checkpoint
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.registry import create_model

SMALL = {
    hornet.HorNetClassifier: {"depths": (1, 1, 1, 1), "base_dim": 16},
    unireplknet.UniRepLKNetClassifier: {
        "depths": (1, 1, 1, 1),
        "dims": (8, 16, 24, 32),
        "kernel_sizes": ((3,), (7,), (7,), (7,)),
    },
    transnext.TransNeXtClassifier: {
        "embed_dims": (16, 24, 32, 48),
        "num_heads": (2, 3, 4, 6),
        "depths": (1, 1, 1, 1),
    },
}


@pytest.fixture(params=SMALL, ids=lambda c: c.__name__)
def model(request: pytest.FixtureRequest) -> ImageClassifier:
    torch.manual_seed(0)
    return request.param(num_classes=5, **SMALL[request.param]).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.manual_seed(1))


class TestImageClassifier:
    def test_parts_make_the_whole(self, model: ImageClassifier, x: Tensor) -> None:
        features = model.forward_features(x)
        assert features.shape == (2, model.num_features, 2, 3)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        assert torch.equal(model.get_classifier()(pooled), model(x))

    def test_pooling_is_the_mean(self, model: ImageClassifier, x: Tensor) -> None:
        features = model.forward_features(x)
        expected = model.head(model.norm(features.mean((2, 3))))
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)

    def test_reset_classifier(self, model: ImageClassifier, x: Tensor) -> None:
        model.reset_classifier(7)
        assert model(x).shape == (2, 7) and model.num_classes == 7
        model.reset_classifier(0)
        assert model(x).shape == (2, model.num_features)
        model.reset_classifier(0, "")
        assert model(x).shape == (2, model.num_features, 2, 3)
        with pytest.raises(ConfigError, match="global_pool 'max' is not known"):
            model.reset_classifier(3, "max")

    def test_intermediates(self, model: ImageClassifier, x: Tensor) -> None:
        last, maps = model.forward_intermediates(x)
        assert torch.equal(last, model.forward_features(x)) and torch.equal(maps[-1], last)
        only = model.forward_intermediates(x, (0, -2), intermediates_only=True)
        assert torch.equal(only[0], maps[0]) and torch.equal(only[1], maps[2])
        normed = model.forward_intermediates(x, 1, norm=True, intermediates_only=True)
        expected = model.norm(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert torch.equal(normed[0], expected)
        with pytest.raises(ConfigError, match="maps are NCHW, not NLC"):
            model.forward_intermediates(x, output_fmt="NLC")

    def test_prune(self, model: ImageClassifier, x: Tensor) -> None:
        maps = model.forward_intermediates(x)[1]
        before = sum(p.numel() for p in model.parameters())
        assert model.prune_intermediate_layers((0, 1)) == [0, 1]
        assert sum(p.numel() for p in model.parameters()) < before / 2
        assert torch.equal(model(x), maps[1])

    def test_dropout_before_the_head(self, model: ImageClassifier, x: Tensor) -> None:
        model.drop_rate = 0.5
        assert torch.equal(model(x), model(x))
        features = model.forward_features(x)
        assert not torch.equal(model.train().forward_head(features), model.forward_head(features))

    def test_groups_for_timm(self, model: ImageClassifier) -> None:
        import crossband.shared.compat  # noqa: F401

        from timm.models import group_parameters

        coarse = group_parameters(model, model.group_matcher(coarse=True))
        fine = group_parameters(model, model.group_matcher())
        names = {name for name, _ in model.named_parameters()}
        for groups in (coarse, fine):
            assert {name for group in groups.values() for name in group} == names
            assert f"{model.first_conv}.weight" in groups[0]
        assert len(coarse) <= len(fine)

    def test_the_head_learns(self, model: ImageClassifier, x: Tensor) -> None:
        labels = torch.tensor([0, 1])
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        losses = []
        for _ in range(40):
            loss = nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.2 * losses[0]


class TestWeights:
    arguments = {"depths": (1, 1, 1, 1), "base_dim": 16}

    def classifier(self) -> nn.Module:
        torch.manual_seed(3)
        return create_model("hornet_tiny_7x7", num_classes=5, **self.arguments).eval()

    def backbone(self, weights: Path | None = None) -> nn.Module:
        return create_model("hornet_tiny_7x7", weights, features_only=True, **self.arguments).eval()

    def test_a_classifier_file_in_a_backbone_is_reported(self, tmp_path: Path, x: Tensor) -> None:
        source, path = self.classifier(), tmp_path / "classifier.pth"
        torch.save({"model": source.state_dict()}, path)
        said = (
            r"classifier.pth loaded into HorNet: head\.\*, norm\.\* of the file left out; "
            r"norm0\.\*, norm1\.\*, norm2\.\*, norm3\.\* of the network not in the file"
        )
        with pytest.warns(UserWarning, match=said):
            model = self.backbone(path)
        _, raw = source.forward_intermediates(x)
        torch.testing.assert_close(model(x)[3], model.norm3(raw[3]))

    def test_a_dense_file(self, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
        source, path = self.backbone(), tmp_path / "dense.pth"
        torch.save(source.state_dict(), path)
        model = self.backbone(path)
        assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
        assert not recwarn.list
        with pytest.raises(CheckpointError, match="does not fit HorNetClassifier"):
            create_model("hornet_tiny_7x7", path, num_classes=5, **self.arguments)

    def test_a_detector_file(self, tmp_path: Path) -> None:
        source, path = self.backbone(), tmp_path / "detector.pth"
        state = {f"backbone.{k}": v for k, v in source.state_dict().items()}
        state |= {"decode_head.conv.weight": torch.zeros(1)}
        torch.save({"state_dict": state, "meta": {"epoch": 1}}, path)
        with pytest.warns(UserWarning, match=r"HorNet: decode_head\.\* of the file left out\.$"):
            model = self.backbone(path)
        assert torch.equal(model.norm2.weight, source.norm2.weight)

    def test_our_checkpoint(self, tmp_path: Path) -> None:
        source, path = self.classifier(), tmp_path / "ours.safetensors"
        save_checkpoint(path, source.state_dict(), {"model": {"name": "hornet_tiny_7x7"}})
        with pytest.warns(UserWarning, match=r"head\.\*, norm\.\* of the file left out"):
            self.backbone(path)
        again = create_model("hornet_tiny_7x7", path, num_classes=5, **self.arguments)
        assert torch.equal(again.head.weight, source.head.weight)

    @pytest.mark.parametrize(
        "name, kind, beyond",
        [
            ("hornet_tiny_7x7", hornet.HorNetClassifier, r"stages\.2\.\*, stages\.3\.\*"),
            ("unireplknet_a", unireplknet.UniRepLKNetClassifier, r"stages\.2\.\*, stages\.3\.\*"),
            ("transnext_micro", transnext.TransNeXtClassifier, r"block3\.\*, block4\.\*, head"),
        ],
    )
    def test_a_classifier_file_in_the_first_stages(
        self, tmp_path: Path, x: Tensor, name: str, kind: type, beyond: str
    ) -> None:
        source, path = create_model(name, num_classes=5, **SMALL[kind]).eval(), tmp_path / "c.pth"
        torch.save(source.state_dict(), path)
        with pytest.warns(UserWarning, match=rf"{beyond}.* of the file left out") as said:
            model = create_model(name, path, features_only=True, out_indices=(0, 1), **SMALL[kind])
        assert not any(f"{part}0.*" in str(said[0].message) for part in ("stages.", "block"))
        raw = source.forward_intermediates(x, (0, 1), intermediates_only=True)
        for index, y in enumerate(model.eval()(x)):
            norm = getattr(model, f"norm{index}") if model.dense_norms else nn.Identity()
            assert torch.equal(y, norm(raw[index]))

    def test_all_else_must_fit(self) -> None:
        state, model = self.classifier().state_dict(), self.backbone()
        del state["stages.0.0.gamma1"]
        with pytest.raises(CheckpointError, match=r"1 missing \(first: stages.0.0.gamma1\)"):
            with pytest.warns(UserWarning):
                load_backbone(model, state, "it")
        damaged = self.backbone().state_dict()
        del damaged["norm2.weight"]
        with pytest.raises(CheckpointError, match=r"1 missing \(first: norm2.weight\)"):
            load_backbone(model, damaged, "it")

    def test_training_weights_in_a_merged_network(self, tmp_path: Path, x: Tensor) -> None:
        small, path = SMALL[unireplknet.UniRepLKNetClassifier], tmp_path / "train.pth"
        source = create_model("unireplknet_a", num_classes=5, **small).eval()
        torch.save(source.state_dict(), path)
        merged = create_model("unireplknet_a", path, num_classes=5, deploy=True, **small).eval()
        torch.testing.assert_close(merged(x), source(x), rtol=1e-5, atol=1e-5)


def test_stages_whose_norms_were_dropped_are_refused(x: Tensor) -> None:
    model = hornet.HorNet(depths=(1, 1, 1, 1), base_dim=16, out_indices=(1, 3))
    said = r"norms for the stages \[1, 3\] alone, so it gives no map of stage 0"
    with pytest.raises(ConfigError, match=said):
        model.prune_intermediate_layers([0, 1])
    with pytest.raises(ConfigError, match=said):
        model.forward_intermediates(x)
    assert len(model(x)) == 2  # nothing was dropped
    assert model.prune_intermediate_layers([1]) == [1] and len(model(x)) == 1


def test_drop_path_rises_linearly() -> None:
    assert drop_path_rates(0.3, (1, 2, 1)) == [[0.0], [pytest.approx(0.1), pytest.approx(0.2)],
                                               [pytest.approx(0.3)]]  # fmt: skip
    assert drop_path_rates(0.3, (1,)) == [[0.0]]


def test_take_indices() -> None:
    assert take_indices(4, None) == [0, 1, 2, 3]
    assert take_indices(4, 2) == [2, 3]
    assert take_indices(4, (-1, 0)) == [3, 0]
    for wrong in ((4,), (-5,), (), 0):
        with pytest.raises(ConfigError, match="name no stage"):
            take_indices(4, wrong)
