"""Simulation: two engines of one law, and the runs they make."""
