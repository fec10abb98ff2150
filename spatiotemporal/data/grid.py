"""Gridded fields over time from NetCDF files and Zarr stores, read window by window.

Nothing is loaded when a grid is opened: only coordinates and names are read. A grid can be sent
to loader processes; each opens the files again by itself.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import netcdf_file

from crossband.shared.errors import DataError, MissingExtraError, did_you_mean

try:
    import xarray as xr
except ModuleNotFoundError as error:
    raise MissingExtraError("xarray", "spatiotemporal") from error

TIME = ("time", "valid_time", "date")
LATITUDE = ("lat", "latitude", "y", "rlat")
LONGITUDE = ("lon", "longitude", "x", "rlon")
LEVEL = ("level", "pressure_level", "plev", "isobaricInhPa", "lev")
SUFFIXES = (".nc", ".nc4", ".netcdf", ".cdf")
CHUNK_BYTES = 64 * 2**20

# Short names of WeatherBench and the folders or long names that hold them.
LONG_NAMES = {
    "t2m": "2m_temperature",
    "u10": "10m_u_component_of_wind",
    "v10": "10m_v_component_of_wind",
    "tcc": "total_cloud_cover",
    "tp": "total_precipitation",
    "z": "geopotential",
    "t": "temperature",
    "r": "relative_humidity",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
}
_SYNONYMS = {long: short for short, long in LONG_NAMES.items()} | LONG_NAMES


@dataclass(frozen=True)
class Segment:
    """The frames of one variable in one file."""

    path: str
    name: str  # in the file
    level: int | None  # index on the level axis
    times: np.ndarray  # datetime64[ns]


@dataclass(frozen=True)
class Grid:
    """Fields of several variables on one grid at increasing times.

    Attributes:
        variables: Names as asked for.
        times: (n,) datetime64[ns], increasing.
        latitude: (H,) degrees, or None where the files have no coordinates.
        longitude: (W,) degrees, or None.
        units: One per variable; empty where the file names none.
        dims: Names of the time, row and column dimensions in the files.
        attrs: Attributes of the coordinates and variables, by name, for writing back.
        shape: (C, H, W).
    """

    variables: tuple[str, ...]
    times: np.ndarray
    latitude: np.ndarray | None
    longitude: np.ndarray | None
    units: tuple[str, ...]
    dims: tuple[str, str, str]
    attrs: dict[str, dict[str, Any]]
    shape: tuple[int, int, int]
    segments: tuple[tuple[Segment, ...], ...]  # per variable (and the mask, last)
    places: np.ndarray  # (series, n, 2): segment and position of each time
    mask: np.ndarray | None = None  # (H, W), where a mask without time was given
    masked: bool = False  # the last series is a mask over time
    notes: tuple[str, ...] = ()
    _cache: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        """Return the number of times."""
        return len(self.times)

    @property
    def spacing(self) -> np.timedelta64:
        """The most common distance between neighbouring times."""
        if len(self) < 2:
            return np.timedelta64(3600, "s").astype("timedelta64[ns]")
        steps, counts = np.unique(np.diff(self.times), return_counts=True)
        return steps[counts.argmax()]

    @property
    def nbytes(self) -> int:
        """Size of all fields as float32."""
        return 4 * len(self) * int(np.prod(self.shape))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return frames `start` to `stop` - 1 as float32 (n, C, H, W), NaN where not observed.

        Raises:
            DataError: a file cannot be read.
        """
        if "all" in self._cache:
            return self._cache["all"][start:stop]
        series = [self._read_series(i, start, stop) for i in range(len(self.segments))]
        if self.masked:
            observed = series.pop() > 0
        fields = np.stack(series, axis=1)
        fields[~np.isfinite(fields)] = np.nan
        if self.masked:
            fields[~np.repeat(observed[:, None], self.shape[0], axis=1)] = np.nan
        elif self.mask is not None:
            fields[..., ~self.mask] = np.nan
        return fields

    def load(self) -> Grid:
        """Keep all fields in memory from now on."""
        if "all" not in self._cache:
            self._cache["all"] = self.read(0, len(self))
        return self

    def chunks(self, start: int, stop: int, size: int = 256) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first index, frames) in chunks, for statistics over more than fits in memory.

        A chunk has `size` frames, fewer where they are large (64 MB at most, or one frame).
        """
        size = max(1, min(size, CHUNK_BYTES // (4 * int(np.prod(self.shape)))))
        for first in range(start, stop, size):
            yield first, self.read(first, min(first + size, stop))

    def _read_series(self, index: int, start: int, stop: int) -> np.ndarray:
        places = self.places[index, start:stop]
        out = np.empty((stop - start, *self.shape[1:]), np.float32)
        begin = 0
        while begin < len(places):
            segment, first = places[begin]
            end = begin + 1
            while (
                end < len(places)
                and places[end, 0] == segment
                and places[end, 1] > places[end - 1, 1]
            ):
                end += 1
            positions = places[begin:end, 1]
            out[begin:end] = _read_frames(self.segments[index][segment], positions)
            begin = end
        return out


def open_grid(
    roots: Sequence[str | Path],
    variables: Sequence[str] = (),
    *,
    step: int = 1,
    mask: str | None = None,
) -> Grid:
    """Open NetCDF files, folders of them (searched through) and Zarr stores as one grid.

    Files are joined along time in the order of their times, and across variables.

    Args:
        roots: Files, folders or Zarr stores.
        variables: `name` or `name@level`; WeatherBench's short and long names both do. Empty:
            every variable that has time and grid dimensions.
        step: Take every step-th time.
        mask: Variable that is above zero where the fields are observed, with or without time.

    Raises:
        DataError: nothing found, an unreadable file, a missing variable or level, grids that
            differ, times that contradict each other.
    """
    if step < 1:
        raise DataError(f"--data.step {step} must be at least 1.")
    files = find_files(roots)
    headers = [_header(path) for path in files]
    wanted = tuple(variables) or tuple(v for v in _all_variables(headers) if v != mask)
    if not wanted:
        held = sorted({name for header in headers for name in header.data_vars})
        raise DataError(
            f"No variable in {_names(files)} has a time, a row and a column dimension (found: "
            f"{', '.join(held) or 'none'}): name dimensions time, lat and lon."
        )
    series, notes, units, attrs = [], [], [], {}
    for variable in (*wanted, *([mask] if mask else [])):
        segments = _segments_of(variable, files, headers, timeless=variable == mask)
        if variable != mask:
            source = headers[files.index(Path(segments[0].path))][segments[0].name]
            units.append(str(source.attrs.get("units", "")))
            attrs[variable] = dict(source.attrs)
        series.append(segments)
    reference = headers[files.index(Path(series[0][0].path))]
    dims = _dims(reference[series[0][0].name])
    rows, columns = (reference.sizes[d] for d in dims[1:])
    axes = [reference[d].values if d in reference.coords else None for d in dims[1:]]
    for segments in series:
        for segment in segments:
            _same_grid(headers[files.index(Path(segment.path))], segment, reference, dims)
    static_mask = None
    if mask and not len(series[-1][0].times):
        static_mask = _read_static(series.pop()[0], (rows, columns))
    times, places = _join_times(series, wanted, notes)
    for dim in dims:
        if dim in reference.coords:
            attrs[dim] = dict(reference[dim].attrs)
    return Grid(
        variables=wanted,
        times=times[::step],
        latitude=axes[0] if axes[0] is not None and _is_latitude(dims[1], axes[0]) else None,
        longitude=axes[1],
        units=tuple(units),
        dims=dims,
        attrs=attrs,
        shape=(len(wanted), rows, columns),
        segments=tuple(tuple(segments) for segments in series),
        places=places[:, ::step],
        mask=static_mask,
        masked=bool(mask) and static_mask is None,
        notes=tuple(notes),
    )


def find_files(roots: Sequence[str | Path]) -> list[Path]:
    """Return the NetCDF files and Zarr stores that `roots` name or hold, sorted per root.

    Raises:
        DataError: a root does not exist or holds none.
    """
    if not roots:
        raise DataError("No data given: name NetCDF files, folders or Zarr stores by --data.root.")
    files: list[Path] = []
    for root in map(Path, roots):
        if not root.exists():
            near = did_you_mean(root.name, [p.name for p in root.parent.glob("*")])
            raise DataError(f"--data.root {root} does not exist.{near}")
        if root.is_file() or _is_zarr(root):
            files.append(root)
            continue
        found = sorted(_search(root))
        if not found:
            raise DataError(
                f"--data.root {root} holds no NetCDF file ({', '.join(SUFFIXES)}) and no Zarr "
                "store: name the folder that does."
            )
        files += found
    return list(dict.fromkeys(files))


def _search(folder: Path) -> Iterator[Path]:
    """Yield files and stores; hidden ones are what interrupted writers and file systems leave."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not _is_zarr(path):
            yield from _search(path)
        elif path.is_dir() or path.suffix.lower() in SUFFIXES:
            yield path  # what is within a store belongs to it


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / n).exists() for n in (".zgroup", "zarr.json"))


