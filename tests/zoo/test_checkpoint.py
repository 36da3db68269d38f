"""Checkpoints written by hand, as PyTorch's older `torch.save` lays them out, good ones and bad.

`Tensor`, `Storage` and `Name` below pickle to the opcodes that PyTorch would write, so no test
needs it.
"""

import collections
import hashlib
import io
import math
import pickle
import random
import struct
from typing import ClassVar

import numpy as np
import pytest

from smoothjax.zoo import CheckpointError
from smoothjax.zoo.checkpoint import MAX_OPCODES, read_checkpoint

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {
    "protocol_version": PROTOCOL,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 8},
}
ORDERED_DICT = ("collections", "OrderedDict")
REBUILD = ("torch._utils", "_rebuild_tensor_v2")
FLOAT, LONG = ("torch", "FloatStorage"), ("torch", "LongStorage")


class Name:
    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = Name(*function), arguments


class Persistent:
    def __init__(self, *identifier):
        self.identifier = identifier


class Pickler(pickle._Pickler):  # the one in Python, whose dispatch can be extended
    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_name(self, value):
        self.write(b"c" + f"{value.module}\n{value.name}\n".encode())

    def save_call(self, value):
        self.save(value.function)
        self.save(value.arguments)
        self.write(b"R")

    def save_persistent(self, value):
        self.save(value.identifier)
        self.write(b"Q")

    dispatch.update({Name: save_name, Call: save_call, Persistent: save_persistent})


def pickled(value):
    file = io.BytesIO()
    Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def storage(key="0", numel=12, kind=FLOAT, view=None):
    return Persistent("storage", Name(*kind), key, "cpu", numel, view)


def tensor(where=None, offset=0, size=(3, 4), stride=(4, 1), hooks=None):
    hooks = Call(ORDERED_DICT) if hooks is None else hooks
    return Call(REBUILD, where or storage(), offset, size, stride, False, hooks)


VALUES = np.arange(12, dtype="<f4") / 8


def checkpoint(state, contents=None, *, magic=MAGIC, protocol=PROTOCOL, system=SYSTEM, keys=None):
    contents = {"0": VALUES} if contents is None else contents
    parts = [magic, protocol, system, state, list(contents) if keys is None else keys]
    raw = [struct.pack("<q", v.size) + v.tobytes() for v in contents.values()]
    return b"".join([*map(pickled, parts), *raw])


@pytest.fixture
def read(tmp_path):
    def read(data, **options):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return read_checkpoint(path, **options)

    return read


def test_loads_floats_and_integers_in_order(read):
    counter = np.array([7], "<i8")
    state = {
        "weight": tensor(),
        "count": tensor(storage("1", 1, LONG), size=(), stride=()),
    }
    tensors = read(checkpoint(state, {"1": counter, "0": VALUES}))
    assert list(tensors) == ["weight", "count"]
    np.testing.assert_array_equal(tensors["weight"], VALUES.reshape(3, 4))
    assert tensors["weight"].dtype == np.float32
    assert tensors["count"] == 7
    assert tensors["count"].dtype == np.int64


@pytest.mark.parametrize(
    ("offset", "size", "stride", "expected"),
    [
        (0, (4, 3), (1, 4), VALUES.reshape(3, 4).T),
        (5, (2, 2), (4, 1), VALUES.reshape(3, 4)[1:, 1:3]),
        (1, (3,), (4,), VALUES[1::4]),
        (11, (1,), (1,), VALUES[11:]),
        (2, (3, 2), (0, 1), np.tile(VALUES[2:4], (3, 1))),
        (2, (1, 2), (2**62, 1), VALUES[None, 2:4]),
        (12, (0,), (1,), VALUES[:0]),
        (0, (2, 0), (5, 1), np.zeros((2, 0))),
        (3, (), (), VALUES[3]),
    ],
)
def test_strided_tensors(read, offset, size, stride, expected):
    result = read(checkpoint({"w": tensor(offset=offset, size=size, stride=stride)}))["w"]
    np.testing.assert_array_equal(result, expected)
    assert result.flags.c_contiguous
    assert result.flags.writeable


def test_tensors_may_share_a_storage(read):
    tensors = read(checkpoint({"a": tensor(), "b": tensor(size=(2,), stride=(1,))}))
    np.testing.assert_array_equal(tensors["b"], VALUES[:2])
    tensors["b"][:] = -1
    np.testing.assert_array_equal(tensors["a"], VALUES.reshape(3, 4))


def test_module_versions_of_a_state_dict_are_skipped(read):
    class State:
        pass

    def save_state(pickler, _):
        pickler.save(Call(ORDERED_DICT))
        pickler.save("w")
        pickler.save(tensor())
        pickler.write(b"s")
        pickler.save({"_metadata": {"": {"version": 1}}})
        pickler.write(b"b")

    Pickler.dispatch[State] = save_state
    assert list(read(checkpoint(State()))) == ["w"]


