"""From an image file to the network's input, without torch.

This is the single definition: evaluation, calibration, parity, bench, prediction and devices all call it, and training uses
its parts. The geometry is that of `torchvision.transforms` on PIL images (`Resize`, `CenterCrop`, `ToTensor`, `Normalize`),
and the result is equal to theirs bit for bit.

Letters: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from alexnet_edge.errors import ImageError, UserError

FloatArray = npt.NDArray[np.float32]

MAX_PIXELS = 178_956_970
"""Images with more pixels than this are refused before decoding: PIL's own limit against decompression bombs."""

MAX_RESIZED_PIXELS = 16_777_216
"""A long thin image is refused when resizing its shorter side would make more pixels than this."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How an image becomes the input: resize the shorter side, crop the centre, scale to 0-1, subtract, divide."""

    resize: int = 256
    """Length of the shorter side after the bilinear, antialiased resize, in pixels."""
    crop: int = 227
    """Height and width of the central crop, in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from R, G, B on the 0-1 scale."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides R, G, B after the subtraction; 1/255 keeps the 0-255 scale of the paper and of Caffe."""

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize <= 4096:
            raise ValueError(f"crop and resize must be 1 <= crop <= resize <= 4096, got {self.crop} and {self.resize}")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError(f"mean and std must be finite, and std above 0, got {self.mean} and {self.std}")


_CAFFE_MEAN = (123 / 255, 117 / 255, 104 / 255)
_UNIT = 1 / 255

PRESETS: dict[str, Preprocessing] = {
    "imagenet-227": Preprocessing(),
    "imagenet-224": Preprocessing(crop=224),
    "notebook-227": Preprocessing(std=(1.0, 1.0, 1.0)),
    "paper-227": Preprocessing(std=(_UNIT, _UNIT, _UNIT)),
    "caffe-227": Preprocessing(mean=_CAFFE_MEAN, std=(_UNIT, _UNIT, _UNIT)),
}
"""Named preprocessings. `imagenet` is torchvision's; `notebook` subtracts the mean only; `paper` the same on the 0-255
scale; `caffe` subtracts 123, 117, 104 from R, G, B on the 0-255 scale."""


def load_rgb(path: Path, *, content: bytes | None = None) -> Image.Image:
    """Decode an image file (or its `content`) to upright 8-bit RGB.

    Grayscale and palette images become RGB, transparent pixels show white, 16-bit grayscale keeps its 8 high bits, PIL
    converts CMYK, the EXIF orientation is applied, and an animation gives its first frame.

    Raises:
        ImageError: with the path and the reason, when it is missing, not an image, truncated, damaged, too large, or of a
            kind with no defined 8-bit form (32-bit integer or floating point).
    """
    try:
        with warnings.catch_warnings():
            # MAX_PIXELS below is the same limit, as an error
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # odd metadata does not change the pixels
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            with Image.open(path if content is None else BytesIO(content)) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    problem = f"image has {width}x{height} pixels, more than {MAX_PIXELS}"
                    raise ImageError(problem, value=path, fix="scale it down")
                assert not ImageFile.LOAD_TRUNCATED_IMAGES, "truncated images must be refused, not padded with gray"
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image), path, image.format)
    except FileNotFoundError as error:
        raise ImageError("no such image", value=path, fix="check the path") from error
    except IsADirectoryError as error:
        raise ImageError("this is a folder, not an image", value=path, fix="name a file in it") from error
    except UnidentifiedImageError as error:
        raise ImageError("not an image that PIL can read", value=path, fix="convert it to JPEG or PNG") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"image has more than {MAX_PIXELS} pixels", value=path, fix="scale it down") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"image cannot be decoded ({reason})", value=path, fix="replace the file") from error


