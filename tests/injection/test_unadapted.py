"""What "all-linear" leaves out is said where it is more than a tenth of the matrices, and only there."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, MixtralConfig, MixtralForCausalLM

from gpart import GPartConfig, attach

SIZES = {"vocab_size": 90, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2}


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(500, 4), nn.LayerNorm([9, 40])
        self.position = nn.Parameter(torch.randn(1, 90, 9))
        self.rnn, self.out = nn.LSTM(4, 5), nn.Linear(5, 3)


class Pair(nn.Module):
    """Two attentions whose parameters have one name in their layer, and three of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerDecoderLayer(8, 2, 16) for _ in range(2))
        self.rnn = nn.LSTM(8, 8, num_layers=2, bidirectional=True)
        self.scales = nn.ParameterList(torch.randn(4, 4) for _ in range(3))
        self.convs = nn.Sequential(nn.Conv1d(8, 8, 3), nn.ReLU(), nn.Sequential(nn.Conv1d(8, 8, 3)))
        self.out = nn.Linear(8, 3)


def mixtral() -> nn.Module:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=4))


def bert() -> nn.Module:
    return BertForMaskedLM(BertConfig(**SIZES))  # most of it are embeddings, one of them the tied decoder


def conv(width: int) -> nn.Module:
    return nn.ModuleDict({"stem": nn.Conv1d(3, width, 3), "mlp": nn.Linear(40, 40), "head": nn.Linear(40, 900)})


def said(model: nn.Module, **settings: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attach(model, GPartConfig(2, **{"target_modules": "all-linear", **settings}))
    return [
        str(one.message) for one in caught if issubclass(one.category, UserWarning) and "leaves out" in str(one.message)
    ]


def test_experts_are_named_with_what_to_write() -> None:
    (message,) = said(mixtral())
    assert "model.layers.0.mlp.experts.gate_up_proj (2 of them)" in message
    assert "target_parameters=['experts.gate_up_proj', 'experts.down_proj']" in message
    assert not said(mixtral(), target_parameters=["experts.gate_up_proj", "experts.down_proj"])


def test_recurrent_weights_are_named_and_embeddings_norms_and_positions_do_not_count() -> None:
    (message,) = said(Tagger())
    assert "leaves out 92%" in message  # 180 of 195
    assert "rnn.weight_hh_l0, rnn.weight_ih_l0." in message
    assert "target_parameters=['rnn.weight_hh_l0', 'rnn.weight_ih_l0']" in message


def test_what_is_suggested_names_each_that_is_left_out_and_each_once() -> None:
    (message,) = said(Pair())
    listed = re.search(r"target_parameters=(\[.*?\])", message)[1]  # type: ignore[index]
    names = ast.literal_eval(listed)
    assert sorted(names) == sorted({*names})
    assert {"self_attn.in_proj_weight", "multihead_attn.in_proj_weight", "scales.2"} < {*names}
    assert "rnn.weight_hh_l1_reverse" in names
    layers = re.search(r"target_modules \((.*?)\)", message)[1].split(", ")  # type: ignore[index]
    assert layers == ["convs.0", "convs.2.0"]
    assert not said(Pair(), target_parameters=[*names, *(f"{layer}.weight" for layer in layers)])


def test_a_matrix_of_the_models_own_is_a_parameter() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.mix, self.out = nn.Parameter(torch.ones(4, 4)), nn.Linear(4, 4), nn.Linear(4, 2)

    (message,) = said(Own())
    assert "name these parameters in target_parameters=['weight']; target_parameters goes" in message


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (bert, {}),
        (lambda: conv(8), {"modules_to_save": ["head"]}),  # 72 of 1,672
        (lambda: conv(30), {"exclude_modules": ["stem"]}),
        (lambda: conv(30), {"modules_to_save": ["stem"]}),
        (lambda: conv(30), {"target_modules": ["mlp"]}),
    ],
)
def test_nothing_is_said_where_little_or_on_purpose(
    build: Callable[[], nn.Module], settings: dict[str, object]
) -> None:
    assert not said(build(), **settings)


def test_layers_are_for_target_modules() -> None:
    (message,) = said(conv(30), modules_to_save=["head"])
    assert "leaves out 14%" in message
    assert "name these layers in target_modules (stem)" in message
