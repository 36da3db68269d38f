"""Reads PyTorch's older checkpoint files (`.pth`, from before the zip format) without PyTorch.

Such a file is five pickles (magic number, protocol, system, the state dict, the storages' keys),
then each storage as a 64-bit element count and its raw elements. Unpickling can run any code, so
nothing is unpickled before the file's digest is the one that the caller knows.
"""

import collections
import hashlib
import io
import os
import pathlib
import pickle
from typing import Any

import numpy as np


class CheckpointError(ValueError):
    """The file is not the checkpoint that is needed; the message says why."""


def read_checkpoint(path: str | os.PathLike[str], sha256: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict that PyTorch saved in its older, non-zip format.

    Args:
      path: the file.
      sha256: hexadecimal digest that the file must have.

    Returns:
      A dict from parameter name to a float32 or int64 array, in the file's order and with its
      strides; tensors that share a storage share memory.

    Raises:
      CheckpointError: if the file cannot be read or has another digest; if it has that digest but
        ends inside a storage or names anything else than such a state dict needs.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint '{path}': {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise CheckpointError(
            f"the checkpoint '{path}' is not the one needed: its SHA-256 is {digest}, not {sha256}"
        )
    file = io.BytesIO(data)
    unpickler = _Unpickler(file)
    _magic, _protocol, _system, tensors, keys = (unpickler.load() for _ in range(5))
    for key in keys:
        storage = unpickler.storages[key]
        file.seek(8, io.SEEK_CUR)  # its element count, which the state dict has told
        if file.readinto(storage.data) < storage.nbytes:
            raise CheckpointError(f"the checkpoint '{path}' ends inside storage {key!r}")
    return tensors


def _tensor(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """The view of its storage that `torch._utils._rebuild_tensor_v2` makes."""
    strides = [step * storage.itemsize for step in stride]
    return np.ndarray(size, storage.dtype, storage, offset * storage.itemsize, strides)


_NAMES = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):
    """Unpickles a state dict whose tensors are views of `storages`, which are yet to be filled."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise CheckpointError(f"a checkpoint must not name {module}.{name}")
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _device, numel, _view = pid
        return self.storages.setdefault(key, np.empty(numel, dtype))