def _to_rgb(image: Image.Image, path: Path, file_format: str | None) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        problem = f"image has 32-bit pixels (mode {image.mode}) with no defined range"
        raise ImageError(problem, value=path, fix="convert it to 8-bit")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def resized_shape(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Width and height after scaling the shorter side to `shorter`, rounded as torchvision's `Resize` does."""
    if width <= height:
        return shorter, max(1, int(shorter * height / width))
    return max(1, int(shorter * width / height)), shorter


def resize_shorter(image: Image.Image, spec: Preprocessing, *, path: Path | None = None) -> Image.Image:
    """The image with its shorter side scaled to `spec.resize`.

    Raises:
        ImageError: when the image is so long and thin that the resized one would not be sensible.
    """
    width, height = resized_shape(*image.size, spec.resize)
    if width * height > MAX_RESIZED_PIXELS:
        problem = f"image is {image.size[0]}x{image.size[1]}, too long and thin to resize"
        raise ImageError(problem, value=path, fix="crop it first")
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def centre_offset(width: int, height: int, crop: int) -> tuple[int, int]:
    """Left and top of the central square of `crop` pixels, rounded as torchvision's `CenterCrop` does."""
    return round((width - crop) / 2.0), round((height - crop) / 2.0)


def normalise(
    pixels_NHWC: npt.NDArray[np.uint8],
    spec: Preprocessing,
    *,
    shift_C: FloatArray | None = None,
    out: FloatArray | None = None,
) -> FloatArray:
    """8-bit RGB `(..., H, W, 3)` to float32 `(..., 3, H, W)`: divide by 255, subtract the mean, divide by the deviation.

    `shift_C`, a training view's change of light, is added to R, G, B on the 0-1 scale by taking it off the mean. The result
    is written into `out` where it is given.
    """
    turned = np.moveaxis(pixels_NHWC, -1, -3)
    x = np.empty(turned.shape, np.float32) if out is None else out
    x[...] = turned
    x /= np.float32(255)
    mean_C = np.asarray(spec.mean, np.float32)
    x -= (mean_C if shift_C is None else mean_C - shift_C)[:, None, None]
    x /= np.asarray(spec.std, np.float32)[:, None, None]
    return x


def preprocess_image(image: Image.Image, spec: Preprocessing, *, path: Path | None = None) -> FloatArray:
    """A decoded RGB image to the input `(3, spec.crop, spec.crop)`, float32: the central square of the resized image.

    Raises:
        ImageError: when the image cannot be resized sensibly.
    """
    image = resize_shorter(image, spec, path=path)
    x0, y0 = centre_offset(*image.size, spec.crop)
    return normalise(np.asarray(image.crop((x0, y0, x0 + spec.crop, y0 + spec.crop))), spec)


def ten_crop_offsets(width: int, height: int, crop: int) -> tuple[tuple[int, int], ...]:
    """Left and top of the five squares of the ten-crop: top left, top right, bottom left, bottom right, centre."""
    right, bottom = width - crop, height - crop
    return (0, 0), (right, 0), (0, bottom), (right, bottom), centre_offset(width, height, crop)


def ten_crops(image: Image.Image, spec: Preprocessing, *, path: Path | None = None) -> FloatArray:
    """A decoded RGB image to the ten views `(10, 3, spec.crop, spec.crop)`, float32, of section 4.1 of the paper.

    The five squares of `ten_crop_offsets` on the image resized as for one crop, then each of them mirrored left to right,
    in the same order. Number 4, the centre unmirrored, equals `preprocess_image` bit for bit. The paper cuts from the
    central 256x256; here, as in torchvision's `TenCrop` and in training, corners are those of the whole resized image,
    which is the same for square images.

    Source: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (2012).

    Raises:
        ImageError: when the image cannot be resized sensibly.
    """
    pixels_HWC = np.asarray(resize_shorter(image, spec, path=path))
    height, width, _ = pixels_HWC.shape
    five = np.stack(
        [pixels_HWC[y0 : y0 + spec.crop, x0 : x0 + spec.crop] for x0, y0 in ten_crop_offsets(width, height, spec.crop)]
    )
    return normalise(np.concatenate([five, five[:, :, ::-1]]), spec)


def preset(name: str) -> Preprocessing:
    """The preprocessing called `name`.

    Raises:
        UserError: when there is none.
    """
    if name not in PRESETS:
        raise UserError("no such preprocessing", value=name, fix=f"choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
