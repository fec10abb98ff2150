from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from dataset_tester import DatasetTester

from crossband.shared.errors import ConfigError
from crossband.spatiotemporal.baselines import create_baseline
from crossband.spatiotemporal.data.fitting import fit_grid
from crossband.spatiotemporal.data.grid import open_grid
from crossband.spatiotemporal.data.normalisation import Normalisation
from crossband.spatiotemporal.data.synthetic import make_synthetic
from crossband.spatiotemporal.data.windows import GridWindows, Part, split_times, window_starts
from crossband.spatiotemporal.metrics import ForecastScores


class TestSyntheticWindows(DatasetTester):
    """Simulated weather of three variables through the real reader."""

    length = 60 - 8 + 1
    item = {
        "image": ((5, 3, 8, 12), torch.float32),
        "target": ((3, 3, 8, 12), torch.float32),
        "mask": ((3, 3, 8, 12), torch.bool),
        "index": ((), torch.int64),
    }

    def make(self, folder: Path) -> GridWindows:
        variables = ("t2m", "u10", "v10")
        make_synthetic(folder, hours=60, height=8, width=12, variables=variables)
        grid = open_grid([folder], variables)
        norm = Normalisation.fit(grid, 0, 60)
        return GridWindows(grid, Part(0, 60, "", ""), 5, 3, norm, fit_grid((8, 12), 4, "error"))


def test_layout_and_units(tmp_path: Path) -> None:
    paths = sorted(make_synthetic(tmp_path, hours=24 * 31 + 5).rglob("*.nc"))
    names = [path.relative_to(tmp_path).as_posix() for path in paths]
    assert names == [f"2m_temperature/2m_temperature_2019-0{m}.nc" for m in (1, 2)]
    with xr.open_dataset(paths[1]) as found:
        assert dict(found.sizes) == {"time": 5, "lat": 16, "lon": 32}
        assert found.t2m.attrs["units"] == "K"
        assert found.t2m.dtype == np.float32
        assert (np.diff(found.lat) > 0).all()
    values = open_grid([tmp_path], ["t2m"]).read(0, 749)
    assert 240 < values.min() < values.max() < 320  # kelvin on earth


def test_seed(tmp_path: Path) -> None:
    def values(name: str, seed: int) -> np.ndarray:
        make_synthetic(tmp_path / name, hours=30, seed=seed)
        return open_grid([tmp_path / name], ["t2m"]).read(0, 30)

    np.testing.assert_array_equal(values("a", 1), values("b", 1))
    assert (values("a", 1) != values("c", 2)).any()


def test_variables_do_not_change_each_other(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "one", hours=30)
    make_synthetic(tmp_path / "all", hours=30, variables=("u10", "t2m"))
    one, both = (open_grid([tmp_path / n], ["t2m"]).read(0, 30) for n in ("one", "all"))
    np.testing.assert_array_equal(one, both)


def test_weather_can_be_forecast_but_not_wholly(tmp_path: Path) -> None:
    make_synthetic(tmp_path, hours=24 * 25)
    grid = open_grid([tmp_path], ["t2m"]).load()
    parts = split_times(grid.times)
    starts, _ = window_starts(grid, parts["test"], 12)
    frames = np.stack([grid.read(s, s + 12) for s in starts])
    error = {}
    for name in ("persistence", "climatology", "ridge"):
        baseline = create_baseline(name)
        baseline.fit(grid, parts["train"], 6, 6)
        scores = ForecastScores(6, ("t2m",), grid.latitude, grid.shape[1:])
        scores.update(baseline.predict(frames[:, :6], grid.times[starts + 5]), frames[:, 6:])
        error[name] = scores.scores()["rmse"][:, 0]
    assert (error["ridge"] < 0.8 * error["persistence"]).all()
    assert (error["ridge"] < 0.8 * error["climatology"]).all()
    assert (error["ridge"] > 0.1).all()  # the noise of the observations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variables": ("t2n",)}, r"'t2n' cannot be simulated. Did you mean 't2m'\?"),
        ({"hours": 1}, "Cannot simulate 1 hours"),
        ({"height": 200}, "at most 53 rows"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_synthetic(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_other_data_are_neither_mixed_nor_overwritten(tmp_path: Path) -> None:
    make_synthetic(tmp_path, hours=24 * 40)
    make_synthetic(tmp_path, hours=24 * 40)  # the same again is no harm
    with pytest.raises(ConfigError, match="holds other data already .*_2019-02.nc"):
        make_synthetic(tmp_path, hours=24 * 5)
