"""Files as inputs: images and arrays, prepared as the reader of the training data prepared its files.

The reader of photographs, ``nonn predict`` and ``Client`` share this code, so training and serving cannot differ. What
is to be done is in the bundle (``nonn.bundle.preprocess``). Pillow is imported when the first image is opened.

Limits: 8 bits per channel, transparency is dropped, not blended. Arrays of an ``.npz`` file are in memory as a whole.
"""

from __future__ import annotations

import glob
import io
import math
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.preprocess import Preprocess
from nonn.errors import BundleError, DataError, InputError
from nonn.files import numpy_reason

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "STDIN", "UPLOADED", "InputReader", "expand", "prepared_image", "to_rgb"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
STDIN = "-"
_STEPS = {
    "orientation": ("stored", "exif"),
    "crop": ("none", "centre"),
    "resize": ("none", "bicubic"),
    "channels": ("", "L", "RGB"),
}
# Of images from strangers: Pillow reads dozens of formats, some with the help of other programs. A picture of a few
# bytes may have any size, and a progressive JPEG any number of scans, each as much work as the picture.
UPLOADED = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS, MAX_SCANS = 25_000_000, 64
_JPEG_SCAN = b"\xff\xda"
_ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNK = 1 << 28  # bytes of a PNG chunk
_ARRAY_STARTS = (b"\x93NUMPY", b"PK\x03\x04")  # of .npy and .npz
_MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")

Array = NDArray[Any]


def expand(names: Iterable[str | Path]) -> Iterator[str]:
    """The files that names stand for, in order: a folder is every image and array below it, a pattern what it matches.

    A file that does not exist is returned as it is; reading it is an error that names it.

    Raises:
        InputError: a folder or a pattern without a file.
    """
    for name in map(str, names):
        path = Path(name)
        if path.is_dir():
            suffixes = IMAGE_SUFFIXES | _ARRAY_SUFFIXES
            # A link to nothing is an error when it is read; a pipe would be waited for.
            below = (p.relative_to(path) for p in path.rglob("*") if p.suffix.lower() in suffixes and not p.is_fifo())
            found = sorted(str(path / p) for p in below if not any(part.startswith(".") for part in p.parts))
            if not found:
                raise InputError(f"{name}: no images or arrays in this folder ({', '.join(sorted(suffixes))})")
        elif name != STDIN and not path.exists() and glob.has_magic(name):
            found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  (a pattern may be absolute)
            if not found:
                raise InputError(f"{name}: matches no file")
        else:
            found = [name]
        yield from found


