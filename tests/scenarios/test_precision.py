"""Every precision of Lightning: theta is float32 or wider, trains to nearly the same, is saved and resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from torch import Tensor

from gpart import load_adapter
from gpart.serialization.folder import TENSORS

NEAR = {"32-true": 0.0, "64-true": 1e-6, "16-mixed": 2e-3, "16-true": 2e-3, "bf16-mixed": 1.5e-2, "bf16-true": 1.5e-2}
"""How far theta may be from 32-true's, relative to its length: four times the format's spacing, 2^-10 for float16 and 2^-7
for bfloat16 (half of it where rounding goes either way); and float32's own error against float64."""


def settings(precision: str, scale: float = 1024.0) -> dict[str, Any]:
    """The Trainer's arguments; Lightning refuses float16 AMP on the CPU, but not as a plugin."""
    if precision != "16-mixed":
        return {"precision": precision}
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


class Looks(Callback):
    """What theta and its optimizer state are made of, after each step; the gradients that the steps were made with."""

    def __init__(self) -> None:
        self.dtypes: set[torch.dtype] = set()
        self.gradients: list[Tensor] = []
        self.thetas: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.gradients.append(module.net.gpart.default.theta.grad.clone())

    def on_train_batch_end(self, trainer: Any, module: Any, *given: Any) -> None:
        theta = module.net.gpart.default.theta
        self.thetas.append(theta.detach().clone())
        state = trainer.optimizers[0].state[theta].values()
        tensors = [value for value in state if isinstance(value, Tensor) and value.numel() > 1]
        self.dtypes |= {value.dtype for value in [theta, theta.grad, *tensors] if value is not None}


@pytest.fixture
def project(lit_class: Any) -> Any:
    """The project with dropout-free layers and plain SGD with momentum, which rounds no gradient away as Adam's sign does."""

    class Plain(lit_class):
        def build(self) -> None:
            super().build()
            self.net[1] = torch.nn.LayerNorm(16)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return super().training_step([batch[0].to(self.net[3].weight.dtype), batch[1]], index)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Plain


@pytest.fixture
def fit(project: Any, lit_trainer: Any, lit_loader: Any, lit_gpart: Any) -> Any:
    class Late(project):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.built = None, 0

        def configure_model(self) -> None:
            self.build()

    def run(
        precision: str, *callbacks: Any, path: Any = None, method: Any = None, late: bool = False, **more: Any
    ) -> Any:
        module, looks = Late() if late else project(), Looks()
        trainer = lit_trainer(
            lit_gpart(**(method or {})), looks, *callbacks, max_epochs=2, **settings(precision), **more
        )
        trainer.fit(module, lit_loader(), ckpt_path=path)
        return module, looks, trainer

    return run


@pytest.mark.parametrize("weights", ["kept", "forward", "recomputed"])
@pytest.mark.parametrize("precision", NEAR)
def test_theta_is_wide_and_near_to_32_true(precision: str, weights: str, fit: Any, tmp_path: Path) -> None:
    module, looks, trainer = fit(precision, method={"weights": weights, "save_folder": str(tmp_path / "adapter")})
    wide = torch.float64 if precision == "64-true" else torch.float32
    assert looks.dtypes == {wide}
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["state_dict"]["net.0.gpart.default.theta"].dtype == wide
    assert load_file(tmp_path / "adapter" / TENSORS)["gpart.default.theta"].dtype == wide
    theta, expected = module.net.gpart.default.theta, fit("32-true")[0].net.gpart.default.theta
    assert float((theta.double() - expected.double()).norm() / expected.norm()) <= NEAR[precision]


def test_no_setting_of_memory_changes_a_bit(fit: Any) -> None:
    for precision in ("bf16-mixed", "bf16-true", "16-true"):
        thetas = [
            fit(precision, method={"weights": how})[0].net.gpart.default.theta
            for how in ("kept", "forward", "recomputed")
        ]
        assert torch.equal(thetas[0], thetas[1])
        assert torch.equal(thetas[0], thetas[2])


@pytest.mark.parametrize("precision", NEAR)
def test_a_resumed_run_ends_as_the_uncut_one(precision: str, fit: Any, tmp_path: Path, same_bits: Any) -> None:
    keeper = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    # Lightning reads a checkpoint into a network built in __init__ before it makes float64 of it.
    how = {"late": precision == "64-true", "method": {"dropout": 0.2}}
    whole, _, uncut = fit(precision, keeper, enable_checkpointing=True, **how)
    resumed, _, again = fit(precision, path=tmp_path / "epoch=0.ckpt", **how)
    for name, value in whole.state_dict().items():
        assert same_bits(resumed.state_dict()[name], value), name
    if precision == "16-mixed":
        assert again.precision_plugin.scaler.get_scale() == uncut.precision_plugin.scaler.get_scale()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true", "16-mixed"])
