"""Real gradients: a user's own, and those of real models in training."""
