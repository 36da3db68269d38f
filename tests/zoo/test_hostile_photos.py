"""Damaged and malicious photos: a picture or one line that says why not, in little memory."""

import contextlib
import io
import random
import re
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from smoothjax.zoo import PhotoError, open_photo, photos

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8))
SECOND = Image.fromarray(255 - np.asarray(RGB))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # on its side
EXIF[0x010E] = "a photo"


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


GOOD = {
    "png": saved(RGB, "PNG"),
    "png, 16 bits": saved(Image.fromarray(np.arange(240, dtype=np.uint16).reshape(12, 20)), "PNG"),
    "png, palette": saved(RGB.quantize(16), "PNG", transparency=3),
    "png, alpha and profile": saved(RGB.convert("RGBA"), "PNG", icc_profile=bytes(99), exif=EXIF),
    "png, animated": saved(RGB, "PNG", save_all=True, append_images=[SECOND]),
    "jpeg": saved(RGB, "JPEG", exif=EXIF),
    "jpeg, cmyk": saved(RGB.convert("CMYK"), "JPEG"),
    "jpeg, progressive": saved(RGB, "JPEG", progressive=True),
    "bmp": saved(RGB, "BMP"),
    "bmp, palette": saved(RGB.quantize(16), "BMP"),
    "gif": saved(RGB.quantize(16), "GIF", transparency=3),
    "gif, animated": saved(RGB, "GIF", save_all=True, append_images=[SECOND]),
    "tiff": saved(RGB, "TIFF", exif=EXIF),
    "tiff, deflate": saved(RGB, "TIFF", compression="tiff_deflate"),
    "tiff, jpeg": saved(RGB, "TIFF", compression="jpeg"),
    "tiff, cmyk": saved(RGB.convert("CMYK"), "TIFF", compression="tiff_lzw"),
}
if features.check("webp"):
    GOOD |= {
        "webp": saved(RGB, "WEBP", exif=EXIF),
        "webp, lossless": saved(RGB.convert("RGBA"), "WEBP", lossless=True),
        "webp, animated": saved(RGB, "WEBP", save_all=True, append_images=[SECOND]),
    }
each_good = pytest.mark.parametrize("good", GOOD.values(), ids=GOOD)


@pytest.fixture
def result_of(tmp_path):
    """The picture that a file of these bytes opens as, or the one line that refuses it."""
    path = tmp_path / "photo.jpg"  # whatever it is

    def result_of(data):
        path.write_bytes(data)
        try:
            photo = open_photo(path)
        except PhotoError as error:
            message = str(error)
        else:
            assert photo.dtype == np.uint8
            assert photo.ndim == 3
            assert photo.shape[2] == 3
            assert 0 < photo.size <= 3 * photos.MAX_PIXELS
            return photo
        assert message.startswith(f"cannot open the photo '{path}': ")
        assert "\n" not in message
        assert len(message) < len(str(path)) + 300
        return message

    return result_of


@each_good
def test_the_good_ones_open_under_a_wrong_extension(good, result_of):
    assert sorted(result_of(good).shape) == [3, 12, 20]


@each_good
def test_mutations(good, result_of, monkeypatch):
    """Changed pixels cannot be told from others."""
    # Else some claim millions of pixels, rightly, and take long.
    monkeypatch.setattr(photos, "MAX_PIXELS", 100_000)
    draw = random.Random(0)
    opened = 0
    for _ in range(150):
        data = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            position = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(64)
            kind = draw.randrange(5)
            if kind == 0:
                data[position] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
            elif kind == 1:
                data[position] ^= 1 << draw.randrange(8)
            elif kind == 2:
                del data[position : position + draw.randint(1, 8)]
            elif kind == 3:
                data[position:position] = draw.randbytes(draw.randint(1, 8))
            else:
                data[position : position + 4] = b"\xff\xff\xff\x7f"
        opened += not isinstance(result_of(bytes(data)), str)
    assert opened < 150


