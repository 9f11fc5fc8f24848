"""VGG-16 as in the paper's tables 4 to 6: every cut beside the paper's figures, and freely as small as wanted.

    uv run python -m pipelines.vgg16_cifar10 --run runs/vgg16 --device cuda --mixed-precision
    uv run python -m pipelines.vgg16_cifar10 --dataset fashion-mnist --sparsity 0.93 --fine-tune-epochs 1

Train the original for 200 epochs (or read its weights) → capture 2,000 images without labels, once → for every cut:
choose the channels while measuring whole cut networks, refit the weights in order, write, evaluate, fine-tune, and
if wanted train the same architecture from scratch. CIFAR-10 is downloaded where `--data-root` does not have it.
"""

from __future__ import annotations

import typer

import pipelines.cifar_command as options
from pipelines.cifar_networks import FINE_TUNING, TRAINING, VGG16


def main(
    dataset: options.DATASET = "cifar10",
    data_root: options.DATA_ROOT = None,
    weights: options.WEIGHTS = None,
    cut: options.CUT = None,
    sparsity: options.SPARSITY = None,
    counts: options.COUNTS = None,
    images: options.IMAGES = 2000,
    unseen_images: options.UNSEEN = 512,
    rounds: options.ROUNDS = 8,
    seed: options.SEED = 0,
    epochs: options.EPOCHS = TRAINING.epochs,
    fine_tune_epochs: options.TUNE = FINE_TUNING.epochs,
    fine_tune_rate: options.RATE = FINE_TUNING.learning_rate,
    one_cycle: options.ONE_CYCLE = False,
    teacher: options.TEACHER = True,
    from_scratch: options.SCRATCH = 0,
    mixed_precision: options.MIXED = False,
    device: options.DEVICE = "cpu",
    threads: options.THREADS = None,
    run: options.RUN = None,
    write: options.WRITE = None,
    as_json: options.AS_JSON = False,
    dry_run: options.DRY_RUN = False,
) -> None:
    """Prune VGG-16 as the paper does (tables 4 to 6), and further; one-shot, fine-tuned and from scratch.

    Without --cut and --sparsity: all seven cuts of the paper's table 4, and 93, 96 and 98 %.
    Hours on a CPU, minutes on a GPU if the weights are at hand; everything is kept in --run.

    Examples:

        uv run python -m pipelines.vgg16_cifar10 --dry-run

        uv run python -m pipelines.vgg16_cifar10 --dataset fashion-mnist --cut conv_all+fc --run runs/vgg16

        uv run python -m pipelines.vgg16_cifar10 --cut conv_all+fc --fine-tune-epochs 50 --from-scratch 280
    """
    options.run_recipe(
        VGG16, "vgg16_cifar10",
        options.Options(
            dataset, data_root, weights, cut or [], sparsity or [], counts, images, unseen_images, rounds, seed,
            epochs, fine_tune_epochs, fine_tune_rate, one_cycle, teacher, from_scratch, mixed_precision, device,
            threads, run, write, as_json, dry_run,
        ),
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
