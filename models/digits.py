"""A small ConvNet on real images, with and without batch norm.

The data: 1,797 handwritten digits of 8×8 pixels, Alpaydin and Kaynak 1998, as shipped with scikit-learn. The
comparison: Ioffe and Szegedy, "Batch Normalization", 2015 (arXiv:1502.03167): the same net, the same steps, with and
without.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.sample import Sample
from models.statistics import seeded

EPOCHS = 20
BATCH = 64
LEARNING_RATE = 0.05
MOMENTUM = 0.9
TEST_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Digits:
    """Images (N, 1, 8, 8) float32 in [0, 1] with their labels (N,) int64, split in two."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """A trained module in eval mode, with the mean training loss and the test accuracy after each epoch."""

    module: nn.Module
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    seconds: float


class ConvNet(nn.Module):
    """Four 3×3 convolutions, each with a BatchNorm behind it or a bias in it, pooling, and a linear classifier."""

    def __init__(self, batch_norm: bool, widths: tuple[int, ...] = (16, 16, 32, 32)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for index, width in enumerate(widths):
            layers.append(nn.Conv2d(inputs, width, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            if index in (1, 3):
                layers.append(nn.MaxPool2d(2))
            inputs = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(images).mean(dim=(2, 3)))
        return logits


def digits() -> Digits:
    """Return the digits, split into training and test images the same way each time."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=TEST_SHARE, random_state=0, stratify=labels)
    train, test = (torch.tensor(part, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16.0 for part in parts[:2])
    train_labels, test_labels = (torch.tensor(part, dtype=torch.int64) for part in parts[2:])
    return Digits(train, train_labels, test, test_labels)


def train(data: Digits, *, batch_norm: bool, epochs: int = EPOCHS, seed: int = 0) -> Run:
    """Return the net trained by SGD with momentum and a cosine schedule.

    The same arguments give the same weights: one thread, one seed.
    """
    begin = time.perf_counter()
    losses, accuracies = [], []
    with seeded(seed), _one_thread():
        module = ConvNet(batch_norm)
        optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            losses.append(_epoch(module, optimizer, data))
            schedule.step()
            accuracies.append(accuracy(module, data))
    return Run(module.eval(), tuple(losses), tuple(accuracies), time.perf_counter() - begin)


def accuracy(module: nn.Module, data: Digits) -> float:
    """Return the share of test images that ``module`` names right, in eval mode."""
    module.eval()
    with torch.no_grad():
        return float((module(data.test_images).argmax(1) == data.test_labels).float().mean())


def _epoch(module: nn.Module, optimizer: torch.optim.Optimizer, data: Digits) -> float:
    module.train()
    total = 0.0
    for index in torch.randperm(len(data.train_images)).split(BATCH):  # type: ignore[no-untyped-call]
        loss = functional.cross_entropy(module(data.train_images[index]), data.train_labels[index])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item() * len(index)
    return total / len(data.train_images)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sum in one order: the number of threads changes the last bit of a gradient, and so the whole run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def convnet() -> nn.Module:
    """Return the net with BatchNorm, trained."""
    return train(digits(), batch_norm=True).module


def example_inputs() -> tuple[Tensor, ...]:
    return (digits().test_images[:2],)


EXPECTED = {"batch": 4}
SAMPLES = (Sample("digits", convnet, example_inputs, EXPECTED),)
