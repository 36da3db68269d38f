"""Photos as arrays: opening files, whatever their mode, and cutting them to a network's size."""

import contextlib
import io
import itertools
import os
import pathlib
import re
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 100_000_000
# Side, in pixels, of what is converted at once: converting makes several copies.
TILE = 1024

# What a file of another format has behind its first eight bytes.
_OTHERS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "HEIC"),
}
# The chunks of a WebP that hold its picture, and the flags of those of its metadata.
_PICTURE, _METADATA = re.compile(rb"VP8[ LX]|ALPH|ANIM|ANMF"), 0x20 | 0x08 | 0x04
_SUFFIXES = (".heic", ".heif", ".avif")  # of what is opened to be refused by name
_SPACES = {"RGB": "RGB ", "RGBA": "RGB ", "CMYK": "CMYK", "L": "GRAY"}


class PhotoError(ValueError):
    """The photo cannot be used; the message is one line that says why."""


def open_photo(path: str | os.PathLike[str]) -> np.ndarray:
    """Opens a photo file as it is meant to be seen: upright, opaque, in the colours of sRGB.

    A colour profile is honoured, and what is broken of a file's metadata ignored. Grey pictures of
    16 bits whose values all stay below 4096 are taken for what cameras and scanners of 12 bits
    save.

    Args:
      path: a JPEG, PNG, WebP, BMP, TIFF or GIF file (its first frame), at most 100 megapixels.

    Returns:
      A uint8 array of shape (H, W, 3).

    Raises:
      PhotoError: if the file is missing, damaged, too large or of another format.
    """
    name = os.fspath(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns of what it can still open, such as odd metadata; MAX_PIXELS bounds sizes.
            warnings.simplefilter("ignore")
            return _first_readable(name)
    except Exception as error:  # on damaged files Pillow's decoders raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PhotoError(f"cannot open the photo {name!r}: {reason}") from error


def photos_in(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the paths of the photos in a folder, in the order of their names.

    Args:
      folder: its path. Folders in it are not looked into, nor hidden files.

    Returns:
      The files whose suffix is that of a photo, also of a format that `open_photo` refuses.
    """
    known = {end for end, name in Image.registered_extensions().items() if name in FORMATS}
    return [
        str(path)
        for path in sorted(pathlib.Path(folder).iterdir())
        if path.suffix.lower() in known.union(_SUFFIXES)
        and not path.name.startswith(".")
        and path.is_file()
    ]


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to upright RGB, laying transparency on white.

    Args:
      image: a Pillow image.

    Returns:
      An image of mode RGB.

    Raises:
      PhotoError: if the mode does not say what white is, as 32-bit integers and floats do not.
    """
    image = image.copy()
    _make_upright(image)
    return _conversion(image)(image)


def _first_readable(name):
    """The pixels of the file, or if it cannot be read, of what is left without its metadata."""
    errors = []
    for source in _sources(name):
        try:
            with Image.open(source, formats=FORMATS) as image:
                return _read(image)
        except PhotoError:
            raise
        except Exception as error:
            errors.append(error)
    raise errors[0]


def _sources(name) -> Iterator[str | io.BytesIO]:
    yield name
    file = pathlib.Path(name)
    start = file.open("rb").read(12) if file.is_file() else b""
    if kind := _OTHERS.get(start[8:]):
        raise PhotoError(
            f"{kind} is not read; save it as PNG: `magick photo.{kind.lower()} photo.png`"
        )
    if start.startswith(b"\x89PNG"):
        data = file.read_bytes()
        for kept in ((b"tRNS", b"eXIf", b"iCCP"), (b"tRNS", b"eXIf"), (b"eXIf",)):
            yield io.BytesIO(_chunks(data, kept))
    if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        yield io.BytesIO(_picture_of_webp(file.read_bytes()))


def _chunks(png, kept):
    """The chunks of a PNG that are not optional, and of those that are, some if they are whole."""
    found, start = [png[:8]], 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        kind, check = png[start + 4 : start + 8], int.from_bytes(png[end - 4 : end])
        is_whole = zlib.crc32(png[start + 4 : end - 4]) == check
        if kind[:1].isupper() or (kind in kept and is_whole):
            found.append(png[start:end])
        start = end
    return b"".join(found)


def _picture_of_webp(webp):
    """A WebP of those chunks of another one that hold its picture."""
    found, start = b"", 12
    while place := _PICTURE.search(webp, start):
        kind, length = place[0], int.from_bytes(webp[place.end() : place.end() + 4], "little")
        start = place.end() + 4 + length + length % 2
        chunk = webp[place.start() : start]
        if kind == b"VP8X":  # whose flags tell of the other chunks
            chunk = chunk[:8] + bytes([chunk[8] & ~_METADATA]) + chunk[9:]
        found += chunk
    return b"RIFF" + (4 + len(found)).to_bytes(4, "little") + b"WEBP" + found


def _read(image):
    if image.width * image.height > MAX_PIXELS:
        raise PhotoError(f"{image.width} x {image.height} pixels are over 100 million")
    sixteen_bits = any("16" in str(tile[-1]) for tile in image.tile)
    _make_upright(image)
    if (
        sixteen_bits
        and image.mode == "RGB"
        and 0 < max(most for _, most in image.getextrema()) < 16
    ):
        raise PhotoError("of its 16 bits a colour uses 12, and Pillow reads 8; save it as 8 bits")
    return _in_tiles(image, _conversion(image))


def _make_upright(image):
    image.load()
    with contextlib.suppress(Exception):  # where the metadata is broken
        ImageOps.exif_transpose(image, in_place=True)


def _in_tiles(image, convert):
    width, height = image.size
    photo = np.empty((height, width, 3), np.uint8)
    for left, top in itertools.product(range(0, width, TILE), range(0, height, TILE)):
        right, bottom = min(left + TILE, width), min(top + TILE, height)
        tile = image.crop((left, top, right, bottom))
        photo[top:bottom, left:right] = np.asarray(convert(tile))
    return photo


def _conversion(image):
    """The function of a tile of the image to RGB."""
    if image.mode in ("I", "F"):
        raise PhotoError(f"its mode {image.mode!r} does not say what white is; save it as 8 bits")
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits to 8 instead of scaling them.
        white = 65535 if np.asarray(image).max() > 4095 else 4095

        def scaled(tile):
            grey = np.asarray(tile).astype(np.uint32)
            grey = Image.fromarray(((grey * 255 + white // 2) // white).astype(np.uint8))
            return grey.convert("RGB")

        return scaled
    to_srgb = _profile_to_srgb(image)
    return lambda tile: _on_white(to_srgb(tile)).convert("RGB")


def _profile_to_srgb(image):
    """What the colour profile does to a tile, or nothing if there is none that can be used."""
    is_rgb = image.mode in ("P", "RGB")
    mode = "RGBA" if image.has_transparency_data else "RGB" if is_rgb else image.mode
    with contextlib.suppress(Exception):  # where the profile is broken
        profile: Any = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        if profile.profile.xcolor_space == _SPACES[mode]:
            srgb = ImageCms.createProfile("sRGB")
            out = "RGBA" if mode == "RGBA" else "RGB"
            to_srgb = ImageCms.buildTransform(profile, srgb, mode, out)
            return lambda tile: to_srgb.apply(tile.convert(mode))
    return lambda tile: tile


def _on_white(image):
    if not image.has_transparency_data:
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA"))


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Crops an image to its central square and resizes that.

    Args:
      image: a Pillow image.
      size: the side to return, in pixels.

    Returns:
      An image of size x size pixels; one that has this size already comes back unchanged.
    """
    # Cropped first, so that a very long photo is never enlarged as a whole.
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BICUBIC)
