"""The commands from real input to real output, as a user types them."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

from crossband.apps.main import main
from crossband.shared import load
from crossband.shared.checkpoints import read_config
from crossband.spatiotemporal.data.synthetic import make_synthetic

TINY = ["--arguments", "dim=16", "heads=2", "dim_head=8", "depth=1", "mlp_ratio=2"]
SHORT = ["--data.history", "4", "--data.horizon", "4", "--trainer.max_epochs", "2"]


def crossband(*words: object) -> int:
    return main(["spatiotemporal", *map(str, words)])


@pytest.fixture(scope="module")
def weather(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "weather"
    make_synthetic(root, hours=560, height=8, width=12)
    return root


@pytest.fixture(scope="module")
def trained(weather, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["--background", "--linear_skip", "--daily_cycle_spread", 0.3]
    assert crossband("train", "--data.root", weather, *TINY, *SHORT, *words, "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def month(weather):
    return sorted(weather.rglob("*.nc"))[0]


def test_a_run_folder_holds_what_it_promises(trained):
    for name in ("config.yaml", "metrics.csv", "last.ckpt", "best.safetensors"):
        assert (trained / name).is_file()
    results = json.loads((trained / "metrics.json").read_text())
    assert set(results["scores"]) == {"network", "persistence", "climatology", "ridge"}
    rmse = results["scores"]["network"]["t2m"]["rmse"]
    assert all(low <= v <= high for v, low, high in zip(*rmse.values(), strict=True))
    report = (trained / "report.html").read_text()
    assert report.count("data:image/png;base64,") >= 4
    assert "http" not in report.replace("http-equiv", "")
    config = read_config(trained / "best.safetensors")
    assert config["scheme"]["units"] == ["K"]
    assert len(config["protocol"]["data_sha256"]) == 64


def test_predict_writes_cf_netcdf_with_pictures(trained, month, tmp_path):
    out, gif, png = (tmp_path / n for n in ("f.nc", "f.gif", "e.png"))
    words = ["--out", out, "--plot", gif, "--error_plot", png, "--origins", "2019-01-05T06", "all"]
    assert crossband("predict", month, "--weights", trained / "best.safetensors", *words) == 2
    words[-1] = "2019-01-06"
    words += ["--horizon", 6]
    assert crossband("predict", month, "--weights", trained / "best.safetensors", *words) == 0
    with xr.open_dataset(out) as forecast, xr.open_dataset(month) as source:
        assert forecast.t2m.dims == ("time", "lead", "lat", "lon")
        assert forecast.t2m.shape == (2, 6, 8, 12)
        assert forecast.t2m.attrs["units"] == "K"
        assert forecast.lead.values.tolist() == [1, 2, 3, 4, 5, 6]
        assert forecast.lead.attrs["units"] == "hours"
        assert "crossband spatiotemporal predict" in forecast.attrs["history"]
        valid = forecast.valid_time.values[0, -1]
        assert valid == np.datetime64("2019-01-05T12")
        assert np.array_equal(forecast.lat, source.lat)
        assert abs(float(forecast.t2m.mean() - source.t2m.mean())) < 15
    assert gif.read_bytes()[:3] == b"GIF" and png.read_bytes()[1:4] == b"PNG"


def test_python_and_exported_files_give_the_same_forecast(trained, month, tmp_path):
    expected = load(trained / "best.safetensors", device="cpu").predict(month).t2m
    for kind in ("onnx", "pt2"):
        path = tmp_path / f"model.{kind}"
        words = ["--weights", trained / "best.safetensors", "--format", kind, "--out", path]
        assert crossband("export", *words) == 0
        assert np.allclose(load(path).predict(month).t2m, expected, atol=2e-3)  # kelvin
        several = load(path).predict(month, origins=["2019-01-05", "2019-01-06", "2019-01-07"])
        assert several.sizes["time"] == 3
        assert crossband("predict", month, "--weights", path, "--out", tmp_path / "f.nc") == 0


def test_evaluate_repeats_the_scores_of_training(trained, weather, tmp_path):
    weights = trained / "best.safetensors"
    words = ["--weights", weights, "--data.root", weather, "--out", tmp_path]
    assert crossband("evaluate", *words) == 0
    again = json.loads((tmp_path / "metrics.json").read_text())
    first = json.loads((trained / "metrics.json").read_text())
    assert again["scores"] == first["scores"]
    assert (
        crossband("evaluate", *words, "--part", "val", "--horizon", 7, "--baselines", "persistence")
        == 0
    )
    longer = json.loads((tmp_path / "metrics.json").read_text())
    assert len(longer["scores"]["network"]["t2m"]["rmse"]["value"]) == 7


def test_scores_are_those_of_the_netcdf_that_predict_writes(trained, weather, tmp_path):
    forecaster = load(trained / "best.safetensors", device="cpu")
    first, last = forecaster.config["protocol"]["parts"]["test"]
    files = sorted(weather.rglob("*.nc"))
    with xr.open_mfdataset(files) as source:
        truth = source.t2m.load()
    test = truth.sel(time=slice(first, last))
    origins = test.time.values[3:-4]
    forecast = forecaster.predict(files, origins=[str(t) for t in origins]).t2m
    observed = np.stack([truth.sel(time=times).values for times in forecast.valid_time.values])
    weights = np.cos(np.deg2rad(truth.lat.values))
    weights /= weights.mean()
    rmse = np.sqrt(((forecast.values - observed) ** 2 * weights[:, None]).mean(axis=(0, 2, 3)))
    results = json.loads((trained / "metrics.json").read_text())
    assert results["scores"]["network"]["t2m"]["rmse"]["value"] == pytest.approx(rmse, rel=1e-4)


def test_the_network_and_its_skip_learn(trained):
    results = json.loads((trained / "metrics.json").read_text())["scores"]
    value = {name: np.mean(s["t2m"]["rmse"]["value"]) for name, s in results.items()}
    assert value["network"] < 0.9 * min(value["persistence"], value["climatology"])


def test_a_folder_goes_on_past_a_broken_file(trained, weather, month, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.nc").write_bytes(month.read_bytes())
    (folder / "b.nc").write_bytes(month.read_bytes()[:5000])
    (folder / "c.nc").write_bytes(month.read_bytes())
    weights = trained / "best.safetensors"
    assert crossband("predict", folder, "--weights", weights, "--out", tmp_path / "out") == 3
    assert sorted(os.listdir(tmp_path / "out")) == ["a.nc", "c.nc", "predictions.jsonl"]
    index = [json.loads(x) for x in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert ["error" in entry for entry in index] == [False, True, False]
    assert "b.nc" in capsys.readouterr().out


def test_several_variables_a_gap_and_padding(tmp_path, weather):
    data = tmp_path / "w"
    make_synthetic(data, hours=200, height=9, width=13, variables=("t2m", "u10"), seed=1)
    words = ["--data.fit", "pad", "--linear_skip", *TINY, *SHORT, "--out", tmp_path / "r"]
    assert crossband("train", "--data.root", data, *words) == 0
    forecast = load(tmp_path / "r/best.safetensors").predict([str(p) for p in data.rglob("*.nc")])
    assert forecast.u10.shape == (1, 4, 9, 13)
    words[1] = "crop"
    assert crossband("train", "--data.root", data, *words[:-1], tmp_path / "c") == 0
    cropped = load(tmp_path / "c/best.safetensors").predict([str(p) for p in data.rglob("*.nc")])
    assert cropped.t2m.shape == (1, 4, 8, 12)
    assert cropped.sizes["lat"] == 8


def test_a_horizon_shorter_than_the_history_rolls_out_too(weather, month, tmp_path):
    words = [*TINY, "--data.history", 6, "--data.horizon", 2, "--trainer.max_epochs", 1]
    words += ["--linear_skip", "--background", "--out", tmp_path / "r"]
    assert crossband("train", "--data.root", weather, *words) == 0
    weights = tmp_path / "r/best.safetensors"
    expected = load(weights, device="cpu").predict(month, horizon=9).t2m
    assert expected.shape == (1, 9, 8, 12) and np.isfinite(expected.values).all()
    out = tmp_path / "x.onnx"
    assert crossband("export", "--weights", weights, "--horizon", 9, "--out", out) == 0
    assert np.allclose(load(out).predict(month).t2m, expected, atol=2e-3)


def test_training_can_start_from_a_run(trained, weather, tmp_path, capsys):
    start = trained / "best.safetensors"
    words = [*TINY, *SHORT, "--background", "--linear_skip", "--optimizer.lr", 1e-30]
    words += ["--schedule.name", "constant", "--weights", start, "--trainer.max_epochs", 1]
    assert crossband("train", "--data.root", weather, *words, "--out", tmp_path / "r") == 0
    before, after = load_file(start), load_file(tmp_path / "r/best.safetensors")
    assert all(torch.equal(before[k], after[k]) for k in before)
    other = ["--arguments", "dim=24", "heads=2", "dim_head=8", "depth=1", "mlp_ratio=2"]
    words[: len(TINY)] = other
    assert crossband("train", "--data.root", weather, *words, "--out", tmp_path / "s") == 2
    assert "does not fit PredFormer" in capsys.readouterr().err


def test_dry_run_writes_nothing(weather, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert crossband("train", "--data.root", weather, *TINY, *SHORT, "--dry-run") == 0
    assert os.listdir(tmp_path) == []


def test_kill_and_resume_end_in_the_same_weights(weather, tmp_path):
    words = ["train", "--data.root", weather, *TINY, *SHORT, "--data.step", 1, "--seed", 3]
    words += ["--arguments", "dropout=0.2", "--trainer.save_every_n_steps", 1, "--linear_skip"]
    words += ["--loader.batch_size", 2]
    assert crossband(*words, "--out", tmp_path / "whole") == 0
    command = [sys.executable, "-m", "crossband.apps.main", "spatiotemporal", *map(str, words)]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "parts")])
    deadline = time.monotonic() + 120
    while not (tmp_path / "parts/last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert crossband("train", "--resume", tmp_path / "parts") == 0
    whole, parts = (load_file(tmp_path / n / "best.safetensors") for n in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
