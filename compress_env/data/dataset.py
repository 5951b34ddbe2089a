"""`Data`: a data set, in memory or where it lies, split for an honest search. The task knows what labels mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from compress_env.data.augmentation import Augmentation
from compress_env.data.stored import Stored, loaded
from compress_env.errors import UserError

Inputs = Tensor | Stored
Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Per-channel mean and standard deviation of pixels in [0, 1]."""

CACHED = 2**24
"""Numbers of prepared inputs that are kept; more are prepared anew when they are asked for again."""
READ_AT_ONCE = 512
"""Training inputs that are read at once from where they are stored, when some are asked for."""
PASS = 12_800
"""Examples of a pass over few, so that the epochs of full distillation are long enough to be worth a look at the validation split."""
VALIDATED = 3500
"""Validation examples of a data set that is not in memory, half of which a search sees; the others are left out."""
STATISTICS = 1000
"""Training images of such a data set that mean and deviation are taken of."""


@dataclass(frozen=True, eq=False)
class Split:
    """Examples.

    Attributes:
        inputs: Inputs `(n, ...)`, either uint8 pixels `(n, channels, height, width)` or ready-made floats, which become float32; in
            memory, or stored elsewhere and read when they are indexed.
        labels: Labels `(n, ...)`: whole numbers from 0 (int64) such as a class each, or numbers of any kind that a task takes.
    """

    inputs: Inputs
    labels: Tensor

    def __post_init__(self) -> None:
        if isinstance(self.inputs, Tensor) and self.inputs.is_floating_point():
            object.__setattr__(self, "inputs", self.inputs.float())

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | slice) -> Split:
        """The examples at these indices, in their order; none that is stored elsewhere is read."""
        inputs = self.inputs
        return Split(inputs.at(indices) if isinstance(inputs, Stored) else inputs[indices], self.labels[indices])

    def held(self) -> Split:
        """The same examples, in memory."""
        return Split(self.inputs[:], self.labels) if isinstance(self.inputs, Stored) else self


