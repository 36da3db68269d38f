import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax.calibrate import ChunkCost, ChunkTuning, tune_chunk_size

X = jnp.arange(1000.0)


def outer(chunk_size):
    """A function whose result has `chunk_size` thousand numbers."""
    return lambda x: jnp.arange(1.0, chunk_size + 1)[:, None] * x[None]


def test_the_best_is_the_fastest_of_the_table():
    tuning = tune_chunk_size(outer, X, candidates=(4, 1, 2))
    assert [row.chunk_size for row in tuning.table] == [4, 1, 2]
    assert all(0 < row.seconds < np.inf for row in tuning.table)
    assert tuning.best == min(tuning.table, key=lambda row: row.seconds).chunk_size


def test_a_model_may_hold_functions():
    """As the modules of Equinox do, whose activations are leaves."""
    model = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    assert not all(map(eqx.is_array, jax.tree.leaves(model)))
    explain = sj.saliency(lambda model, x: model(x)[0])

    def build(chunk_size):
        return sj.smoothgrad(explain, num_samples=4, chunk_size=chunk_size)

    arguments = jax.random.key(1), model, jnp.ones(4)
    tuning = tune_chunk_size(build, *arguments, candidates=(1, 4), repeats=1)
    assert [row.chunk_size for row in tuning.table] == [1, 4]


def test_the_median_of_calls_in_turn_decides(monkeypatch):
    """By a clock of our own: which calls are timed, in which order, and what is made of it."""
    called = []

    def build(chunk_size):
        def function(x):
            jax.debug.callback(lambda: called.append(chunk_size))
            return x

        return function

    # Of chunk 1: 2, 2, 2.1. Of chunk 2: 1, 3, 3.1, the least minimum. The warm-ups come first.
    seconds = iter([9.0, 9.0, 2.0, 1.0, 2.0, 3.0, 2.1, 1.9 + 1.2])
    now = [0.0]

    def clock():
        starting = clock.calls % 2 == 0
        clock.calls += 1
        if not starting:
            now[0] += next(seconds)
        return now[0]

    clock.calls = 0
    monkeypatch.setattr("smoothjax.calibrate.chunk_size.time.perf_counter", clock)
    tuning = tune_chunk_size(build, X, candidates=(1, 2), repeats=3)
    jax.effects_barrier()
    assert called == [1, 2] * 4
    np.testing.assert_allclose([row.seconds for row in tuning.table], [2.0, 3.0])
    assert tuning.best == 1


def test_bytes_are_of_the_result_and_of_what_lies_between():
    tuning = tune_chunk_size(outer, X, candidates=(1, 8))
    small, large = (row.bytes for row in tuning.table)
    assert large - small == pytest.approx(7 * 1000 * X.itemsize, rel=0.05)

    def through_a_matrix(chunk_size):
        def function(x):
            return jnp.sum(jnp.sort(outer(chunk_size)(x), axis=0)[0])

        return function

    (row,) = tune_chunk_size(through_a_matrix, X, candidates=(64,)).table
    assert row.bytes >= 64 * 1000 * X.itemsize


def test_candidates_over_the_memory_limit_are_not_run():
    ran = []

    def build(chunk_size):
        def function(x):
            jax.debug.callback(lambda: ran.append(chunk_size))
            return outer(chunk_size)(x)

        return function

    needs = [row.bytes for row in tune_chunk_size(build, X, candidates=(1, 2, 4)).table]
    ran.clear()
    tuning = tune_chunk_size(build, X, candidates=(1, 2, 4), memory_limit=needs[1])
    jax.effects_barrier()
    assert set(ran) == {1, 2}
    assert [np.isinf(row.seconds) for row in tuning.table] == [False, False, True]
    assert [row.bytes for row in tuning.table] == needs
    assert tuning.best in (1, 2)
    with pytest.raises(ValueError, match=r"no candidate fits into 100.0 bytes; they need \{2: "):
        tune_chunk_size(build, X, candidates=(2, 4), memory_limit=100)


def test_candidates_that_the_device_has_no_memory_for_are_skipped():
    too_many = 10**12
    tuning = tune_chunk_size(outer, X, candidates=(1, too_many))
    assert tuning.best == 1
    assert np.isinf(tuning.table[1].seconds)
    assert tuning.table[1].bytes > 4000 * (too_many - 1)


def test_other_errors_are_not_taken_for_lack_of_memory():
    def fail(x):
        raise RuntimeError("broken")

    def build(chunk_size):
        return lambda x: jax.pure_callback(fail, x, x)

    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        tune_chunk_size(build, X, candidates=(1,))


def test_each_candidate_is_traced_once():
    traced = []

    def build(chunk_size):
        def function(x):
            traced.append(chunk_size)
            return x

        return function

    tune_chunk_size(build, X, candidates=(1, 2))
    assert traced == [1, 2]


def test_it_tunes_a_transform():
    explain = jax.grad(lambda params, x: jnp.sum(params * x**2), argnums=1)
    arguments = (jax.random.key(0), jnp.ones(50), jnp.ones(50))

    def build(chunk_size):
        return sj.smoothgrad(explain, 0.1, num_samples=8, chunk_size=chunk_size)

    tuning = tune_chunk_size(build, *arguments, candidates=(1, 8))
    one, eight = (row.bytes for row in tuning.table)
    assert eight > one + 7 * 50 * 4


def test_the_table_reads_well():
    tuning = ChunkTuning(
        2,
        (
            ChunkCost(1, 0.25, 1_000_000),
            ChunkCost(2, 0.125, np.nan),
            ChunkCost(4, np.inf, 4_000_000),
        ),
    )
    assert str(tuning).splitlines() == [
        "chunk_size     seconds        MB",
        "         1        0.25       1.0",
        "         2       0.125       nan  best",
        "         4   too large       4.0",
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"candidates": ()}, ValueError, "no candidate"),
        ({"candidates": (0, 1)}, ValueError, "each of candidates must be at least 1; got 0"),
        ({"candidates": (1.5,)}, TypeError, "each of candidates must be a Python int"),
        (
            {"memory_limit": "1 GB"},
            TypeError,
            "memory_limit must be a number; got '1 GB'",
        ),
        ({"memory_limit": 0}, ValueError, "memory_limit must be above 0; got 0"),
        ({"repeats": 0}, ValueError, "repeats must be at least 1; got 0"),
    ],
)
def test_bad_settings_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        tune_chunk_size(**{"build": outer, "candidates": (1,), **options})


@pytest.mark.parametrize("progress", [True, False])
def test_bars_of_both_loops(progress, capsys):
    tune_chunk_size(outer, X, candidates=(1, 2), repeats=3, progress=progress)
    shown = capsys.readouterr().err
    assert ("compile: 100%" in shown) == ("2/2" in shown) == progress
    assert ("time: 100%" in shown) == ("3/3" in shown) == progress
