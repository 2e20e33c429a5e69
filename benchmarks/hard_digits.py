"""A harder form of the digits: few training images, shifted, scaled and noisy, so that methods can differ.

With all of scikit-learn's digits every method ends near 99.7 % and nothing is told apart. Usable from a recipe:

    data:
      python: hard_digits:make_loaders
      arguments: {seed: 0, train_images: 350, noise: 0.5}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

_TEST_PERTURBATION = 20260  # one perturbation per image, the same in every split


@dataclass(frozen=True)
class Perturbation:
    """Uniform random shifts (share of the image's size) and scales (±), then Gaussian noise on values in [-1, 1]."""

    noise: float
    shift: float
    scale: float
    size: int

    def apply(self, digits: Tensor, generator: torch.Generator) -> Tensor:
        """Draws one perturbation per digit, (n, 1, 8, 8) in [-1, 1], and returns (n, 1, size, size)."""
        count = len(digits)
        zoom = 1 + self.scale * _symmetric(generator, count)
        offset = 2 * self.shift * _symmetric(generator, count, 2)  # the grid's unit is half an image
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / zoom
        theta[:, :, 2] = offset
        grid = affine_grid(theta, [count, 1, self.size, self.size], align_corners=False)
        images = grid_sample(digits + 1, grid, align_corners=False) - 1  # outside is background, -1
        return images + self.noise * torch.randn(images.shape, generator=generator)


@dataclass
class PerturbedLoader:
    """Batches of freshly perturbed digits in random order; `generator` draws everything, the training loop seeds it.

    An epoch shows every digit `passes` times.
    """

    digits: Tensor
    labels: Tensor
    perturbation: Perturbation
    batch_size: int
    passes: int
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __len__(self) -> int:
        return self.passes * len(self.digits) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.cat([torch.randperm(len(self.digits), generator=self.generator) for _ in range(self.passes)])
        for batch in order.split(self.batch_size)[: len(self)]:
            yield self.perturbation.apply(self.digits[batch], self.generator), self.labels[batch]


def make_loaders(  # the arguments are a recipe's keys
    *,
    seed: int = 0,
    train_images: int = 350,
    noise: float = 0.5,
    batch_size: int = 50,
    passes: int = 4,
    image_size: int = 32,
    shift: float = 0.12,
    scale: float = 0.2,
) -> tuple[PerturbedLoader, list[tuple[Tensor, Tensor]]]:
    """Returns the training loader and the test batches.

    Args:
        seed: of the stratified split.
        train_images: how many of the 1,797 digits are for training; all others are the test set.
        noise: standard deviation of the noise, on values in [-1, 1].
        batch_size: of the training batches.
        passes: how many times an epoch shows each training image, perturbed anew.
        image_size: pixels per side.
        shift: the furthest that a digit moves, as a share of the image's size.
        scale: the most by which it grows or shrinks.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    stored = load_digits()
    digits = torch.tensor(stored.images, dtype=torch.float32)[:, None] / 8 - 1  # (n, 1, 8, 8)
    labels = torch.tensor(stored.target)
    train, test = train_test_split(range(len(labels)), train_size=train_images, stratify=labels, random_state=seed)
    perturbation = Perturbation(noise, shift, scale, size=image_size)
    images = perturbation.apply(digits, torch.Generator().manual_seed(_TEST_PERTURBATION))
    judged = list(zip(images[test].split(128), labels[test].split(128), strict=True))
    return PerturbedLoader(digits[train], labels[train], perturbation, batch_size, passes), judged


def _symmetric(generator: torch.Generator, *shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=generator) - 1