def _open(path: str) -> xr.Dataset:
    """Open one file or store, once per process: a forked one must not share its file handle."""
    return _open_once(path, os.getpid())


@lru_cache(maxsize=64)
def _open_once(path: str, process: int) -> xr.Dataset:
    try:
        if _is_zarr(Path(path)):
            with warnings.catch_warnings():  # about stores without consolidated metadata
                warnings.simplefilter("ignore", RuntimeWarning)
                return xr.open_zarr(path, chunks=None)
        _check_length(path)
        return xr.open_dataset(path)
    except Exception as error:  # the readers raise many kinds on damaged files
        if isinstance(error, MissingExtraError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} cannot be read as NetCDF or Zarr ({reason[:100]}): it is truncated or of "
            "another format; replace it or take it out of the folder."
        ) from error


def _check_length(path: str) -> None:
    """Refuse a truncated file of the classic format, which the NetCDF library reads as zeros."""
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic in (b"CDF\x01", b"CDF\x02"):
        netcdf_file(path, "r", mmap=True, maskandscale=False).close()


def variables_of(path: Path, variables: Sequence[str] = ()) -> list[str]:
    """Return which of `variables` (`name` or `name@level`) a file holds; of all, if none is given.

    Raises:
        DataError: the file cannot be opened.
    """
    header = _header(path)
    if not variables:
        return list(_all_variables([header]))
    return [v for v in variables if _own_name(header, v.partition("@")[0]) is not None]


