import numpy as np
import pytest

from smoothjax.feature_visualization import l2, total_variation

IMAGE = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)


def test_total_variation_is_the_mean_step_along_each_axis():
    down = np.abs(IMAGE[1:] - IMAGE[:-1]).mean()
    right = np.abs(IMAGE[:, 1:] - IMAGE[:, :-1]).mean()
    np.testing.assert_allclose(total_variation(3.0)(IMAGE), 3 * (down + right), rtol=1e-5)
    np.testing.assert_allclose(total_variation(3.0, axes=(1,))(IMAGE), 3 * right, rtol=1e-5)


def test_l2_is_the_mean_square():
    np.testing.assert_allclose(l2(2.0)(IMAGE), 2 * np.mean(IMAGE**2), rtol=1e-5)


def test_what_is_no_weight_is_refused():
    for penalty in (l2, total_variation):
        with pytest.raises(TypeError, match="weight must be a number"):
            penalty("1")
