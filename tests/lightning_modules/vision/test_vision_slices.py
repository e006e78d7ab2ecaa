"""A fused qkv and separate query and value, adapted alike: D, the adapted numbers, P·theta, the gradient, the outputs."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

from gpart import GPartConfig, attach

WIDTH, LAYERS, HEADS, CLASSES, D = 24, 3, 2, 4, 37
SLICES = {"qkv": [[0, WIDTH], [2 * WIDTH, 3 * WIDTH]]}
# A layer's modules, timm's names and Transformers'.
LAYER = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@pytest.fixture
def fused() -> nn.Module:
    torch.manual_seed(3)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **sizes).eval()
    with torch.no_grad():  # no bias is 0 and no scale 1: each would hide a weight that went to the wrong place
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model


def projections(layer: int, model: nn.Module) -> list[str]:
    """Names of query, key and value of a layer: Transformers 5.23 has q_proj, other releases query."""
    names = [name for name, _ in model.named_modules() if f".{layer}.attention." in f".{name}."]
    return [
        next(name for name in names if name.split(".")[-1] in (long, f"{long[0]}_proj"))
        for long in ("query", "key", "value")
    ]


def unfused_copy(fused: nn.Module) -> nn.Module:
    """The Transformers ViT of the same sizes with the same weights, q, k and v apart."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "image_size": 32}
    config = ViTConfig(**sizes, patch_size=8, intermediate_size=4 * WIDTH, layer_norm_eps=1e-6, num_labels=CLASSES)
    model = ViTForImageClassification(config).eval()
    theirs = dict(model.named_modules())
    pairs = {"patch_embed.proj": "vit.embeddings.patch_embeddings.projection", "norm": "vit.layernorm"}
    pairs["head"] = "classifier"
    for layer in range(LAYERS):
        above = projections(layer, model)[0].split(".attention.")[0]
        pairs |= {f"blocks.{layer}.{name}": f"{above}.{other}" for name, other in LAYER.items()}
    with torch.no_grad():
        model.vit.embeddings.cls_token.copy_(fused.cls_token)
        model.vit.embeddings.position_embeddings.copy_(fused.pos_embed)
        for name, other in pairs.items():
            theirs[other].load_state_dict(fused.get_submodule(name).state_dict())
        for layer in range(LAYERS):
            qkv = fused.blocks[layer].attn.qkv
            parts = zip(qkv.weight.split(WIDTH), qkv.bias.split(WIDTH), strict=True)
            for name, (weight, bias) in zip(projections(layer, model), parts, strict=True):
                theirs[name].load_state_dict({"weight": weight, "bias": bias})
    return model


def both(fused: nn.Module, seed: int = 5, bias: str = "none") -> tuple[nn.Module, Any, Any, list[list[str]]]:
    unfused = unfused_copy(fused)
    names = [projections(layer, unfused) for layer in range(LAYERS)]
    targets = sorted({name.split(".")[-1] for query, _, value in names for name in (query, value)})
    shared = {"d": D, "seed": seed, "bias": bias}
    one = attach(fused, GPartConfig(target_modules=["qkv"], slices=SLICES, modules_to_save=["head"], **shared))
    two = attach(unfused, GPartConfig(target_modules=targets, modules_to_save=["classifier"], **shared))
    return unfused, one, two, names


def test_the_conversion_is_the_same_network(fused: nn.Module) -> None:
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(unfused_copy(fused)(pictures).logits, fused(pictures), atol=1e-5)


def test_the_size_and_the_set_of_adapted_numbers_are_the_same(fused: nn.Module) -> None:
    _, one, two, names = both(fused)
    assert one.size == two.size == LAYERS * 2 * WIDTH * WIDTH
    # Each adapted number by (layer, row of the fused weight): where P·1 is not 0.
    for adapter in (one, two):
        adapter.theta.data.fill_(1.0)
    for layer, (query, key, value) in enumerate(names):
        adapted = one.delta(f"blocks.{layer}.attn.qkv.weight") != 0
        assert adapted[:WIDTH].all()
        assert not adapted[WIDTH : 2 * WIDTH].any()
        assert adapted[2 * WIDTH :].all()
        assert (two.delta(f"{query}.weight") != 0).all()
        assert (two.delta(f"{value}.weight") != 0).all()
        with pytest.raises(ValueError, match="is not adapted"):
            two.delta(f"{key}.weight")


@pytest.mark.parametrize("seed", [0, 2**63 + 11])
def test_the_update_is_the_same_number_for_number(fused: nn.Module, seed: int) -> None:
    """The flat vector holds a layer's q rows, then its v rows, then the next layer's, in either form."""
    _, one, two, names = both(fused, seed)
    theta = torch.randn(D)
    one.theta.data.copy_(theta)
    two.theta.data.copy_(theta)
    for layer, (query, _, value) in enumerate(names):
        rows_q, _, rows_v = one.delta(f"blocks.{layer}.attn.qkv.weight").split(WIDTH)
        assert torch.equal(rows_q, two.delta(f"{query}.weight"))
        assert torch.equal(rows_v, two.delta(f"{value}.weight"))
        assert not torch.equal(rows_q, rows_v)


def test_outputs_and_gradients_are_the_same(fused: nn.Module) -> None:
    pictures, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        before = fused(pictures)
    unfused, one, two, _ = both(fused)
    theta = 3 * torch.randn(D)
    one.theta.data.copy_(theta)
    two.theta.data.copy_(theta)
    left, right = fused(pictures), unfused(pictures).logits
    assert torch.allclose(left, right, atol=1e-5)
    assert (left - before).abs().max() > 1e-2  # theta does something
    cross_entropy(left, labels).backward()
    cross_entropy(right, labels).backward()
    assert one.theta.grad.norm() > 0
    assert torch.allclose(one.theta.grad, two.theta.grad, atol=1e-5)


def test_with_biases_too(fused: nn.Module) -> None:
    """Each slice's bias follows its rows, as in the separate layers: q, its bias, v, its bias."""
    _, one, two, names = both(fused, bias="all")
    assert one.size == two.size == LAYERS * 2 * WIDTH * (WIDTH + 1)
    theta = torch.randn(D)
    one.theta.data.copy_(theta)
    two.theta.data.copy_(theta)
    for layer, (query, _, value) in enumerate(names):
        for kind in ("weight", "bias"):
            rows_q, rows_k, rows_v = one.delta(f"blocks.{layer}.attn.qkv.{kind}").split(WIDTH)
            assert not rows_k.any()
            assert torch.equal(rows_q, two.delta(f"{query}.{kind}"))
            assert torch.equal(rows_v, two.delta(f"{value}.{kind}"))
