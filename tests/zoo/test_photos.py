import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, features

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


def with_chunks(path, *chunks):
    data = path.read_bytes()
    path.write_bytes(data[:33] + b"".join(chunks) + data[33:])
    return path


BROKEN_CHUNKS = {
    "a text of another compression": png_chunk(b"zTXt", b"Comment\0\7" + zlib.compress(b"text")),
    "a text that is a bomb": png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**8))),
    "a text with a wrong checksum": png_chunk(b"tEXt", b"Comment\0text")[:-4] + bytes(4),
    "a profile of another compression": png_chunk(b"iCCP", b"name\0\7" + zlib.compress(b"text")),
    "a resolution cut short": png_chunk(b"pHYs", bytes(3)),
    "a transparency cut short": png_chunk(b"tRNS", bytes(1)),
    "EXIF as a text that is none": png_chunk(b"tEXt", b"Raw profile type exif\0none\nat all"),
}


@pytest.mark.parametrize("name", BROKEN_CHUNKS)
def test_broken_chunks_of_a_png_cost_neither_the_picture_nor_its_orientation(tmp_path, name):
    exif = Image.Exif()
    if "EXIF" not in name:
        exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(RGB), exif=exif)
    photo = open_photo(with_chunks(path, BROKEN_CHUNKS[name]))
    np.testing.assert_array_equal(photo, RGB if "EXIF" in name else np.rot90(RGB, 3))


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("what", ["exif", "icc_profile"])
def test_broken_metadata_are_ignored(tmp_path, extension, what):
    data = {"exif": b"Exif\0\0http://ns.adobe.com/xap/1.0/", "icc_profile": b"no profile at all"}
    if extension == "tiff" and what == "exif":
        pytest.skip("those of a TIFF are its tags")
    options = {"lossless": True} if extension == "webp" else {}
    plain = open_photo(saved(tmp_path, Image.fromarray(RGB), extension, **options))
    path = saved(tmp_path, Image.fromarray(RGB), extension, **options, **{what: data[what]})
    np.testing.assert_array_equal(open_photo(path), plain)


