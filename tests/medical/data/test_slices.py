from __future__ import annotations

import numpy as np
import pytest

from crossband.medical.data.slices import (
    Slice,
    checked_window,
    shows_something,
    square_pixels,
    to_grey_levels,
    value_range,
)
from crossband.shared.errors import ConfigError


def test_a_window_is_a_centre_and_a_width() -> None:
    assert checked_window((40, 400), "ct") == (-160, 240)
    assert checked_window((), "ct") is None
    for wrong in ((40,), (40, 0), (40, -5), (1, 2, 3)):
        with pytest.raises(ConfigError, match="window of ct"):
            checked_window(wrong, "ct")


def test_values_become_grey_levels_linearly() -> None:
    values = np.array([[-500.0, -160, 40, 240, 3000, np.nan]])
    assert to_grey_levels(values, -160, 240).tolist() == [[0, 0, 128, 255, 255, 0]]
    bytes_ = np.arange(256, dtype=np.uint8)[None]
    assert (to_grey_levels(bytes_, 0.0, 255.0) == bytes_).all()


def test_the_range_leaves_out_the_extremes_unless_they_are_all_there_is() -> None:
    assert value_range(np.arange(1001.0)) == pytest.approx((5, 995))
    few = np.zeros(10_000)
    few[7], few[9] = 3, np.inf
    assert value_range(few) == (0, 3)
    assert value_range(np.full(100, 7.0)) is None
    assert value_range(np.full(100, np.nan)) is None
    wide = np.array([-30000, 30000], np.int16).repeat(50)
    assert value_range(wide) == (-30000, 30000)


def test_a_hundredth_of_a_picture_has_to_show_something() -> None:
    picture = np.full((20, 20), 30, np.uint8)
    assert not shows_something(picture)
    picture[0, :4] = 60
    assert not shows_something(picture)  # a hundredth, not more
    picture[0, 4] = 60
    assert shows_something(picture)
    picture[picture == 60] = 42
    assert not shows_something(picture)  # as noise


def test_pixels_become_squares() -> None:
    picture = np.tile(np.arange(10, dtype=np.uint8)[:, None] * 20, (1, 8))
    assert square_pixels(picture, 1.0, 1.0) is picture
    tall = square_pixels(picture, 3.0, 1.0)
    assert tall.shape == (30, 8)
    assert (tall[1::3] == picture).all()  # the middle of each enlarged row
    assert square_pixels(picture, 0.5, 1.0).shape == (10, 16)


def test_slices_are_keys(tmp_path) -> None:
    one, same = (Slice(tmp_path / "a.nii", 3, axis=2) for _ in range(2))
    assert len({one, same, Slice(tmp_path / "a.nii", 4, axis=2)}) == 2
    assert str(one).endswith("a.nii[0:2:3]")
