"""Data sets: an honest split, exact preparation, augmentation against a loop, and folders of images with faults."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from torch.utils.data import TensorDataset

from compress_env.data import load_data
from compress_env.data.dataset import Data, Split, batches, make_data, pixel_statistics, stratified_split
from compress_env.errors import UnknownName, UserError


def images(n: int, shape=(3, 6, 5), seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def labels(n: int, classes: int = 3) -> torch.Tensor:
    return torch.arange(n) % classes


def numbered(n: int, classes: int = 3, dtype=torch.float32) -> Split:
    """Examples whose input is their own number."""
    return Split(torch.arange(n, dtype=dtype).view(n, 1), labels(n, classes))


# The split


def test_a_split_is_stratified_disjoint_and_covers_everything():
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 7)
    rest, held = stratified_split(y, 0.2, seed=3)
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(87))
    assert torch.bincount(y[held]).tolist() == [10, 6, 1]
    assert rest.tolist() != sorted(rest.tolist()) and held.tolist() != sorted(held.tolist())  # shuffled


def test_a_split_is_the_same_for_a_seed_and_another_for_another():
    y = labels(60)
    first, again, other = (stratified_split(y, 0.25, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_every_class_has_a_held_out_example():
    _, held = stratified_split(torch.tensor([0] * 40 + [1, 1]), 0.1, seed=0)
    assert torch.bincount(torch.tensor([0] * 40 + [1, 1])[held]).tolist() == [4, 1]


def test_the_validation_split_depends_on_labels_and_seed_alone():
    train, test = numbered(90), numbered(9)
    plain = make_data("a", train, test)
    pixels = Split(images(90), train.labels)
    pixels.inputs[:, 0, 0, 0] = torch.arange(90)
    dressed = make_data("b", pixels, Split(images(12, seed=5), labels(12)), normalization=((0.5,) * 3, (0.2,) * 3),
                        crop_padding=2, flip=True)  # fmt: skip
    assert dressed.validation.inputs[:, 0, 0, 0].tolist() == plain.validation.inputs[:, 0].tolist()
    assert dressed.train.inputs[:, 0, 0, 0].tolist() == plain.train.inputs[:, 0].tolist()
    assert make_data("c", train, test, split_seed=1).validation.inputs.tolist() != plain.validation.inputs.tolist()


def test_data_has_nine_tenths_to_train_on_and_the_test_images_as_given():
    data = make_data("a", numbered(300), numbered(9))
    assert (len(data.train), len(data.validation), len(data.test), data.outputs) == (270, 30, 9, 3)
    assert data.test.inputs.flatten().tolist() == list(range(9))
    assert torch.equal(data.train.labels, data.train.inputs.flatten().long() % 3)  # still belong together
    assert data.input_shape == (1,) and data.normalization is None


def test_digits_are_the_bundled_ones_split_in_three():
    data = load_data("digits")
    assert (len(data.train), len(data.validation), len(data.test), data.outputs) == (1008, 250, 539, 10)
    assert data.input_shape == (1, 8, 8) and data.train.inputs.dtype == torch.uint8
    together = torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs])
    assert together.max() == 255 and together.double().mean().item() == pytest.approx(4.884164 * 255 / 16, abs=0.1)


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_a_validation_share_outside_of_0_and_1_is_refused(share):
    with pytest.raises(UserError, match="validation_share"):
        make_data("a", numbered(9), numbered(9), validation_share=share)


def test_a_subset_and_the_head_are_the_first_examples():
    data = make_data("a", numbered(300), numbered(9))
    assert torch.equal(data.head(5).train.inputs, data.train.inputs[:5]) and len(data.train) == 270
    assert torch.equal(data.validation_subset(4).labels, data.validation.labels[:4])
    assert len(data.validation) == 30 and len(data.validation_subset(None)) == len(data.validation_subset(20)) == 15


def test_calibration_images_are_prepared_training_images_and_always_the_same():
    data = make_data("a", Split(images(90), labels(90)), Split(images(9), labels(9)))
    first = data.calibration(7)
    again = make_data("a", Split(images(90), labels(90)), Split(images(9), labels(9))).calibration(7)
    assert torch.equal(first, again) and first.shape == (7, 3, 6, 5) and first.dtype == torch.float32
    assert not torch.equal(first, data.calibration(7, seed=1))
    known = {x.numpy().tobytes() for x in data.prepare(data.train.inputs)}
    assert all(x.numpy().tobytes() in known for x in first)
    assert len(data.calibration(1000)) == len(data.train)


def test_batches_cover_an_epoch_in_order_or_shuffled_without_the_last_smaller_one():
    split = numbered(25)
    assert [b.tolist() for b in batches(split, 10)] == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    shuffled = [b.tolist() for b in batches(split, 10, torch.Generator().manual_seed(0))]
    assert [len(b) for b in shuffled] == [10, 10] and len({i for b in shuffled for i in b}) == 20
    assert shuffled != [list(range(10)), list(range(10, 20))]
    assert [len(b) for b in batches(split, 100, torch.Generator().manual_seed(0))] == [25]


# Preparation and augmentation


def test_prepared_pixels_are_normalised_exactly():
    data = Data("a", *[Split(images(4), labels(4))] * 3, 3, ((0.1, 0.2, 0.3), (0.5, 0.25, 2.0)))
    before = data.train.inputs.clone()
    found = data.prepare(data.train.inputs)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in data.normalization)
    expected = (before.numpy().astype(np.float32) / np.float32(255) - mean) / std
    assert np.array_equal(found.numpy(), expected)
    assert torch.equal(data.train.inputs, before)


def test_floats_pass_through_preparation():
    data = Data("a", *[numbered(3)] * 3, 3, ((0.5,), (0.5,)))
    assert data.prepare(data.train.inputs) is data.train.inputs
    assert Split(torch.ones(2, 3, dtype=torch.bfloat16), labels(2)).inputs.dtype == torch.float32


def test_pixel_statistics_are_numpys():
    x = images(40)
    x[:, 1] //= 3
    mean, std = pixel_statistics(x)
    scaled = x.numpy().astype(np.float64) / 255
    assert mean == tuple(scaled.mean((0, 2, 3)).round(4)) and std == tuple(scaled.std((0, 2, 3)).round(4))
    data = make_data("a", Split(x, labels(40)), Split(x, labels(40)))
    assert data.normalization == pixel_statistics(data.train.inputs)  # of what is trained on alone


def augmenting(crop_padding: int, flip: bool) -> Data:
    return Data("a", *[Split(images(200), labels(200))] * 3, 3, crop_padding=crop_padding, flip=flip)


@pytest.mark.parametrize("crop_padding, flip", [(2, True), (2, False), (0, True)])
def test_augmentation_keeps_shape_and_type_and_is_seeded(crop_padding, flip):
    data = augmenting(crop_padding, flip)
    x = data.train.inputs
    first, again, other = (data.augment(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == x.shape and first.dtype == torch.uint8
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_flips_give_each_image_or_its_mirror_about_equally_often():
    data = augmenting(0, True)
    x = data.train.inputs
    y = data.augment(x, torch.Generator().manual_seed(0))
    same = (y == x).flatten(1).all(1)
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all() and 70 < mirrored.sum() < 130


def test_crops_are_shifts_of_the_zero_padded_image_and_all_shifts_occur():
    data = augmenting(1, False)
    x = data.train.inputs
    y = data.augment(x, torch.Generator().manual_seed(0))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifts = set()
    for image, source in zip(y.numpy(), padded):
        matching = [s for s in np.ndindex(3, 3) if np.array_equal(image, source[:, s[0] : s[0] + 6, s[1] : s[1] + 5])]
        assert len(matching) == 1
        shifts.add(matching[0])
    assert len(shifts) == 9


def test_no_augmentation_and_inputs_that_are_no_images_pass_unchanged():
    x = images(3)
    assert augmenting(0, False).augment(x, torch.Generator()) is x
    vectors = torch.ones(3, 7)
    assert augmenting(2, True).augment(vectors, torch.Generator()) is vectors


# Folders of images


def write(folder, name: str, pixels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def folder(tmp_path):
    """Two classes, "cat" and "dog", of 8x8 pixels: 12 images each to train on and 2 to test."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 2)):
        for name, value in (("dog", 200), ("cat", 50)):
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                pixels[0, 0] = value  # tells the class
                write(tmp_path / part / name, f"{i}.png", pixels)
    return tmp_path