def test_digest(read):
    data = checkpoint({"w": tensor()})
    digest = hashlib.sha256(data).hexdigest()
    assert "w" in read(data, sha256=digest)
    with pytest.raises(CheckpointError, match=digest):
        read(data, sha256="0" * 64)


def test_unreadable_paths(tmp_path):
    for path in (tmp_path, tmp_path / "absent.pth", str(tmp_path / "nul\0")):
        with pytest.raises(CheckpointError, match="cannot read"):
            read_checkpoint(path)


LOOP = {}
LOOP["w"] = LOOP
big_endian = {**SYSTEM, "little_endian": False}

refusals = {
    "magic": checkpoint({"w": tensor()}, magic=MAGIC + 1),
    "protocol": checkpoint({"w": tensor()}, protocol=1000),
    "big endian": checkpoint({"w": tensor()}, system=big_endian),
    "endianness not a bool": checkpoint({"w": tensor()}, system={**SYSTEM, "little_endian": 1}),
    "system not a dict": checkpoint({"w": tensor()}, system=[1]),
    "not a dict": checkpoint([tensor()]),
    "a value not a tensor": checkpoint({"w": 1}),
    "a storage as value": checkpoint({"w": storage()}),
    "itself inside": checkpoint(LOOP, {}),
    "key not a string": checkpoint({1: tensor()}),
    "another function": checkpoint({"w": Call(("os", "system"), "true")}),
    "another module's rebuild": checkpoint({"w": Call(("torch", "_rebuild_tensor_v2"), 0)}),
    "OrderedDict with items": checkpoint(Call(ORDERED_DICT, [("w", tensor())])),
    "a storage type called": checkpoint({"w": Call(FLOAT)}),
    "another storage type": checkpoint({"w": tensor(storage(kind=("torch", "HalfStorage")))}),
    "a function as storage type": checkpoint({"w": tensor(storage(kind=REBUILD))}),
    "another persistent id": checkpoint({"w": tensor(Persistent("module", 1))}),
    "persistent id not a tuple": checkpoint({"w": tensor(Persistent())}),
    "storage view": checkpoint({"w": tensor(storage(view=("0", 0, 12)))}),
    "negative storage size": checkpoint({"w": tensor(storage(numel=-1))}),
    "huge storage size": checkpoint({"w": tensor(storage(numel=2**62))}),
    "wrong storage size": checkpoint({"w": tensor(storage(numel=13))}),
    "two sizes of one storage": checkpoint({"a": tensor(), "b": tensor(storage(numel=11))}),
    "two types of one storage": checkpoint({"a": tensor(), "b": tensor(storage(kind=LONG))}),
    "missing storage": checkpoint({"w": tensor()}, {}),
    "unknown storage": checkpoint({"w": tensor()}, {"0": VALUES, "1": VALUES}),
    "storage listed twice": checkpoint({"w": tensor()}, keys=["0", "0"]),
    "storage key not a string": checkpoint({"w": tensor()}, keys=[0]),
    "storage keys not a list": checkpoint({"w": tensor()}, keys="0"),
    "negative offset": checkpoint({"w": tensor(offset=-1)}),
    "offset too large": checkpoint({"w": tensor(offset=1)}),
    "offset a bool": checkpoint({"w": tensor(offset=False)}),
    "negative size": checkpoint({"w": tensor(size=(-3, 4))}),
    "negative stride": checkpoint({"w": tensor(offset=11, size=(3,), stride=(-1,))}),
    "stride too large": checkpoint({"w": tensor(stride=(5, 1))}),
    "fewer strides": checkpoint({"w": tensor(stride=(1,))}),
    "size not a tuple": checkpoint({"w": tensor(size=[3, 4])}),
    "size of floats": checkpoint({"w": tensor(size=("3", 4))}),
    "empty beyond the storage": checkpoint({"w": tensor(offset=13, size=(0,), stride=(1,))}),
    "empty but huge": checkpoint({"w": tensor(size=(0, 2**40, 2**40), stride=(0, 0, 0))}),
    "stride 0 bomb": checkpoint({"w": tensor(size=(2**30,), stride=(0,))}),
    "many views bomb": checkpoint({str(i): tensor(size=(40,), stride=(0,)) for i in range(99)}),
    "too many dimensions": checkpoint({"w": tensor(size=(1,) * 65, stride=(1,) * 65)}),
    "backward hooks": checkpoint({"w": tensor(hooks={"hook": 1})}),
    "hooks not a dict": checkpoint({"w": tensor(hooks=1)}),
    "trailing byte": checkpoint({"w": tensor()}) + b"\0",
    "truncated": checkpoint({"w": tensor()})[:-1],
    "empty": b"",
    "a zip file": b"PK\3\4" + bytes(100),
    "text": b"not a checkpoint",
}


def in_place_of_the_state(opcodes):
    """A checkpoint whose state dict is this program of opcodes."""
    good = checkpoint({"w": tensor()})
    start = sum(len(pickled(part)) for part in (MAGIC, PROTOCOL, SYSTEM))
    return good[:start] + b"\x80\x02" + opcodes + b"." + pickled(["0"]) + good[-56:]


