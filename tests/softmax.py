"""Softmax regression, example by example: the plain reading of what training does at once."""

from types import SimpleNamespace

import numpy as np
from scipy.special import log_softmax

from mbsim._shared.seeds import child
from mbsim.gradients.splits import Split


def per_example_gradients(weights, inputs, labels):
    """Explicit gradients [B, K·D] of one split: one outer product after another."""
    gradients = []
    for x, y in zip(inputs, labels, strict=True):
        log_p = log_softmax(weights @ x)
        residual = np.exp(log_p)
        residual[y] = np.expm1(log_p[y])  # p_y − 1 without losing digits
        gradients.append(np.outer(residual, x).ravel())
    return np.array(gradients)


def digits_with_canaries(count, *, rng, fraction=0.09, scale=5.0):
    """Splits of scikit-learn's digits whose canaries are bright random images, beside the others.

    Pixels on [0, 1], those of a canary uniform on [0, scale]; 897 digits to train with, 450 each to
    validate and to test.
    """
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    images = np.column_stack([pixels / 16, np.ones(len(pixels))])
    canaries = round(897 * fraction / (1 - fraction))
    root = child(np.random.SeedSequence(rng), int.from_bytes(b"data"))
    splits = []
    for number in range(count):
        draw = np.random.default_rng(child(root, number))
        train, validation, test = np.split(draw.permutation(len(images)), [897, 897 + 450])
        random = np.column_stack([scale * draw.random((canaries, 64)), np.ones(canaries)])
        labels = draw.integers(10, size=canaries)
        splits.append(
            Split(
                train_inputs=np.concatenate([images[train], random]),
                train_labels=np.concatenate([digits[train], labels]),
                touched=np.arange(897 + canaries) >= 897,
                validation_inputs=images[validation],
                validation_labels=digits[validation],
                test_inputs=images[test],
                test_labels=digits[test],
                classes=10,
            )
        )
    return splits


def geometry(gradients, is_dragger):
    """How far some examples are draggers, directly: what check_assumptions is held against.

    Cosines of each dragger and the mean benign gradient; the share of the draggers' energy in the
    span of the benign gradients and the numerical rank of that span; c, of root mean squares.
    """
    benign, draggers = gradients[~is_dragger], gradients[is_dragger]
    mean, lengths = benign.mean(axis=0), np.linalg.norm(draggers, axis=1)
    cosines = draggers @ mean / (lengths * np.linalg.norm(mean))
    _, spread, basis = np.linalg.svd(benign, full_matrices=False)
    # NumPy's rule for the numerical rank: what rounding alone could produce is not counted.
    basis = basis[spread > spread[0] * max(benign.shape) * np.finfo(np.float64).eps]
    share = np.square(draggers @ basis.T).sum() / np.square(lengths).sum()
    ratio = np.sqrt(np.square(lengths).mean() / np.square(benign).sum(axis=1).mean())
    return SimpleNamespace(
        cosine_mean=cosines.mean(),
        cosine_sd=cosines.std(),
        energy_in_span=share,
        span_rank=len(basis),
        norm_ratio=ratio,
    )
