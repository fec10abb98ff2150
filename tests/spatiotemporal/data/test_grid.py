from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from crossband.shared.errors import DataError
from crossband.spatiotemporal.data import grid as grid_module
from crossband.spatiotemporal.data.grid import Grid, find_files, open_grid

Write = Callable[..., Path]
START = np.datetime64("2019-03-01T00", "ns")
HOUR = np.timedelta64(3600, "s").astype("timedelta64[ns]")


def hours(count: int, first: int = 0) -> np.ndarray:
    return START + (first + np.arange(count)) * HOUR


def whole(grid: Grid) -> np.ndarray:
    return grid.read(0, len(grid))


def rewrite(path: Path, change: Callable[[xr.Dataset], xr.Dataset], target: Path) -> Path:
    with xr.open_dataset(path) as found:
        change(found.load()).to_netcdf(target)
    return target


def test_one_file(write: Write) -> None:
    path = write("a.nc", hours(10))
    grid = open_grid([path], ["t2m"])
    with xr.open_dataset(path) as truth:
        np.testing.assert_array_equal(whole(grid)[:, 0], truth.t2m.values)
        np.testing.assert_array_equal(grid.latitude, truth.lat.values)
    assert (len(grid), grid.shape, grid.units) == (10, (1, 4, 6), ("K",))
    assert grid.spacing == HOUR
    assert whole(grid).dtype == np.float32
    np.testing.assert_array_equal(grid.read(3, 5), whole(grid)[3:5])


def test_files_are_joined_in_the_order_of_their_times(write: Write, tmp_path: Path) -> None:
    truth = open_grid([write("one/all.nc", hours(20))], ["t2m"])
    for name, first in (("c", 0), ("a", 7), ("b", 14)):  # not the order of the names
        write(f"many/{name}.nc", hours(min(7, 20 - first), first))
    grid = open_grid([tmp_path / "many"], ["t2m"])
    np.testing.assert_array_equal(grid.times, truth.times)
    np.testing.assert_array_equal(whole(grid), whole(truth))
    np.testing.assert_array_equal(grid.read(5, 16), whole(truth)[5:16])  # across three files


def test_zarr_equals_netcdf(write: Write) -> None:
    pytest.importorskip("zarr")
    netcdf = open_grid([write("a.nc", hours(9))], ["t2m"])
    zarr = open_grid([write("a.zarr", hours(9))], ["t2m"])
    np.testing.assert_array_equal(netcdf.times, zarr.times)
    np.testing.assert_array_equal(whole(netcdf), whole(zarr))
    assert netcdf.units == zarr.units


@pytest.mark.parametrize("version", [2, 3])
def test_a_folder_of_zarr_stores(write: Write, tmp_path: Path, version: int) -> None:
    pytest.importorskip("zarr")
    truth = open_grid([write("a.nc", hours(9))], ["t2m"])
    with xr.open_dataset(tmp_path / "a.nc") as found:
        for name, part in (("b", slice(0, 4)), ("a", slice(4, 9))):
            store = tmp_path / f"d/{name}.zarr"
            found.isel(time=part).to_zarr(store, zarr_format=version, consolidated=False)
    assert [path.name for path in find_files([tmp_path / "d"])] == ["a.zarr", "b.zarr"]
    np.testing.assert_array_equal(whole(open_grid([tmp_path / "d"])), whole(truth))


def test_interleaved_and_unsorted_times_are_sorted(write: Write, tmp_path: Path) -> None:
    truth = whole(open_grid([write("all.nc", hours(12))], ["t2m"]))
    write("split/even.nc", hours(12)[::2])
    write("split/odd.nc", hours(12)[1::2][::-1])
    grid = open_grid([tmp_path / "split"], ["t2m"])
    assert np.all(np.diff(grid.times) == HOUR)
    np.testing.assert_array_equal(whole(grid), truth)


