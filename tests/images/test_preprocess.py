"""Every kind of image file, and equality with torchvision's transforms."""

from __future__ import annotations

import math
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from alexnet_edge import records
from alexnet_edge.errors import ImageError, UserError
from alexnet_edge.images.preprocess import (
    PRESETS,
    Preprocessing,
    load_rgb,
    normalise,
    preprocess_image,
    preset,
    resized_shape,
    ten_crop_offsets,
    ten_crops,
)

RED = (200, 30, 40)


def gradient(width: int, height: int) -> Image.Image:
    """An image in which no two corners are alike."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))


def saved(folder: Path, image: Image.Image, name: str, **options: Any) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def pixel(path: Path, where: tuple[int, int] = (0, 0)) -> tuple[int, int, int]:
    image = load_rgb(path)
    assert image.mode == "RGB"
    red, green, blue = image.getpixel(where)  # type: ignore[misc]
    return red, green, blue


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("RGB", (300, 280), RED).convert("CMYK"), "a.jpg", quality=95)
    assert np.abs(np.subtract(pixel(path), RED)).max() <= 6


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (20, 20), 255), (255, 255, 255)),
        (Image.new("1", (20, 20), 255), (255, 255, 255)),
        (Image.new("LA", (8, 8), (10, 0)), (255, 255, 255)),  # transparency shows white
        (Image.new("RGBA", (8, 8), (0, 0, 0, 128)), (127, 127, 127)),
        (Image.fromarray(np.full((8, 8), 0xAB12, np.uint16)), (0xAB, 0xAB, 0xAB)),  # 16 bits keep their high byte
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_other_kinds_of_pixels_become_rgb(tmp_path: Path, image: Image.Image, expected: tuple[int, int, int]) -> None:
    assert pixel(saved(tmp_path, image, "a.png")) == expected


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((3, 3), 1)
    path = saved(tmp_path, image, "a.png", transparency=0)
    assert pixel(path) == (255, 255, 255)
    assert pixel(path, (3, 3)) == (200, 100, 50)
    assert pixel(saved(tmp_path, image, "opaque.png")) == (10, 20, 30)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_32_bit_tiff_is_refused(tmp_path: Path, kind: type) -> None:
    path = saved(tmp_path, Image.fromarray(np.full((8, 8), 5, kind)), "a.tiff")
    with pytest.raises(ImageError, match=r"32-bit pixels .*a\.tiff; convert it"):
        load_rgb(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = gradient(30, 20)
    turns = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270"]
    turned = upright if orientation == 1 else upright.transpose(Image.Transpose[turns[orientation - 2]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, turned, "a.png", exif=exif)
    assert np.array_equal(np.asarray(load_rgb(path)), np.asarray(upright))


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 0, 255))]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(path) == RED


def test_upper_case_suffix_and_wrong_suffix(tmp_path: Path) -> None:
    content = saved(tmp_path, gradient(30, 20), "a.png").read_bytes()
    for name in ("A.PNG", "really-a-png.jpg"):
        path = tmp_path / name
        path.write_bytes(content)
        assert load_rgb(path).size == (30, 20)


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        preprocess_image(load_rgb(path), Preprocessing(), path=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, gradient(300, 300), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    refused(path, "cannot be decoded|not an image")


def test_what_is_not_an_image_is_refused(tmp_path: Path) -> None:
    for name, content in (("text.jpg", b"hello"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not an image that PIL can read")
    refused(tmp_path / "missing.png", "no such image")
    refused(tmp_path, "this is a folder")


def test_one_pixel_is_stretched(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("RGB", (1, 1), RED), "a.png")
    x = preprocess_image(load_rgb(path), Preprocessing(mean=(0, 0, 0), std=(1, 1, 1)))
    assert x.shape == (3, 227, 227)
    assert np.allclose(x, (np.asarray(RED, np.float32) / 255)[:, None, None])


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1)])
def test_long_thin_image_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    refused(saved(tmp_path, Image.new("RGB", size), "a.png"), "too long and thin")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(b"\0" * 100), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in chunks.items())


@pytest.mark.parametrize("size", [(14_000, 14_000), (60_000, 60_000)])
def test_decompression_bomb_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    refused(path, "pixels, more than|more than 178956970 pixels")


def test_content_in_memory_needs_no_file() -> None:
    stream = BytesIO()
    gradient(30, 20).save(stream, "PNG")
    assert np.array_equal(np.asarray(load_rgb(Path("x.png"), content=stream.getvalue())), np.asarray(gradient(30, 20)))
    with pytest.raises(ImageError, match=r"x\.png"):
        load_rgb(Path("x.png"), content=b"nothing")


def reference(image: Image.Image, spec: Preprocessing) -> np.ndarray[Any, np.dtype[np.float32]]:
    """torchvision's answer."""
    resize, crop = transforms.Resize(spec.resize), transforms.CenterCrop(spec.crop)
    normalised = transforms.Normalize(spec.mean, spec.std)(transforms.ToTensor()(crop(resize(image))))
    answer: np.ndarray[Any, np.dtype[np.float32]] = normalised.numpy()
    return answer


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(256, 256), (500, 375), (375, 500), (257, 256), (640, 361), (50, 61), (1023, 300)])
def test_equals_torchvision_bit_for_bit(name: str, size: tuple[int, int]) -> None:
    image = noise(*size)
    assert np.array_equal(preprocess_image(image, PRESETS[name]), reference(image, PRESETS[name]))


