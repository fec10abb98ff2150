from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossband.apps.low_light.config import SizeConfig
from crossband.apps.low_light.data.dimming import to_linear
from crossband.apps.low_light.enhance import Enhancer
from crossband.apps.low_light.model import TML
from crossband.apps.main import main
from crossband.shared import load
from crossband.shared.checkpoints import load_checkpoint, save_checkpoint
from crossband.shared.conformance import read_fixture
from crossband.shared.errors import CheckpointError, ConfigError
from crossband.shared.prediction import INDEX

RANDOM = np.random.default_rng(0)


def checkpoint(path: Path, *, seed: int = 0, **arguments) -> Path:
    """Write a network that is random but tame: near to `2 x` of its input."""
    torch.manual_seed(seed)
    arguments = {"height": 80, "width": 160, "stem": 4, "enhancer_stem": 2, **arguments}
    model = TML(**arguments)
    facts = {"task": "enhancement", "model": {"name": "tml", "arguments": arguments}}
    return save_checkpoint(path, model.state_dict(), facts)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("w") / "fixed.safetensors")


@pytest.fixture(scope="module")
def free(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("w")
    return checkpoint(folder / "free.safetensors", resize_patch_grid=True)


def photo(height: int, width: int, dtype=np.uint8) -> np.ndarray:
    return RANDOM.integers(0, np.iinfo(dtype).max + 1, (height, width, 3), dtype=dtype)


def test_the_published_way_equals_the_authors_script(shared_dir: Path, tmp_path: Path) -> None:
    fixture = read_fixture(shared_dir / "fixtures/apps/tml_pipeline.safetensors")
    arguments = {"height": 80, "width": 80, "stem": 4, "enhancer_stem": 3}
    facts = {"task": "enhancement", "model": {"name": "tml", "arguments": arguments}}
    path = save_checkpoint(tmp_path / "tml.safetensors", fixture.weights, facts)
    pixels = fixture.inputs["image_uint8_hwc"].numpy()
    found = load(path).predict(pixels, SizeConfig(fit="native")).transpose(2, 0, 1)
    wanted = fixture.outputs["png_uint8_chw"].numpy()
    assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("size", [(80, 160), (75, 100), (1, 1), (97, 131), (200, 170), (81, 400)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_size_and_depth_comes_back_as_it_was(fixed, free, size, dtype) -> None:
    image = photo(*size, dtype)
    for path in (fixed, free):
        for fit in ("auto", "tile", "resize", *(["whole"] if path == free else [])):
            found = load(path).predict(image, SizeConfig(fit=fit, overlap=16))
            assert found.shape == image.shape and found.dtype == dtype, fit


def test_at_the_native_size_every_way_is_the_network_itself(fixed, free) -> None:
    image = photo(80, 160)
    for path in (fixed, free):
        enhancer = load(path)
        unit = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        plain = enhancer.run(unit)[0]
        for fit in ("auto", "resize", "native"):
            found = enhancer.enhance(image, SizeConfig(fit=fit))
            torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


def test_large_photographs_are_tiled_and_bounded(free, monkeypatch) -> None:
    from crossband.apps.low_light import enhance

    monkeypatch.setattr(enhance, "WHOLE_PIXELS", 10_000)
    monkeypatch.setattr(enhance, "TILE", 80)
    enhancer = load(free)
    sizes = []
    run = enhancer.run
    enhancer.run = lambda x: sizes.append(tuple(x.shape[-2:])) or run(x)
    enhancer.predict(photo(200, 300), SizeConfig(overlap=16))
    assert sizes[0] == (80, 160)  # the pass over the whole, at the network's size
    assert set(sizes[1:]) == {(80, 80)} and len(sizes) == 1 + 4 * 5  # with the margin
    sizes.clear()
    enhancer.predict(photo(200, 300), SizeConfig(overlap=16, global_tone=False))
    assert set(sizes) == {(80, 80)}
    sizes.clear()
    enhancer.predict(photo(200, 300), SizeConfig(fit="whole"))
    assert sizes == [(80, 160), (240, 400)]  # 232 x 332 with the margin


def test_everything_coarse_comes_from_the_pass_at_the_networks_size(free) -> None:
    """A network whose brightness depends on the size that it sees must not show it."""
    enhancer = load(free)
    enhancer.run = lambda x: x * (2.0 if tuple(x.shape[-2:]) == (80, 160) else 3.0)
    image = np.full((240, 320, 3), 40, np.uint8)
    for fit in ("tile", "whole"):
        assert (enhancer.predict(image, SizeConfig(fit=fit)) == 80).all()
    loose = enhancer.predict(image, SizeConfig(fit="whole", global_tone=False))
    assert (loose == 120).all()


def test_what_is_darker_than_training_is_lifted_first(tmp_path: Path) -> None:
    """By one gain in linear light, up to the darkest light of training."""
    path = checkpoint(tmp_path / "w.safetensors")
    enhancer = load(path)
    seen = []
    enhancer.run = lambda x: seen.append(x.clone()) or x
    enhancer.config["darkest_light"] = 0.01
    dark = np.full((80, 160, 3), 10, np.uint8)
    enhancer.enhance(dark, SizeConfig())
    assert float(to_linear(seen[-1]).mean()) == pytest.approx(0.01, rel=1e-3)
    bright = np.full((80, 160, 3), 90, np.uint8)
    for image, size in ((bright, SizeConfig()), (dark, SizeConfig(lift=False)),
                        (dark, SizeConfig(fit="native"))):  # fmt: skip
        enhancer.enhance(image, size)
        torch.testing.assert_close(seen[-1].mean().item(), image.mean() / 255)


def test_ways_that_a_network_does_not_have_are_refused(fixed, free) -> None:
    with pytest.raises(ConfigError, match="80 x 160 only"):
        load(fixed).predict(photo(9, 9), SizeConfig(fit="whole"))
    with pytest.raises(ConfigError, match="only"):
        load(fixed).predict(photo(300, 300), SizeConfig(fit="tile", tile=[80, 80]))
    with pytest.raises(ConfigError, match="multiples of 80"):
        load(free).predict(photo(300, 300), SizeConfig(fit="tile", tile=[100, 80]))


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_exported_network_predicts_the_same(fixed, tmp_path, suffix, capsys) -> None:
    out = tmp_path / f"tml{suffix}"
    words = ["--weights", str(fixed), "--format", suffix[1:], "--out", str(out)]
    assert main(["low-light", "export", *words]) == 0
    image = photo(97, 200)
    a, b = (load(path).predict(image) for path in (fixed, out))
    assert np.abs(a.astype(int) - b).max() <= 1
    with pytest.raises(ConfigError, match="only"):
        load(out).predict(image, SizeConfig(fit="whole"))
    capsys.readouterr()
    assert main(["low-light", "export", *words, "--size", "80", "80"]) == 2
    assert "80 x 160 only" in capsys.readouterr().err
    assert main(["low-light", "export", "--weights", str(fixed), "--out", str(fixed)]) == 2
    assert "name a file that ends in .onnx" in capsys.readouterr().err


def test_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    for facts, reason in (
        ({"task": "enhancement", "model": {"name": "other"}}, "holds the model 'other'"),
        ({"task": "enhancement", "model": {}}, "holds the model None"),
    ):
        path = save_checkpoint(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, facts)
        with pytest.raises(CheckpointError, match=reason):
            Enhancer.load(path)


def night(folder: Path) -> Path:
    """Write a folder of good and bad files."""
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(photo(30, 40)).save(folder / "a.jpg")
    Image.fromarray(photo(30, 40)).save(folder / "deep/a.PNG")
    Image.fromarray(photo(30, 40)[..., 0]).save(folder / "grey.png")
    Image.fromarray(photo(30, 40)).convert("RGBA").save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(30, 40)).save(folder / "turned.jpg", exif=exif)
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("hello")
    return folder


def test_a_folder_keeps_names_and_goes_on(fixed, tmp_path: Path, capsys) -> None:
    source = night(tmp_path / "night")
    before = {p: p.read_bytes() for p in source.rglob("*") if p.is_file()}
    out = tmp_path / "bright"
    words = ["low-light", "predict", source, "--weights", fixed, "--out", out, "--compare"]
    assert main([str(w) for w in words]) == 3
    printed = capsys.readouterr().out
    assert "zero.jpg is empty" in printed and "1 file(s) that are not images" in printed
    made = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    names = {"a.jpg", "deep/a.PNG", "grey.png", "alpha.png", "turned.jpg"}
    assert made == names | {INDEX} | {f"compare/{name}.jpg" for name in names}
    assert Image.open(out / "grey.png").mode == "L"
    assert Image.open(out / "alpha.png").mode == "RGBA"
    assert Image.open(out / "turned.jpg").size == (30, 40)
    entries = [json.loads(line) for line in (out / INDEX).read_text().splitlines()]
    assert len(entries) == 6 and sum("error" in entry for entry in entries) == 1
    assert before == {p: p.read_bytes() for p in source.rglob("*") if p.is_file()}


def test_originals_are_never_written_over(fixed, tmp_path: Path, capsys) -> None:
    source = night(tmp_path / "night")
    base = ["low-light", "predict", "--weights", str(fixed)]
    assert main([*base, str(source), "--out", str(source)]) == 2
    assert "would write over" in capsys.readouterr().err
    both = [str(source / "a.jpg"), str(source / "deep/a.PNG"), str(source / "deep/../a.jpg")]
    assert main([*base, *both, "--out", str(tmp_path / "o")]) == 3  # the other one is done
    assert "would both become" in capsys.readouterr().out
    assert main([*base, str(source / "zero.jpg"), "--out", str(tmp_path / "o")]) == 2
    assert "empty" in capsys.readouterr().err
    assert main([*base, "--out", str(tmp_path / "o")]) == 2
    assert "needs inputs" in capsys.readouterr().err


def test_only_results_of_earlier_runs_are_replaced(fixed, tmp_path: Path, capsys) -> None:
    """Nor by sheets: here the photographs lie in a folder called compare."""
    source = tmp_path / "compare"
    source.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.fromarray(photo(30, 40)).save(source / name)
    words = ["low-light", "predict", "--weights", str(fixed), "--compare", "--out"]
    assert main([*words, str(tmp_path / "o"), str(source)]) == 0
    assert main([*words, str(tmp_path / "o"), str(source)]) == 0  # its own results
    sheets = {p.name for p in (tmp_path / "o/compare").iterdir()}
    assert sheets == {"a.png.jpg", "a.jpg.jpg"}
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(photo(5, 5)).save(other / "a.png")
    before = (other / "a.png").read_bytes()
    capsys.readouterr()
    assert main([*words, str(other), str(source / "a.png")]) == 2
    assert "no result of an earlier run" in capsys.readouterr().err
    assert (other / "a.png").read_bytes() == before


def test_weights_that_give_no_numbers_are_refused(tmp_path: Path, capsys) -> None:
    path = checkpoint(tmp_path / "w.safetensors")
    stored = load_checkpoint(path)
    stored.state_dict["pm.outc.conv.bias"].fill_(float("nan"))
    save_checkpoint(path, stored.state_dict, stored.config)
    Image.fromarray(photo(30, 40)).save(tmp_path / "a.png")
    words = [
        "predict",
        str(tmp_path / "a.png"),
        "--weights",
        str(path),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(["low-light", *words]) == 2
    assert "not finite" in capsys.readouterr().err and not (tmp_path / "o/a.png").exists()


def test_rivals_predict_too_and_weights_are_asked_for(tmp_path: Path, capsys) -> None:
    source = tmp_path / "a.png"
    Image.fromarray(photo(20, 20) // 8).save(source)
    words = ["low-light", "predict", str(source), "--out", str(tmp_path / "o")]
    assert main([*words, "--model", "clahe"]) == 0
    assert (tmp_path / "o/a.png").is_file()
    assert main(words) == 2
    assert "--weights is missing" in capsys.readouterr().err
    assert main([*words, "--model", "zero_dce"]) == 2
    assert "authors' weights" in capsys.readouterr().err


def test_rivals_of_small_reach_are_run_in_strips(shared_dir: Path, monkeypatch) -> None:
    from crossband.apps.low_light import enhance
    from crossband.apps.low_light.config import MethodConfig

    weights = shared_dir / "data/lowlight/baselines/zero_dce_epoch99.safetensors"
    method = Enhancer.of(MethodConfig(model="zero_dce", weights=str(weights)))
    image = photo(90, 40) // 4
    whole = method.enhance(image, SizeConfig())
    monkeypatch.setattr(enhance, "STRIP_PIXELS", 40 * 16)
    torch.testing.assert_close(method.enhance(image, SizeConfig()), whole, rtol=1e-4, atol=1e-5)
