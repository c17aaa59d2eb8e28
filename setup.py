"""Packaging of diffcache; pyproject.toml holds the configuration of the tools."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"

# Run by path: importing the package would need torch, which a build environment lacks.
VERSION = runpy.run_path(str(HERE / "diffcache" / "version.py"))["__version__"]

# Installed as a top-level `kernels`, the folder would shadow the Hugging Face package of that
# name, which diffusers and transformers import.
KERNELS = "diffcache.kernels"

DEMO = ["matplotlib>=3.7"]
DEV = ["build>=1.0", "ruff>=0.12"]
TRITON = ['triton>=3.3; platform_system == "Linux"']
TEST = [
    *DEMO,
    *TRITON,
    "accelerate>=1.0",
    "cache-dit>=1.3",
    "deepcache>=0.1.1",
    "peft>=0.17",
    "pytest>=8.2",
    "pytest-benchmark>=5.0",
    "scipy>=1.11",
    "setuptools>=77",
    "torchao>=0.18",
]

setup(
    name="diffcache",
    version=VERSION,
    description="Training-free feature caching for every diffusers pipeline, in one line",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["diffcache", "diffcache.*"]),
        KERNELS,
        *(f"{KERNELS}.{name}" for name in find_packages("kernels")),
    ],
    package_dir={KERNELS: "kernels"},
    package_data={
        "diffcache": [
            "py.typed",
            "tiny/weights/**/*.safetensors",
            "tiny/weights/**/*.json",
            "tiny/weights/**/*.txt",
        ]
    },
    install_requires=[
        "diffusers>=0.35",
        "numpy>=1.24",
        "Pillow>=10.1",
        "safetensors>=0.4.3",
        "scikit-image>=0.22",
        "torch>=2.5",
        "transformers>=4.46.1",
    ],
    extras_require={"demo": DEMO, "triton": TRITON, "test": TEST, "dev": DEV},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
