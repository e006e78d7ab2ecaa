"""Rows that were added to a loaded embedding or head."""

from __future__ import annotations

import pytest
import torch

from gpart import GPartConfig, attach, load_adapter
from gpart.errors import GPartError


def of(kind):
    import transformers as t

    sizes = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    if kind == "bert":
        return t.BertModel(t.BertConfig(**sizes)), "query", "word_embeddings"
    return t.LlamaForCausalLM(t.LlamaConfig(**sizes, tie_word_embeddings=False)), "q_proj", "embed_tokens"


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_an_embedding_that_was_resized_after_loading_is_trained_or_refused(kind, tmp_path):
    model, target, embedding = of(kind)
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path)
    attach(model, GPartConfig(d=5, target_modules=[target])).detach()
    model.resize_token_embeddings(23)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    heads = [] if kind == "bert" else ["lm_head"]
    for saved in ([], heads):
        with pytest.raises(GPartError, match=rf"{embedding}\.weight \(20 rows when it was loaded, now 23\)"):
            attach(model, GPartConfig(d=5, target_modules=[target], modules_to_save=saved))
    if heads:
        with pytest.raises(GPartError, match=r"lm_head\.weight \(20 rows"):
            attach(model, GPartConfig(d=5, target_modules=[target], modules_to_save=[embedding]))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    attach(model, GPartConfig(d=5, target_modules=[target], modules_to_save=[embedding, *heads])).detach()
    model.save_pretrained(tmp_path / "resized")
    again = type(model).from_pretrained(tmp_path / "resized")
    attach(again, GPartConfig(d=5, target_modules=[target])).save(tmp_path / "adapter")
    load_adapter(type(model).from_pretrained(tmp_path / "resized"), tmp_path / "adapter")


def test_fewer_rows_and_models_that_were_built_are_left_alone(tmp_path):
    model, target, _ = of("bert")
    model.resize_token_embeddings(30)  # never loaded: all of it is what the user made
    attach(model, GPartConfig(d=5, target_modules=[target])).detach()
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path)
    model.resize_token_embeddings(10)
    attach(model, GPartConfig(d=5, target_modules=[target]))


@pytest.mark.parametrize("kind", ["MusicgenConfig", "MusicgenMelodyConfig"])
def test_a_config_with_several_texts_says_nothing(kind):
    import transformers

    class Music(torch.nn.Module):
        def __init__(self):
            super().__init__()
            parts = {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}, "decoder": {}}
            self.config, self.query = getattr(transformers, kind)(**parts), torch.nn.Linear(4, 4)

        def resize_token_embeddings(self, rows):
            raise NotImplementedError

    attach(Music(), GPartConfig(d=5, target_modules=["query"]))


def test_a_folder_without_a_config_says_nothing(tmp_path):
    """A GGUF file's: Transformers gives the class's defaults for it, whose vocabulary is smaller than this one."""
    import transformers as t

    assert t.LlamaConfig.from_pretrained(tmp_path).vocab_size == 32_000  # or this test has lost its point
    config = t.LlamaConfig(
        vocab_size=32_001, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4
    )
    model = t.LlamaForCausalLM(config)
    model.config._name_or_path = str(tmp_path)
    attach(model, GPartConfig(d=5, target_modules=["q_proj"]))
