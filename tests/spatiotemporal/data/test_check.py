from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread

from crossband.shared.errors import ConfigError, DataError
from crossband.spatiotemporal.config import CheckConfig, DataConfig
from crossband.spatiotemporal.data.check import check_data, describe, run, std_over_time
from crossband.spatiotemporal.data.grid import open_grid
from crossband.spatiotemporal.data.synthetic import make_synthetic

Write = Callable[..., Path]
START = np.datetime64("2019-03-01T00", "ns")
HOUR = np.timedelta64(3600, "s").astype("timedelta64[ns]")


def hours(count: int, first: int = 0) -> np.ndarray:
    return START + (first + np.arange(count)) * HOUR


def report_of(root: Path, **options: Any) -> dict[str, Any]:
    options = {"history": 2, "horizon": 2} | options
    return check_data(CheckConfig(data=DataConfig(root=[str(root)], **options)))[0]


def reasons(report: dict[str, Any]) -> str:
    return "\n".join(f"{p['what']}: {p['reason']}" for p in report["problems"])


def change(path: Path, edit: Callable[[xr.Dataset], xr.Dataset]) -> Path:
    with xr.open_dataset(path) as found:
        found = found.load()
    edit(found).to_netcdf(path)
    return path


def with_values(**at: float) -> Callable[[xr.Dataset], xr.Dataset]:
    """Edits that set t2m to a value from frame `first` to `last`, everywhere."""

    def edit(found: xr.Dataset) -> xr.Dataset:
        found.t2m[int(at["first"]) : int(at["last"])] = at["value"]
        return found

    return edit


def test_numbers_of_good_data(write: Write, tmp_path: Path) -> None:
    for name, first, count in (("b", 0, 60), ("a", 60, 40)):
        write(f"d/{name}.nc", hours(count, first))
    truth = open_grid([tmp_path / "d"]).read(0, 100)
    report = report_of(tmp_path / "d")
    assert report["problems"] == [] and report["notes"] == []
    (values,) = report["variables"]
    expected = {"min": truth.min(), "mean": truth.mean(), "max": truth.max(), "std": truth.std()}
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-5), name
    assert (values["name"], values["unit"], values["missing"]) == ("t2m", "K", 0)
    assert [(Path(f["path"]).name, f["first"]) for f in report["files"]] == [
        ("b.nc", "2019-03-01T00:00"), ("a.nc", "2019-03-03T12:00"),
    ]  # fmt: skip
    assert report["times"]["count"] == 100 and report["times"]["gaps"] == []
    assert report["times"]["spacing_seconds"] == 3600
    assert [(p["frames"], p["windows"]) for p in report["parts"]] == [(70, 67), (15, 12), (15, 12)]
    assert (report["grid"]["height"], report["grid"]["width"]) == (4, 6)
    assert report["grid"]["patch_sizes"] == [2]
    assert report["grid"]["latitude"] == {
        "first": 60, "last": 50, "step": pytest.approx(-10 / 3)
    }  # fmt: skip
    text = describe(report)
    assert "nothing wrong was found" in text and "no gaps" in text
    assert max(map(len, text.splitlines())) <= 100


def test_broken_files_are_listed_and_the_others_checked(write: Write, tmp_path: Path) -> None:
    for first in range(0, 400, 100):
        write(f"d/{first}.nc", hours(100, first))
    half = tmp_path / "d/100.nc"
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    (tmp_path / "d/notes.nc").write_text("hello")
    report = report_of(tmp_path / "d")
    assert {Path(p["what"]).name for p in report["problems"]} == {"100.nc", "notes.nc"}
    assert "truncated" in reasons(report)
    assert report["times"]["count"] == 300
    assert report["times"]["gaps"] == [
        {"after": "2019-03-05T03:00", "before": "2019-03-09T08:00", "missing_frames": 100}
    ]


def test_damage_inside_a_file_shows_when_it_is_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(280, 5, (50, 20, 20)).astype("f4")
    for name, first in (("a", 0), ("b", 50)):
        found = xr.Dataset({"t2m": (("time", "lat", "lon"), values)}, {"time": hours(50, first)})
        packed = {"t2m": {"zlib": True, "fletcher32": True, "chunksizes": (10, 20, 20)}}
        found.to_netcdf(tmp_path / f"{name}.nc", encoding=packed)
    path = tmp_path / "b.nc"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 64] = bytes(64)
    path.write_bytes(raw)
    report = report_of(tmp_path)
    (problem,) = report["problems"]
    assert Path(problem["what"]).name == "b.nc" and "damaged" in problem["reason"]
    assert report["times"]["count"] == 50


def test_no_readable_file_at_all(tmp_path: Path) -> None:
    (tmp_path / "notes.nc").write_text("hello")
    report = report_of(tmp_path)
    assert report["files"] == [] and "notes.nc" in reasons(report)
    assert "PROBLEM" in describe(report)


def test_files_that_do_not_fit_together(write: Write, tmp_path: Path) -> None:
    write("d/a.nc", hours(30))
    write("d/b.nc", hours(30, first=20), seed=1)
    report = report_of(tmp_path / "d")
    assert "the files together: The time 2019-03-01T20:00 occurs twice" in reasons(report)


