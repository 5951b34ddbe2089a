"""One picture as 8-bit RGB of the size that is asked for, whatever its file holds, or refused by name: `read`, `pixels`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from PIL import Image

from compress_env.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
"""Of files that are taken for pictures: those of torchvision's `ImageFolder`, and GIFs, of which the first frame is taken."""
LONGEST = 4
"""Of a picture that is longer than so many times its width, the ends are cut off before it is resized: the centre is kept anyway."""
REDUCED = 16_000_000
"""Pixels of a JPEG file above which it is decoded at a smaller scale, if that is still larger than what was asked for."""
LARGEST = 150_000_000
"""Pixels that are decoded at most."""


def read(path: str, size: int | tuple[int, int] | None) -> np.ndarray:
    """The pixels `(height, width, 3)` uint8 of a file.

    Args:
        path: The file.
        size: Pixels of a square, or height and width: the picture is resized to cover it, and its centre cut out. None for its own.

    Raises:
        UserError: If it cannot be read; the message names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow thinks of a file's palette or size
            with Image.open(path) as image:
                return pixels(image, size)
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises OSError, SyntaxError and ValueError for broken files
        raise UserError(f"cannot read {path}: {error}; replace the file, or take it out") from None


def pixels(image: Image.Image, size: int | tuple[int, int] | None) -> np.ndarray:
    """The pixels `(height, width, 3)` uint8 of a picture that is open.

    Transparency is left out, as torchvision does. Of 16-bit pictures, which Pillow would cut to white, the upper byte is kept.

    Args:
        image: The picture.
        size: As for `read`.

    Raises:
        UserError: If it has more bits a pixel, or is too large.
    """
    width, height = image.size
    if width * height > LARGEST:
        raise UserError(f"has {width} x {height} pixels, more than {LARGEST:,}; make it smaller")
    wanted = (size, size) if isinstance(size, int) else size
    if wanted and width * height > REDUCED:
        image.draft("RGB", (wanted[1], wanted[0]))
    found = _rgb(image)
    if wanted:
        found = _fitted(found, *wanted)
    return np.asarray(found)


def _rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):  # sixteen bits
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        raise UserError(f"has 32 bits a pixel (mode {mode}), of which nothing says what is white; save it with 8 or 16")
    return image.convert("RGB")


def _fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """The centre of a picture that was resized to cover this size."""
    from torchvision.transforms.v2.functional import center_crop, resize

    image = _shortened(image)
    if height == width:
        return center_crop(resize(image, [height]), [height, width])
    scale = max(height / image.height, width / image.width)
    covering: Any = resize(image, [max(height, round(image.height * scale)), max(width, round(image.width * scale))])
    return center_crop(covering, [height, width])


def _shortened(image: Image.Image) -> Image.Image:
    """A picture that is at most `LONGEST` times as long as wide, so that resizing it takes little memory."""
    width, height = image.size
    most = LONGEST * min(width, height)
    w, h = min(width, most), min(height, most)
    if (w, h) == (width, height):
        return image
    left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h))
