"""A transformer whose weights are divided over devices, for tpu.py and the tests."""

import jax
from flax import nnx

import smoothjax as sj

# As Shoeybi et al. 2019 (Megatron-LM) divide them: heads and hidden units, each on one device.
_INIT = nnx.initializers.lecun_normal()
BY_OUTPUT = nnx.with_partitioning(_INIT, (None, "model"))
BY_INPUT = nnx.with_partitioning(_INIT, ("model",))

where = sj.by_path(lambda path: "embedding" not in path)


class Block(nnx.Module):
    """Attention, then two layers, each with a norm before it and a skip around it."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        """Initialises the weights, which are divided if a mesh with an axis "model" is set."""
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(
            heads,
            width,
            use_bias=False,
            decode=False,
            kernel_init=BY_OUTPUT,
            out_kernel_init=BY_INPUT,
            rngs=rngs,
        )
        self.up = nnx.Linear(width, 4 * width, use_bias=False, kernel_init=BY_OUTPUT, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, use_bias=False, kernel_init=BY_INPUT, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the activations, (length, width), of activations of that shape."""
        x = x + self.attention(self.norms[0](x))
        return x + self.down(jax.nn.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    """Logits of a sequence of embedded tokens."""

    def __init__(
        self, layers: int, width: int, heads: int, length: int, classes: int, rngs: nnx.Rngs
    ):
        """Initialises the embeddings of positions, the blocks and the classifier."""
        self.positions = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs) for _ in range(layers)])
        self.classifier = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits, (classes,), of embedded tokens, (length, width)."""
        x = x + self.positions.embedding[...]
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean(0))


def as_function(model: Transformer):
    """Returns `score(params, x, label)`, and the params, which are divided as the model is."""
    graph, params = nnx.split(model)

    def score(params, x, label):
        return nnx.merge(graph, params)(x)[label]

    return score, params
