"""From PEFT to GPart: each call beside its counterpart, both run on one tiny model.

    python examples/from_peft.py

from_peft.md has the table, and what differs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import gpart
from gpart import GPartConfig, attach, delete_adapter, load_adapter, set_active
from gpart.arithmetic import combine, read
from gpart.serving import AdapterStore, Switch

TARGETS, HEAD = ["query", "value"], ["classifier"]
TOKENS = torch.randint(0, 50, (16, 8), generator=torch.Generator().manual_seed(0))
LABELS = (TOKENS[:, 0] > 25).long()


def build() -> BertForSequenceClassification:
    """The base; the same numbers each time."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=50, initializer_range=0.2, **sizes)).eval()


def train(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same for both: an optimizer of what requires a gradient."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=0.01)
    model.train()
    for _ in range(5):
        rows = torch.randint(0, 16, (8,))
        model(TOKENS[rows], labels=LABELS[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, **more: object) -> Tensor:
    """What a model says."""
    return model(TOKENS, **more).logits


def away(one: Tensor, other: Tensor) -> str:
    """How far two are from each other."""
    return "equal to the bit" if torch.equal(one, other) else f"{(one - other).abs().max().item():.1e} away"


def row(step: str, peft: object, its: object) -> None:
    """One line of both."""
    print(f"{step:<26} PEFT: {peft!s:<38} GPart: {its}")


def one_adapter(out: Path) -> None:
    """Make, train, save, load, look, take out, merge, take off."""
    base = logits(build())

    # Make. Neither changes what the model says at first.
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, modules_to_save=HEAD)
    peft_model = get_peft_model(build(), lora).eval()
    config = GPartConfig(d=512, target_modules=TARGETS, modules_to_save=HEAD)
    model = build()
    adapter = attach(model, config)
    row("at the start", away(logits(peft_model), base), away(logits(model), base))
    row("keys begin with", next(iter(peft_model.state_dict()))[:21], next(iter(model.state_dict()))[:21])
    peft_model.print_trainable_parameters()
    adapter.print_trainable_parameters()

    # Train, save, load.
    train(peft_model)
    train(model)
    peft_model.save_pretrained(out / "peft")
    adapter.save(out / "gpart")
    peft_again = PeftModel.from_pretrained(build(), out / "peft").eval()
    again = build()
    load_adapter(again, out / "gpart")
    row("loaded", away(logits(peft_again), logits(peft_model)), away(logits(again), logits(model)))
    sizes = [(out / name / "adapter_model.safetensors").stat().st_size for name in ("peft", "gpart")]
    row("file, bytes", *sizes)

    # Look.
    count = sum(value.numel() for value in get_peft_model_state_dict(peft_model).values())
    head = sum(value.numel() for value in adapter.saved_parameters().values())
    row("numbers, the head's too", count, f"{adapter.num_parameters()} = {adapter.theta.numel()} + {head}")
    layer = peft_model.base_model.model.bert.encoder.layer[0].attention.self.query
    name = "bert.encoder.layer.0.attention.self.query.weight"
    row("update of one layer", tuple(layer.get_delta_weight("default").shape), tuple(adapter.delta(name).shape))

    # Take it out for a while. PEFT takes the trained head out too.
    with peft_model.disable_adapter():
        peft_out = logits(peft_model)
    with adapter.disabled():
        kept_head = logits(model)
    set_active(model, [])
    without = logits(model)
    set_active(model, "default")
    row(
        "disabled, and the base",
        away(peft_out, base),
        f"{away(kept_head, base)}, by the head; none active: {away(without, base)}",
    )

    # Merge and take it back.
    trained, before = logits(peft_model), layer.base_layer.weight.detach().clone()
    peft_model.merge_adapter()
    peft_merged = logits(peft_model)
    peft_model.unmerge_adapter()
    adapter.merge()
    merged = logits(model)
    adapter.unmerge()
    row("merged, and unmerged", away(peft_merged, trained), away(merged, logits(again)))
    row("unmerged, and the base", away(layer.base_layer.weight, before), away(model.state_dict()[name], before))

    # Leave a plain model, with the update or without.
    plain_peft, plain = peft_model.merge_and_unload(), adapter.merge_and_unload()
    row("merged and unloaded", away(logits(plain_peft), trained), away(logits(plain), logits(again)))
    bare_peft = peft_again.unload()
    bare = gpart.get_adapters(again)["default"].detach()
    row("taken off, and the base", away(logits(bare_peft), base), away(logits(bare), base))


def several_adapters(out: Path) -> None:
    """Add, switch, add up, delete, mix in a batch, swap."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
    config = GPartConfig(d=512, target_modules=TARGETS)

    # Add. In GPart the new one is the active one at once; in PEFT only after set_adapter.
    peft_model = get_peft_model(build(), lora, adapter_name="first").eval()
    train(peft_model, seed=1)
    peft_model.add_adapter("second", lora)
    model = build()
    first = attach(model, config, name="first")
    train(model, seed=1)
    second = attach(model, config, name="second")
    row("active after adding", peft_model.active_adapters, list(gpart.active_adapters(model)))
    peft_model.set_adapter("second")
    set_active(model, "second")
    train(peft_model, seed=2)
    train(model, seed=2)
    row(
        "what is trained",
        "only the second" if all(".second." in name for name, value in peft_model.named_parameters() if value.requires_grad) else "more",
        "only the second" if [name for name, value in model.named_parameters() if value.requires_grad] == [second.theta_name] else "more",
    )  # fmt: skip
    peft_model.save_pretrained(out / "several-peft")  # a folder in it for each
    first.save(out / "several" / "first")
    second.save(out / "several" / "second")

    # Add up: W0 + 0.7 of one update + 0.3 of the other.
    peft_model.add_weighted_adapter(["first", "second"], [0.7, 0.3], "sum", combination_type="linear")
    peft_model.add_weighted_adapter(["first", "second"], [0.7, 0.3], "wide", combination_type="cat")
    layer = peft_model.base_model.model.bert.encoder.layer[0].attention.self.query
    exact = 0.7 * layer.get_delta_weight("first") + 0.3 * layer.get_delta_weight("second")
    lost = {name: ((layer.get_delta_weight(name) - exact).norm() / exact.norm()).item() for name in ("sum", "wide")}
    name = "bert.encoder.layer.0.attention.self.query.weight"
    exact = 0.7 * first.delta(name) + 0.3 * second.delta(name)
    combine({read(out / "several" / "first"): 0.7, read(out / "several" / "second"): 0.3}).save(out / "sum")
    total = load_adapter(model, out / "sum", name="sum")
    loss = (total.delta(name) - exact).norm() / exact.norm()
    ranks = {name: layer.lora_A[name].weight.shape[0] for name in lost}
    linear, cat = (f"{lost[name]:.0e} at rank {ranks[name]}" for name in ("sum", "wide"))
    row("added up, relative error", f"{linear}, {cat}", f"{loss.item():.0e} at d = {total.config.d}")
    by_file = logits(model)
    set_active(model, ["first", "second"], weights=[0.7, 0.3])
    peft_model.base_model.set_adapter(["first", "second"])  # without factors
    row("or both active", peft_model.active_adapters, f"and the sum: {away(logits(model), by_file)}")

    # Delete.
    peft_model.delete_adapter("sum")
    peft_model.delete_adapter("wide")
    delete_adapter(model, "sum")
    row("left", list(peft_model.peft_config), list(gpart.get_adapters(model)))

    # A batch whose rows are different adapters'.
    names = ["first", "second", "__base__", "first"] * 4
    peft_mixed = logits(peft_model, adapter_names=names)
    with first.batch(names), torch.no_grad():
        mixed = model(TOKENS).logits
    peft_model.set_adapter("second")
    set_active(model, "second")
    row("mixed batch, row 1", close(peft_mixed[1], logits(peft_model)[1]), close(mixed[1], logits(model)[1]))

    # Swap what is in use for what is on disk.
    served_peft = PeftModel.from_pretrained(build(), out / "several-peft" / "first").eval()
    hotswap_adapter(served_peft, str(out / "several-peft" / "second"), adapter_name="default", torch_device="cpu")
    switch = Switch(build(), AdapterStore(out / "several"))
    switch.use("first")
    switch.use("second")
    row("swapped", away(logits(served_peft), logits(peft_model)), away(logits(switch.model), logits(model)))


def close(one: Tensor, other: Tensor) -> str:
    """Equal but for the rounding of products of other shapes."""
    return f"as alone: {torch.allclose(one, other, atol=1e-5)}"


def main() -> None:
    """Both sides, a line for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/from_peft"), help="where both write")
    out = parser.parse_args().out
    one_adapter(out)
    several_adapters(out)


if __name__ == "__main__":
    main()