def test_equal_repeated_times_are_dropped_with_a_note(write: Write, tmp_path: Path) -> None:
    write("d/a.nc", hours(6))
    write("d/b.nc", hours(6, first=4))
    grid = open_grid([tmp_path / "d"], ["t2m"])
    np.testing.assert_array_equal(grid.times, hours(10))
    assert "2 repeated time(s)" in grid.notes[0]


def test_contradicting_repeated_times_are_an_error(write: Write, tmp_path: Path) -> None:
    write("d/a.nc", hours(6))
    write("d/b.nc", hours(6, first=4), seed=1)
    with pytest.raises(DataError, match=r"2019-03-01T04:00 occurs twice .* a\.nc and b\.nc"):
        open_grid([tmp_path / "d"], ["t2m"])


def test_several_variables_and_those_times_that_all_have(write: Write, tmp_path: Path) -> None:
    write("d/2m_temperature/x.nc", hours(8), "t2m")
    write("d/10m_u_component_of_wind/x.nc", hours(8, first=2), "u10", seed=3)
    grid = open_grid([tmp_path / "d"], ["u10", "2m_temperature"])  # long names do too
    np.testing.assert_array_equal(grid.times, hours(6, first=2))
    assert grid.shape == (2, 4, 6)
    with xr.open_dataset(tmp_path / "d/2m_temperature/x.nc") as truth:
        np.testing.assert_array_equal(whole(grid)[:, 1], truth.t2m.values[2:])
    assert "6 times that all variables share" in grid.notes[0]


def test_all_variables_by_default(write: Write, tmp_path: Path) -> None:
    write("d/a.nc", hours(4), "t2m")
    write("d/b.nc", hours(4), "tp")
    assert open_grid([tmp_path / "d"]).variables == ("t2m", "tp")


def test_step(write: Write) -> None:
    path = write("a.nc", hours(13))
    grid = open_grid([path], ["t2m"], step=6)
    np.testing.assert_array_equal(grid.times, hours(13)[::6])
    np.testing.assert_array_equal(whole(grid), whole(open_grid([path], ["t2m"]))[::6])
    assert grid.spacing == 6 * HOUR


@pytest.mark.parametrize(
    "dims", [("valid_time", "latitude", "longitude"), ("time", "y", "x"), ("Time", "Lat", "Lon")]
)
def test_dimension_names(write: Write, dims: tuple[str, str, str]) -> None:
    path = write("a.nc", hours(3), dims=dims)
    grid = open_grid([path], ["t2m"])
    assert grid.dims == dims
    assert (grid.latitude is None) == (dims[1] == "y")  # y is not a latitude


def test_grid_without_coordinates(write: Write) -> None:
    grid = open_grid([write("a.nc", hours(3), coordinates=False)], ["t2m"])
    assert grid.latitude is None and grid.longitude is None
    assert grid.shape == (1, 4, 6)


def test_transposed_dimensions(write: Write, tmp_path: Path) -> None:
    path = write("a.nc", hours(5))
    other = rewrite(path, lambda d: d.transpose("lon", "time", "lat"), tmp_path / "b.nc")
    np.testing.assert_array_equal(
        whole(open_grid([path], ["t2m"])), whole(open_grid([other], ["t2m"]))
    )


def test_levels(write: Write, tmp_path: Path) -> None:
    def add_level(found: xr.Dataset) -> xr.Dataset:
        levels = [found.t2m + k for k in (0, 100)]
        return xr.concat(levels, xr.IndexVariable("level", [500, 850])).to_dataset(name="z")

    path = rewrite(write("a.nc", hours(4)), add_level, tmp_path / "z.nc")
    both = open_grid([path], ["z@500", "z@850"])
    np.testing.assert_allclose(whole(both)[:, 1] - whole(both)[:, 0], 100, rtol=1e-5)
    with pytest.raises(DataError, match="levels 500, 850: name one as 'z@850'"):
        open_grid([path], ["z"])
    with pytest.raises(DataError, match="levels 500, 850"):
        open_grid([path], ["z@300"])
    with pytest.raises(DataError, match="has no levels"):
        open_grid([tmp_path / "a.nc"], ["t2m@500"])


