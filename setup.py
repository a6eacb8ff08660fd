"""Package metadata and the one build step of our own: configs/ ships inside the package."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "fastreid_star" / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)
EXPORT = ["onnx>=1.17", "onnxruntime>=1.20"]


class BuildWithConfigs(build_py):
    """Copy configs/ to fastreid_star/configs. An editable install reads the folder of the clone."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "fastreid_star" / "configs"
            shutil.copytree(HERE / "configs", target, dirs_exist_ok=True)


setup(
    name="fastreid-star",
    version=VERSION,
    description=(
        "Skeleton-guided video visible-infrared person re-identification (STAR) for fast-reid"
    ),
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="fastreid_star contributors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # An editable install with this package_dir puts the clone on sys.path by a .pth file. Without
    # it setuptools adds an import finder, which loses against a folder named fastreid_star in the
    # working directory: the clone itself, seen from its parent folder.
    package_dir={"": "."},
    packages=find_packages(include=["fastreid_star", "fastreid_star.*"]),
    py_modules=["fastreid_star_command"],
    package_data={
        "fastreid_star": ["py.typed"],
        "fastreid_star.methods.example": ["*.md", "*.yml"],
        "fastreid_star.report": ["templates/*"],
    },
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["fastreid-star = fastreid_star_command:main"]},
    # `tools/dev.py oldest` trains, resumes, evaluates, reports and exports with these lower bounds,
    # on Python 3.10, torch 2.4.0 and torchvision 0.19.0. `tools/dev.py test` runs the tests on
    # Python 3.11 with torch 2.13.0 and current releases of the others.
    install_requires=[
        # fastreid==1.4.0 pins torch 1.13, so it is installed with --no-deps. The packages that it
        # needs at run time are listed here without its old pins.
        "torch>=2.4",
        "torchvision>=0.19",
        "torch-geometric>=2.5",
        "yacs>=0.1.8",
        "faiss-cpu>=1.7.3",
        "opencv-python-headless>=4.7",
        "scikit-learn>=1.2",
        "tabulate>=0.9",
        "tensorboard>=2.12",
        "termcolor>=2.2",
        "matplotlib>=3.7",
        "scipy>=1.10",
        "numpy>=1.24",
        "pillow>=9.1",
        "h5py>=3.8",
        "tqdm>=4.60",
        "jinja2>=3.1",
        "gdown>=4.7",  # fast-reid downloads ImageNet weights with it
    ],
    extras_require={
        # for ViTPose; HRNet and RTMPose need mmpose, which pip cannot resolve: tools/dev.py pose
        "pose": ["transformers>=4.48"],
        "npu": ["torch_npu"],
        "export": EXPORT,
        "trackers": ["wandb", "mlflow", "swanlab"],
        "dev": [
            *EXPORT,
            "pytest>=8",
            "pytest-xdist>=3.5",
            "pytest-cov>=7",
            "hypothesis>=6.90",
            "ruff>=0.9",
            "mypy==2.4.1",
            "playwright>=1.40",
            "ninja",
            "setuptools>=64",  # a test builds the wheel in this environment
        ],
    },
    keywords=[
        "person re-identification",
        "video",
        "visible-infrared",
        "cross-modal retrieval",
        "skeleton",
        "fast-reid",
        "pytorch",
    ],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Operating System :: Microsoft :: Windows",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
