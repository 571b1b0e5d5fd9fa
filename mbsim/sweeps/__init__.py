"""Grids of problems and methods, run in parallel, kept in a file, and resumed after anything."""