def prepared_image(image: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> Image.Image:
    """An image as the networks see it.

    Args:
        image: as opened.
        size: height and width of the input.
        preprocess: what to do.

    Raises:
        ValueError: more than 8 bits per channel, or another size where images are not resized.
        BundleError: a step that this version does not know.
    """
    from PIL import Image, ImageOps

    for key, known in _STEPS.items():
        if getattr(preprocess, key) not in known:
            raise BundleError(f"preprocess.{key} = {getattr(preprocess, key)!r}: this version of nonn cannot do that")
    if preprocess.orientation == "exif":
        image = ImageOps.exif_transpose(image)
    image = to_rgb(image)
    if preprocess.channels == "L":
        image = image.convert("L")
    height, width = size
    if preprocess.crop == "centre":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    if preprocess.resize == "bicubic":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB.

    Raises:
        ValueError: more than 8 bits per channel, which would be clipped.
    """
    if image.mode not in _MODES:
        raise ValueError(f"mode {image.mode}: only 8 bits per channel are supported")
    # Pillow warns about a palette with transparency unless it goes through RGBA.
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


@dataclass(frozen=True)
class InputReader:
    """Reads files as inputs of one bundle.

    Attributes:
        shape: of one input, [C, H, W] or [C, T].
        dtype: of inputs, ``uint8`` or ``float32``.
        preprocess: what the reader of the training data did.
        array: name of the array to read from ``.npz`` files; empty finds it.
    """

    shape: tuple[int, ...]
    dtype: str
    preprocess: Preprocess = Preprocess()  # noqa: RUF009  (frozen)
    array: str = ""

    def read(self, file: str | Path, size: int = 256) -> Iterator[Array]:
        """The inputs of a file, in batches [B, …] of at most ``size``.

        Args:
            file: an image, or an array of one input or of many; ``-`` is standard input, which may be a stream of PNG
                images, one after the other: each is a batch as soon as it is there.
            size: most inputs of a batch.

        Raises:
            DataError: the file cannot be read.
            InputError: there is no such file, or it does not fit the bundle.
        """
        name = str(file)
        if name == STDIN and sys.stdin is None:
            raise InputError(f"{STDIN}: standard input is closed")
        start = sys.stdin.buffer.read(len(_PNG)) if name == STDIN else b""
        if start == _PNG:
            for data in _frames(sys.stdin.buffer):
                yield self._image(io.BytesIO(data), name)[None]
            return
        with io.BytesIO(start + sys.stdin.buffer.read()) if name == STDIN else _opened(name) as stream:
            start = stream.read(6)
            stream.seek(0)
            if Path(name).suffix.lower() in _ARRAY_SUFFIXES or start.startswith(_ARRAY_STARTS):
                inputs, scale = self._array(stream, name)
                for first in range(0, len(inputs), size):
                    yield _checked(inputs[first : first + size], scale, name)
            else:
                yield self._image(stream, name)[None]

    def upload(self, data: bytes, name: str) -> NDArray[np.uint8]:
        """An image [C, H, W] that a stranger sent: common formats only, and no more pixels than a camera has.

        Raises:
            DataError: it cannot be read.
            InputError: it does not fit the bundle, or is too large.
        """
        if data.count(_JPEG_SCAN) > MAX_SCANS:
            raise InputError(f"{name}: a JPEG with more than {MAX_SCANS} scans; save it again")
        return self._image(io.BytesIO(data), name, UPLOADED, MAX_PIXELS)

    def _image(
        self, stream: BinaryIO, name: str, formats: tuple[str, ...] | None = None, max_pixels: float = math.inf
    ) -> NDArray[np.uint8]:
        """An image [C, H, W], of one of these formats."""
        from PIL import Image

        if self.dtype != "uint8" or len(self.shape) != 3 or self.shape[0] not in (1, 3):
            raise InputError(f"{name}: inputs are {self.dtype} {list(self.shape)}, not images; send .npy or .npz files")
        height, width = self.shape[1:]
        mode = "L" if self.shape[0] == 1 else "RGB"
        steps = self.preprocess if self.preprocess.channels else replace(self.preprocess, channels=mode)
        try:
            with Image.open(stream, formats=formats) as image:
                if image.width * image.height > max_pixels:
                    raise InputError(
                        f"{name}: {image.width}×{image.height} pixels; the limit is {max_pixels / 1e6:g} million"
                    )
                found = prepared_image(image, (height, width), steps)
        except (BundleError, InputError):
            raise
        except Exception as exc:  # Pillow's plugins raise OSError, SyntaxError, struct.error and more for broken files
            text = "not an image" if "cannot identify image file" in str(exc) else str(exc)
            raise DataError(f"{name}: cannot be read as an image ({text})") from exc
        pixels = np.asarray(found)
        pixels = pixels[None] if found.mode == "L" else pixels.transpose(2, 0, 1)
        if pixels.shape != self.shape:
            raise InputError(
                f"{name}: {found.width}×{found.height} pixels; this bundle was trained on images of {width}×{height} "
                "that were not resized, so resize it as those were, or use --resize (centre square, bicubic)"
            )
        return pixels

    def _array(self, stream: BinaryIO, name: str) -> tuple[Array, Array | None]:
        """All inputs [n, …] of a file, and what they are to be multiplied by."""
        try:
            # A single array is read from the disk as it is sent.
            mapped = name != STDIN and stream.read(6) == _ARRAY_STARTS[0]
            stream.seek(0)
            loaded = np.load(name if mapped else stream, mmap_mode="r" if mapped else None, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                array, chosen = loaded, ""
            else:
                with loaded:
                    array, chosen = self._choose({key: loaded[key] for key in loaded.files}, name)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as exc:
            raise DataError(f"{name}: cannot be read as a NumPy file ({numpy_reason(exc)})") from exc
        if array.dtype.kind not in "iuf":
            raise InputError(f"{name}: array of {array.dtype}; send an array of numbers")
        if array.ndim == len(self.shape):
            array = array[None]
        if array.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise InputError(
                f"{name}: shape {list(array.shape)}; this bundle accepts inputs of shape [{expected}], or batches "
                f"[B, {expected}]"
            )
        if not self.preprocess.scale or chosen != self.preprocess.array:
            return array, None
        return array, np.array(self.preprocess.scale, np.float32).reshape(-1, *[1] * (len(self.shape) - 1))

    def _choose(self, arrays: dict[str, Array], name: str) -> tuple[Array, str]:
        """The array of inputs among those of an ``.npz`` file, and its name."""
        fitting = [key for key, array in arrays.items() if self.shape in (array.shape, array.shape[1:])]
        wanted = [self.array] if self.array else ["inputs", self.preprocess.array]
        chosen = next((key for key in wanted if key in arrays), "")
        if not chosen and not self.array:
            only = [list(arrays), fitting]
            chosen = next((keys[0] for keys in only if len(keys) == 1), "")
        if not chosen:
            raise InputError(
                f"{name}: contains {', '.join(arrays) or 'nothing'}"
                + (f", no array '{self.array}'" if self.array else "; name the array of inputs with --array NAME")
            )
        return arrays[chosen], chosen


def _checked(batch: Array, scale: Array | None, name: str) -> Array:
    """A batch of bytes as it is, of other numbers as float32, scaled."""
    if batch.dtype == np.uint8 and scale is None:
        return np.asarray(batch)
    with np.errstate(over="ignore"):  # a value too large becomes infinite, which is reported below
        batch = batch.astype(np.float32)
        if scale is not None:
            batch *= scale
    if not np.isfinite(batch).all():
        raise InputError(f"{name}: NaN, infinity or a value beyond float32; send finite numbers")
    return batch


def _frames(stream: BinaryIO) -> Iterator[bytes]:
    """The PNG images of a stream, whose first signature has been read.

    Raises:
        DataError: the stream ends within an image, or has something else after one.
    """
    start = _PNG
    while start == _PNG:
        parts, kind = [_PNG], b""
        while kind != b"IEND":
            head = stream.read(8)  # length and type of a chunk; a checksum follows its content
            kind, length = head[4:], int.from_bytes(head[:4]) + 4
            content = stream.read(length) if len(head) == 8 and length <= _MAX_CHUNK else b""
            if len(content) < length:
                raise DataError(f"{STDIN}: the stream ends within an image")
            parts += [head, content]
        yield b"".join(parts)
        start = stream.read(len(_PNG))
    if start:
        raise DataError(f"{STDIN}: after an image there is something that is no PNG image")


def _opened(name: str) -> BinaryIO:
    """A file.

    Raises:
        InputError: there is no such file.
        DataError: it cannot be read.
    """
    try:
        return Path(name).open("rb")
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except OSError as exc:
        raise DataError(f"{name}: cannot be read ({exc.strerror})") from exc