@pytest.mark.parametrize("kind", [b"EXIF", b"XMP ", b"ICCP"])
@pytest.mark.parametrize("length", [0, 5, 10**6, 2**32 - 1])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_lying_chunks_of_a_webp_do_not_cost_the_picture(tmp_path, kind, length, mode):
    """Whether before the picture, as a profile, or behind it."""
    if not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    colours = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    image = Image.fromarray(colours).convert(mode)
    image.putpixel((0, 0), (255,) * 3 + (0,) * (mode == "RGBA"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    about = {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0", "xmp": b"<x/>", "icc_profile": srgb}
    path = saved(tmp_path, image, "webp", lossless=True, **about)
    data, colours[0, 0] = bytearray(path.read_bytes()), 255
    place = data.index(kind) + 4
    data[place : place + 4] = length.to_bytes(4, "little")
    path.write_bytes(data)
    np.testing.assert_array_equal(open_photo(path), colours)


@pytest.mark.parametrize("extension", ["png", "tiff"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_twelve_bits_in_sixteen_are_seen(tmp_path, monkeypatch, extension, order):
    monkeypatch.setattr(photos, "TILE", 2)  # what is white is told by the picture, not by a tile
    levels = np.array([[0, 16, 257, 2048, 4079, 4095]], f"{order}u2")
    photo = open_photo(saved(tmp_path, Image.fromarray(levels), extension))
    np.testing.assert_array_equal(photo[0, :, 1], [0, 1, 16, 128, 254, 255])


def colour_png(levels):
    """A PNG of 16 bits per colour, which Pillow reads but does not write."""
    height, width, _ = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def test_twelve_bits_in_sixteen_per_colour_are_refused_not_black(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(colour_png(RGB.astype(np.uint16) * 257))
    np.testing.assert_array_equal(open_photo(path), RGB)
    path.write_bytes(colour_png(RGB.astype(np.uint16) * 16))
    with pytest.raises(PhotoError, match=r"of its 16 bits a colour uses 12.*save it as 8 bits"):
        open_photo(path)
    path.write_bytes(colour_png(np.zeros((2, 2, 3))))
    np.testing.assert_array_equal(open_photo(path), np.zeros((2, 2, 3)))


def gamma_profile(gamma, space=b"RGB "):
    """A profile with the primaries of sRGB, D50 for white, and another gamma."""
    tags = {b"wtpt": (0.9642, 1.0, 0.8249)}
    if space == b"RGB ":
        tags[b"rXYZ"], tags[b"gXYZ"] = (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708)
        tags[b"bXYZ"] = (0.14307, 0.06061, 0.7141)
    curve = b"curv" + struct.pack(">IIHH", 0, 1, round(256 * gamma), 0)
    curves = (b"rTRC", b"gTRC", b"bTRC") if space == b"RGB " else (b"kTRC",)
    bodies = {
        tag: b"XYZ " + struct.pack(">I3i", 0, *(round(65536 * v) for v in xyz))
        for tag, xyz in tags.items()
    }
    bodies |= dict.fromkeys(curves, curve)
    start, table, data = 132 + 12 * len(bodies), b"", b""
    for tag, body in bodies.items():
        table += tag + struct.pack(">II", start + len(data), len(body))
        data += body
    size = start + len(data)
    header = struct.pack(">I4xI4s4s4s12x4s", size, 0x02400000, b"mntr", space, b"XYZ ", b"acsp")
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(bodies)) + table + data


def of_gamma(values, gamma):
    """What sRGB shows of values under a gamma, worked out."""
    light = (values / 255.0) ** gamma
    return 255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)


@pytest.mark.parametrize("extension", ["png", "tiff", "webp", "jpg"])
def test_colour_profiles_are_honoured(tmp_path, extension):
    flat = np.full((8, 8, 3), (40, 128, 200), np.uint8)
    options = {"lossless": True} if extension == "webp" else {}
    path = saved(
        tmp_path, Image.fromarray(flat), extension, icc_profile=gamma_profile(1.0), **options
    )
    np.testing.assert_allclose(open_photo(path), of_gamma(flat, 1.0), atol=3)


def test_colour_profiles_of_other_modes(tmp_path):
    """Palettes and transparency too; of grey, one of grey; one of another space is none."""
    flat = np.full((4, 4, 3), (40, 128, 200), np.uint8)
    linear, grey = gamma_profile(1.0), gamma_profile(1.0, b"GRAY")
    want = of_gamma(flat, 1.0)
    palette = Image.fromarray(flat).quantize(4)
    np.testing.assert_allclose(open_photo(saved(tmp_path, palette, icc_profile=linear)), want, 0, 3)
    clear = Image.fromarray(np.dstack([flat, np.full((4, 4), 51, np.uint8)]))
    photo = open_photo(saved(tmp_path, clear, icc_profile=linear))
    np.testing.assert_allclose(photo, 0.2 * want + 0.8 * 255, 0, 3)
    mono = Image.fromarray(flat[..., 1])
    photo = open_photo(saved(tmp_path, mono, icc_profile=grey))
    np.testing.assert_allclose(photo, want[..., 1:2].repeat(3, -1), 0, 3)
    photo = open_photo(saved(tmp_path, mono, icc_profile=linear))
    np.testing.assert_array_equal(photo, flat[..., 1:2].repeat(3, -1))


@pytest.mark.parametrize(
    ("brand", "kind"), [(b"heic", "HEIC"), (b"mif1", "HEIC"), (b"avif", "AVIF")]
)
def test_heic_and_avif_are_refused_by_name(tmp_path, brand, kind):
    path = tmp_path / "photo.jpg"  # phones rename them
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(100))
    with pytest.raises(PhotoError, match=rf"{kind} is not read; save it as PNG: `magick"):
        open_photo(path)


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