@dataclass(frozen=True, eq=False)
class Data:
    """Training, validation and test examples.

    The search sees `train` and `validation`, which are cut from the training data; `test` is for the final report.

    Attributes:
        name: The data set's name.
        train: Examples that networks learn from.
        validation: Examples that students are judged on.
        test: Examples that are looked at once, at the end.
        outputs: The number of outputs that a network for this data has for an example.
        normalization: Applied by `prepare` to uint8 inputs only.
        crop_padding: Pixels of zeros around training images before a random crop.
        flip: Whether training images are mirrored left to right at random.
        complete: Whether `outputs` is known, and not only the largest label that was seen: a network may have more then.
        class_names: A name for each whole-number label, in their order; empty if they have none.
        labelled: Whether labels mean anything; without them, the teacher's answers take their place.
        augmentation: Changes training images in place of crop and flip.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    outputs: int
    normalization: Normalization | None = None
    crop_padding: int = 0
    flip: bool = False
    complete: bool = True
    class_names: tuple[str, ...] = ()
    labelled: bool = True
    augmentation: Augmentation | None = None
    _cache: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.normalization and self.train.inputs.dtype == torch.uint8:
            given, channels = len(self.normalization[0]), self.train.inputs.shape[1]
            if given not in (1, channels):
                raise UserError(
                    f"images of the data set {self.name!r} are of {channels} channels, and mean and std are for {given}; give one "
                    "number a channel"
                )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch dimension."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def stored(self) -> bool:
        """Whether inputs are read when they are needed."""
        return isinstance(self.train.inputs, Stored)

    @property
    def augmented(self) -> str:
        """How training images are changed, in words."""
        if self.augmentation:
            return self.augmentation.name
        parts = [f"crop of {self.crop_padding} pixels more"] * bool(self.crop_padding) + ["flip"] * self.flip
        return " and ".join(parts) if self.train.inputs.dim() == 4 and parts else "none"

    def prepare(self, inputs: Tensor) -> Tensor:
        """Float inputs as the networks take them: uint8 becomes normalised float32, others pass unchanged."""
        if inputs.dtype != torch.uint8:
            return inputs
        x = inputs.float().div_(255)
        if self.normalization:
            mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in self.normalization)
            x = x.sub_(mean).div_(std)
        return x

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """The batch, each image of it changed at random, on its device. Floats that are no images pass unchanged.

        The generator is the CPU's, so that a seed means the same images everywhere.
        """
        if self.augmentation:
            return self.augmentation(inputs, generator)
        if inputs.dim() != 4 or not (self.crop_padding or self.flip):
            return inputs
        n, _, height, width = inputs.shape
        rows = torch.arange(height).expand(n, height)
        columns = torch.arange(width).expand(n, width)
        if self.flip:
            mirrored = torch.rand(n, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        if self.crop_padding:
            pad = self.crop_padding
            inputs = torch.nn.functional.pad(inputs, (pad,) * 4)
            rows = rows + torch.randint(2 * pad + 1, (n, 1), generator=generator)
            columns = columns + torch.randint(2 * pad + 1, (n, 1), generator=generator)
        place = (torch.arange(n).view(n, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1))
        return inputs.permute(0, 2, 3, 1)[tuple(i.to(inputs.device) for i in place)].permute(0, 3, 1, 2)

    def calibration(self, images: int, seed: int = 0) -> Tensor:
        """Prepared, not augmented training inputs, `images` of them at most, always the same for a seed."""
        key = ("calibration", images, seed)
        if key not in self._cache:
            inputs = self.prepare(self._drawn(images, seed))
            if inputs.numel() > CACHED:
                return inputs
            self._cache[key] = inputs
        return self._cache[key]

    def few(self, examples: int | None, seed: int = 0) -> Data:
        """The same data with so many training examples, those that `calibration` gives, in turns up to `PASS`; itself for None."""
        if examples is None:
            return self
        own = self._order(seed)[:examples]
        return replace(self, train=self.train.take(own.repeat(-(-PASS // len(own)))), _cache={})

    def _order(self, seed: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng(seed).permutation(len(self.train)))

    def _drawn(self, images: int, seed: int) -> Tensor:
        """Training inputs at random, fewer being the first of more; those that had to be read are held."""
        order = self._order(seed)[: max(images, READ_AT_ONCE)]
        if not self.stored:
            return self.train.inputs[order[:images]]
        key = ("drawn", seed)
        if key not in self._cache or len(self._cache[key]) < min(images, len(order)):
            self._cache[key] = self.train.inputs[order]
        return self._cache[key][:images]

    def sample(self) -> dict[str, list[int]]:
        """The numbers of the examples that a search looks at, as they are listed; for a data set that is not in memory.

        They are of the training data, in order: `calibration`, of which a search uses the first, and `validation`.
        """
        train, validation = self.train.inputs, self.validation.inputs
        if not isinstance(train, Stored) or not isinstance(validation, Stored):
            return {}
        order = np.random.default_rng(0).permutation(len(train))[:READ_AT_ONCE]
        return {"calibration": train.rows[order].tolist(), "validation": validation.rows.tolist()}

    def validation_subset(self, images: int | None) -> Split:
        """What a search sees: the first `images` validation examples, at most half of them; the split was shuffled when it was cut.

        The rest is for the choice among its best students.
        """
        half = max(1, len(self.validation) // 2)
        seen = self.validation.take(slice(half))
        if self.stored:
            seen = self._cache.setdefault("seen", None) or seen.held()
            self._cache["seen"] = seen
        return seen.take(slice(half if images is None else min(images, half)))

    def head(self, images: int) -> Data:
        """The same data with the first `images` training examples only; they were shuffled when the split was cut."""
        return replace(self, train=self.train.take(slice(images)), _cache={})


def batches(split: Split, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Index batches of one epoch: shuffled and without the last, smaller one if a generator is given, else in order."""
    n = len(split)
    if generator is None:
        yield from torch.arange(n).split(batch_size)
        return
    order = torch.randperm(n, generator=generator)
    yield from (b for b in order.split(batch_size) if len(b) == min(batch_size, n))


def in_order(split: Split, batch_size: int) -> Iterator[Tensor]:
    """The inputs of a split in batches, those that are stored elsewhere read ahead."""
    inputs = split.inputs
    if isinstance(inputs, Stored):
        items = [[(int(i), 0) for i in inputs.rows[rows.numpy()]] for rows in batches(split, batch_size)]
        yield from loaded(inputs.read, items, None)
    else:
        yield from (inputs[rows] for rows in batches(split, batch_size))


def training_batches(
    data: Data, batch_size: int, generator: torch.Generator, device: torch.device, augment: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of the training examples, shuffled, without the last, smaller batch.

    Args:
        data: The data.
        batch_size: Examples a batch.
        generator: The CPU's, of order and augmentation: the same inputs, in memory or not, give the same batches.
        device: Where inputs go.
        augment: Whether inputs are changed at random, as the data say.

    Yields:
        Rows of the training split, and their inputs, not prepared.
    """
    order, inputs = list(batches(data.train, batch_size, generator)), data.train.inputs
    own = data.augmentation if augment else None
    if isinstance(inputs, Tensor) and own is None:
        parts: Iterator[Tensor] = (inputs[rows] for rows in order)
    else:
        seeds = torch.randint(2**62, (len(inputs),), generator=generator).tolist() if own else [0] * len(inputs)
        stored = inputs if isinstance(inputs, Stored) else Stored.of(inputs)
        items = [[(int(stored.rows[i]), seeds[i]) for i in rows.tolist()] for rows in order]
        parts = loaded(stored.read, items, own.change if own else None)
    for rows, raw in zip(order, parts):
        raw = raw.to(device)
        yield rows, data.augment(raw, generator) if augment and own is None else raw


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Part of the examples at random, the same share of those with each label.

    Args:
        labels: Labels `(n, ...)`. If they are not one whole number each, a share of all is held out.
        share: Share that is held out, of each label rounded, at least one, never all.
        seed: Of the order.

    Returns:
        Indices `(rest, held_out)`, both shuffled.
    """
    rng = np.random.default_rng(seed)
    y = labels.numpy() if _whole_numbers(labels) else np.zeros(len(labels))
    members_held = []
    for c in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == c))
        members_held.append(members[: min(max(1, round(share * len(members))), len(members) - 1)])
    held = rng.permutation(np.concatenate(members_held))
    rest = rng.permutation(np.setdiff1d(np.arange(len(y)), held))
    return torch.from_numpy(rest), torch.from_numpy(held)


