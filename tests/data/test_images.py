import logging
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from regnet.data.images import decode_image, open_image
from regnet.errors import ImageError
from tests.marks import posix


def save(path, image, **options):
    image.save(path, **options)
    return path


def pixel(path):
    image = open_image(path)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert open_image(save(tmp_path / "a.jpg", image, exif=exif)).size == (10, 20)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 255), (0, 0, 0)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (10, 255), (10, 10, 10)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 100, (100, 100, 100)),
    ],
)
def test_png_files_of_every_mode_become_rgb(tmp_path, mode, colour, expected):
    path = save(tmp_path / "a.png", Image.new(mode, (4, 4), colour))
    assert pixel(path) == expected


def test_palette_and_its_transparency(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 40, 50, 60])
    assert pixel(save(tmp_path / "a.png", image)) == (40, 50, 60)
    assert pixel(save(tmp_path / "b.png", image, transparency=1)) == (255, 255, 255)


def test_cmyk_images_become_rgb(tmp_path):
    assert pixel(save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 0)))) == (255,) * 3


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (np.float32, 0.2, 51),
        (np.float32, 1.0001, 255),
        (np.float32, float("nan"), 0),
        (np.uint16, 65535, 255),
        (np.uint16, 99, 0),
    ],
)
def test_32_bit_grayscale(tmp_path, dtype, value, expected):
    image = Image.fromarray(np.full((4, 4), value, dtype=dtype))
    assert pixel(save(tmp_path / "a.tif", image)) == (expected,) * 3


@pytest.mark.parametrize(("dtype", "value"), [(np.float32, 80), (np.int32, 65535), (np.int32, 9)])
def test_32_bit_images_need_a_range(tmp_path, dtype, value):
    image = Image.fromarray(np.full((4, 4), value, dtype=dtype))
    with pytest.raises(
        ImageError, match="does not say which value is white; save it with 8 or 16 bits"
    ):
        pixel(save(tmp_path / "a.tif", image))
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[340], info[341] = 0.0, 2.0 * value
    assert pixel(save(tmp_path / "b.tif", image, tiffinfo=info)) == (128,) * 3


def test_one_bright_pixel_changes_no_other(tmp_path):
    values = np.full((16, 16), 0.5, dtype=np.float32)
    values[3, 3] = 1.2
    image = open_image(save(tmp_path / "a.tif", Image.fromarray(values)))
    assert image.getpixel((0, 0)) == (128, 128, 128)
    assert image.getpixel((3, 3)) == (255, 255, 255)


def test_pillow_images_are_converted_too():
    assert open_image(Image.new("LA", (3, 3), (0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_transparent_gray_of_16_bits(tmp_path):
    path = save(tmp_path / "a.png", Image.new("I;16", (4, 4), 257 * 9), transparency=257 * 9)
    assert pixel(path) == (255, 255, 255)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 3, 3)), "must be a path or a Pillow image, got ndarray"),
        (Image.new("RGB", (0, 5)), "an image must have pixels, but its size is 0 x 5"),
        (Image.fromarray(np.full((4, 4), 1e9, dtype=np.float32)), "gray values run from 1e"),
    ],
)
def test_unusable_images_are_refused(source, message):
    with pytest.raises(ImageError, match=message):
        open_image(source)


def test_a_pillow_image_that_fails_to_load_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image, pytest.raises(ImageError, match=str(path)):
        open_image(image)


