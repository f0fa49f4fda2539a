"""What is only needed for some features, and how to install it: the extras of pyproject.toml."""

import importlib.metadata
from dataclasses import dataclass


@dataclass(frozen=True)
class Extra:
    """A group of optional packages.

    Attributes:
        name: of the extra: ``pip install 'sammi_jax[NAME]'``.
        package: the distribution that it installs.
        purpose: what for.
    """

    name: str
    package: str
    purpose: str

    @property
    def command(self) -> str:
        """How to install it."""
        return f"pip install 'sammi_jax[{self.name}]'"

    @property
    def installed(self) -> str | None:
        """The installed version of the package; None: it is missing."""
        return installed_version(self.package)


EXTRAS = {
    extra.name: extra
    for extra in (
        Extra("convert", "torch", "open PyTorch checkpoints (.pt, .pth, .bin)"),
        Extra("tpu", "libtpu", "run on TPUs; compile for them (sammi compile)"),
        Extra("tensorboard", "tensorboardX", "write TensorBoard logs while training"),
        Extra("export", "flatbuffers", "write models as StableHLO programs (sammi export)"),
        Extra("serve", "gradio", "a model in the browser"),
        Extra("geotiff", "rasterio", "read and write GeoTIFF with its place on the ground"),
        Extra("gcs", "gcsfs", "paths in Google Cloud Storage (gs://...)"),
        Extra("s3", "s3fs", "paths in Amazon S3 and the like (s3://...)"),
    )
}


def installed_version(package: str) -> str | None:
    """The version of a distribution; None: it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
