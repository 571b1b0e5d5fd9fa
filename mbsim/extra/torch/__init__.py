"""PyTorch: gradients of a model's examples, and Algorithm 1 in a training loop.

- :func:`per_example_gradients`: a model, its loss and its data, straight to a Gram matrix.
- :class:`MicroBatchClipper`: for a loop that accumulates gradients over micro-batches.
- :func:`clipped_backward`: from the losses of one ordinary forward pass, for any micro-batch size.

It needs PyTorch, which the extra ``torch`` brings. A page on it and on other tools: docs/use.md.
"""

from mbsim._shared.extras import needed

with needed("mbsim.extra.torch", "PyTorch", extra="torch", name="torch"):
    import torch  # noqa: F401

from mbsim.extra.torch.accumulate import MicroBatchClipper, Step
from mbsim.extra.torch.one_pass import clipped_backward
from mbsim.extra.torch.per_example import per_example_gradients

__all__ = ["MicroBatchClipper", "Step", "clipped_backward", "per_example_gradients"]
