import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, features

from smoothjax.zoo import PhotoError, open_photo, photos
from smoothjax.zoo.photos import centre_square, to_rgb

RGB = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def saved(tmp_path, image, extension="png", **options):
    path = tmp_path / f"photo.{extension}"
    image.save(path, **options)
    return path


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "webp", "gif", "jpg"])
def test_formats(tmp_path, extension):
    if extension == "webp" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    flat = np.full((8, 9, 3), (200, 40, 90), np.uint8)
    options = {"lossless": True} if extension == "webp" else {}
    photo = open_photo(saved(tmp_path, Image.fromarray(flat), extension, **options))
    assert photo.shape == (8, 9, 3)
    assert photo.dtype == np.uint8
    np.testing.assert_allclose(photo.astype(int), flat, atol=4 if extension == "jpg" else 0)


def test_rgb_is_exact(tmp_path):
    np.testing.assert_array_equal(open_photo(saved(tmp_path, Image.fromarray(RGB))), RGB)


def test_grey_and_bilevel(tmp_path):
    grey = Image.fromarray(RGB[..., 0])
    np.testing.assert_array_equal(open_photo(saved(tmp_path, grey)), RGB[..., :1].repeat(3, -1))
    photo = open_photo(saved(tmp_path, Image.fromarray(np.eye(4) > 0)))
    np.testing.assert_array_equal(photo[..., 0], np.eye(4) * 255)


def test_palette(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(
        open_photo(saved(tmp_path, image)), np.asarray(image.convert("RGB"))
    )


def test_transparent_palette_lies_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    photo = open_photo(saved(tmp_path, image, transparency=1))
    np.testing.assert_array_equal(photo, [[[255, 0, 0], [255, 255, 255]]])


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, extension):
    levels = np.array([[0, 128, 257, 32768, 65278, 65535]], np.uint16)
    photo = open_photo(saved(tmp_path, Image.fromarray(levels), extension))
    np.testing.assert_array_equal(photo[0, :, 1], [0, 0, 1, 128, 254, 255])


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for extension in ("jpg", "tiff"):
        photo = open_photo(saved(tmp_path, image, extension))
        np.testing.assert_allclose(photo.astype(int), np.full((8, 8, 3), (255, 0, 0)), atol=4)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_lies_on_white(tmp_path, mode):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 51))
    image.putpixel((2, 0), (0, 0, 0, 255))
    photo = open_photo(saved(tmp_path, image.convert(mode)))
    np.testing.assert_array_equal(photo[0, :, 0], [255, 204, 0])


@pytest.mark.parametrize("extension", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation(tmp_path, extension, orientation, turns):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = open_photo(saved(tmp_path, Image.fromarray(pixels), extension, exif=exif))
    np.testing.assert_array_equal(photo > 127, np.rot90(pixels, turns) > 127)


@pytest.mark.parametrize("extension", ["gif", "webp", "png"])
def test_animation_gives_its_first_frame(tmp_path, extension):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if extension == "webp" else {}
    path = saved(tmp_path, frames[0], extension, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(open_photo(path), np.full((4, 4, 3), (255, 0, 0)))


def test_float_pictures_are_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.ones((4, 4), np.float32)), "tiff")
    with pytest.raises(PhotoError, match="does not say what white is"):
        open_photo(path)


def large_bmp_header(width, height):
    """A BMP without pixels: only a reader that decodes first would notice."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "BMP")
    data = bytearray(file.getvalue())
    data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(data)


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    path = tmp_path / "large.bmp"
    path.write_bytes(large_bmp_header(10_001, 10_000))
    with pytest.raises(PhotoError, match="10001 x 10000 pixels are over 100 million"):
        open_photo(path)


def test_ninety_nine_megapixels_are_not_refused_for_their_size(tmp_path):
    path = tmp_path / "large.bmp"
    path.write_bytes(large_bmp_header(9_900, 10_000))
    with pytest.raises(PhotoError, match="truncated"):
        open_photo(path)


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.fromarray(RGB), {}),
        (Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), {}),
        (Image.fromarray(RGB).quantize(16), {"transparency": 3}),
        (Image.fromarray(np.dstack([RGB, RGB[..., 0]])), {}),
    ],
    ids=["RGB", "16 bits", "palette", "RGBA"],
)
def test_tiles_join_without_seams(tmp_path, monkeypatch, image, options):
    path = saved(tmp_path, image, **options)
    whole = open_photo(path)
    monkeypatch.setattr(photos, "TILE", 7)
    np.testing.assert_array_equal(open_photo(path), whole)


def test_a_large_photo_takes_little_more_memory_than_itself(tmp_path):
    path = saved(tmp_path, Image.new("I;16", (4000, 4000), 32768), compress_level=1)
    tracemalloc.start()
    photo = open_photo(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(photo, np.full((4000, 4000, 3), 128, np.uint8))
    assert peak < 2 * photo.nbytes  # at once it would take five times as much


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_what_pillow_only_warns_of_opens_in_silence(tmp_path):
    """Here an animation of no frames; warnings are errors in these tests."""
    path = saved(tmp_path, Image.fromarray(RGB))
    data = path.read_bytes()
    end_of_header = 33
    path.write_bytes(data[:end_of_header] + png_chunk(b"acTL", bytes(8)) + data[end_of_header:])
    np.testing.assert_array_equal(open_photo(path), RGB)


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError("two\n lines"), "two lines"), (MemoryError(), "MemoryError")]
)
def test_whatever_pillow_raises_becomes_one_line(monkeypatch, error, reason):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(PhotoError, match=rf"^cannot open the photo 'cat\.jpg': {reason}$"):
        open_photo("cat.jpg")


def unreadable(kind):
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "ICO" if kind == "another format" else "PNG")
    png = file.getvalue()
    return {
        "empty": b"",
        "text": b"not a photo\n\n",
        "truncated": png[: len(png) // 2],
        "damaged": png[:60] + bytes(40) + png[100:],
        "another format": png,
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "damaged", "another format"])
def test_unreadable_files_are_one_line_that_names_them(tmp_path, kind):
    path = tmp_path / "broken photo.png"
    path.write_bytes(unreadable(kind))
    with pytest.raises(PhotoError, match=r"broken photo\.png") as caught:
        open_photo(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "absent.jpg", tmp_path):
        with pytest.raises(PhotoError, match=path.name):
            open_photo(path)


def test_centre_square_crops_the_middle():
    image = Image.fromarray(RGB)
    np.testing.assert_array_equal(np.asarray(centre_square(image, 12)), RGB[:, 4:16])
    upright = Image.fromarray(RGB.transpose(1, 0, 2))
    np.testing.assert_array_equal(
        np.asarray(centre_square(upright, 12)), RGB[:, 4:16].transpose(1, 0, 2)
    )


def test_centre_square_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(centre_square(Image.fromarray(stripes), 8))
    np.testing.assert_allclose(small.astype(int), 127.5, atol=6)


def test_to_rgb_leaves_its_argument_alone():
    image = Image.new("LA", (2, 2), (10, 20))
    to_rgb(image)
    assert image.mode == "LA"
    assert image.getpixel((0, 0)) == (10, 20)
