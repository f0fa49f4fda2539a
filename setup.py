"""Adds `configs/` to the wheel, as `sammi_jax.configs`; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sammi_jax*"]), "sammi_jax.configs"],
    package_dir={"sammi_jax.configs": "configs"},
)
