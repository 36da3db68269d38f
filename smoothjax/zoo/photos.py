"""Photos as arrays: opening files, whatever their mode, and cutting them to a network's size."""

import itertools
import os
import warnings

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 100_000_000
# Side, in pixels, of what is converted at once: converting makes several copies.
TILE = 1024


class PhotoError(ValueError):
    """The photo cannot be used; the message is one line that says why."""


def open_photo(path: str | os.PathLike[str]) -> np.ndarray:
    """Opens a photo file as it is meant to be seen: upright, opaque, 8 bits per channel.

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
            with Image.open(name, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise PhotoError(f"{image.width} x {image.height} pixels are over 100 million")
                ImageOps.exif_transpose(image, in_place=True)
                return _in_tiles(image)
    except Exception as error:  # on damaged files Pillow's decoders raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PhotoError(f"cannot open the photo {name!r}: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to upright RGB, laying transparency on white.

    Args:
      image: a Pillow image.

    Returns:
      An image of mode RGB.

    Raises:
      PhotoError: if the mode does not say what white is, as 32-bit integers and floats do not.
    """
    return _on_white(ImageOps.exif_transpose(image))


def _in_tiles(image: Image.Image) -> np.ndarray:
    width, height = image.size
    photo = np.empty((height, width, 3), np.uint8)
    for left, top in itertools.product(range(0, width, TILE), range(0, height, TILE)):
        right, bottom = min(left + TILE, width), min(top + TILE, height)
        tile = image.crop((left, top, right, bottom))
        photo[top:bottom, left:right] = np.asarray(_on_white(tile))
    return photo


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16 bits to 8 instead of scaling them.
        grey = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise PhotoError(f"its mode {image.mode!r} does not say what white is; save it as 8 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


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