def test_its_files_load_under_another_precision(precision: str, fit: Any, project: Any, tmp_path: Path) -> None:
    module, _, trainer = fit(precision)
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    theta = module.net.gpart.default.theta.detach()
    assert torch.equal(load_adapter(project().net, tmp_path / "a.ckpt").theta, theta.float())
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    further, _, run = fit("32-true", path=tmp_path / "b.ckpt", max_steps=9)
    assert run.global_step == 8  # ended already; what was read is what was written
    assert torch.equal(further.net.gpart.default.theta, theta.float())


@pytest.mark.parametrize(
    ("default", "wide"),
    [(torch.float64, torch.float64), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)],
)
def test_another_default_dtype(default: torch.dtype, wide: torch.dtype, project: Any, lit_trainer: Any, lit_gpart: Any,
                               lit_loader: Any) -> None:  # fmt: skip
    torch.set_default_dtype(default)
    try:
        module, looks = project(), Looks()
        lit_trainer(lit_gpart(), looks, max_epochs=1).fit(module, lit_loader())
    finally:
        torch.set_default_dtype(torch.float32)
    assert module.net[3].weight.dtype == default
    assert looks.dtypes == {wide}
    assert module.net.gpart.default.theta.count_nonzero() == 10


def test_gradients_are_unscaled_before_they_are_clipped_and_used(fit: Any) -> None:
    _, scaled, _ = fit("16-mixed", gradient_clip_val=1e-3)
    _, plain, _ = fit("32-true", gradient_clip_val=1e-3)
    # on_before_optimizer_step comes after unscaling and before clipping; what theta moves by, after both.
    for first in ([looks.gradients[0] for looks in (scaled, plain)], [looks.thetas[0] for looks in (scaled, plain)]):
        assert float((first[0] - first[1]).norm() / first[1].norm()) < 2e-3
    assert (
        0.1 * 1e-3 * 0.1 < float(plain.thetas[0].norm()) < 0.1 * 1e-3
    )  # the rate times theta's share of the clipped norm
    last = [looks.thetas[-1] for looks in (scaled, plain)]
    assert float((last[0] - last[1]).norm() / last[1].norm()) < 2e-2


def test_a_step_whose_gradient_overflows_is_left_out_and_the_scale_halved(fit: Any, project: Any) -> None:
    seen: list[tuple[float, Tensor]] = []

    class Watch(Callback):
        def on_after_backward(self, trainer: Any, module: Any) -> None:
            if trainer.global_step == 2 or len(seen) == 2:
                module.net.gpart.default.theta.grad[0] = float("inf")

        def on_train_batch_end(self, trainer: Any, module: Any, *given: Any) -> None:
            scale = trainer.precision_plugin.scaler.get_scale()
            seen.append((scale, module.net.gpart.default.theta.detach().clone()))

    fit("16-mixed", Watch())
    scales = [scale for scale, _ in seen]
    assert scales[:3] == [1024.0, 1024.0, 512.0]
    assert torch.equal(seen[2][1], seen[1][1])
    assert not torch.equal(seen[1][1], seen[0][1])
    assert not torch.equal(seen[3][1], seen[2][1])


def test_autocast_in_evaluation_runs_on_the_sum(
    project: Any, lit_trainer: Any, lit_loader: Any, lit_gpart: Any
) -> None:
    """W0 + P·theta is summed in float32 and cast once, as autocast casts a plain layer's weight."""
    module, method = project(), lit_gpart()
    trainer = lit_trainer(method, max_epochs=1, precision="bf16-mixed")
    trainer.fit(module, lit_loader())
    predicted = torch.cat(trainer.predict(module, lit_loader()))
    merged = method.adapter.merge_and_unload()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = torch.cat([merged(batch[0]) for batch in lit_loader()])
    assert torch.equal(predicted, expected)


@pytest.mark.parametrize("weights", ["kept", "forward", "recomputed"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_activation_checkpointing_changes_no_bit(
    precision: str, weights: str, project: Any, lit_gpart: Any, lit_trainer: Any, lit_loader: Any
) -> None:
    """The region is run again outside of the step's forward, under the autocast it was run with, with the same masks."""

    class Region(project):
        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)

    thetas = []
    for cls in (project, Region):
        torch.manual_seed(3)
        method = lit_gpart(dropout=0.2, weights=weights)
        lit_trainer(method, max_epochs=1, **settings(precision)).fit(cls(), lit_loader())
        thetas.append(method.adapter.theta.detach().clone())
    assert thetas[0].count_nonzero() == 10
    assert torch.equal(*thetas)
