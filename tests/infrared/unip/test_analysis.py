"""The attention analysis: golden numbers, closed forms, and that running sums are right."""

from __future__ import annotations

import math

import pytest
import torch

from crossband.infrared.unip.analysis import (
    attention_distance,
    choose_layer,
    cka_matrix,
    fourier_amplitude,
    linear_cka,
    measure,
    nmi,
    patch_attention,
    pattern,
    walk,
)
from crossband.infrared.unip.looking import places, query_maps
from crossband.infrared.unip.model import UNIPViT
from crossband.shared.conformance import verify_file
from crossband.shared.errors import ConfigError


@pytest.fixture(scope="module")
def model() -> UNIPViT:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    return UNIPViT(**sizes).eval()


def test_the_published_numbers(shared_dir) -> None:
    report = verify_file(shared_dir / "fixtures/infrared/attention_analysis.safetensors")
    assert report.passed, report


def test_information_of_extreme_patterns() -> None:
    assert nmi(torch.eye(6)).item() == pytest.approx(1)
    assert nmi(torch.full((6, 6), 1 / 6)).item() == pytest.approx(0, abs=1e-6)
    same = torch.rand(6).softmax(0).expand(6, 6)  # all queries see the same, not uniformly
    assert nmi(same).item() == pytest.approx(0, abs=1e-6)
    alone = torch.zeros(6, 6)
    alone[:, 0] = 1  # one key gets everything: no entropy of keys
    assert not math.isfinite(nmi(alone).item())


@pytest.mark.parametrize("a", [0.6, 0.9])
def test_information_of_two_tokens(a: float) -> None:
    entropy = -a * math.log(a) - (1 - a) * math.log(1 - a)
    found = nmi(torch.tensor([[a, 1 - a], [1 - a, a]]))
    assert found.item() == pytest.approx(1 - entropy / math.log(2), rel=1e-5)


def test_information_does_not_depend_on_the_order_of_tokens() -> None:
    maps = torch.randn(2, 3, 9, 9).softmax(-1)
    rows, columns = torch.randperm(9), torch.randperm(9)
    torch.testing.assert_close(nmi(maps[..., rows, :][..., columns]), nmi(maps))
    assert nmi(maps).shape == (2, 3)


def test_rows_sum_to_one_without_the_class_token() -> None:
    maps = patch_attention(torch.randn(2, 3, 10, 10).softmax(-1), prefix=1)
    assert maps.shape == (2, 3, 9, 9)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 9))


def test_distance_in_pixels() -> None:
    assert attention_distance(torch.eye(12), (3, 4), 16).item() == 0
    pair = torch.full((2, 2), 0.5)
    assert attention_distance(pair, (1, 2), 16).item() == pytest.approx(8)
    assert attention_distance(pair, (2, 1), 7).item() == pytest.approx(3.5)
    square = attention_distance(torch.full((4, 4), 0.25), (2, 2), 10)
    assert square.item() == pytest.approx((10 + 10 + 10 * math.sqrt(2)) / 4)
    with pytest.raises(ConfigError, match="drop class"):
        attention_distance(torch.eye(13), (3, 4), 16)


def test_likeness_of_features() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 6)
    turn = torch.linalg.qr(torch.randn(6, 6)).Q
    assert linear_cka(x, 3 * x @ turn + 5).item() == pytest.approx(1, abs=1e-5)
    y = torch.randn(50, 4)
    assert linear_cka(x, y).item() == pytest.approx(linear_cka(y, x).item())
    assert linear_cka(x, y).item() < 0.3
    matrix = cka_matrix([x, y, x @ turn])
    assert matrix[1, 0].item() == pytest.approx(linear_cka(x, y).item(), abs=1e-6)
    assert torch.equal(matrix, matrix.T) and matrix[2, 0].item() == pytest.approx(1, abs=1e-5)


def test_frequencies() -> None:
    axis = torch.arange(16.0)
    smooth = torch.cos(2 * math.pi * (axis[:, None] + axis) / 16)[None, None] + 1
    checked = ((axis[:, None] + axis) % 2)[None, None] + 1.0
    for features, peak in ((smooth, 1), (checked, 8)):
        found = fourier_amplitude(features)
        assert found.shape == (9,) and found[0] == 0
        assert int(found[1:].argmax()) + 1 == peak
    assert fourier_amplitude(torch.randn(1, 2, 6, 10)).shape == (4,)


def test_names_of_patterns() -> None:
    assert [pattern(value) for value in (0.5769, 0.1343, 0.0120)] == ["local", "hybrid", "global"]
    assert pattern(0.1343, local_above=0.1) == "local"
    with pytest.raises(ConfigError, match="must be the smaller"):
        pattern(0.1, local_above=0.1, global_below=0.2)


def test_the_layer_nearest_to_the_target() -> None:
    curve = [0.6, 0.4, 0.2, 0.11, 0.02]
    assert choose_layer(curve) == 4
    assert choose_layer(curve, target=0.5) == 1  # the first of equals
    assert choose_layer([math.nan, 0.5]) == 2
    with pytest.raises(ConfigError, match="no layer"):
        choose_layer([math.nan])


def test_walking_gives_what_a_whole_pass_captures(model: UNIPViT) -> None:
    image = torch.randn(2, 3, 32, 48)
    whole = model.forward_tokens(image, capture=range(3), capture_kind="maps", layers=range(3))
    for number, (attention, found) in enumerate(walk(model, image)):
        torch.testing.assert_close(attention, whole.attention[number])
        torch.testing.assert_close(found.x, whole.layers[number])


def test_sums_do_not_depend_on_batches(model: UNIPViT) -> None:
    images = torch.randn(5, 3, 32, 48)
    layers, features = measure(model, images.split(2), tokens_per_image=4)
    whole = model.forward_tokens(images, capture=range(3), capture_kind="maps", layers=range(3))
    for layer in layers:
        maps = patch_attention(whole.attention[layer.number - 1])
        assert layer.nmi == pytest.approx(nmi(maps).mean().item(), rel=1e-4)
        far = attention_distance(maps, (4, 6), 8).mean().item()
        assert layer.distance == pytest.approx(far, rel=1e-4)
        spectrum = fourier_amplitude(whole.map(layer.number - 1))
        torch.testing.assert_close(torch.tensor(layer.amplitude), spectrum, rtol=1e-3, atol=1e-4)
    assert [f.shape for f in features] == [(20, 24)] * 3
    torch.testing.assert_close(features[2][0], whole.patches(2)[0, 0])
    with pytest.raises(ConfigError, match="no images"):
        measure(model, [])


def test_pictures_of_queries(model: UNIPViT) -> None:
    image = torch.randn(1, 3, 32, 48)
    maps, chosen = query_maps(model, image, [0.0, 0.0, 1.0, 0.5], [1, 3])
    assert chosen == [(0, 0), (3, 3)] and list(maps) == [1, 3]
    whole = model.forward_tokens(image, capture=[2], capture_kind="maps").attention[2]
    expected = patch_attention(whole)[0].mean(0)[3 * 6 + 3].unflatten(0, (4, 6))
    torch.testing.assert_close(maps[3][1], expected)
    for bad in ([0.5], [], [0.5, 1.5]):
        with pytest.raises(ConfigError, match="pairs of row and column"):
            places(bad, (4, 4))
