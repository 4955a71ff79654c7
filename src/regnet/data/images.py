"""Open an image file as 8-bit RGB, or raise an error that says why it cannot be opened."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from regnet.errors import ImageError, NotFoundError
from regnet.paths import expanded

FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened, recognized by content rather than by file name. Decoders of other
formats, such as EPS, can start a program."""
MAX_BYTES: Final = 2**30
"""The most memory that opening one image may take, enough for 89 megapixels in color."""

IMAGE_SUFFIXES = frozenset(
    (
        *(".bmp", ".gif", ".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".apng"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".webp"),
    )
)
"""File name extensions that count as images when a folder is read."""

_LEAST, _MOST, _BITS, _KIND = 340, 341, 258, 262
"""TIFF's tags SMinSampleValue, SMaxSampleValue, BitsPerSample and PhotometricInterpretation."""

_WHITE_IS_ZERO = 0
"""The value of the last tag in negatives."""

_OVERSHOOT: Final = 0.01
"""How far resampling may take pixel values below black (0) or above white (1)."""

_FEW: Final = 0.01
"""Share of a float image's pixels that may lie even further outside; they are clipped."""

_TOO_LARGE: Final = "opening it safely takes too much memory (more than 1 GiB); scale it down first"

ImageSource: TypeAlias = str | Path | Image.Image
"""A path, or an image that Pillow has opened."""


def open_image(source: ImageSource) -> Image.Image:
    """Open an image in 8-bit RGB, upright by its EXIF orientation, with transparency over white.

    Args:
        source: a path, or an image that Pillow has opened.

    Raises:
        ImageError: the file is missing, unreadable, empty, damaged, in none of `FORMATS`, or so
            large when decoded that it may be an attack on memory (`MAX_BYTES`).
    """
    if isinstance(source, Image.Image):
        with _explained(image_name(source) or "image"):
            return _to_rgb(source)
    if not isinstance(source, (str, Path)):
        raise ImageError(f"an image must be a path or a Pillow image, got {type(source).__name__}")
    if isinstance(source, str) and "://" in source:
        raise ImageError(f"{source}: this is an address; download the image and give its path")
    path = expanded(source)
    with _explained(str(path)):
        if path.is_dir():
            raise ImageError("is a folder, not an image file")
        if path.stat().st_size == 0:
            raise ImageError("the file is empty; fetch or export it again")
        return _read(path)


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode the bytes of an image file as `open_image` does; `name` appears in error messages."""
    with _explained(name):
        if not data:
            raise ImageError("the image is empty (0 bytes)")
        return _read(data)


def _read(source: Path | bytes) -> Image.Image:
    with _opened(source) as image:
        if image.format == "PNG":  # Pillow decodes a PNG without verifying its checksums
            with _opened(source) as unread:
                unread.verify()
        return _to_rgb(image)


def _opened(source: Path | bytes) -> Image.Image:
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    return Image.open(file, formats=_formats())


def _formats() -> list[str]:
    """Return the formats of `FORMATS` that this installation of Pillow can read."""
    Image.init()  # without it, Pillow registers only the most common formats
    return [format for format in FORMATS if format in Image.OPEN]


def image_name(source: str | Path | Image.Image) -> str:
    """Return the path of an image, or "" for a Pillow image that was not read from a file."""
    return str(getattr(source, "filename", "") if isinstance(source, Image.Image) else source)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Convert any error raised inside to a one-line error that begins with the image's name."""
    try:
        yield
    except ImageError as error:
        raise type(error)(f"{name}: {error}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(f"{name}: {_TOO_LARGE}") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise ImageError(f"{name}: not an image, or in none of the formats {kinds}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        kind = NotFoundError if missing else ImageError
        raise kind(f"{name}: {reason[:1].lower()}{reason[1:]}") from error
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to open it; scale it down first") from error
    except Exception as error:  # on damaged data, decoders raise errors of any type
        raise ImageError(f"{name}: damaged image data ({type(error).__name__}: {error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.width * image.height * _bytes_per_pixel(image) > MAX_BYTES:
        raise ImageError(_TOO_LARGE)
    image.load()
    stored_as, declared = image.format, _declared_range(image)
    if 0 in image.size:
        raise ImageError(
            f"an image must have pixels, but its size is {image.width} x {image.height}"
        )
    with suppress(Exception):  # if the metadata are damaged, the pixels are still good
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        whole = stored_as == "PPM" and image.mode.startswith("I")  # Pillow also calls PFM so
        image = _to_8_bits(image, declared or ((0, 65535) if whole else None))
    if _has_transparency(image):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    rgb = image.convert("RGB")
    rgb.format = stored_as
    return rgb


def _has_transparency(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info


def _bytes_per_pixel(image: Image.Image) -> int:
    """Return the memory that `_to_rgb` takes: Pillow stores 4 bytes per color, each step copies."""
    if _has_transparency(image):
        return 24
    if image.mode.startswith("I") or image.mode == "F":
        return 20
    return 12


def _declared_range(image: Image.Image) -> tuple[float, float] | None:
    """Return the values that a TIFF file declares as black and white."""
    tags = getattr(image, "tag_v2", {})
    low, high, bits, kind = (
        float(np.ravel(tags.get(tag, [np.nan]))[0]) for tag in (_LEAST, _MOST, _BITS, _KIND)
    )
    if not low < high:
        if not image.mode.startswith("I;16") or not bits <= 16:
            return None
        low, high = 0.0, 2**bits - 1
    return (high, low) if kind == _WHITE_IS_ZERO else (low, high)


def _to_8_bits(image: Image.Image, declared: tuple[float, float] | None) -> Image.Image:
    """Scale a 16- or 32-bit grayscale image to 8 bits, by its type or its declared range.

    The scale never depends on the brightest pixel: a single outlier would darken all other pixels.
    """
    pixels = np.nan_to_num(np.array(image, dtype=np.float64), copy=False)
    low, high = declared or _range(image.mode, pixels)
    scale = 255 / (high - low)
    pixels -= low
    pixels *= scale
    np.clip(np.rint(pixels, out=pixels), 0, 255, out=pixels)
    gray = Image.fromarray(pixels.astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.info["transparency"] = round(transparent * scale)
    return gray


def _range(mode: str, pixels: NDArray[np.float64]) -> tuple[float, float]:
    """Return the values of black and white of an image file that does not declare them."""
    if mode.startswith("I;16"):
        return 0.0, 65535.0
    beyond = np.mean((pixels < -_OVERSHOOT) | (pixels > 1 + _OVERSHOOT))
    if mode == "F" and beyond <= _FEW:
        return 0.0, 1.0
    raise ImageError(
        f"its gray values run from {pixels.min():g} to {pixels.max():g}, and it does not say which "
        "value is white; save it with 8 or 16 bits, or as floats from 0 to 1"
    )
