"""Executes the notebooks of this folder from top to bottom, in place.

    pip install -e '.[test]'
    python examples/notebooks/execute.py                     # all
    python examples/notebooks/execute.py first_adapter       # one

What the cells print has nothing of the machine in it, no time and no version; times are in figures alone. Figures are kept small.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
EXAMPLES = HERE.parent


def executed(notebook: Path, timeout: int = 280) -> nbformat.NotebookNode:
    """A notebook with new outputs, made by the Python that runs this, in a copy of the examples: nothing else changes.

    Args:
        notebook: the file, which stays as it is.
        timeout: for one cell, in seconds.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails; the message is its traceback.
    """
    made = nbformat.read(notebook, as_version=4)
    # Without folders of kernels there is one kernel: ipykernel of this very Python, whatever is installed elsewhere.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("runs", "__pycache__"), dirs_exist_ok=True)
        where = {"metadata": {"path": str(Path(folder) / "notebooks")}}
        NotebookClient(made, km=manager, timeout=timeout, record_timing=False, resources=where).execute()
    made.metadata["language_info"] = {"name": "python"}  # not this machine's version
    return made


def shrink(made: nbformat.NotebookNode) -> None:
    """Gives the figures 256 colours, a third of the bytes."""
    for output in (output for cell in made.cells for output in cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB")
            small = io.BytesIO()
            picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
                small, "PNG", optimize=True
            )
            output.data["image/png"] = base64.b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    for path in [HERE / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        done = executed(path)
        shrink(done)
        nbformat.write(done, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
