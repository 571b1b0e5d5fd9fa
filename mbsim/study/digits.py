"""Real data: a classifier of digits, with canaries in the place of draggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mbsim import plots, statistics
from mbsim.study.claim import BATCH, RATE, Claim, Details, Found, Study, draw_curves, points
from mbsim.verdicts import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TRAINING_SWEET_SPOT"]


def _accuracies(study: Study, canary_fraction: float = 0.09) -> Found:
    """On digits with canaries an interior micro-batch size trains to a better test accuracy.

    Softmax regression; the canaries (large random images with random labels) stand in for
    draggers. In every split the step size is tuned for each b on the validation images; the best
    interior b is chosen by validation accuracy too, and compared on the test images, paired by
    split, with b = 1 and with b = B (SGD). The splits share one set of images, so the intervals
    are those of Nadeau and Bengio for resampled splits, which speak of new images of the same
    kind; the details have the narrower ones that speak of these images alone.
    """
    from mbsim.gradients import training

    quick, sizes, seed = study.quick, study.sizes, study.seed("training")
    step_sizes = [2.0**k for k in (range(-3, 6, 2) if quick else range(-3, 6))]
    splits, steps = (20, 150) if quick else (24, 600)
    data = training.digits_splits(splits, canary_fraction=canary_fraction, rng=seed)
    found = training.accuracy_by_micro_batch_size(
        data, sizes, step_sizes, steps=steps, batch_size=BATCH, rng=seed
    )
    validation = np.nanmax(found.validation_accuracy, axis=-1).mean(axis=1)
    best = max(range(1, len(sizes) - 1), key=lambda i: float(validation[i]))
    shared = data.test_labels.shape[1] / data.train_labels.shape[1]
    comparisons, for_these_images = [], {}
    for end in (0, -1):
        what = f"test accuracy at b = {sizes[best]} minus that at b = {sizes[end]}"
        differences = found.difference(sizes[best], sizes[end])
        measured = statistics.mean(differences, false_positive_rate=RATE, resampled=shared)
        comparisons.append(Comparison(what=what, measured=measured, relation="above", limit=0.0))
        for_these_images[what] = str(statistics.mean(differences, false_positive_rate=RATE))
    return comparisons, {
        "micro_batch_size": sizes[best],
        "steps": steps,
        "splits": splits,
        "for_these_images": for_these_images,
        "accuracy": points(sizes, found.test_accuracy),
        "median_step_size": np.median(found.step_sizes[found.chosen], axis=1).tolist(),
        "warning": found.warning,
    }


def _draw(figure: Figure, details: Details) -> None:
    axes = figure.subplots()
    curves = {name or "canaries": details[name]["accuracy"] for name in ("", "no canaries")}
    draw_curves(axes, curves)
    plots.sizes_axis(axes, [int(p["x"]) for p in curves["canaries"]])
    what = "test accuracy, step size tuned for each b"
    axes.set(ylabel=what, title="Softmax regression on digits")
    axes.legend()


TRAINING_SWEET_SPOT = Claim(
    name="training-sweet-spot",
    statement=(
        "On digits with canaries an interior micro-batch size has a better test accuracy than "
        "b = 1 and than b = B."
    ),
    source="[Wang2024], whose canaries these are a small version of",
    run=_accuracies,
    controls={"no canaries": {"canary_fraction": 0.0}},
    figure="digits",
    draw=_draw,
    seconds=19,
)
