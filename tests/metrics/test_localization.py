"""Localization against known masks, obvious loops and SciPy; mosaics of images of known class."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import smoothjax as sj
from smoothjax.metrics.localization import (
    cell_mask,
    distinct_classes,
    grid_pointing_game,
    mosaic,
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    roc_auc,
)

RNG = np.random.default_rng(0)
H, W = 6, 8
MAP = RNG.standard_normal((H, W)).astype(np.float32)
TIED = np.round(2 * MAP) / 2  # about a dozen values
MASK = RNG.random((H, W)) < 0.3
EMPTY, FULL = np.zeros((H, W), bool), np.ones((H, W), bool)

METRICS = {
    "pointing_game": jax.jit(pointing_game),
    "relevance_mass_accuracy": jax.jit(relevance_mass_accuracy),
    "relevance_rank_accuracy": jax.jit(relevance_rank_accuracy),
    "roc_auc": jax.jit(roc_auc),
}
EAGER = {
    "pointing_game": pointing_game,
    "relevance_mass_accuracy": relevance_mass_accuracy,
    "relevance_rank_accuracy": relevance_rank_accuracy,
    "roc_auc": roc_auc,
}
pointing, mass, rank, auc = METRICS.values()
each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def pairs_won(attribution, mask):
    """The share of pairs of an entry on the object and one off it that the former wins."""
    on, off = attribution[mask], attribution[~mask]
    wins = (on[:, None] > off[None, :]) + 0.5 * (on[:, None] == off[None, :])
    return wins.mean()


# Pointing game


def test_pointing_game_hits_where_the_mask_is():
    """One-hot maps at all places at once, of which the value at the place is all that counts."""
    places = np.eye(H * W, dtype=np.float32).reshape(-1, H, W) - 5
    hits = jax.jit(jax.vmap(pointing_game, (0, None)))(places, MASK)
    np.testing.assert_array_equal(hits, MASK.ravel())


@pytest.mark.parametrize("tolerance", [0, 1, np.sqrt(2), 2.0, 2.9, 15])
def test_tolerance_is_a_euclidean_distance(tolerance):
    rows, columns = np.divmod(np.arange(H * W), W)
    distance = np.hypot(rows - 2, columns - 5)
    mask = np.zeros((H, W), bool)
    mask[2, 5] = True
    places = np.eye(H * W, dtype=np.float32).reshape(-1, H, W)
    game = jax.jit(jax.vmap(pointing_with_tolerance, (0, None, None)))
    np.testing.assert_array_equal(game(places, mask, tolerance), distance <= tolerance + 1e-6)


def pointing_with_tolerance(attribution, mask, tolerance):
    return pointing_game(attribution, mask, tolerance=tolerance)


def test_tolerance_is_no_distance_between_channels():
    attribution = np.zeros((H, W, 3), np.float32)
    attribution[2, 5, 2] = 1.0
    mask = np.zeros((H, W), bool)
    mask[2, 5] = True
    game = jax.jit(pointing_with_tolerance)
    assert game(attribution, mask, 0.0) == 1
    mask = np.roll(mask, 1, axis=1)
    assert game(attribution, mask, 0.9) == 0
    assert game(attribution, mask, 1.0) == 1


def test_of_several_greatest_entries_one_is_taken_at_random_but_always_the_same():
    corners = np.zeros((H, W), np.float32)
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = 1.0
    single = np.eye(H * W, dtype=bool).reshape(-1, H, W)
    hits = jax.jit(jax.vmap(pointing_game, (None, 0)))
    for attribution, tied in ((corners, corners.ravel() > 0), (np.zeros_like(MAP), FULL.ravel())):
        got = np.asarray(hits(attribution, single))
        assert got.sum() == 1
        assert tied[np.argmax(got)]
        np.testing.assert_array_equal(hits(3 * attribution, single), got)
    assert np.argmax(got) not in (0, H * W - 1)  # of a constant map, neither the first nor the last


# Mass


def test_mass_is_the_share_of_the_positive_sum():
    positive = np.maximum(MAP, 0)
    np.testing.assert_allclose(mass(MAP, MASK), positive[MASK].sum() / positive.sum(), rtol=1e-6)
    by_hand = mass(jnp.array([2.0, -50.0, 6.0]), np.array([True, True, False]))
    np.testing.assert_allclose(by_hand, 0.25)


def test_mass_of_known_maps():
    inside, outside = np.where(MASK, 2.0, -1.0), np.where(MASK, -1.0, 2.0)
    np.testing.assert_allclose(mass(inside.astype(np.float32), MASK), 1, rtol=1e-6)
    np.testing.assert_allclose(mass(outside.astype(np.float32), MASK), 0, atol=1e-6)


def test_mass_without_positive_entries_is_the_share_of_the_area():
    for attribution in (0 * MAP, -np.abs(MAP), 0 * MAP + 7):
        np.testing.assert_allclose(mass(attribution, MASK), MASK.mean(), rtol=1e-6)


def test_mass_does_not_depend_on_the_scale():
    for scale in (1e-30, 3.0, 1e38):
        scaled = (MAP * scale).astype(np.float32)
        np.testing.assert_allclose(mass(scaled, MASK), mass(MAP, MASK), rtol=1e-5)


# Ranks


@pytest.mark.parametrize("seed", range(5))
def test_rank_accuracy_is_the_precision_of_the_first_k(seed):
    attribution = np.random.default_rng(seed).standard_normal((H, W)).astype(np.float32)
    first = np.argsort(-attribution.ravel())[: MASK.sum()]
    expected = MASK.ravel()[first].mean()
    np.testing.assert_allclose(rank(attribution, MASK), expected, rtol=1e-6)


def test_rank_accuracy_of_known_maps():
    inside = np.where(MASK, 0.0, -1.0).astype(np.float32)
    np.testing.assert_allclose(rank(inside, MASK), 1)
    np.testing.assert_allclose(rank(-inside, MASK), 0)
    by_hand = rank(jnp.array([9.0, 1.0, 5.0, 0.0, -3.0]), np.arange(5) < 2)
    np.testing.assert_allclose(by_hand, 0.5)


def test_a_constant_map_ranks_like_a_random_one():
    """Not like a map of the upper rows. The standard error is the hypergeometric one."""
    constant = np.zeros((40, 40), np.float32)
    share, error = 0.5, np.sqrt(0.25 * 0.5 / 800)
    for half in (np.s_[:20], np.s_[20:], np.s_[:, :20], np.s_[:, 20:], np.s_[::2]):
        mask = np.zeros((40, 40), bool)
        mask[half] = True
        assert abs(float(rank(constant, mask)) - share) < 4 * error


@pytest.mark.parametrize("attribution", [MAP, TIED, np.sign(MAP)], ids=["map", "tied", "sign"])
def test_auc_is_the_share_of_pairs_won(attribution):
    expected = pairs_won(attribution, MASK)
    np.testing.assert_allclose(auc(attribution, MASK), expected, rtol=1e-6)
    statistic = stats.mannwhitneyu(attribution[MASK], attribution[~MASK]).statistic
    np.testing.assert_allclose(expected, statistic / (MASK.sum() * (~MASK).sum()))
    np.testing.assert_allclose(auc(-attribution, MASK), 1 - expected, rtol=1e-6)
    np.testing.assert_allclose(auc(attribution, ~MASK), 1 - expected, rtol=1e-6)


def test_auc_of_known_maps():
    np.testing.assert_allclose(auc(MASK.astype(np.float32), MASK), 1, rtol=1e-6)
    np.testing.assert_allclose(auc(-MASK.astype(np.float32), MASK), 0, atol=1e-6)
    assert auc(0 * MAP, MASK) == 0.5
    assert auc(0 * MAP - 7, MASK) == 0.5


@pytest.mark.parametrize("metric", [rank, auc], ids=["rank", "auc"])
def test_only_the_order_of_the_entries_counts(metric):
    for monotone in (np.exp, np.arctan, lambda a: 1e-20 * a + 0, lambda a: 5 * a**3):
        assert metric(monotone(MAP).astype(np.float32), MASK) == metric(MAP, MASK)


@pytest.mark.parametrize("size", [20, 75_000, 150_508])
def test_auc_of_a_photo_is_exact_enough_in_float32(size):
    attribution = np.random.default_rng(2).standard_normal(150_528).astype(np.float32)
    mask = np.arange(150_528) < size
    attribution[mask] += 0.5
    ranked = stats.rankdata(attribution)[mask].sum() - size * (size + 1) / 2
    expected = ranked / (size * (150_528 - size))
    np.testing.assert_allclose(auc(attribution, mask), expected, atol=5e-7)


# Masks


def test_an_empty_and_a_full_mask():
    expected = {
        "pointing_game": (0.0, 1.0),
        "relevance_mass_accuracy": (0.0, 1.0),
        "relevance_rank_accuracy": (np.nan, 1.0),
        "roc_auc": (np.nan, np.nan),
    }
    for name, metric in METRICS.items():
        for attribution in (MAP, 0 * MAP):
            got = metric(attribution, EMPTY), metric(attribution, FULL)
            np.testing.assert_allclose(got, expected[name], rtol=1e-6)


@each_metric
def test_nan_gives_nan(metric):
    broken = MAP.copy()
    broken[3, 3] = np.nan
    for mask in (MASK, ~MASK):
        assert np.isnan(metric(broken, mask))


@each_metric
def test_one_mask_fits_maps_with_and_without_channels(metric):
    channels = np.random.default_rng(3).standard_normal((H, W, 3)).astype(np.float32)
    everywhere = np.broadcast_to(MASK[..., None], channels.shape)
    got = metric(channels, MASK)
    np.testing.assert_allclose(got, metric(channels.ravel(), everywhere.ravel()), rtol=1e-6)
    np.testing.assert_allclose(got, metric(channels, everywhere), rtol=1e-6)
    plain = metric(MAP, MASK)
    np.testing.assert_allclose(metric(MAP[..., None], MASK), plain, rtol=1e-6)
    np.testing.assert_allclose(metric(MAP, MASK[..., None]), plain, rtol=1e-6)
    columns = np.arange(W) < 3
    expected = metric(MAP, np.broadcast_to(columns, (H, W)))
    np.testing.assert_allclose(metric(MAP, columns[None]), expected, rtol=1e-6)


@each_metric
@pytest.mark.parametrize("shape", [(W, H), (H,), (H, W, 3), (1, H, W), (W,)])
def test_a_mask_that_does_not_fit_is_an_error(metric, shape):
    if shape == (H,):
        shape = (H - 1,)
    with pytest.raises(ValueError, match=rf"mask of shape .* not like .*\({H}, {W}\)"):
        metric(MAP, np.ones(shape, bool))


@pytest.mark.parametrize("name", METRICS)
def test_masks_of_numbers_are_0_and_1(name):
    """Of others, the values are seen outside `jit`, and inside give NaN."""
    expected = METRICS[name](MAP, MASK)
    for dtype in (np.uint8, np.float32):
        numbers = MASK.astype(dtype)
        assert METRICS[name](MAP, numbers) == expected
        assert np.isnan(METRICS[name](MAP, 255 * numbers))
        for wrong in (255 * numbers, numbers + dtype(1)):
            with pytest.raises(ValueError, match="mask == label"):
                EAGER[name](MAP, wrong)
    holes = np.where(MASK, 1, np.nan).astype(np.float32)
    assert np.isnan(METRICS[name](MAP, holes))
    with pytest.raises(ValueError, match="mask == label"):
        EAGER[name](MAP, holes)


@each_metric
def test_precisions(metric):
    half = jnp.asarray(MAP, jnp.bfloat16)
    got = metric(half, MASK)
    assert got.dtype == jnp.float32
    assert got == metric(half.astype(jnp.float32), MASK)
    whole = np.round(3 * MAP).astype(np.int32)
    assert metric(whole, MASK) == metric(whole.astype(np.float32), MASK)
    plain = metric(MAP, MASK)
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            double = metric(jnp.asarray(MAP, dtype), MASK)
            assert double.dtype == dtype
            np.testing.assert_allclose(double, plain, rtol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_vmap_is_a_loop(name):
    maps, masks = np.stack([MAP, TIED, -MAP]), np.stack([MASK, ~MASK, MASK])
    for batched, axes in (((maps, masks), (0, 0)), ((maps, MASK), (0, None))):
        alone = [METRICS[name](a, masks[i] if axes[1] == 0 else MASK) for i, a in enumerate(maps)]
        got = jax.jit(jax.vmap(EAGER[name], axes))(*batched)
        np.testing.assert_allclose(got, alone, rtol=1e-6)


@each_metric
def test_what_is_no_attribution_is_an_error(metric):
    with pytest.raises(TypeError, match="real numbers"):
        metric(MAP > 0, MASK)


def test_a_negative_tolerance_is_an_error():
    with pytest.raises(ValueError, match=r"tolerance.*-1"):
        pointing_game(MAP, MASK, tolerance=-1)


# Mosaics

GRID = (2, 3)
game = jax.jit(grid_pointing_game, static_argnums=1)


@pytest.mark.parametrize("rest", [(), (3,), (2, 2)])
def test_a_mosaic_shows_its_images_row_by_row(rest):
    images = np.arange(6 * 4 * 5 * int(np.prod(rest))).reshape(6, 4, 5, *rest)
    got = mosaic(images, GRID)
    assert got.shape == (8, 15, *rest)
    assert got.dtype == jnp.asarray(images).dtype
    for i, image in enumerate(images):
        row, column = i // 3, i % 3
        part = got[4 * row : 4 * row + 4, 5 * column : 5 * column + 5]
        np.testing.assert_array_equal(part, image)
        mask = np.zeros((8, 15), bool)
        mask[4 * row : 4 * row + 4, 5 * column : 5 * column + 5] = True
        np.testing.assert_array_equal(cell_mask(got.shape, GRID, i), mask)


def test_grid_pointing_game_is_the_share_of_its_cell():
    images = np.random.default_rng(4).standard_normal((6, 4, 5)).astype(np.float32)
    attribution = mosaic(images, GRID)
    positive = np.maximum(images, 0).sum((1, 2))
    got = jnp.stack([game(attribution, GRID, i) for i in range(6)])
    np.testing.assert_allclose(got, positive / positive.sum(), rtol=1e-5)
    np.testing.assert_allclose(got.sum(), 1, rtol=1e-6)
    for i in (0, 4):
        expected = mass(attribution, cell_mask(attribution.shape, GRID, i))
        np.testing.assert_allclose(got[i], expected, rtol=1e-6)
    traced = jax.jit(jax.vmap(lambda i: grid_pointing_game(attribution, GRID, i)))
    np.testing.assert_allclose(traced(jnp.arange(6)), got, rtol=1e-6)
    assert np.isnan(traced(jnp.array([6, -1]))).all()


def test_grid_pointing_game_counts_channels_as_they_are():
    """Unless they are summed first, as in the paper, opposite channels do not cancel."""
    attribution = jnp.zeros((2, 2, 2)).at[0, 0].set(jnp.array([3.0, -3.0])).at[1, 1, 0].set(1.0)
    np.testing.assert_allclose(game(attribution, (2, 2), 0), 0.75)
    np.testing.assert_allclose(game(attribution.sum(-1), (2, 2), 0), 0.0)


def test_a_map_without_positive_entries_scores_a_cell_as_one_of_several():
    for attribution in (jnp.zeros((4, 9)), jnp.full((4, 9), -2.0), jnp.full((4, 9), 3.0)):
        np.testing.assert_allclose(game(attribution, GRID, 5), 1 / 6, rtol=1e-6)
    assert np.isnan(game(jnp.zeros((4, 9)).at[0, 0].set(jnp.nan), GRID, 5))


def test_the_evidence_for_a_class_is_in_the_cell_that_shows_it(key):
    """Images of class c have channel c, the score of class c is the sum of that channel."""
    labels = np.repeat(np.arange(5), 4)
    images = jax.nn.one_hot(labels, 5)[:, None, None, :] * jnp.ones((1, 5, 6, 1))
    chosen = distinct_classes(key, labels, 4)
    x = mosaic(images[chosen], (2, 2))
    explain = jax.jit(sj.input_times_gradient(lambda params, x, c: jnp.sum(params * x[..., c])))
    for cell, label in enumerate(labels[np.asarray(chosen)]):
        attribution = explain(1.0, x, label)
        shares = [float(game(attribution, (2, 2), i)) for i in range(4)]
        np.testing.assert_allclose(shares, np.eye(4)[cell], atol=1e-6)
        assert pointing(attribution, cell_mask(x.shape, (2, 2), cell)) == 1


def test_integer_dtypes_of_cells():
    attribution = jnp.arange(36.0).reshape(4, 9)
    expected = game(attribution, GRID, 4)
    for dtype in (np.uint8, np.int32):
        assert game(attribution, GRID, jnp.asarray(4, dtype)) == expected
    with jax.enable_x64(True):
        for dtype in (np.int32, np.int64):
            got = grid_pointing_game(attribution, GRID, jnp.asarray(4, dtype))
            np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_distinct_classes_are_distinct_and_random(key):
    """Classes are equally frequent though one has 14 of 20 examples, and examples in their class.

    Frequencies are within 4 standard errors.
    """
    labels = np.array([7] * 14 + [3] * 3 + [5] * 2 + [11])
    keys = jax.random.split(key, 3000)
    draw = jax.jit(jax.vmap(functools.partial(distinct_classes, labels=labels, num=2)))
    indices = np.asarray(draw(keys))
    assert indices.shape == (3000, 2)
    assert indices.dtype == np.int32
    drawn = labels[indices]
    assert (drawn[:, 0] != drawn[:, 1]).all()
    for place in range(2):
        for label in (3, 5, 7, 11):
            here = drawn[:, place] == label
            assert abs(here.mean() - 1 / 4) < 4 * np.sqrt(3 / 16 / 3000)
        for example in np.flatnonzero(labels == 3):
            share = np.mean(indices[:, place][drawn[:, place] == 3] == example)
            assert abs(share - 1 / 3) < 4 * np.sqrt(2 / 9 / 650)
    # The class in one place says nothing of the example in the other.
    together = drawn[:, 0] == 3
    later = indices[together & (drawn[:, 1] == 5), 1] == 17
    assert abs(later.mean() - 1 / 2) < 4 * np.sqrt(1 / 4 / later.size)


def test_distinct_classes_takes_all_if_asked(key):
    labels = np.array([4, 4, 9, 1, 9])
    got = labels[np.asarray(distinct_classes(key, labels, 3))]
    assert sorted(got) == [1, 4, 9]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mosaic(np.ones((5, 2, 2)), (2, 3)), r"\(6, H, W, \.\.\.\).*\(5, 2, 2\)"),
        (lambda: mosaic(np.ones((6, 2)), (2, 3)), r"\(6, 2\)"),
        (lambda: mosaic(np.ones((6, 2, 2)), (1, 2, 3)), "grid must be one number or one for each"),
        (lambda: mosaic(np.ones((6, 2, 2)), (0, 3)), "grid must be at least 1"),
        (lambda: cell_mask((4, 9), (2, 2), 0), "4 x 9 positions .* 2 x 2 cells"),
        (lambda: cell_mask((3, 33, 33), (3, 3), 0), r"Move its channels: jnp\.moveaxis"),
        (lambda: grid_pointing_game(jnp.ones((3, 33, 33)), (3, 3), 0), "channels, H, W"),
        (lambda: grid_pointing_game(np.ones((5, 9)), GRID, 0), "(?s)5 x 9.*in grid_pointing_game"),
        (lambda: grid_pointing_game(np.ones((4, 9)), GRID, 6), "0 to 5; got 6"),
        (lambda: grid_pointing_game(np.ones((4, 9)), GRID, -1), "0 to 5; got -1"),
        (lambda: grid_pointing_game(np.ones((4, 9)), GRID, 1.0), "an int"),
        (lambda: distinct_classes(jax.random.key(0), [1, 1, 2], 3), "2 different classes, not 3"),
    ],
)
def test_wrong_grids_cells_and_labels_are_errors(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_the_examples_of_a_mosaic_do_not_depend_on_its_classes():
    labels = jnp.arange(8) // 2  # four classes of two examples
    keys = jax.random.split(jax.random.key(7), 2000)
    drawn = jax.vmap(lambda key: distinct_classes(key, labels, 1)[0])(keys)
    counts = np.bincount(drawn, minlength=8)
    # Binomial of 2000 and 1/8, each: five standard deviations.
    assert np.all(np.abs(counts - 250) < 5 * np.sqrt(2000 * 7 / 64))
    pair = jax.vmap(lambda key: distinct_classes(key, labels, 2))(keys)
    which = np.asarray(pair % 2)
    for first in range(4):
        chosen = which[np.asarray(pair[:, 0] // 2) == first]
        for place in (0, 1):
            assert abs(np.mean(chosen[:, place]) - 0.5) < 5 * 0.5 / np.sqrt(len(chosen))


def test_a_mosaic_uses_no_key_twice():
    with jax.debug_key_reuse(True):
        distinct_classes(jax.random.key(0), np.arange(8) // 2, 2)
