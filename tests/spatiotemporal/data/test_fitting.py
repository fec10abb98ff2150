from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossband.shared.errors import ConfigError
from crossband.spatiotemporal.data.fitting import fit_grid

SIDES = st.integers(1, 40)


@given(SIDES, SIDES, st.integers(1, 8), st.sampled_from(["crop", "pad"]))
def test_patches_tile_the_fitted_grid_and_the_way_back_leads_home(
    height: int, width: int, patch: int, mode: str
) -> None:
    frames = np.arange(height * width, dtype=float).reshape(1, height, width)
    if mode == "crop" and min(height, width) < patch:
        with pytest.raises(ConfigError):
            fit_grid((height, width), patch, mode)
        return
    fit = fit_grid((height, width), patch, mode)
    fitted = fit.apply(frames)
    assert fitted.shape[1:] == fit.target
    assert fitted.shape[1] % patch == fitted.shape[2] % patch == 0
    back = fit.invert(fitted)
    rows = fit.coordinates(np.arange(height), 0)
    columns = fit.coordinates(np.arange(width), 1)
    np.testing.assert_array_equal(back, frames[:, rows][..., columns])
    if mode == "pad":
        assert back.shape == frames.shape


def test_padding_repeats_the_edge_of_fields_and_hides_that_of_masks() -> None:
    fit = fit_grid((2, 3), 4, "pad")
    assert fit.target == (4, 4)
    fitted = fit.apply(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    np.testing.assert_array_equal(fitted, [[1, 2, 3, 3], [1, 2, 3, 3], [4, 5, 6, 6], [4, 5, 6, 6]])
    assert fit.apply(np.ones((2, 3), bool), edge=False).sum() == 6


def test_error_names_the_ways_out() -> None:
    with pytest.raises(ConfigError, match=r"33 x 49 cannot .* pad \(36 x 52.* crop \(32 x 48\)"):
        fit_grid((33, 49), 4, "error")
    assert fit_grid((32, 48), 4, "error").target == (32, 48)
