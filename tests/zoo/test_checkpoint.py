"""Checkpoints laid out as PyTorch's older `torch.save` does, and written without it."""

import collections
import hashlib
import io
import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest

from smoothjax.zoo import CheckpointError
from smoothjax.zoo.checkpoint import read_checkpoint

FLOATS, COUNT = np.arange(12, dtype="<f4") / 8, np.array([7], "<i8")


class Name(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Name
    arguments: tuple[Any, ...]


class Storage(NamedTuple):
    kind: Name
    key: str
    numel: int


FLOAT_STORAGE = Storage(Name("torch", "FloatStorage"), "0", 12)
LONG_STORAGE = Storage(Name("torch", "LongStorage"), "1", 1)


class Pickler(pickle._Pickler):  # the one in Python, whose `save` can be extended
    """Writes names, calls and storages as if PyTorch were here to name them."""

    def save(self, value, save_persistent_id=True):
        match value:
            case Name(module, name):
                self.write(f"c{module}\n{name}\n".encode())
            case Call(function, arguments):
                self.save(function)
                self.save(arguments)
                self.write(pickle.REDUCE)
            case _:
                super().save(value, save_persistent_id)

    def persistent_id(self, value):
        match value:
            case Storage(kind, key, numel):
                return "storage", kind, key, "cpu", numel, None


def tensor(storage, offset, size, stride):
    arguments = storage, offset, size, stride, False, collections.OrderedDict()
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), arguments)


def checkpoint(**state):
    state = collections.OrderedDict(state)
    state._metadata = {"": {"version": 1}}  # as a module's state dict has
    file = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, state, ["0", "1"]):
        Pickler(file, protocol=2).dump(value)
    for values in (FLOATS, COUNT):
        file.write(values.size.to_bytes(8, "little") + values.tobytes())
    return file.getvalue()


GOOD = checkpoint(
    count=tensor(LONG_STORAGE, 0, (), ()),
    columns=tensor(FLOAT_STORAGE, 0, (3, 4), (1, 3)),
    part=tensor(FLOAT_STORAGE, 5, (2, 3), (4, 1)),
)


@pytest.fixture
def read(tmp_path):
    def read(data, sha256=None):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return read_checkpoint(path, sha256 or hashlib.sha256(data).hexdigest())

    return read


def test_dtype_shape_strides_and_values(read):
    tensors = read(GOOD)
    expected = {
        "count": COUNT[0],
        "columns": FLOATS.reshape(4, 3).T,
        "part": FLOATS.reshape(3, 4)[1:, 1:],
    }
    assert list(tensors) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(tensors[name], values)
        assert tensors[name].dtype == values.dtype
        assert tensors[name].shape == values.shape
        assert tensors[name].strides == values.strides


def test_a_tensor_stays_inside_its_storage(read):
    with pytest.raises(ValueError, match="strides"):
        read(checkpoint(w=tensor(FLOAT_STORAGE, 1, (3, 4), (4, 1))))


def test_another_digest_is_refused_and_nothing_is_unpickled(read):
    changed = bytearray(GOOD)
    changed[-1] ^= 1
    foreign = checkpoint(w=Call(Name("os", "getcwd"), ()))
    for data in (bytes(changed), GOOD[:-1], foreign, b""):
        with pytest.raises(CheckpointError, match="SHA-256"):
            read(data, hashlib.sha256(GOOD).hexdigest())


@pytest.mark.parametrize(
    "name",
    [
        ("os", "getcwd"),
        ("collections", "Counter"),
        ("torch", "OrderedDict"),
        ("torch", "HalfStorage"),
        ("torch._utils", "_rebuild_tensor"),
    ],
)
def test_a_fifth_name_is_refused(read, name):
    with pytest.raises(CheckpointError, match="must not name " + ".".join(name)):
        read(checkpoint(w=Call(Name(*name), ())))


def test_a_truncated_file_is_refused_even_under_its_own_digest(read):
    with pytest.raises(CheckpointError, match="ends inside storage '1'"):
        read(GOOD[:-1])
    for length in range(len(GOOD)):
        with pytest.raises((CheckpointError, EOFError, pickle.UnpicklingError)):
            read(GOOD[:length])


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(CheckpointError, match=f"cannot read the checkpoint '{path}'"):
            read_checkpoint(path, "0" * 64)