def test_gaps_odd_steps_and_repeated_times(write: Write, tmp_path: Path) -> None:
    write("d/a.nc", hours(50))
    write("d/b.nc", hours(30, first=48))  # two repeated
    write("d/c.nc", hours(40, first=81))  # three missing
    odd = hours(20, first=121) + HOUR // 2
    change(write("d/d.nc", hours(20, first=121)), lambda d: d.assign_coords(time=odd))
    report = report_of(tmp_path / "d", split=[0.9, 0.05, 0.05])
    assert report["problems"] == []
    assert [gap["missing_frames"] for gap in report["times"]["gaps"]] == [3, None]
    assert report["parts"][0]["lost_to_gaps"] > 0
    assert report["notes"] == ["2 repeated time(s) with equal fields were dropped"]
    assert "3 frames missing" in describe(report) and "an odd step" in describe(report)


def test_missing_values(write: Write, tmp_path: Path) -> None:
    path = change(write("a.nc", hours(100)), with_values(first=90, last=95, value=np.nan))
    report = report_of(path)
    (values,) = report["variables"]
    assert (values["missing"], values["empty_frames"]) == (pytest.approx(0.05), 5)
    assert report["problems"] == [] and "nowhere in 5 frame(s)" in report["notes"][0]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (with_values(first=0, last=100, value=np.nan), "t2m: no value at all"),
        (with_values(first=0, last=100, value=280), r"t2m: constant \(280\)"),
        (with_values(first=7, last=8, value=-9999), "t2m: holds -9999, a fill value"),
        (with_values(first=7, last=8, value=9.96921e36), r"t2m: holds 9\.96921e\+36"),
        (with_values(first=0, last=70, value=np.nan), "the train part: 't2m' has no value at all"),
        (with_values(first=0, last=70, value=5), r"the train part: 't2m' is constant \(5\)"),
        (lambda d: d.assign_coords(lat=[60, 55, 57, 50]), "latitude: neither rises nor falls"),
    ],
)
def test_what_training_would_refuse(
    write: Write, edit: Callable[[xr.Dataset], xr.Dataset], expected: str
) -> None:
    report = report_of(change(write("a.nc", hours(100)), edit))
    assert len(report["problems"]) == 1
    assert re.search(expected, reasons(report))


def test_units_are_looked_at(write: Write) -> None:
    def celsius(found: xr.Dataset) -> xr.Dataset:
        return found.assign(t2m=found.t2m.copy(data=found.t2m - 273), tp=found.t2m.drop_attrs())

    notes = report_of(change(write("a.nc", hours(100)), celsius))["notes"]
    assert any(note.startswith("t2m: a mean of") and "hardly in K" in note for note in notes)
    assert "tp has no units; its forecasts will have none either" in notes


def test_split_and_windows_that_do_not_work(write: Write) -> None:
    path = write("a.nc", hours(40))
    assert "the val part: no window of 4 + 4" in reasons(report_of(path, history=4, horizon=4))
    assert "the split: " in reasons(report_of(path, split=[0.5, 0.6, 0.7]))


def test_a_mask_beside_all_variables(write: Write, tmp_path: Path) -> None:
    observed = np.zeros((4, 6))
    observed[1:3] = 1
    write("d/a.nc", hours(100))
    coverage = xr.Dataset({"coverage": (("lat", "lon"), observed)})
    coverage.to_netcdf(tmp_path / "d/mask.nc")
    report = report_of(tmp_path / "d", mask="coverage")
    assert [(v["name"], v["missing"]) for v in report["variables"]] == [("t2m", 0.5)]
    assert report["unused"] == [] and report["problems"] == []
    unused = report_of(tmp_path / "d")["unused"]
    assert [Path(path).name for path in unused] == ["mask.nc"]


def test_std_over_time(write: Write) -> None:
    path = change(write("a.nc", hours(300)), with_values(first=10, last=20, value=np.nan))
    change(path, lambda d: d.where(d.lat < 60))
    grid = open_grid([path])
    expected = grid.read(0, 300).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of cells without a value
        expected = np.nanstd(expected, axis=0)
    np.testing.assert_allclose(std_over_time(grid), expected, rtol=1e-6)
    assert np.isnan(std_over_time(grid)[0, 0]).all()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(make_synthetic(tmp_path / "toy", hours=200, height=8, width=12))
    picture = tmp_path / "sheets" / "toy.png"
    config = CheckConfig(data=DataConfig(root=[root]), out=str(picture))
    assert run(config) == 0
    assert "t2m       K" in capsys.readouterr().out
    pixels = imread(picture)
    assert pixels.shape[1] == 1200 and len(np.unique(pixels.reshape(-1, 4), axis=0)) > 50
    config.json = True
    config.data.history = 100
    assert run(config) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["picture"] == str(picture)
    assert [p["what"] for p in printed["problems"]] == ["the val part", "the test part"]
    assert [path.name for path in picture.parent.iterdir()] == ["toy.png"]


def test_pictures_of_missing_frames_and_of_grids_without_coordinates(
    write: Write, tmp_path: Path
) -> None:
    path = write("a.nc", hours(100), coordinates=False)
    change(path, with_values(first=0, last=51, value=np.nan))
    config = CheckConfig(data=DataConfig(root=[str(path)]), out=str(tmp_path / "sheet.png"))
    run(config)
    assert imread(tmp_path / "sheet.png").shape[1] == 1200


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        report_of(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"must be a PNG file"):
        run(CheckConfig(data=DataConfig(root=[str(tmp_path)]), out="sheet.jpg"))
