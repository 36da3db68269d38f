"""Reads PyTorch's older checkpoint files (`.pth`, from before the zip format) without PyTorch.

Such a file is five pickles (magic number, protocol, system, the state dict, the storage keys), then
each storage as a 64-bit element count and its raw elements. The pickles run on the small machine
below, which knows just the opcodes and the four names that a state dict needs: nothing in the file
is ever imported or called, and memory stays in proportion to the file.
"""

import hashlib
import io
import math
import os
import pickle  # its opcodes only
from typing import Any, NamedTuple

import numpy as np

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
MAX_FILE_BYTES = 2**30
# One byte of a pickle can make an object of a hundred, so the file's size alone is no bound.
MAX_OPCODES = 2**20
MAX_DIMENSIONS = 32  # what every release of numpy can hold

_ORDERED_DICT = "collections OrderedDict"
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_DTYPES = {"torch FloatStorage": np.dtype("<f4"), "torch LongStorage": np.dtype("<i8")}
_GLOBALS = {_ORDERED_DICT, _REBUILD_TENSOR, *_DTYPES}


class CheckpointError(ValueError):
    """The file is not a checkpoint that this reader accepts; the message says why."""


def read_checkpoint(
    path: str | os.PathLike[str], sha256: str | None = None
) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict that PyTorch saved in its older, non-zip format.

    Args:
      path: the file, at most 1 GiB.
      sha256: hexadecimal digest that the file must have; None accepts any.

    Returns:
      A dict from parameter name to a contiguous float32 or int64 array, in the file's order.

    Raises:
      CheckpointError: if the file cannot be read, has another digest or is not such a state dict,
        whatever is wrong with it.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise CheckpointError(f"cannot read the checkpoint {os.fspath(path)!r}: {error}") from error
    try:
        _require(len(data) <= MAX_FILE_BYTES, f"it is larger than {MAX_FILE_BYTES} bytes")
        digest = hashlib.sha256(data).hexdigest()
        _require(sha256 in (None, digest), f"its SHA-256 is {digest}, but {sha256} is needed")
        return _parse(data)
    except CheckpointError as error:
        problem = str(error)[:200]  # it may quote the file, which may hold strings of any length
        raise CheckpointError(
            f"cannot load the checkpoint {os.fspath(path)!r}: {problem}"
        ) from None


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise CheckpointError(problem)


def _parse(data: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(data)
    storages: dict[str, _Storage] = {}
    for expected in (MAGIC_NUMBER, PROTOCOL_VERSION):
        number = _unpickle(file, {})
        _require(
            type(number) is int and number == expected,
            "it does not begin with PyTorch's magic number and protocol 1001",
        )
    system = _unpickle(file, {})
    _require(
        isinstance(system, dict)
        and system.keys() == {"protocol_version", "little_endian", "type_sizes"}
        and system["protocol_version"] == PROTOCOL_VERSION
        and system["little_endian"] is True,
        "it was not written on a little-endian machine",
    )
    state = _unpickle(file, storages)
    _require(
        isinstance(state, dict) and all(isinstance(value, _Tensor) for value in state.values()),
        "it is not a dict of tensors",
    )
    keys = _unpickle(file, {})
    _require(
        isinstance(keys, list)
        and all(isinstance(key, str) for key in keys)
        and len(set(keys)) == len(keys)
        and set(keys) == storages.keys(),
        "its list of storages is not that of its tensors, each once",
    )
    # Tensors may share a storage, so only their sum says how much memory the copies take.
    _require(sum(map(_nbytes, state.values())) <= len(data), "its tensors are larger than the file")
    contents = {key: _read_storage(file, storages[key]) for key in keys}
    _require(not file.read(1), "bytes follow its last storage")
    return {name: _array(tensor, contents[tensor.storage.key]) for name, tensor in state.items()}


def _nbytes(tensor: _Tensor) -> int:
    # A size of 0 counts as 1, since numpy has to address the other sizes all the same.
    return math.prod(max(length, 1) for length in tensor.size) * tensor.storage.dtype.itemsize


def _read_storage(file: io.BytesIO, storage: _Storage) -> bytes:
    _require(
        file.read(8) == storage.numel.to_bytes(8, "little"),
        f"storage {storage.key!r} does not have the announced size",
    )
    nbytes = storage.numel * storage.dtype.itemsize
    content = file.read(min(nbytes, MAX_FILE_BYTES))
    _require(len(content) == nbytes, f"it ends inside storage {storage.key!r}")
    return content


def _array(tensor: _Tensor, content: bytes) -> np.ndarray:
    dtype = tensor.storage.dtype
    if 0 in tensor.size:
        return np.empty(tensor.size, dtype.newbyteorder("="))
    # Along a dimension of size 1 any stride is legal, even one that numpy cannot hold.
    strides = [
        step * dtype.itemsize if length > 1 else 0
        for length, step in zip(tensor.size, tensor.stride, strict=True)
    ]
    view = np.ndarray(tensor.size, dtype, content, tensor.offset * dtype.itemsize, strides)
    return view.astype(dtype.newbyteorder("="), order="C")


def _unpickle(file: io.BytesIO, storages: dict[str, _Storage]) -> Any:
    """Runs one pickle, up to its STOP, and notes the storages that it names."""
    try:
        return _run(file, storages)
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError) as error:  # bad bytes, an empty stack, no such memo
        raise CheckpointError(f"one of its pickles is damaged: {error!s}") from None


