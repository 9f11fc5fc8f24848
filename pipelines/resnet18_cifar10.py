"""ResNet-18 as in the paper's table 8: every cut beside the paper's figures, and freely as small as wanted.

    uv run python -m pipelines.resnet18_cifar10 --run runs/resnet18 --device cuda --mixed-precision
    uv run python -m pipelines.resnet18_cifar10 --dataset fashion-mnist --sparsity 0.85 --fine-tune-epochs 1

Train the original for 200 epochs (or read its weights) → capture 2,000 images without labels, once → for every cut:
choose the channels while measuring whole cut networks, refit the weights in order, write, evaluate, fine-tune, and
if wanted train the same architecture from scratch. CIFAR-10 is downloaded where `--data-root` does not have it.
"""

from __future__ import annotations

import typer

from pipelines.cifar_command import command_of
from pipelines.cifar_networks import RESNET18

HELP = """Prune ResNet-18 as the paper does (table 8), and further; one-shot, fine-tuned and from scratch.

Without --cut and --sparsity: both cuts of the paper's table 8, the second with the residual
streams too, and 73.6, 85 and 93 %.
Hours on a CPU, minutes on a GPU if the weights are at hand; everything is kept in --run.

Examples:

    uv run python -m pipelines.resnet18_cifar10 --dry-run

    uv run python -m pipelines.resnet18_cifar10 --dataset fashion-mnist --cut conv_all --run runs/resnet18

    uv run python -m pipelines.resnet18_cifar10 --cut conv_all --fine-tune-epochs 50 --from-scratch 280
"""

main = command_of(RESNET18, "resnet18_cifar10", HELP)

if __name__ == "__main__":
    typer.run(main)
