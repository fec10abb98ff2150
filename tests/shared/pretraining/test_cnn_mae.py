from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossband.shared.checkpoints import save_checkpoint
from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.pretraining.cnn_mae import CNNMAE, load_cnn_encoder
from crossband.shared.pretraining.mae import MAE, MAETask
from crossband.shared.registry import create_model


def network(seed: int = 0, **changes: Any) -> CNNMAE:
    torch.manual_seed(seed)
    return CNNMAE(**{"encoder": "resnet18", **changes})


def images(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def randomise(model: nn.Module) -> None:
    """Give every tensor its own values, running statistics too."""
    generator = torch.Generator().manual_seed(7)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.1 + torch.rand(value.shape, generator=generator) * 0.1)


def test_patches_and_masks_are_those_of_mae() -> None:
    """The target, the masking and the loss are MAE's for the same image, noise and drawing."""
    model = network().eval()
    mae = MAE(
        **{"img_size": 64, "embed_dim": 24, "depth": 1, "num_heads": 2, "decoder_depth": 1},
        **{"decoder_embed_dim": 16, "decoder_num_heads": 2},
    )
    image, noise = images(2, 3, 64, 64), torch.rand(2, 16)
    loss, pred, mask = model(image, noise)
    assert mask.sum(1).tolist() == [12, 12]  # three quarters of 16
    assert torch.equal(mask, mae.draw_masking(image, noise).mask)
    torch.testing.assert_close(loss, mae.pixel_loss(image, pred, mask))
    torch.testing.assert_close(loss, ((pred - mae.patchify(image)) ** 2)[mask > 0].mean())
    drawn = model.model(image * (1 - mask.view(2, 1, 4, 4).kron(torch.ones(16, 16))))
    torch.testing.assert_close(pred, mae.patchify(drawn))


def test_what_is_hidden_does_not_reach_the_network() -> None:
    model = network().eval()
    image, noise = images(1, 3, 64, 64).requires_grad_(), torch.rand(1, 16)
    mask = model.draw_masking(image, noise).mask
    hidden = mask.view(1, 1, 4, 4).kron(torch.ones(16, 16)).expand(1, 3, -1, -1) > 0
    seen = model.hide(image, mask)
    assert not seen[hidden].any() and torch.equal(seen[~hidden], image[~hidden])
    model(image, noise).pred.square().sum().backward()
    assert not image.grad[hidden].any() and image.grad[~hidden].abs().min() > 0
    with torch.no_grad():
        bad = image.masked_fill(hidden, float("nan"))  # what is hidden may be anything
        assert torch.equal(model.hide(bad, mask), seen)


def test_norm_pix_loss_compares_standardised_patches() -> None:
    model = network(norm_pix_loss=True).eval()
    image, noise = 3 + 5 * images(2, 3, 64, 64), torch.rand(2, 16)
    loss, pred, mask = model(image, noise)
    patches = model.patchify(image)
    target = (patches - patches.mean(-1, keepdim=True)) / (
        patches.var(-1, keepdim=True) + 1e-6
    ).sqrt()
    torch.testing.assert_close(loss, ((pred - target) ** 2)[mask > 0].mean())


def test_reconstruction_keeps_what_was_visible() -> None:
    model = network().eval()
    image, noise = images(1, 3, 64, 64), torch.rand(1, 16)
    mask = model(image, noise).mask
    hidden = mask.view(1, 1, 4, 4).kron(torch.ones(16, 16)).expand(1, 3, -1, -1) > 0
    drawn = model.reconstruct(image, noise)
    assert torch.equal(drawn[~hidden], image[~hidden])
    torch.testing.assert_close(drawn[hidden], model.draw(model.hide(image, mask))[hidden])


