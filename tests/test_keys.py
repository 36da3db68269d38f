"""Every draw, leaf and level of nesting has a random stream of its own."""

import jax
import jax.numpy as jnp
import numpy as np

import smoothjax as sj
from smoothjax import reductions

PARAMS = {"a": jnp.ones((3, 5)), "b": jnp.ones(5), "c": jnp.ones(5), "step": 3}
X = {"image": jnp.linspace(-1.0, 1.0, 5), "depth": jnp.linspace(0.0, 1.0, 5)}
WHERE = {"a": True, "b": False, "c": True, "step": False}


def test_no_key_is_used_twice(key):
    """All keys of a nested, chunked, masked FusionGrad around a stochastic explainer."""
    used = []

    def note(level, key):
        jax.debug.callback(
            lambda data: used.append((level, *np.asarray(data).tolist())), jax.random.key_data(key)
        )

    def sampler(level):
        def sample(key, shape, dtype):
            note(level, key)
            return jax.random.normal(key, shape, dtype)

        return sample

    @sj.stochastic
    def explain(key, params, x):
        note("explainer", key)
        return x["image"] * params["a"][0] + x["depth"]

    inner = sj.smoothgrad(explain, 0.1, num_samples=5, chunk_size=2, sampler=sampler("inputs"))
    outer = sj.noisegrad(
        inner, 0.1, num_samples=7, chunk_size=3, where=WHERE, sampler=sampler("weights")
    )
    jax.block_until_ready(outer(key, PARAMS, X))
    jax.effects_barrier()
    levels = [level for level, *_ in used]
    assert levels.count("weights") == 7 * 2  # two leaves are selected
    assert levels.count("inputs") == 7 * 5 * 2
    assert levels.count("explainer") == 7 * 5
    assert len({tuple(data) for _, *data in used}) == len(used)


def test_leaves_draws_and_levels_are_uncorrelated(key):
    n = 4000
    see = sj.smoothgrad(
        lambda params, x: (params["b"], params["c"], x["image"], x["depth"]),
        1.0,
        num_samples=2,
        chunk_size=1,
        reduction=reductions.stack(),
    )
    seen = sj.noisegrad(
        see, 1.0, num_samples=n, where={**WHERE, "b": True}, reduction=reductions.stack(),
        chunk_size=n,
    )(key, PARAMS, X)  # fmt: skip
    b, c, image, depth = seen  # each (n, 2, 5)
    rows = [
        *(leaf[:, 0] for leaf in (b, c)),
        *(leaf[:, draw] for leaf in (image, depth) for draw in (0, 1)),
    ]
    streams = np.concatenate([np.asarray(row) for row in rows], axis=1)  # (n, 6 * 5)
    correlation = np.corrcoef(streams.T)
    off_diagonal = np.abs(correlation - np.eye(len(correlation)))
    # The largest of 435 pairs: 5 standard errors have a chance of 2e-4.
    assert off_diagonal.max() < 5 / np.sqrt(n)
    lagged = np.array([np.corrcoef(s[1:], s[:-1])[0, 1] for s in streams.T])
    assert np.abs(lagged).max() < 5 / np.sqrt(n)