def read(folder, **options) -> Data:
    return load_data(f"imagefolder:{folder}", **options)


def test_a_folder_is_read_pixel_by_pixel_with_classes_in_order_of_their_names(folder):
    data = read(folder)
    assert data.outputs == 2 and data.input_shape == (3, 8, 8) and data.name == folder.name
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 4)
    for split in (data.train, data.validation, data.test):
        assert torch.equal(split.inputs[:, 0, 0, 0], torch.tensor([50, 200], dtype=torch.uint8)[split.labels])
    expected = {np.asarray(Image.open(p)).transpose(2, 0, 1).tobytes() for p in folder.glob("train/*/*.png")}
    assert {x.numpy().tobytes() for x in [*data.train.inputs, *data.validation.inputs]} == expected
    assert (data.crop_padding, data.flip) == (1, True)


def test_val_is_taken_for_test(folder):
    (folder / "test").rename(folder / "val")
    assert len(read(folder).test) == 4


def test_a_given_normalization_wins(folder):
    assert read(folder, normalization=((0.1,) * 3, (0.3,) * 3)).normalization == ((0.1,) * 3, (0.3,) * 3)


def test_grey_images_become_rgb(folder):
    write(folder / "train" / "cat", "grey.png", np.full((8, 8), 77, np.uint8))
    data = read(folder)
    grey = [x for x in [*data.train.inputs, *data.validation.inputs] if (x == 77).all()]
    assert len(grey) == 1 and grey[0].shape == (3, 8, 8)


