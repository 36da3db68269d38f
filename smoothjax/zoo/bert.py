"""BERT in Flax NNX, and the way its weights are called in Hugging Face's files."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Sizes(NamedTuple):
    """The sizes of a BERT: of its vocabulary, longest input, layers, and of each layer."""

    vocabulary: int
    positions: int
    layers: int
    heads: int
    width: int
    hidden: int


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=1e-12, use_fast_variance=False, rngs=rngs)


def _rows(table: nnx.Embed, ids: jax.Array) -> jax.Array:
    """The embeddings, in the table's dtype, which `nnx.Embed` fixes when it is made."""
    return jnp.take(table.embedding[...], ids, axis=0)


class Layer(nnx.Module):
    """A layer of a transformer: attention, then two dense layers, each with a skip and a norm."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        """Initialises the dense layers and the norms."""
        width, hidden = sizes.width, sizes.hidden
        self.heads = sizes.heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.attended = nnx.Linear(width, width, rngs=rngs)
        self.attention_norm = _norm(width, rngs)
        self.expand = nnx.Linear(width, hidden, rngs=rngs)
        self.project = nnx.Linear(hidden, width, rngs=rngs)
        self.norm = _norm(width, rngs)

    def __call__(self, x: jax.Array, keep: jax.Array) -> jax.Array:
        """Returns the activations, (tokens, width), of x; no token sees one that is not kept."""
        query, key, value = (
            layer(x).reshape(len(x), self.heads, -1) for layer in (self.query, self.key, self.value)
        )
        mixed = jax.nn.dot_product_attention(query, key, value, mask=keep[None, None, :])
        x = self.attention_norm(x + self.attended(mixed.reshape(x.shape)))
        expanded = jax.nn.gelu(self.expand(x), approximate=False)
        return self.norm(x + self.project(expanded))


class Bert(nnx.Module):
    """BERT (Devlin et al. 2019, arXiv 1810.04805) of one sentence, whose type is always 0."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs):
        """Initialises the tables of embeddings and the layers."""
        self.word = nnx.Embed(sizes.vocabulary, sizes.width, rngs=rngs)
        self.position = nnx.Embed(sizes.positions, sizes.width, rngs=rngs)
        self.type = nnx.Embed(2, sizes.width, rngs=rngs)
        self.embeddings_norm = _norm(sizes.width, rngs)
        self.layers = nnx.List([Layer(sizes, rngs) for _ in range(sizes.layers)])

    def words(self, ids: jax.Array) -> jax.Array:
        """Returns the embeddings of words, (tokens, width), by their ids; NaN for unknown ones."""
        return _rows(self.word, ids)

    def __call__(self, words: jax.Array, positions: jax.Array, keep: jax.Array) -> jax.Array:
        """Returns the last activations, (tokens, width), of embeddings of words, (tokens, width).

        `positions` are the tokens' places in the sentence, `keep` is False for what nothing sees.
        """
        added = _rows(self.position, positions) + _rows(self.type, jnp.zeros_like(positions))
        x = self.embeddings_norm(words + added.astype(words.dtype))
        for layer in self.layers:
            x = layer(x, keep)
        return x


_LAYERS = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "type": "embeddings.token_type_embeddings",
    "embeddings_norm": "embeddings.LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "project": "output.dense",
    "norm": "output.LayerNorm",
}
_VARIABLES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def from_tensors(
    sizes: Sizes, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], Callable[[Any], Bert]]:
    """Builds the network and fills it with tensors named as Hugging Face's `BertModel` names them.

    Args:
      sizes: of the network.
      tensors: arrays by name; those that the network lacks, such as of a pooler, are left.

    Returns:
      The parameters, and a function from such parameters to the network that has them.

    Raises:
      KeyError: if a tensor is missing.
      ValueError: if one has another shape.
    """

    def tensor(path: tuple[Any, ...], variable: Any) -> jax.Array:
        *prefix, layer, name = [str(entry.key) for entry in path]
        prefix = ["encoder.layer", prefix[1]] if prefix else []
        called = ".".join([*prefix, _LAYERS[layer], _VARIABLES[name]])
        value = tensors[called].T if name == "kernel" else tensors[called]
        if value.shape != variable.shape:
            raise ValueError(f"{called} has shape {value.shape}, not {variable.shape}")
        return jnp.asarray(value)

    # Shapes only: random initial values would be thrown away.
    abstract = nnx.eval_shape(lambda: Bert(sizes, nnx.Rngs(0)))
    graph, params = nnx.split(abstract, nnx.Param)
    params = jax.tree.map_with_path(tensor, nnx.to_pure_dict(params))
    return params, lambda params: nnx.merge(graph, params)