def _run(file: io.BytesIO, storages: dict[str, _Storage]) -> Any:
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks that a mark has set aside
    memo: dict[int, Any] = {}

    for _ in range(MAX_OPCODES):
        match _bytes(file, 1):
            case pickle.PROTO:
                _require(_integer(file, 1) == 2, "one of its pickles is not of protocol 2")
            case pickle.BININT:
                stack.append(_integer(file, 4, signed=True))
            case pickle.BININT1:
                stack.append(_integer(file, 1))
            case pickle.BININT2:
                stack.append(_integer(file, 2))
            case pickle.LONG1:
                stack.append(_integer(file, _integer(file, 1), signed=True))
            case pickle.BINUNICODE:
                stack.append(_bytes(file, _integer(file, 4)).decode("utf-8", "surrogatepass"))
            case pickle.NONE:
                stack.append(None)
            case pickle.NEWTRUE:
                stack.append(True)
            case pickle.NEWFALSE:
                stack.append(False)
            case pickle.EMPTY_DICT:
                stack.append({})
            case pickle.EMPTY_LIST:
                stack.append([])
            case pickle.EMPTY_TUPLE:
                stack.append(())
            case pickle.TUPLE1:
                stack.append((stack.pop(),))
            case pickle.TUPLE2:
                stack.append((stack.pop(), stack.pop())[::-1])
            case pickle.TUPLE3:
                stack.append((stack.pop(), stack.pop(), stack.pop())[::-1])
            case pickle.MARK:
                below.append(stack)
                stack = []
            case pickle.TUPLE:
                values, stack = stack, below.pop()
                stack.append(tuple(values))
            case pickle.APPEND:
                _extend([stack.pop()], stack[-1])
            case pickle.APPENDS:
                values, stack = stack, below.pop()
                _extend(values, stack[-1])
            case pickle.SETITEM:
                value, key = stack.pop(), stack.pop()
                _update([key, value], stack[-1])
            case pickle.SETITEMS:
                values, stack = stack, below.pop()
                _update(values, stack[-1])
            case pickle.BINPUT:
                memo[_integer(file, 1)] = stack[-1]
            case pickle.LONG_BINPUT:
                memo[_integer(file, 4)] = stack[-1]
            case pickle.BINGET:
                stack.append(memo[_integer(file, 1)])
            case pickle.LONG_BINGET:
                stack.append(memo[_integer(file, 4)])
            case pickle.GLOBAL:
                name = f"{_line(file)} {_line(file)}"
                _require(name in _GLOBALS, f"it uses {name!r}, which is not allowed")
                stack.append(_Global(name))
            case pickle.BINPERSID:
                stack.append(_storage(stack.pop(), storages))
            case pickle.REDUCE:
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case pickle.BUILD:  # an OrderedDict's attributes, which hold only module versions
                _require(
                    isinstance(stack.pop(), dict) and isinstance(stack[-1], dict),
                    "an object has an odd state",
                )
            case pickle.STOP:
                _require(len(stack) == 1 and not below, "one of its pickles leaves values over")
                return stack[0]
            case opcode:
                raise CheckpointError(
                    f"its pickles use the opcode {opcode!r}, which is not allowed"
                )
    raise CheckpointError(f"one of its pickles has more than {MAX_OPCODES} opcodes")


def _bytes(file: io.BytesIO, count: int) -> bytes:
    content = file.read(count)
    _require(len(content) == count, "it ends too early")
    return content


def _integer(file: io.BytesIO, count: int, signed: bool = False) -> int:
    return int.from_bytes(_bytes(file, count), "little", signed=signed)


def _line(file: io.BytesIO) -> str:
    return file.readline().decode("ascii").removesuffix("\n")


def _extend(values: list[Any], target: Any) -> None:
    _require(isinstance(target, list), "one of its pickles appends to something else than a list")
    target.extend(values)


def _update(pairs: list[Any], target: Any) -> None:
    keys, values = pairs[::2], pairs[1::2]
    _require(
        isinstance(target, dict)
        and len(keys) == len(values)
        and all(isinstance(key, str) for key in keys)
        and len(set(keys)) == len(keys)
        and target.keys().isdisjoint(keys),
        "one of its pickles fills a dict with keys that are not distinct strings",
    )
    target.update(zip(keys, values, strict=True))


def _call(function: Any, arguments: Any) -> Any:
    _require(isinstance(function, _Global), "one of its pickles calls something else than a name")
    if function.name == _ORDERED_DICT and arguments == ():
        return {}
    _require(function.name == _REBUILD_TENSOR, "one of its pickles builds something odd")
    return _tensor(arguments)


def _storage(identifier: Any, storages: dict[str, _Storage]) -> _Storage:
    match identifier:
        case ("storage", _Global(name), str(key), str(), numel, view) if (
            name in _DTYPES and _is_count(numel)
        ):
            _require(view is None, f"storage {key!r} is a view of another one")
            storage = _Storage(key, _DTYPES[name], numel)
            known = storages.setdefault(key, storage)
            _require(known == storage, f"storage {key!r} has two descriptions")
            return storage
    raise CheckpointError("a storage is damaged")


def _tensor(arguments: Any) -> _Tensor:
    """The arguments of `_rebuild_tensor_v2`, with its bounds checked before any view exists."""
    match arguments:
        case (_Storage() as storage, offset, tuple(size), tuple(stride), bool(), dict(hooks)) if (
            _is_count(offset)
            and len(size) == len(stride) <= MAX_DIMENSIONS
            and all(map(_is_count, size + stride))
            and not hooks
        ):
            last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
            inside = offset <= storage.numel if 0 in size else last < storage.numel
            _require(inside, "a tensor reaches beyond its storage")
            return _Tensor(storage, offset, size, stride)
    raise CheckpointError("a tensor is damaged")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