def test_a_missing_folder_is_named_with_what_is_there(folder, tmp_path):
    (folder / "test").rename(folder / "exam")
    with pytest.raises(UserError, match=r"needs the folders train/<class>/ and test/<class>/; found exam, train"):
        read(folder)
    with pytest.raises(UserError, match="nowhere.*no such folder"):
        read(tmp_path / "nowhere")


def test_different_classes_are_named(folder):
    (folder / "test" / "dog").rename(folder / "test" / "fox")
    with pytest.raises(UserError, match=r"different class folders, for example \['dog', 'fox'\]"):
        read(folder)


def test_a_class_without_images_is_named(folder):
    (folder / "train" / "eel").mkdir()
    with pytest.raises(UserError, match="eel"):
        read(folder)


def test_images_of_different_sizes_need_an_image_size(folder):
    write(folder / "train" / "dog", "wide.png", np.zeros((8, 16, 3), np.uint8))
    with pytest.raises(UserError, match=r"wide\.png is 16x8 pixels, .* 8x8; give an image_size"):
        read(folder)
    assert read(folder, image_size=4).input_shape == (3, 4, 4)


def test_the_image_size_resizes_the_shorter_side_and_cuts_the_centre_out(folder):
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[4:, 8:24] = 200  # all of the centre but a quarter at the top
    write(folder / "train" / "dog", "wide.png", wide)
    data = read(folder, image_size=8)
    centres = [x for x in [*data.train.inputs, *data.validation.inputs] if (x[:, 3:, 1:7] == 200).all()]
    assert len(centres) == 1 and (centres[0][:, 0] == 0).all()


