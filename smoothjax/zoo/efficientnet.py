"""EfficientNet-Lite in Flax NNX, and the way its weights are called in PyTorch's checkpoint."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from smoothjax.zoo.convolution import convolution, depthwise

NUM_CLASSES = 1000
# Of each stage: blocks, kernel size, stride of its first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280


def _pointwise(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A 1 x 1 convolution, as a product: on a CPU its gradient takes half as long as XLA's."""
    return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, use_running_average=True, epsilon=1e-3, rngs=rngs)


class Conv(nnx.Module):
    """A convolution without bias, of ours, since XLA's are slow on CPUs."""

    def __init__(
        self,
        convolve: Callable[[jax.Array, jax.Array, int], jax.Array],
        shape: tuple[int, int, int, int],
        stride: int,
        rngs: nnx.Rngs,
    ):
        """Initialises a kernel of shape (rows, columns, inputs of each output, outputs)."""
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape))
        self.convolve, self.stride = convolve, stride

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the convolved images, (batch, H / stride, W / stride, outputs)."""
        return self.convolve(images, self.kernel[...].astype(images.dtype), self.stride)


class Block(nnx.Module):
    """An inverted bottleneck: expand the channels, filter each, project them back."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int, expansion: int, rngs: nnx.Rngs
    ):
        """Initialises the layers; with expansion 1 there is nothing to expand."""
        channels = inputs * expansion
        self.has_expand = expansion > 1
        self.has_skip = stride == 1 and inputs == outputs
        if self.has_expand:
            self.expand = _pointwise(inputs, channels, rngs)
            self.expand_norm = _norm(channels, rngs)
        self.depthwise = Conv(depthwise, (size, size, 1, channels), stride, rngs)
        self.depthwise_norm = _norm(channels, rngs)
        self.project = _pointwise(channels, outputs, rngs)
        self.project_norm = _norm(outputs, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the block's activations, (batch, H / stride, W / stride, outputs)."""
        x = images
        if self.has_expand:
            x = jax.nn.relu6(self.expand_norm(self.expand(x)))
        x = jax.nn.relu6(self.depthwise_norm(self.depthwise(x)))
        x = self.project_norm(self.project(x))
        return images + x if self.has_skip else x


class EfficientNetLite(nnx.Module):
    """EfficientNet-Lite (Tan and Le 2019, without squeeze-and-excitation and with ReLU6)."""

    def __init__(self, width: float, depth: float, rngs: nnx.Rngs):
        """Scales the stages' channels by width and their blocks by depth."""
        self.stem = Conv(convolution, (3, 3, 3, STEM_CHANNELS), 2, rngs)
        self.stem_norm = _norm(STEM_CHANNELS, rngs)
        blocks, inputs = [], STEM_CHANNELS
        for number, (repeats, size, stride, expansion, channels) in enumerate(STAGES):
            # The Lite family leaves the first and the last stage as short as they are.
            if 0 < number < len(STAGES) - 1:
                repeats = math.ceil(repeats * depth)
            outputs = _round_channels(channels * width)
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(Block(inputs, outputs, size, step, expansion, rngs))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.head = _pointwise(inputs, HEAD_CHANNELS, rngs)
        self.head_norm = _norm(HEAD_CHANNELS, rngs)
        self.classifier = nnx.Linear(HEAD_CHANNELS, NUM_CLASSES, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """Returns the last activations, (batch, H / 32, W / 32, channels), of (batch, H, W, 3)."""
        x = jax.nn.relu6(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return jax.nn.relu6(self.head_norm(self.head(x)))

    def logits(self, activations: jax.Array) -> jax.Array:
        """Returns the logits, (batch, 1000), of what `features` returns."""
        return self.classifier(activations.mean((1, 2)))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits, (batch, 1000), of images, (batch, H, W, 3)."""
        return self.logits(self.features(images))


def _round_channels(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth smaller."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


_LAYERS = {
    "stem": "_conv_stem",
    "stem_norm": "_bn0",
    "head": "_conv_head",
    "head_norm": "_bn1",
    "classifier": "_fc",
    "expand": "_expand_conv",
    "expand_norm": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_norm": "_bn1",
    "project": "_project_conv",
    "project_norm": "_bn2",
}
_VARIABLES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def from_checkpoint(
    width: float, depth: float, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], Callable[[Any], EfficientNetLite]]:
    """Builds the network and fills it with the tensors of PyTorch's checkpoint.

    Args:
      width: factor on the channels.
      depth: factor on the blocks of a stage.
      tensors: the checkpoint, by PyTorch's names.

    Returns:
      The parameters, and a function from such parameters to the network that has them.

    Raises:
      KeyError: if the checkpoint lacks a tensor.
    """

    def tensor(path: tuple[Any, ...], variable: Any) -> jax.Array:
        *prefix, layer, name = [str(entry.key) for entry in path]
        prefix = [f"_{part}" if part == "blocks" else part for part in prefix]
        value = tensors[".".join([*prefix, _LAYERS[layer], _VARIABLES[name]])]
        # PyTorch keeps (outputs, inputs, rows, columns), Flax (rows, columns, inputs, outputs),
        # and of 1 x 1 convolutions (inputs, outputs).
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        return jax.numpy.asarray(value.reshape(variable.shape))

    # Shapes only: random initial values would be thrown away.
    abstract = nnx.eval_shape(lambda: EfficientNetLite(width, depth, nnx.Rngs(0)))
    graph, params, statistics = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    params, statistics = (
        jax.tree.map_with_path(tensor, nnx.to_pure_dict(state)) for state in (params, statistics)
    )
    return params, lambda params: nnx.merge(graph, params, statistics)
