"""Open an image file as RGB, whatever it holds, or say why not."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from regnet.errors import ImageError

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".jfif", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
)
"""Files with these endings count as images when a folder is read."""


def open_image(path: str | Path) -> Image.Image:
    """The image of a file, upright and in RGB.

    Raises:
        ImageError: the file is missing, unreadable, empty, damaged, not an image, or so large when
            unpacked that it may be an attack on memory (Pillow's limit, 89 megapixels).
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ImageError(f"{path}: is a folder, not an image file")
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty; fetch or export it again")
        with _quiet(), Image.open(path) as image:
            return to_rgb(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{path}: too many pixels to open safely (limit {Image.MAX_IMAGE_PIXELS:,}); "
            "scale it down first"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image that Pillow can read") from error
    except ImageError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"{path}: {reason[:1].lower()}{reason[1:]}") from error
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"{path}: damaged image data ({type(error).__name__}: {error})") from error


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


def to_rgb(image: Image.Image) -> Image.Image:
    """The image upright (EXIF orientation), in 8-bit RGB, transparency over white."""
    image.load()
    with suppress(Exception):  # damaged metadata: the pixels are still good
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A grayscale image of 16 or 32 bits, or of floats in [0, 1], as 8 bits."""
    pixels = np.asarray(image)
    if pixels.dtype.kind == "f":
        scaled = pixels * 255.0 if pixels.max(initial=0) <= 1 else pixels
    elif pixels.max(initial=0) > 255 or image.mode.startswith("I;16"):
        scaled = pixels / 257.0  # 65535 becomes 255
    else:
        scaled = pixels.astype(np.float64)
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))