def test_equals_torchvision_on_real_images(data_root: Path) -> None:
    folders = ("flowers/val/*/*.jpg", "imagenet-samples/val/*/*")
    paths = [path for pattern in folders for path in sorted(data_root.glob(pattern))[::20]]
    assert len(paths) > 20
    for path in paths:
        expected = reference(load_rgb(path), Preprocessing())
        assert np.array_equal(preprocess_image(load_rgb(path), Preprocessing(), path=path), expected), path


def test_resize_rounds_as_torchvision() -> None:
    for width, height in [(100, 33), (333, 500), (1, 1), (255, 257), (4000, 3001)]:
        resized = transforms.Resize(256)(Image.new("L", (width, height)))
        assert resized_shape(width, height, 256) == resized.size


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(256, 256), (500, 375), (375, 501), (50, 61)])
def test_ten_crops_are_torchvisions_five_and_their_mirror_images(name: str, size: tuple[int, int]) -> None:
    image, spec = noise(*size), PRESETS[name]
    five = transforms.FiveCrop(spec.crop)(transforms.Resize(spec.resize)(image))
    mirrored = [crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for crop in five]
    tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)])
    views = ten_crops(image, spec)
    assert views.dtype == np.float32
    assert np.array_equal(views, np.stack([tensor(crop).numpy() for crop in (*five, *mirrored)]))
    assert np.array_equal(views[4], preprocess_image(image, spec))


def test_ten_crops_stand_where_the_docs_say() -> None:
    assert ten_crop_offsets(341, 256, 227) == ((0, 0), (114, 0), (0, 29), (114, 29), (57, 14))
    assert ten_crop_offsets(256, 256, 256) == ((0, 0),) * 5
    with pytest.raises(ImageError, match="too long and thin"):
        ten_crops(Image.new("RGB", (1, 10_000)), Preprocessing())


def test_caffe_scale_is_0_to_255_less_the_mean() -> None:
    pixels = np.full((1, 227, 227, 3), (123, 117, 104), np.uint8)
    assert np.abs(normalise(pixels, preset("caffe-227"))).max() < 1e-3
    black = normalise(np.zeros((1, 2, 2, 3), np.uint8), preset("caffe-227"))
    assert np.allclose(black[0, :, 0, 0], (-123, -117, -104), atol=1e-3)


def test_presets_survive_json() -> None:
    for spec in PRESETS.values():
        assert records.convert(Preprocessing, records.to_builtins(spec)) == spec
    with pytest.raises(UserError, match="no such preprocessing: imagenet-999; choose one of imagenet-227"):
        preset("imagenet-999")


@pytest.mark.parametrize(
    "change",
    [{"crop": 300}, {"crop": 0}, {"resize": 100_000}, {"std": [1, 0, 1]}, {"mean": [1, 2]}, {"std": [1, 1, math.nan]}],
)
def test_damaged_preprocessing_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(records.RecordError, match=r"must be|length 3"):
        records.convert(Preprocessing, {**records.to_builtins(Preprocessing()), **change})
