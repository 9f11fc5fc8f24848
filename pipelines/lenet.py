"""LeNet for MNIST, as in the paper's table 10: average pooling, ReLU, 61,706 parameters."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class LeNet(nn.Module):
    """Two convolutions and three fully connected layers.

    Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
    recognition", Proceedings of the IEEE 86(11), 1998, with ReLU for its activations.

    `forward` names no width, so a pruned LeNet runs as soon as its layers are resized. A channel of `conv1`
    becomes 25 neighbouring inputs of `fc1`, one for each place of its 5×5 map.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, 6, kernel_size=5, padding=2)
        self.conv1 = nn.Conv2d(6, 16, kernel_size=5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Float (images, 1, 28, 28) to logits (images, 10)."""
        maps = functional.avg_pool2d(functional.relu(self.conv0(images)), 2)  # (images, 6, 14, 14)
        maps = functional.avg_pool2d(functional.relu(self.conv1(maps)), 2)  # (images, 16, 5, 5)
        features = functional.relu(self.fc1(maps.flatten(1)))  # (images, 120)
        features = functional.relu(self.fc2(features))  # (images, 84)
        logits: Tensor = self.fc3(features)
        return logits