@each_good
def test_every_truncation(good, result_of):
    """Metadata may be missing at the end, but half of a picture never passes for one."""
    for length in range(0, len(good), max(len(good) // 100, 1)):
        result = result_of(good[:length])
        assert isinstance(result, str) or length > len(good) // 2


@each_good
def test_two_files_in_one(good, result_of):
    """The second is not looked at, as in a photo with something behind it."""
    for other in GOOD.values():
        np.testing.assert_array_equal(result_of(good + other), result_of(good))


def chunk(kind, data):
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(width, height, *chunks, bits=8, colour=2):
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")])


def bmp(width, height):
    data = bytearray(GOOD["bmp"])
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def gif(width, height):
    data = bytearray(GOOD["gif"])
    start = data.index(b",\0\0\0\0") + 5  # of the size of the first frame
    data[start : start + 4] = data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def jpeg(width, height):
    data = bytearray(GOOD["jpeg"])
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp(width, height):
    """Lossless, whose sizes have 14 bits each."""
    data = bytearray(GOOD["webp, lossless"])
    (bits,) = struct.unpack("<I", data[21:25])
    bits = bits & 0xF0000000 | width - 1 | (height - 1) << 14
    data[21:25] = struct.pack("<I", bits)
    return bytes(data)


def tiff(width, height, **tags):
    """Uncompressed, all of it in one strip that is not there."""
    fields = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    fields |= {279: min(width * height, 2**32 - 1)} | {int(k[1:]): v for k, v in tags.items()}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(fields.items())]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def deflated_zeros(megabytes):
    """A zlib stream of so many zeros, itself a thousandth of that."""
    compressor = zlib.compressobj()
    head = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    segment = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return head + segment * (megabytes - 1) + compressor.flush()


SIZES = [
    (11_000, 10_000),
    (2**16 - 1, 2**16 - 1),
    (2**31 - 1, 2**31 - 1),
    (2**31 - 1, 1),
    (20_000, 20_000),
]
LARGEST = {png: 2**31 - 1, bmp: 2**31 - 1, tiff: 2**31 - 1, gif: 2**16 - 1, jpeg: 2**16 - 1}
LARGEST |= {webp: 2**14} if "webp" in GOOD else {}
TOO_LARGE = {
    f"{make.__name__} of {size}": make(*size)
    for make, largest in LARGEST.items()
    for size in sorted({(min(width, largest), min(height, largest)) for width, height in SIZES})
    if size[0] * size[1] > photos.MAX_PIXELS
}
BOMBS = {
    "png, text": png(8, 8, chunk(b"zTXt", b"k\0\0" + deflated_zeros(1000))),
    "png, international text": png(8, 8, chunk(b"iTXt", b"k\0\1\0\0\0" + deflated_zeros(1000))),
    "png, profile": png(8, 8, chunk(b"iCCP", b"k\0\0" + deflated_zeros(1000))),
    "png, pixels": png(8, 8, chunk(b"IDAT", deflated_zeros(1000))),
    "png, long chunk": png(8, 8)[:33] + b"\x7f\xff\xff\xffIDAT",
    "tiff, count of a tag": tiff(8, 8)[:-4].replace(
        b"\x11\x01\x04\0\x01\0\0\0", b"\x11\x01\x04\0\xff\xff\xff\x3f"
    ),
    "tiff, samples": tiff(8, 8, t277=2**16 - 1),
    "tiff, itself next": tiff(8, 8)[:-4] + struct.pack("<I", 8),
}


@contextlib.contextmanager
def at_most(megabytes):
    """More memory than that, over what the process has by now, is a MemoryError."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.mark.parametrize("name", TOO_LARGE)
def test_too_many_pixels_are_refused_before_decoding(name, result_of):
    with at_most(megabytes=1000):
        result = result_of(TOO_LARGE[name])
    # WebP's reader reserves its canvas first, but does not touch it.
    assert re.search("over 100 million|exceeds limit|could not create decoder", result)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_little_memory(name, result_of):
    with at_most(megabytes=400):
        result = result_of(BOMBS[name])
    if isinstance(result, str):
        assert not result.endswith("MemoryError")
    else:
        assert result.size < 1000


@pytest.mark.parametrize(
    ("mode", "colour", "value"),
    [("I;16", 32768, 128), ("RGBA", (0, 0, 0, 51), 204), ("RGB", (7, 7, 7), 7)],
)
def test_large_photos_take_little_more_than_themselves(mode, colour, value, result_of):
    """As Pillow's pixels they take up to 61 MiB, as the array 46."""
    data = saved(Image.new(mode, (4000, 4000), colour), "PNG", compress_level=1)
    with at_most(megabytes=160):
        result = result_of(data)
    np.testing.assert_array_equal(result, np.full((4000, 4000, 3), value, np.uint8))


@each_good
def test_tiles_join_without_seams(good, result_of, monkeypatch):
    whole = result_of(good)
    monkeypatch.setattr(photos, "TILE", 7)
    np.testing.assert_array_equal(result_of(good), whole)


@pytest.mark.parametrize("make", [png, bmp, gif, jpeg, tiff])
@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 8), (8, 0)])
def test_no_pixels_are_refused(make, width, height, result_of):
    assert isinstance(result_of(make(width, height)), str)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
def test_junk_in_the_metadata_does_no_harm(kind, result_of):
    """Random bytes as EXIF; but where TIFF keeps its own header there, a refusal will do."""
    draw = random.Random(1)
    for _ in range(50):
        data = bytearray(saved(RGB, kind.upper(), exif=EXIF))
        start = data.index(EXIF.tobytes()[6:]) if kind != "tiff" else 8
        for _ in range(10):
            data[start + 8 + draw.randrange(20)] = draw.randrange(256)
        if kind == "png":  # the checksum is right, so that the junk is read
            begin = data.index(b"eXIf") - 4
            (length,) = struct.unpack(">I", data[begin : begin + 4])
            body = bytes(data[begin + 8 : begin + 8 + length])
            data[begin : begin + 12 + length] = chunk(b"eXIf", body)
        result = result_of(bytes(data))
        assert isinstance(result, str) or sorted(result.shape) == [3, 12, 20]


def test_what_pillow_only_warns_of_opens_in_silence(result_of):
    """Here an animation of no frames; warnings are errors in these tests."""
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    broken = png(8, 8, chunk(b"acTL", bytes(8)), pixels)
    np.testing.assert_array_equal(result_of(broken), np.zeros((8, 8, 3)))


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 10_000, b"\xff\xd8\xff", b"GIF89a", b"RIFF"])
def test_stumps(data, result_of):
    assert isinstance(result_of(data), str)