def test_mask_without_time(write: Write, tmp_path: Path) -> None:
    observed = np.zeros((4, 6))
    observed[1:3, 2:5] = 1

    def add_mask(found: xr.Dataset) -> xr.Dataset:
        return found.assign(coverage=(("lat", "lon"), observed))

    path = rewrite(write("a.nc", hours(4)), add_mask, tmp_path / "m.nc")
    grid = open_grid([path], ["t2m"], mask="coverage")
    np.testing.assert_array_equal(np.isfinite(whole(grid)[:, 0]), [observed > 0] * 4)


def test_mask_over_time(write: Write, tmp_path: Path) -> None:
    def add_mask(found: xr.Dataset) -> xr.Dataset:
        return found.assign(seen=(found.t2m > 280).astype("int8"), u10=found.t2m * 2)

    path = rewrite(write("a.nc", hours(4)), add_mask, tmp_path / "m.nc")
    plain = whole(open_grid([path], ["t2m", "u10"]))
    masked = open_grid([path], ["t2m", "u10"], mask="seen")
    assert masked.shape == (2, 4, 6)
    seen = np.broadcast_to(plain[:, :1] > 280, plain.shape)
    np.testing.assert_array_equal(whole(masked), np.where(seen, plain, np.nan))


def test_the_mask_is_no_field(write: Write, tmp_path: Path) -> None:
    def add_mask(found: xr.Dataset) -> xr.Dataset:
        return found.assign(seen=found.t2m.drop_attrs() > 280)

    path = rewrite(write("a.nc", hours(4)), add_mask, tmp_path / "m.nc")
    grid = open_grid([path], mask="seen")
    assert (grid.variables, grid.units, grid.shape) == (("t2m",), ("K",), (1, 4, 6))
    assert whole(grid).shape == (4, 1, 4, 6)


def test_chunks_are_of_bounded_size(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = open_grid([write("a.nc", hours(10))])
    monkeypatch.setattr(grid_module, "CHUNK_BYTES", 3 * 4 * 4 * 6)
    chunks = dict(grid.chunks(1, 10))
    assert [(first, len(frames)) for first, frames in chunks.items()] == [(1, 3), (4, 3), (7, 3)]
    np.testing.assert_array_equal(np.concatenate(list(chunks.values())), grid.read(1, 10))
    monkeypatch.setattr(grid_module, "CHUNK_BYTES", 1)
    assert [len(frames) for _, frames in grid.chunks(0, 2)] == [1, 1]


def test_cached_grid_reads_the_same(write: Write) -> None:
    path = write("a.nc", hours(10))
    lazy, cached = open_grid([path], ["t2m"]), open_grid([path], ["t2m"]).load()
    np.testing.assert_array_equal(lazy.read(2, 9), cached.read(2, 9))
    assert cached.nbytes == cached.read(0, 10).nbytes


def test_a_grid_can_be_sent_to_another_process(write: Write) -> None:
    grid = open_grid([write("a.nc", hours(10))], ["t2m"])
    whole(grid)  # the file is open here: the other process must not share the handle
    np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(grid))), whole(grid))
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        for start, frames in enumerate(pool.map(grid.read, range(8), range(2, 10))):
            np.testing.assert_array_equal(frames, whole(grid)[start : start + 2])