def _whole_numbers(labels: Tensor) -> bool:
    return labels.dim() == 1 and not labels.is_floating_point()


def make_data(
    name: str,
    train: Split,
    test: Split,
    *,
    outputs: int | None = None,
    normalization: Normalization | None = None,
    crop_padding: int = 0,
    flip: bool = False,
    validation_share: float = 0.1,
    split_seed: int = 0,
    class_names: Sequence[str] = (),
    labelled: bool = True,
    validation: Split | None = None,
) -> Data:
    """Data whose validation split is cut from the training examples, stratified by label, unless there is one.

    Args:
        name: The data set's name.
        train: Examples to learn from and to validate on.
        test: Examples for the final report.
        outputs: Number of outputs of a network for it. If None, one more than the largest label, or the size of a label that is not
            one whole number.
        normalization: Mean and deviation of uint8 pixels; those of the training images if None.
        crop_padding: Pixels of zeros around training images before a random crop.
        flip: Whether training images are mirrored at random.
        validation_share: Share of the training examples for validation, between 0 and 1.
        split_seed: Of the order in which they are drawn.
        class_names: A name for each label, if they have names.
        labelled: Whether labels mean anything.
        validation: Examples to validate on, in the place of some for training.

    Raises:
        UserError: If a split is empty, if nothing is left to validate on, or if a whole-number label is out of range.
    """
    if not 0 < validation_share < 1:
        raise UserError(f"validation_share must lie between 0 and 1, got {validation_share}")
    splits = {"training": train, "test": test, **({} if validation is None else {"validation": validation})}
    for what, split in splits.items():
        if len(split) == 0:
            raise UserError(f"data set {name!r} has no {what} examples")
        if split.inputs.shape[1:] != train.inputs.shape[1:]:
            sizes = f"{tuple(split.inputs.shape[1:])}, and those for training of {tuple(train.inputs.shape[1:])}"
            raise UserError(f"data set {name!r}: {what} examples are of shape {sizes}; bring them to one, folders by an image_size")
    if len(train) == 1 and validation is None:
        raise UserError(f"data set {name!r} has a single training example, and none is left for validation; add some")
    whole, complete = _whole_numbers(train.labels), outputs is not None or not _whole_numbers(train.labels)
    if outputs is None:
        outputs = int(max(split.labels.max() for split in splits.values())) + 1 if whole else train.labels[0].numel()
    for what, split in splits.items():
        if whole and (int(split.labels.min()) < 0 or int(split.labels.max()) >= outputs):
            raise UserError(
                f"data set {name!r}: {what} labels run from {int(split.labels.min())} to {int(split.labels.max())}, "
                f"but a network for it has {outputs} outputs, which labels from 0 to {outputs - 1} point at"
            )
    if validation is None:
        rest, held = stratified_split(train.labels, validation_share, split_seed)
        source = train
    else:  # in any order, too: a search sees the first ones
        rest, held = (torch.from_numpy(np.random.default_rng(split_seed).permutation(len(s))) for s in (train, validation))
        source = validation
    if len(held) == 0:
        raise UserError(
            f"data set {name!r} has one training example a label, and none is left for validation; give at least two of some label"
        )
    if isinstance(source.inputs, Stored):
        held = held[:VALIDATED]
    validation, train = source.take(held), train.take(rest)
    if normalization is None and train.inputs.dtype == torch.uint8:
        normalization = pixel_statistics(train.inputs[:STATISTICS] if isinstance(train.inputs, Stored) else train.inputs)
    names = tuple(map(str, class_names))
    return Data(
        name, train, validation, test, outputs, normalization, crop_padding, flip, complete and labelled, names, labelled
    )  # fmt: skip


def pixel_statistics(images: Tensor) -> Normalization:
    """Per-channel mean and standard deviation of uint8 images `(n, c, h, w)`, in units of the full range."""
    counts = torch.stack([torch.bincount(images[:, c].flatten().int(), minlength=256) for c in range(images.shape[1])])
    share = counts.double() / counts.sum(1, keepdim=True)
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ level
    std = (share @ level.square() - mean.square()).clamp_min(1e-6).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())
