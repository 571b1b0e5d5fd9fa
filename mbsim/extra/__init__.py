"""One module for each optional dependency, named after it."""
