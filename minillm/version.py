"""The version, written here alone: the package's metadata is made from it, so a checkout says the same."""

__version__ = "0.1.0"
