"""scvi-tools: SCVI by the arguments of its ``train``, with its own ``save`` and ``load``."""

from __future__ import annotations

import tempfile
from typing import Any

import anndata
import numpy as np
import scvi
from facts import FirstLoss, Watched, difference, report


def project(*callbacks: Any) -> Any:
    """As the introductory tutorial, on counts that are drawn."""
    scvi.settings.seed = 0
    draw = np.random.default_rng(0)
    cells = anndata.AnnData(draw.poisson(2, (96, 20)).astype(np.float32))
    cells.obs["batch"] = np.repeat(["one", "two"], 48)
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, n_hidden=16, n_latent=4)
    model.train(max_epochs=4, accelerator="cpu", batch_size=32, enable_progress_bar=False, callbacks=[*callbacks])
    return model


def facts() -> dict[str, Any]:
    """Plain, with the line, saved and loaded by scvi-tools, and trained again after that."""
    with tempfile.TemporaryDirectory() as folder:
        plain = FirstLoss()
        project(plain)
        # The line: model.train(..., callbacks=[GPartCallback(..., merge_at_end=True)])
        settings = {"target_modules": "all-linear", "target_parameters": ["px_r"]}
        line = Watched(d=20, merge_at_end=True, **settings)
        model = project(line)
        expected = model.get_latent_representation()
        model.save(folder + "/saved", save_anndata=True)
        loaded = scvi.model.SCVI.load(folder + "/saved", accelerator="cpu")
        found = loaded.get_latent_representation()
        again = Watched(d=20, merge_at_end=True, **settings)
        loaded.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False, callbacks=[again])
        return {
            "model": "SCVI",
            "line": f"train(callbacks=[GPartCallback(d=20, merge_at_end=True, {settings})])",
            **line.found(plain),
            "own load, difference": difference(found, expected),
            "trained again after the load": again.facts["length of theta"] > 0,
        }


if __name__ == "__main__":
    report("scvi-tools", rows=[facts()])
