"""Folders of images with all that disks hold: each oddity is handled, or refused by its name."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress_env.data import Data, load_data
from compress_env.data.pictures import pixels, read
from compress_env.errors import UserError


def save(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    for part, count in (("train", 6), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            for i in range(count):
                save(tmp_path / part / name / f"{i}.png", noise(100 * number + i + (50 if part == "test" else 0), 8, 8, 3))
    return tmp_path


def load(folder: Path, **options) -> Data:
    return load_data(f"imagefolder:{folder}", **options)


def test_sixteen_bits_keep_their_upper_byte(tmp_path):
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    path = tmp_path / "deep.png"
    Image.fromarray(deep).save(path)
    assert (read(str(path), None) == (deep >> 8)[..., None]).all()
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    assert (read(str(tmp_path / "deep.tiff"), None) == (deep >> 8)[..., None]).all()


def test_floats_are_refused_by_name(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(UserError, match=r"f\.tiff has 32 bits a pixel"):
        read(str(tmp_path / "f.tiff"), None)


@pytest.mark.parametrize("mode", ["CMYK", "P", "RGBA", "LA", "L", "1", "YCbCr"])
def test_every_mode_becomes_rgb_as_torchvision_reads_it(tmp_path, mode):
    path = save(tmp_path / "a.tiff" if mode in ("CMYK", "YCbCr") else tmp_path / "a.png", noise(0, 8, 8, 3), mode)
    with Image.open(path) as image:
        assert image.mode == mode
        assert (read(str(path), None) == np.asarray(image.convert("RGB"))).all()


def test_the_first_frame_of_a_gif_is_taken(folder):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 255)]
    frames[0].save(folder / "train" / "cat" / "z.gif", save_all=True, append_images=frames[1:])
    data = load(folder)
    assert len(data.train) + len(data.validation) == 13
    assert sum(bool((x == 0).all()) for x in torch.cat([data.train.inputs[:], data.validation.inputs[:]])) == 1


def test_files_that_are_no_pictures_are_counted(folder):
    (folder / "train" / "cat" / "notes.txt").write_text("a")
    (folder / "train" / "list.csv").write_text("a")
    (folder / "train" / "cat" / ".hidden").write_text("a")
    with pytest.warns(UserWarning, match=r"train: 2 files are not taken for pictures of a class: list.csv, notes.txt"):
        assert len(load(folder).train) == 10


def test_a_long_thin_picture_takes_little_memory(tmp_path):
    path = save(tmp_path / "thin.png", np.repeat(np.arange(20000, dtype=np.uint16)[:, None] // 80, 1, 1).astype(np.uint8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read(str(path), 224)
    assert found.shape == (224, 224, 3) and set(np.unique(found)) <= {124, 125}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; it was 3 GB


def test_ordinary_proportions_are_resized_and_cut_as_before():
    from torchvision.transforms.functional import center_crop, resize

    image = Image.fromarray(noise(0, 30, 100, 3))
    assert (pixels(image, 16) == np.asarray(center_crop(resize(image, [16]), [16, 16]))).all()


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    Image.new("1", (20000, 20000)).save(tmp_path / "huge.png")
    with pytest.raises(UserError, match=r"huge\.png"):
        read(str(tmp_path / "huge.png"), 8)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path)[-100:]) if len(str(path)) < 100 else pytest.skip("the path is too long for a socket")


@pytest.mark.parametrize(("make", "message"), [
    (fifo, "odd.png is a FIFO, and no picture; remove it"),
    (listening, "odd.png is a socket"),
    (lambda p: p.symlink_to("nowhere.png"), "odd.png is a link to nowhere.png, which is not there"),
    (lambda p: p.symlink_to(p.name), "odd.png"),
    (lambda p: p.symlink_to(p.parent), "links to a folder that it lies in"),
    (lambda p: p.symlink_to(p.parent.parent), "links to a folder that it lies in"),
    (lambda p: p.write_bytes(b""), "cannot read .*odd.png"),
])  # fmt: skip
def test_what_is_no_file_is_refused_by_name(folder, make, message):
    make(folder / "train" / "cat" / "odd.png")
    with pytest.raises(UserError, match=message):
        load(folder)


def test_links_to_pictures_and_folders_elsewhere_are_followed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "more" / "a.png", noise(999, 8, 8, 3))
    (folder / "train" / "cat" / "linked").symlink_to(elsewhere / "more")
    (folder / "train" / "cat" / "z.png").symlink_to(elsewhere / "more" / "a.png")
    data = load(folder)
    assert len(data.train) + len(data.validation) == 14


def test_a_truncated_jpeg_is_named(folder):
    path = save(folder / "train" / "dog" / "t.jpg", noise(5, 8, 8, 3))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"cannot read .*t\.jpg: .*truncated"):
        load(folder)


def test_one_image_a_class_leaves_none_to_validate_on(tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            save(tmp_path / part / name / "0.png", noise(0, 8, 8, 3))
    with pytest.raises(UserError, match="one training example a label, and none is left for validation; give at least two"):
        load(tmp_path)


def test_a_folder_without_classes_is_told_where_to_go(tmp_path):
    for part in ("train", "test"):
        save(tmp_path / part / "0.png", noise(0, 8, 8, 3))
    with pytest.raises(UserError, match="has no folder for each class, .*images:DIR"):
        load(tmp_path)