@pytest.mark.parametrize(("size", "patch"), [((40, 72), 16), ((33, 50), 8), ((60, 60), 12)])
def test_any_size_of_image(size: tuple[int, int], patch: int) -> None:
    model = network(patch_size=patch).eval()
    image = images(1, 3, *size)
    rows, columns = model.grid_of(image)
    assert (rows, columns) == (-(-size[0] // patch), -(-size[1] // patch))
    loss, pred, mask = model(image)
    assert pred.shape == (1, rows * columns, patch * patch * 3) and mask.shape[1] == rows * columns
    assert loss.isfinite() and model.reconstruct(image).shape == image.shape


def test_the_authors_ratio() -> None:
    model = network()
    mask = model.draw_masking(torch.empty(1, 3, 224, 224)).mask
    assert mask.sum() == 196 - 49


def test_one_image_is_learned_by_heart() -> None:
    torch.manual_seed(0)
    model = network()
    task = MAETask(model, OptimizerConfig(lr=2e-3), ScheduleConfig())
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = torch.stack([(x / 6).sin(), (y / 5).cos(), (x + y).float() / 32 - 1])[None].repeat(
        4, 1, 1, 1
    )
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(20):
        loss = task.loss({"image": image})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    task.eval()
    with torch.no_grad():
        assert task.loss({"image": image}) == task.loss({"image": image})  # same noise each time


CLASSIFIERS = {
    "densenet121": ("timm:densenet121", {"num_classes": 5}),
    "resnet50": ("timm:resnet50", {"num_classes": 5}),
    "monai": ("monai:DenseNet121", {"spatial_dims": 2, "in_channels": 3, "out_channels": 5}),
}


def stem_features(model: nn.Module, image: Tensor) -> Tensor:
    return model.features(image) if hasattr(model, "features") else model.forward_features(image)


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("ours", [True, False])
def test_classifiers_take_the_encoder(kind: str, ours: bool, tmp_path: Path) -> None:
    """The classifier computes what the encoder computed, to the last map."""
    name, arguments = CLASSIFIERS[kind]
    source = network(encoder="densenet121" if kind == "monai" else kind).eval()
    classifier = create_model(name, **arguments).eval()
    randomise(classifier)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    if ours:
        path = tmp_path / "best.safetensors"
        save_checkpoint(path, source.state_dict(), {"model": {"name": "x", "arguments": {}}})
    else:
        path = tmp_path / "checkpoint-799.pth"
        torch.save({"model": source.state_dict(), "epoch": 799, "optimizer": {}}, path)
    report = load_cnn_encoder(classifier, path)
    own = classifier.state_dict()
    assert all(torch.equal(own[key], before[key]) for key in report.missing)
    assert {key.split(".")[0] for key in report.missing} <= {"classifier", "fc", "class_layers"}
    assert len(report.missing) == 2 and report.layout == "smp"
    assert len(report.matched) == len(source.encoder_state()) == len(own) - 2
    assert all(key.startswith(("model.decoder.", "model.seg")) for key in report.unexpected)
    assert len(report.unexpected) == len(source.state_dict()) - len(report.matched)
    image = images(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.model.encoder(image)[-1].relu()
        torch.testing.assert_close(stem_features(classifier, image).relu(), expected)


def test_encoders_of_timm(tmp_path: Path) -> None:
    source = network(encoder="tu-convnext_atto").eval()
    classifier = create_model("timm:convnext_atto", num_classes=2).eval()
    path = save_checkpoint(tmp_path / "x.safetensors", source.state_dict(), {})
    report = load_cnn_encoder(classifier, path)
    assert all(key.startswith("head.") for key in report.missing)
    image = images(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.model.encoder(image)[-1]
        torch.testing.assert_close(classifier.forward_features(image), expected)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "r18.safetensors", network().state_dict(), {})
    other = create_model("timm:resnet34")
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="does not fit ResNet"):
        load_cnn_encoder(other, path)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    with pytest.raises(CheckpointError, match="does not fit ResNet"):
        load_cnn_encoder(create_model("timm:resnet18", in_chans=1), path)
    bare = save_checkpoint(tmp_path / "bare.safetensors", other.state_dict(), {})
    with pytest.raises(CheckpointError, match=r"holds no model\.encoder\.\* weights"):
        load_cnn_encoder(other, bare)


def test_impossible_networks_are_named() -> None:
    with pytest.raises(ConfigError, match="'resnet999'"):
        CNNMAE(encoder="resnet999")
    with pytest.raises(ConfigError, match="mask ratio"):
        network(mask_ratio=1.0)(images(1, 3, 32, 32))