def bomb(path, side, color=2, depth=8):
    """Return a valid PNG header that announces side x side pixels, in RGB or of another kind."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 64)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("side", "color", "depth"),
    [(10_000, 2, 8), (60_000, 2, 8), (7_000, 6, 8), (7_000, 4, 16), (8_000, 0, 16)],
)
def test_a_decompression_bomb_is_refused(tmp_path, side, color, depth):
    with pytest.raises(ImageError, match=r"safely takes too much memory .* scale it down first"):
        open_image(bomb(tmp_path / "bomb.png", side, color, depth))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"


@posix
@pytest.mark.parametrize("name", ["a.eps", "a.jpg"])
def test_no_image_starts_another_program(tmp_path, monkeypatch, name):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(ImageError, match="in none of the formats BMP, GIF, JPEG"):
        open_image(tmp_path / name)
    with pytest.raises(ImageError, match="in none of the formats BMP, GIF, JPEG"):
        decode_image(EPS, name)
    assert not (tmp_path / "started").exists()


def test_threads_leave_filters_and_loggers_as_they_were(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"these are words, not pixels")
    before = list(warnings.filters), logging.getLogger("PIL").disabled

    def work(_):
        for _ in range(50):
            with pytest.raises(ImageError):
                open_image(path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert (list(warnings.filters), logging.getLogger("PIL").disabled) == before


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=str(path)):
        open_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; fetch or export it again"),
        (b"these are words, not pixels", "not an image, or in none of the formats BMP, GIF, JPEG"),
        (b"\x89PNG\r\n\x1a\n", "a.jpg: "),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, "a.jpg: "),
    ],
)
def test_other_objects_are_refused(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        open_image(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(ImageError, match="no such file or directory"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        open_image(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "gif", "bmp"])
def test_damage_of_any_byte_raises_our_own_error_or_is_harmless(tmp_path, suffix):
    image = Image.new("RGB", (3, 3), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0
    options = {} if suffix in ("gif", "bmp") else {"exif": exif}
    data = save(tmp_path / f"a.{suffix}", image, **options).read_bytes()
    path = tmp_path / f"b.{suffix}"
    outcomes = set()
    for at in range(min(len(data), 400)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            outcomes.add(open_image(path).mode)
        except ImageError:
            outcomes.add("refused")
    assert outcomes == {"RGB", "refused"}


def tiff(path, values, *, negative=False):
    """Write a gray TIFF of 16 bits, in which 0 is black, or white."""
    Image.fromarray(np.asarray(values, dtype=np.uint16)).save(path)
    data = bytearray(path.read_bytes())
    entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert data.count(entry) == 1
    data[data.index(entry) : data.index(entry) + 12] = struct.pack(
        "<HHIHH", 262, 3, 1, 0 if negative else 1, 0
    )
    path.write_bytes(data)
    return path


def test_a_negative_of_16_bits_is_inverted(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 16), (16, 1))
    positive = np.asarray(open_image(tiff(tmp_path / "a.tif", ramp)))
    negative = np.asarray(open_image(tiff(tmp_path / "b.tif", ramp, negative=True)))
    assert positive[0, 0, 0] == 0
    assert np.array_equal(negative, 255 - positive)


def test_gray_values_of_12_bits_have_their_own_white(tmp_path):
    """Two pixels of 12 bits take three bytes."""
    width = 16
    row = np.array([0, 4095] * (width // 2))
    pairs = row.reshape(-1, 2)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs.tolist())
    fields = [
        (256, 4, width), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 0),
        (277, 3, 1), (278, 4, 1), (279, 4, len(packed)),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(fields) + 4
    fields = [(tag, kind, start if tag == 273 else value) for tag, kind, value in fields]
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<HH" if kind == 3 else "<I", *(
            (value, 0) if kind == 3 else (value,)))
        for tag, kind, value in fields
    )  # fmt: skip
    path = tmp_path / "12.tif"
    path.write_bytes(
        b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + struct.pack("<I", 0) + packed
    )
    assert np.asarray(open_image(path))[0, :, 0].tolist() == [0, 255] * (width // 2)


def test_floats_in_a_portable_map_run_from_0_to_1(tmp_path):
    rows = np.tile(np.linspace(0, 1, 8, dtype="<f4"), (8, 1))
    path = tmp_path / "a.pfm"
    path.write_bytes(b"Pf\n8 8\n-1.0\n" + rows.tobytes())
    assert np.asarray(open_image(path))[0, :, 0].tolist() == np.rint(255 * rows[0]).tolist()
