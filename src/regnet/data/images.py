"""Open an image file as RGB, whatever it holds, or say why not."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from regnet.errors import ImageError

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".jfif", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
)
"""Files with these endings count as images when a folder is read."""

ImageSource: TypeAlias = str | Path | Image.Image
"""A path, or an image that Pillow has opened."""


def open_image(source: ImageSource) -> Image.Image:
    """An image upright (EXIF orientation), in 8-bit RGB, transparency over white.

    Args:
        source: a path, or an image that Pillow has opened.

    Raises:
        ImageError: the file is missing, unreadable, empty, damaged, not an image, or so large when
            unpacked that it may be an attack on memory (Pillow's limit, 89 megapixels).
    """
    if isinstance(source, Image.Image):
        with _explained(image_name(source) or "image"):
            return _to_rgb(source)
    if not isinstance(source, (str, Path)):
        raise ImageError(f"an image must be a path or a Pillow image, got {type(source).__name__}")
    path = Path(source)
    with _explained(str(path)):
        if path.is_dir():
            raise ImageError("is a folder, not an image file")
        if path.stat().st_size == 0:
            raise ImageError("the file is empty; fetch or export it again")
        with Image.open(path) as image:
            return _to_rgb(image)


def decode_image(data: bytes, name: str) -> Image.Image:
    """The image in the bytes of a file, as `open_image` gives it; `name` is for the error."""
    with _explained(name):
        if not data:
            raise ImageError("there are no bytes")
        with Image.open(io.BytesIO(data)) as image:
            return _to_rgb(image)


def image_name(source: str | Path | Image.Image) -> str:
    """The path of an image; empty for one that Pillow did not read from a file."""
    return str(getattr(source, "filename", "") if isinstance(source, Image.Image) else source)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes one line that begins with the name of the image."""
    try:
        with _quiet():
            yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{name}: too many pixels to open safely (limit {Image.MAX_IMAGE_PIXELS:,}); "
            "scale it down first"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image that Pillow can read") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"{name}: {reason[:1].lower()}{reason[1:]}") from error
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory for it; scale it down first") from error
    except Exception as error:  # on damaged data, decoders raise whatever they hit
        raise ImageError(f"{name}: damaged image data ({type(error).__name__}: {error})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Refuse from Pillow's first warning of too many pixels on; drop its other remarks."""
    logger = logging.getLogger("PIL")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        logger.disabled = disabled


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    stored_as = image.format
    if 0 in image.size:
        raise ImageError(f"an image must have pixels, got {image.width} x {image.height}")
    with suppress(Exception):  # damaged metadata: the pixels are still good
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    rgb = image.convert("RGB")
    rgb.format = stored_as
    return rgb


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A grayscale image of 16 or 32 bits as 8 bits; floats up to 1 count as parts of white."""
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64))
    brightest = pixels.max()
    if image.mode == "F" and brightest <= 1.01:  # resampling overshoots a little
        scale = 255.0
    elif brightest <= 255 and not image.mode.startswith("I;16"):
        scale = 1.0
    elif brightest <= 65535:
        scale = 255 / 65535
    else:
        raise ImageError(
            f"gray values up to {brightest:g} are too many; convert it to 16 bits first"
        )
    gray = Image.fromarray(np.clip(np.rint(pixels * scale), 0, 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.info["transparency"] = round(transparent * scale)
    return gray