def _own_name(header: xr.Dataset, name: str) -> str | None:
    """Return the name under which a file holds a variable: as given, or its synonym."""
    return next((n for n in (name, _SYNONYMS.get(name)) if n in header.data_vars), None)


def _header(path: Path) -> xr.Dataset:
    return _open(str(path))


def _dims(array: xr.DataArray) -> tuple[str, str, str] | None:
    """Return the names of time, row and column dimension, or None where one is missing."""
    found = []
    for names in (TIME, LATITUDE, LONGITUDE):
        match = next((d for d in array.dims if str(d).lower() in names), None)
        if match is None:
            return None
        found.append(str(match))
    return tuple(found)


def _all_variables(headers: Sequence[xr.Dataset]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for header in headers:
        for name, array in header.data_vars.items():
            if _dims(array) is not None and array.ndim == 3:
                names[str(name)] = None
    return tuple(names)


def _segments_of(
    variable: str, files: Sequence[Path], headers: Sequence[xr.Dataset], *, timeless: bool
) -> list[Segment]:
    """Return the files that hold a variable."""
    name, _, level = variable.partition("@")
    segments, timeless_found = [], []
    for path, header in zip(files, headers, strict=True):
        own = _own_name(header, name)
        if own is None:
            continue
        array = header[own]
        if timeless and not any(str(d).lower() in TIME for d in array.dims):
            timeless_found.append(Segment(str(path), own, None, np.empty(0, "datetime64[ns]")))
            continue
        dims = _dims(array)
        if dims is None:
            raise DataError(
                f"{own} in {path} has dimensions {', '.join(map(str, array.dims))}: a time "
                f"({', '.join(TIME)}), a row ({', '.join(LATITUDE)}) and a column "
                f"({', '.join(LONGITUDE)}) dimension are needed."
            )
        if dims[0] not in header.coords or header[dims[0]].dtype.kind != "M":
            raise DataError(
                f"{path}: the times of '{own}' are not dates of the standard calendar: give "
                f"'{dims[0]}' units like 'hours since 2019-01-01', or convert its calendar."
            )
        times = header[dims[0]].values.astype("datetime64[ns]")
        segments.append(Segment(str(path), own, _level_index(array, dims, level, path), times))
    segments = segments or timeless_found[:1]
    if not segments:
        held = sorted({str(n) for header in headers for n in header.data_vars})
        near = did_you_mean(name, held) or f" There are: {', '.join(held) or 'none'}."
        raise DataError(f"No file in {_names(files)} has the variable '{name}'.{near}")
    return segments


def _level_index(
    array: xr.DataArray, dims: tuple[str, str, str], level: str, path: Path
) -> int | None:
    rest = [str(d) for d in array.dims if d not in dims]
    if not rest:
        if level:
            raise DataError(f"'{array.name}' in {path} has no levels: leave out '@{level}'.")
        return None
    if len(rest) > 1 or rest[0] not in LEVEL:
        raise DataError(
            f"'{array.name}' in {path} has the further dimension(s) {', '.join(rest)}: select one "
            "value of each before."
        )
    values = array[rest[0]].values if rest[0] in array.coords else np.arange(array.sizes[rest[0]])
    if not level and len(values) == 1:
        return 0
    match = [i for i, v in enumerate(values) if level and float(v) == _number(level)]
    if not match:
        raise DataError(
            f"'{array.name}' has levels {', '.join(f'{float(v):g}' for v in values)}: name one as "
            f"'{array.name}@{float(values[-1]):g}'."
        )
    return match[0]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _same_grid(
    header: xr.Dataset, segment: Segment, reference: xr.Dataset, dims: tuple[str, str, str]
) -> None:
    for dim in dims[1:]:
        same = header.sizes.get(dim) == reference.sizes[dim] and (
            dim not in reference.coords
            or dim not in header.coords
            or np.allclose(header[dim].values, reference[dim].values)
        )
        if not same:
            raise DataError(
                f"{segment.path} has another grid along '{dim}' than the other files: bring all "
                "files to one grid first."
            )


def _is_latitude(dim: str, values: np.ndarray) -> bool:
    return dim.lower() in ("lat", "latitude") and bool(np.all(np.abs(values) <= 90.5))


def _join_times(
    series: Sequence[Sequence[Segment]], variables: Sequence[str], notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Sort the times of all files; drop repeated ones that hold equal fields."""
    all_times: np.ndarray | None = None
    all_places = []
    for index, segments in enumerate(series):
        times = np.concatenate([s.times for s in segments])
        places = np.concatenate(
            [
                np.stack([np.full(len(s.times), i), np.arange(len(s.times))], axis=1)
                for i, s in enumerate(segments)
            ]
        )
        if np.isnat(times).any():
            raise DataError(f"{segments[0].path} has missing times (NaT): fill or drop them.")
        order = np.argsort(times, kind="stable")
        times, places = times[order], places[order]
        repeated = np.flatnonzero(times[1:] == times[:-1]) + 1
        for place in repeated:
            now, before = (
                _read_frames(segments[s], np.array([p]))
                for s, p in (places[place], places[place - 1])
            )
            if not np.array_equal(now, before, equal_nan=True):
                raise DataError(
                    f"The time {_text(times[place])} occurs twice with different values (in "
                    f"{Path(segments[places[place - 1, 0]].path).name} and "
                    f"{Path(segments[places[place, 0]].path).name}): keep one of them."
                )
        if len(repeated):
            notes.append(f"{len(repeated)} repeated time(s) with equal fields were dropped")
            keep = np.ones(len(times), bool)
            keep[repeated] = False
            times, places = times[keep], places[keep]
        if all_times is None:
            all_times = times
        elif not np.array_equal(all_times, times):
            name = variables[index] if index < len(variables) else "the mask"
            common = np.intersect1d(all_times, times)
            if not len(common):
                raise DataError(f"'{name}' and '{variables[0]}' have no time in common.")
            notes.append(f"only the {len(common)} times that all variables share are used")
            all_places = [p[np.isin(all_times, common)] for p in all_places]
            places = places[np.isin(times, common)]
            all_times = common
        all_places.append(places)
    return all_times, np.stack(all_places)


def _read_frames(segment: Segment, positions: np.ndarray) -> np.ndarray:
    """Return frames (n, H, W) of one file at increasing positions."""
    try:
        array = _open(segment.path)[segment.name]
        dims = _dims(array)
        if segment.level is not None:
            level = next(d for d in array.dims if d not in dims)
            array = array.isel({level: segment.level})
        first, last = int(positions[0]), int(positions[-1])
        frames = array.isel({dims[0]: slice(first, last + 1)}).transpose(*dims).values
        return frames[positions - first].astype(np.float32)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{segment.path} cannot be read at {_text(segment.times[positions[0]])} "
            f"({str(error)[:80]}): the file is damaged; replace it."
        ) from error


def _read_static(segment: Segment, shape: tuple[int, int]) -> np.ndarray:
    values = np.asarray(_open(segment.path)[segment.name].values)
    if values.shape != shape:
        raise DataError(
            f"The mask '{segment.name}' has shape {values.shape}, the fields {shape}: give a mask "
            "on the same grid."
        )
    return values > 0


def _names(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"


def _text(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))
