"""Every kind of image against Pillow, and everything that is no image."""

import io
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from fg_ssl_zoo.data.decode import MAX_PIXELS, decode, max_pixels, read_file
from fg_ssl_zoo.data.sample import CorruptImage

HEIGHT, WIDTH = 48, 64


def smooth_picture() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)


PICTURE = smooth_picture()
RGB = Image.fromarray(PICTURE)
RGBA = Image.fromarray(np.dstack([PICTURE, np.full((HEIGHT, WIDTH), 90, np.uint8)]))


def turned() -> Image.Exif:
    """Of a camera that was turned by a quarter; made anew, as saving AVIF empties it."""
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_pillow(content: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def pnm(image: np.ndarray, most: int) -> bytes:
    """A binary PGM or PPM whose white is `most`."""
    height, width, channels = image.shape
    values = np.round(image / 255 * most).astype(np.uint8 if most < 256 else ">u2")
    header = f"{'P5' if channels == 1 else 'P6'} {width} {height} {most}\n"
    return header.encode() + values.tobytes()


def tiff(values: np.ndarray, *, signed: bool = False) -> bytes:
    """An uncompressed TIFF of (p, h, w) values: one plane, and strip, after another."""
    planes, height, width = values.shape
    size, bits = values[0].nbytes, 8 * values.itemsize
    tags = [(256, width), (257, height), (258, *[bits] * planes), (259, 1)]
    tags += [(262, 2 if planes == 3 else 1), (273, *range(512, 512 + planes * size, size))]
    tags += [(277, planes), (278, height), (279, *[size] * planes), (284, 2 if planes > 1 else 1)]
    tags += [(339, *[2 if signed else 1] * planes)]
    entries, beside = b"", b""
    for tag, *numbers in tags:
        content = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            at = 8 + 2 + 12 * len(tags) + 4 + len(beside)
            beside, content = beside + content, struct.pack("<I", at)
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + content
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + beside
    return head.ljust(512, b"\0") + values.tobytes()


def bmp_of_16_bits(image: np.ndarray) -> bytes:
    """A BMP of 5 bits for each colour, from the lowest row on."""
    red, green, blue = (image[::-1, :, i].astype("<u2") >> 3 for i in range(3))
    rows = (red << 10 | green << 5 | blue).tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, image.shape[1], len(image), 1, 16, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<III", 54 + len(rows), 0, 54) + header + rows


ANIMATION = {"save_all": True, "append_images": [RGB.rotate(180)], "duration": 100}
STILL = {"save_all": True, "append_images": [RGB.rotate(180), RGB], "default_image": True}
KINDS = {
    "jpeg": encoded(RGB, "JPEG", quality=95),
    "progressive": encoded(RGB, "JPEG", progressive=True),
    "grey jpeg": encoded(RGB.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(RGB.convert("CMYK"), "JPEG", quality=95),
    "turned jpeg": encoded(RGB, "JPEG", exif=turned()),
    "trailing bytes": encoded(RGB, "JPEG") + b"camera notes",
    "png": encoded(RGB, "PNG"),
    "turned png": encoded(RGB, "PNG", exif=turned()),
    "palette": encoded(RGB.quantize(64), "PNG"),
    "transparent palette": encoded(RGB.quantize(64), "PNG", transparency=3),
    "one bit": encoded(RGB.convert("1"), "PNG"),
    "alpha": encoded(RGBA, "PNG"),
    "grey alpha": encoded(RGBA.convert("LA"), "PNG"),
    "tiff alpha": encoded(RGBA, "TIFF"),
    "tiff grey alpha": encoded(RGBA.convert("LA"), "TIFF", compression="tiff_lzw"),
    "transparent gif": encoded(RGB.quantize(8), "GIF", transparency=3),
    "webp": encoded(RGB, "WEBP", lossless=True),
    "webp alpha": encoded(RGBA, "WEBP", lossless=True),
    "webp animation": encoded(RGB, "WEBP", lossless=True, **ANIMATION),
    "gif": encoded(RGB, "GIF"),
    "gif animation": encoded(RGB, "GIF", **ANIMATION),
    "bmp": encoded(RGB, "BMP"),
    "tiff": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "cmyk tiff": encoded(RGB.convert("CMYK"), "TIFF"),
    "turned tiff": encoded(RGB, "TIFF", exif=turned()),
    "turned avif": encoded(RGB, "AVIF", exif=turned()),
    "png animation": encoded(RGB, "PNG", **ANIMATION),
    "png animation beside a still": encoded(RGB, "PNG", **STILL),
    "turned webp": encoded(RGB, "WEBP", lossless=True, exif=turned()),
    "tiff of planes": tiff(PICTURE.transpose(2, 0, 1)),
    "bmp of 16 bits": bmp_of_16_bits(PICTURE),
    **{f"pgm to {most}": pnm(PICTURE[..., :1], most) for most in (1, 15, 100)},
    **{f"ppm to {most}": pnm(PICTURE, most) for most in (1, 15, 100, 1023, 4095, 65535)},
    "ppm": encoded(RGB, "PPM"),
    "only pillow reads it": encoded(RGB, "TGA"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_decode_equals_pillow(kind):
    expected = with_pillow(KINDS[kind])
    image = decode(KINDS[kind], kind)
    assert image.shape == expected.shape
    assert image.flags.c_contiguous
    assert np.abs(image.astype(int) - expected).mean() <= 1  # inverse colour tables differ by one


def test_white_stays_white_in_a_bmp_of_16_bits():
    white = np.full((4, 6, 3), 255, np.uint8)
    np.testing.assert_array_equal(decode(bmp_of_16_bits(white), "x"), white)


@pytest.mark.parametrize("most", [1, 100, 255, 256, 1000, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_pgm_and_ppm_are_scaled_by_their_largest_value(kind, most):
    image = PICTURE if kind in ("P3", "P6") else PICTURE[..., :1]  # Pillow would clip grey ones
    content = pnm(image, most)
    values = np.round(image / 255 * most).astype(int)
    if kind in ("P2", "P3"):
        sides = f"{image.shape[1]} {image.shape[0]}"
        content = (
            f"{kind} # of a camera\n{sides}\n{most}\n{' '.join(map(str, values.flat))}\n".encode()
        )
    seen = decode(content, "x")
    assert np.abs(seen - np.broadcast_to(values / most * 255, seen.shape)).max() <= 1


def test_a_large_ppm_of_twelve_bits_is_read_in_less_than_a_second():
    content = b"P6 1000 1000 4095\n" + bytes(6_000_000)
    began = time.process_time()
    assert not decode(content, "x").any()
    assert time.process_time() - began < 1  # Pillow takes five


def test_a_grey_file_of_float_numbers_is_refused():
    with pytest.raises(CorruptImage, match=r"^x: 32 bits per channel"):
        decode(b"Pf\n4 3\n-1.0\n" + np.ones(12, "<f4").tobytes(), "x")


def test_a_turned_picture_is_upright():
    upright = decode(encoded(RGB, "PNG", exif=turned()), "x")
    np.testing.assert_array_equal(upright, np.rot90(PICTURE, -1))


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    content = cv2.imencode(f".{kind}", PICTURE[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode(content, "x"), PICTURE)


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_signed_numbers_are_refused(kind):
    content = tiff(PICTURE.transpose(2, 0, 1)[:1].astype(kind), signed=True)
    with pytest.raises(CorruptImage, match=r"^a\.tif: signed numbers, of unknown range; save it"):
        decode(content, "a.tif")


def test_sixteen_bit_planes_are_scaled_to_eight():
    planes = PICTURE.transpose(2, 0, 1).astype("<u2") * 257
    np.testing.assert_array_equal(decode(tiff(planes), "x"), PICTURE)


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    grey = PICTURE[..., 0].astype(np.uint16) * 257
    content = encoded(Image.fromarray(grey), "PNG")
    for complete in (content, content + b"\0" * 9):  # the second goes through Pillow
        np.testing.assert_array_equal(decode(complete, "x"), PICTURE[..., :1].repeat(3, axis=2))


def chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png_header(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel that ends behind its first few."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(200))
    ends = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + ends


def resized_header(kind: str, side: int) -> bytes:
    """A small image whose header asks for side x side pixels."""
    content, size = bytearray(KINDS[kind]), struct.pack("<HH", side, side)
    if kind == "gif":
        content[6:10] = size
    elif kind == "bmp":
        content[18:26] = struct.pack("<ii", side, side)
    else:  # a JPEG, from the marker of its frame on
        at = content.index(b"\xff\xc2" if kind == "progressive" else b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(content)


HUGE = {
    "png": png_header(40000, 30000),
    "ppm": b"P6 40000 30000 255\n" + bytes(99),
    **{kind: resized_header(kind, 60000) for kind in ("gif", "bmp", "jpeg", "progressive")},
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_header_that_asks_for_too_many_pixels_is_one_unreadable_picture(kind, monkeypatch):
    monkeypatch.delenv(MAX_PIXELS, raising=False)
    monkeypatch.setattr("fg_ssl_zoo.data.decode._memory", lambda: 24 << 30)
    with pytest.raises(CorruptImage, match=r"^a\.x: \d+ x \d+ pixels are more than the 402653184"):
        decode(HUGE[kind], "a.x")


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_an_option_and_counts_every_kind_of_picture(kind, monkeypatch):
    monkeypatch.setenv(MAX_PIXELS, str(HEIGHT * WIDTH))
    decode(KINDS[kind], kind)
    monkeypatch.setenv(MAX_PIXELS, str(HEIGHT * WIDTH - 1))
    with pytest.raises(CorruptImage, match=r"are more than the 3071 that are read here; .* or set"):
        decode(KINDS[kind], kind)


def test_the_bound_follows_the_memory_and_a_wrong_one_is_named(monkeypatch):
    monkeypatch.delenv(MAX_PIXELS, raising=False)
    assert max_pixels() > 10_000_000
    for wrong in ("", "0", "1e9", "-5"):
        monkeypatch.setenv(MAX_PIXELS, wrong)
        with pytest.raises(ValueError, match=rf"^FG_SSL_ZOO_MAX_PIXELS={wrong} is no number of pi"):
            decode(KINDS["png"], "a.png")


def test_a_picture_with_a_side_beyond_opencvs_bound_is_read():
    wide = Image.fromarray((np.arange(1_100_000) % 251).astype(np.uint8)[None])
    seen = decode(encoded(wide, "PNG"), "a.png")
    assert seen.shape == (1, 1_100_000, 3)
    np.testing.assert_array_equal(seen[0, :, 0], np.asarray(wide)[0])


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), MemoryError(), OverflowError("x")])
def test_no_exception_of_a_decoder_comes_out(error, monkeypatch):
    def fails(*_):
        raise error

    monkeypatch.setattr(cv2, "imdecode", fails)
    with pytest.raises(CorruptImage, match=r"^a\.png: (a b|MemoryError|x)$"):
        decode(KINDS["png"], "a.png")


def test_pillows_own_bound_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind, content in KINDS.items():
        decode(content, kind)
    assert Image.MAX_IMAGE_PIXELS == 100


CUT = [
    "jpeg",
    "progressive",
    "grey jpeg",
    "cmyk jpeg",
    "png",
    "alpha",
    "webp",
    "bmp",
    "tiff",
    "tiff of planes",
    "ppm to 100",
    "gif",
]


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_cut_file_is_named(kind, share):
    content = KINDS[kind][: int(share * len(KINDS[kind]))]
    with pytest.raises(CorruptImage, match=r"^birds/a\.x: .+") as error:
        decode(content, "birds/a.x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png"])
def test_blocks_that_were_never_written_are_noticed(kind):
    content = KINDS[kind]
    half = len(content) // 2
    with pytest.raises(CorruptImage):
        decode(content[:half] + b"\0" * (len(content) - half), "x")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\0" * 500, "zeros only"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 99, "HEIC"),
        (b"II*\0" + bytes(99), "a TIFF that is damaged or of a kind that is not read; save it"),
        (b"no image at all", "15 bytes that start with b'no image'"),
        (encoded(Image.fromarray(PICTURE[..., 0].astype(np.float32)), "TIFF"), "32 bits"),
    ],
)
def test_what_is_no_picture_is_named(content, reason):
    with pytest.raises(CorruptImage, match=reason):
        decode(content, "a.jpg")


def test_a_file_beyond_the_memory_is_named(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr("builtins.open", fails)
    with pytest.raises(CorruptImage, match=r"^a\.jpg: the file is larger than the memory$"):
        read_file("a.jpg")


def test_nothing_is_printed(capfd):
    for kind in CUT:
        with pytest.raises(CorruptImage):
            decode(KINDS[kind][: len(KINDS[kind]) // 2], kind)
    assert capfd.readouterr() == ("", "")