def test_missing_root(tmp_path: Path, write: Write) -> None:
    write("era5/a.nc", hours(3))
    with pytest.raises(DataError, match=r"era6 does not exist. Did you mean 'era5'\?"):
        open_grid([tmp_path / "era6"], ["t2m"])
    with pytest.raises(DataError, match="No data given"):
        open_grid([], ["t2m"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no NetCDF file"):
        open_grid([tmp_path / "empty"], ["t2m"])


def test_missing_variable_names_near_ones_or_all(write: Write) -> None:
    path = write("a.nc", hours(3))
    with pytest.raises(DataError, match=r"variable 't2n'. Did you mean 't2m'\?"):
        open_grid([path], ["t2n"])
    with pytest.raises(DataError, match="There are: t2m"):
        open_grid([path], ["humidity"])


@pytest.mark.parametrize("engine", ["netcdf4", "scipy"])
def test_truncated_file_is_named(write: Write, tmp_path: Path, engine: str) -> None:
    times = hours(400)
    with xr.open_dataset(write("a.nc", times)) as found:
        found.to_netcdf(tmp_path / "broken.nc", engine=engine)
    path = tmp_path / "broken.nc"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"broken\.nc cannot be read"):
        whole(open_grid([path], ["t2m"]))


def test_a_text_file_is_not_netcdf(tmp_path: Path) -> None:
    path = tmp_path / "notes.nc"
    path.write_text("hello")
    with pytest.raises(DataError, match=r"notes\.nc cannot be read as NetCDF or Zarr"):
        open_grid([path], ["t2m"])


def test_files_on_different_grids(write: Write, tmp_path: Path) -> None:
    write("d/a.nc", hours(3))

    def move(found: xr.Dataset) -> xr.Dataset:
        return found.assign_coords(lat=found.lat + 1)

    rewrite(write("b.nc", hours(3, first=3)), move, tmp_path / "d/b.nc")
    with pytest.raises(DataError, match=r"b\.nc has another grid along 'lat'"):
        open_grid([tmp_path / "d"], ["t2m"])


def test_times_that_are_not_dates(write: Write, tmp_path: Path) -> None:
    def number(found: xr.Dataset) -> xr.Dataset:
        return found.assign_coords(time=np.arange(found.sizes["time"]))

    path = rewrite(write("a.nc", hours(3)), number, tmp_path / "b.nc")
    with pytest.raises(DataError, match="are not dates"):
        open_grid([path], ["t2m"])


def test_what_an_interrupted_writer_left_is_not_read(write: Write, tmp_path: Path) -> None:
    path = write("d/a.nc", hours(3))
    (tmp_path / "d/.b.x1y2.tmp.nc").write_bytes(b"half")
    assert find_files([tmp_path / "d"]) == [path]


def test_find_files_takes_each_file_once(write: Write, tmp_path: Path) -> None:
    path = write("d/a.nc", hours(3))
    assert find_files([tmp_path / "d", path]) == [path]


# ---------------------------------------------------------------------------------------------
# Real data


def test_weatherbench_layout_is_the_crop_of_the_whole_file(shared_dir: Path) -> None:
    data = shared_dir / "data" / "spatiotemporal"
    grid = open_grid([data / "weather_layout"], ["t2m"])
    source = open_grid([data / "era5_t2m_uk_2019-03_hourly_0p25.nc"], ["t2m"])
    assert (len(grid), grid.shape, grid.units) == (744, (1, 32, 48), ("K",))
    rows = [int(np.flatnonzero(source.latitude == lat)[0]) for lat in grid.latitude]
    columns = [int(np.flatnonzero(source.longitude == lon)[0]) for lon in grid.longitude]
    frames = source.read(300, 420)[:, :, rows][..., columns]  # across both files of the layout
    np.testing.assert_allclose(grid.read(300, 420), frames, atol=0.01)


def test_radar_outside_its_range_is_not_observed(shared_dir: Path) -> None:
    path = shared_dir / "data" / "spatiotemporal" / "knmi_radar_20100826_5min_4km_128.nc"
    with xr.open_dataset(path) as found:
        (rain,) = (str(n) for n, a in found.data_vars.items() if a.ndim == 3)
    grid = open_grid([path], [rain], mask="coverage")
    assert grid.spacing == np.timedelta64(5, "m")
    assert grid.latitude is None
    assert np.isnan(grid.read(0, 1)).mean() == pytest.approx(0.47, abs=0.01)


def test_monthly_climatology_has_no_time(shared_dir: Path) -> None:
    path = shared_dir / "data" / "spatiotemporal" / "eraint_uvz_1p5deg.nc"
    with pytest.raises(DataError, match="has dimensions month, level"):
        open_grid([path], ["z@500"])
