"""Package metadata. fastreid itself pins torch 1.13 and is installed with --no-deps: see tools/dev.py."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "fastreid_star" / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

setup(
    name="fastreid-star",
    version=VERSION,
    description="Skeleton-guided video visible-infrared person re-identification (STAR) as a fast-reid plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["fastreid_star", "fastreid_star.*"]),
    package_data={"fastreid_star": ["py.typed"], "fastreid_star.report": ["templates/*"]},
    install_requires=[
        # fastreid==1.4.0 goes in with --no-deps; what it needs at run time is listed here, without its old pins
        "torch>=2.4",
        "torchvision",
        "yacs>=0.1.8",
        "faiss-cpu>=1.7.3",
        "opencv-python-headless>=4.7",
        "scikit-learn>=1.2",
        "tabulate>=0.9",
        "tensorboard>=2.12",
        "termcolor>=2.2",
        "matplotlib>=3.6",
        "scipy>=1.10",
        "numpy>=1.24",
        "pillow>=9.1",
        "h5py>=3.8",
        "tqdm>=4.60",
        "jinja2>=3.1",
        "gdown>=4.7",  # fast-reid's download of ImageNet weights
    ],
    extras_require={
        # the ViTPose estimator; mmpose's HRNet and RTMPose take more than pip can be told here: tools/dev.py pose
        "pose": ["transformers>=4.48"],
        "npu": ["torch_npu"],
        # grad-cam asks for an opencv-python beside the headless one: tools/dev.py installs it with --no-deps
        "viz": ["grad-cam>=1.5"],
        "export": ["onnx>=1.17", "onnxruntime>=1.20"],
        "dev": [
            *(
                "pytest>=8",
                "pytest-xdist>=3.5",
                "hypothesis>=6.90",
                "ruff>=0.9",
                "torch-geometric>=2.5",
                "ninja",
            ),
            *(
                "onnx>=1.17",
                "onnxruntime>=1.20",
                "playwright>=1.40",
                "pytest-cov>=7",
                "mypy==2.4.1",
            ),
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
