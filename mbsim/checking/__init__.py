"""Checking: assumptions measured on runs, bounds and formulas held against runs."""
