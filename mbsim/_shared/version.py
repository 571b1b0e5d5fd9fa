"""The version, known to the package metadata alone."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("microbatch-clipping")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
