"""Networks of Flax that tests of methods on programs share: score(params, x), params, x."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

IMAGE = jnp.asarray(np.random.default_rng(3).normal(size=(8, 8, 3)), jnp.float32)


def vision_transformer():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm1, self.norm2 = nnx.LayerNorm(8, rngs=rngs), nnx.RMSNorm(8, rngs=rngs)
            self.attend = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.wide, self.narrow = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)

        def __call__(self, x):
            x = x + self.attend(self.norm1(x))
            return x + self.narrow(nnx.gelu(self.wide(self.norm2(x))))

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.patches = nnx.Conv(3, 8, (4, 4), strides=4, rngs=rngs)
            self.places = nnx.Param(0.1 * jax.random.normal(rngs.params(), (4, 8)))
            self.blocks = nnx.List([Block(rngs), Block(rngs)])
            self.head = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            x = self.patches(x[None])[0].reshape(4, 8) + self.places
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean(0))

    graph, params = nnx.split(Network(nnx.Rngs(0)))
    return lambda params, x: nnx.merge(graph, params)(x)[1], params, IMAGE


def lstm():
    class Network(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(3)(linen.RNN(linen.OptimizedLSTMCell(5))(x)[-1])

    model = Network()
    x = IMAGE.reshape(8, 24)
    params = model.init(jax.random.key(0), x)
    return lambda params, x: model.apply(params, x)[1], params, x