FAULTS = {
    "no image": lambda content: b"no image",
    "cut off": lambda content: content[: len(content) // 2],
    "header length": lambda content: content[:11] + b"\0" + content[12:],
    "chunk length": lambda content: content[:36] + b"\0" + content[37:],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unreadable_file_is_named_whatever_is_wrong_with_it(folder, fault):
    path = folder / "train" / "cat" / "3.png"
    path.write_bytes(FAULTS[fault](path.read_bytes()))
    with pytest.raises(UserError, match=r"cannot read .*cat.3\.png"):
        read(folder)


# Everything else that `load_data` takes


def test_a_pair_of_torch_datasets_is_stacked():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    data = load_data((TensorDataset(x, labels(40, 4)), TensorDataset(x[:8], labels(8, 4))))
    assert (data.name, data.outputs, data.input_shape) == ("custom", 4, (5,))
    assert torch.equal(data.test.inputs, x[:8]) and torch.equal(data.test.labels, labels(8, 4))
    assert len(data.train) == 36 and data.normalization is None


def test_data_stays_what_it_is():
    data = make_data("a", numbered(30), numbered(9))
    assert load_data(data) is data


@pytest.mark.parametrize("body", [
    "def make(): return (split(30), split(9))",
    "def make(): return make_data('mine', split(30), split(9))",
    "def make(normalization=None): return make_data('mine', split(30), split(9), normalization=normalization)",
])  # fmt: skip
def test_a_factory_in_a_file_gives_data(tmp_path, body):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom compress_env.data.dataset import Split, make_data\n"
        f"def split(n): return Split(torch.arange(n * 1.0).view(n, 1), torch.arange(n) % 3)\n{body}\n"
    )
    data = load_data(f"{file}:make", normalization=((0.5,), (0.5,)))
    assert data.outputs == 3 and data.test.inputs.flatten().tolist() == list(range(9))
    assert data.normalization == (None if body.startswith("def make(): return make_data") else ((0.5,), (0.5,)))


def test_a_missing_factory_is_told_from_a_missing_file_and_module(tmp_path):
    (tmp_path / "mine.py").write_text("def make_photos(): pass")
    with pytest.raises(UnknownName, match="did you mean 'make_photos'"):
        load_data(f"{tmp_path / 'mine.py'}:make_photo")
    with pytest.raises(UserError, match=r"there is no file .*other\.py"):
        load_data(f"{tmp_path / 'other.py'}:make")
    with pytest.raises(UserError, match="No module named 'no_such_module'"):
        load_data("no_such_module:make")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownName, match="no data set 'digitz'; did you mean 'digits'"):
        load_data("digitz")


def test_what_is_no_data_at_all_is_named():
    with pytest.raises(UserError, match="got float"):
        load_data(3.0)


def test_an_image_size_is_only_for_folders():
    with pytest.raises(UserError, match="image_size is for imagefolder"):
        load_data("digits", image_size=16)


def test_empty_data_is_refused():
    nothing = TensorDataset(torch.empty(0, 5), torch.empty(0))
    with pytest.raises(UserError, match="empty"):
        load_data((nothing, nothing))
    with pytest.raises(UserError, match="no test examples"):
        make_data("a", numbered(9), numbered(0))


@pytest.mark.parametrize("bad", [-1, 3])
def test_a_label_out_of_range_is_named_with_the_split(bad):
    test = numbered(9)
    test.labels[4] = bad
    with pytest.raises(UserError, match=rf"test labels run from .*{bad}.* has 3 outputs, which labels from 0 to 2"):
        make_data("a", numbered(30), test, outputs=3)


def test_inputs_of_different_shapes_are_named():
    uneven = [(torch.zeros(3), 0), (torch.zeros(4), 1)]
    with pytest.raises(UserError, match=r"different shapes, for example \[\(3,\), \(4,\)\]"):
        load_data((uneven, uneven))


def test_torchvisions_arrays_become_channels_first_pixels(monkeypatch, tmp_path):
    asked = []

    def fake(root, train, download):
        asked.append((root, train, download))
        return SimpleNamespace(data=images(30, (4, 4, 3)).numpy(), targets=labels(30).tolist(), classes=list("abcdefghij"))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    monkeypatch.setenv("COMPRESS_ENV_DATA", str(tmp_path))
    data = load_data("cifar10")
    assert asked == [(tmp_path, True, True), (tmp_path, False, True)]
    assert data.input_shape == (3, 4, 4) and data.outputs == 10 and (data.crop_padding, data.flip) == (4, True)
    assert torch.equal(data.test.inputs, images(30, (4, 4, 3)).permute(0, 3, 1, 2))


def test_a_failed_download_says_where_to_put_the_files(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    monkeypatch.setenv("COMPRESS_ENV_DATA", str(tmp_path))
    with pytest.raises(UserError, match=rf"{tmp_path.name} \(no network\); put its files there"):
        load_data("cifar10")