programs = {
    "text with an odd escape": b"S'\\L'\n",
    "unfinished name": b"ccollections\nOrderedDict",
    "giant memo index": b"}r\xff\xff\xff\xff",
    "unset memo": b"h\x07",
    "memo of nothing": b"q\x00",
    "empty stack": b"",
    "two values": b"}}",
    "mark left": b"(}",
    "no mark": b"t",
    "append to a dict": b"}]a",
    "items of no dict": b"](U\x01a]u",
    "odd items": b"}(X\x01\0\0\0au",
    "duplicate key": b"}(X\1\0\0\0aNX\1\0\0\0aNu",
    "same key twice": b"}X\1\0\0\0aNsX\1\0\0\0aNs",
    "unhashable key": b"}]Ns",
    "foreign state": b"}]b",
    "state of nothing": b"}b",
    "call of no name": b"})R",
    "persistent id of text": b"Pstorage\n",
    "giant long": b"\x8b\xff\xff\xff\x7f1",
    "giant string": b"X\xff\xff\xff\x7fa",
    "giant bytes": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa",
    "giant frame": b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    "bad UTF-8": b"X\x02\0\0\0\xff\xff",
    "name not ASCII": b"c\xff\n\xff\n",
    "long decimal": b"I" + b"9" * 5000 + b"\n",
    "protocol 4": b"\x80\x04}",
    "STACK_GLOBAL": b"X\2\0\0\0osX\6\0\0\0system\x93",
    "INST": b"(ios\nsystem\n",
    "OBJ": b"(cos\nsystem\no",
    "NEWOBJ": b"cos\nsystem\n)\x81",
    "EXT1": b"\x82\x01",
    "DUP": b"}2",
    "deep tuple as key": b"}" + b")" + b"\x85" * 200_000 + b"Ns",
    "deep tuple": b")" + b"\x85" * 200_000,
    "deep list": b"]" * 100_000 + b"a" * 99_999,
    "tuple that doubles": b")" + b"q\0h\0\x86" * 200,
    "many marks": b"(" * 200_000,
    "too many opcodes": b"N" * (MAX_OPCODES + 1),
    "very long key": b"}X\x00\x00\x10\0"
    + b"a" * 2**20
    + b"NsX\x00\x00\x10\0"
    + b"a" * 2**20
    + b"Ns",
}
refusals |= {name: in_place_of_the_state(program) for name, program in programs.items()}


@pytest.mark.parametrize("name", refusals)
def test_refuses(read, name):
    with pytest.raises(CheckpointError, match="cannot load the checkpoint") as caught:
        read(refusals[name])
    message = str(caught.value)
    assert len(message) < 600
    assert "\n" not in message


def test_duplicate_keys_are_refused(read):
    item = pickled({"w": tensor()})[5:-2]  # without the protocol, the dict and its memo, s and .
    for program in (b"}" + item + b"s" + item + b"s", b"}(" + item + item + b"u"):
        with pytest.raises(CheckpointError, match="not distinct"):
            read(in_place_of_the_state(program))


def test_the_opcode_harness_itself_is_good(read):
    program = pickled({"w": tensor()})[2:-1]
    assert list(read(in_place_of_the_state(program))) == ["w"]


def test_any_mutation_gives_arrays_or_one_error(read):
    """Changed weights cannot be told from others; everything else must be seen."""
    state = {"w": tensor(size=(4, 3), stride=(1, 4)), "n": tensor(storage("1", 2, LONG), 1, (), ())}
    good = checkpoint(state, {"0": VALUES, "1": np.array([3, 4], "<i8")})
    draw = random.Random(0)
    for _ in range(4000):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            position = draw.randrange(len(data))
            kind = draw.randrange(4)
            if kind == 0:
                data[position] = draw.randrange(256)
            elif kind == 1:
                data[position] ^= 1 << draw.randrange(8)
            elif kind == 2:
                del data[position : position + draw.randint(1, 8)]
            else:
                data[position:position] = draw.randbytes(draw.randint(1, 8))
        try:
            tensors = read(bytes(data))
        except CheckpointError:
            continue
        for value in tensors.values():
            assert value.dtype in (np.float32, np.int64)
            assert math.prod(value.shape) <= 12


def test_every_truncation_is_refused(read):
    good = checkpoint({"w": tensor()})
    for length in range(len(good)):
        with pytest.raises(CheckpointError):
            read(good[:length])


def test_published_order_is_kept_for_ordered_dicts(read):
    state = collections.OrderedDict(b=tensor(), a=tensor())

    def save_ordered(pickler, value):
        pickler.save(Call(ORDERED_DICT))
        for key, item in value.items():
            pickler.save(key)
            pickler.save(item)
            pickler.write(b"s")

    Pickler.dispatch[collections.OrderedDict] = save_ordered
    assert list(read(checkpoint(state))) == ["b", "a"]
