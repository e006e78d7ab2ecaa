"""Injection into Llama-3.1-8B's q, k, v and o, 1.34 G weights: on the meta device, and its group indices on a CPU.

    python benchmarks/speed/injection.py > benchmarks/speed/injection.json

Nothing but group indices is allocated; those are computed for all weights and thrown away weight by weight, which is what a
rank does that stores its own, and then once more while all are kept.
"""

from __future__ import annotations

import json
import platform
import resource
import time
from datetime import UTC, datetime

import torch
import transformers

from gpart import GPartConfig, Partition, attach
from gpart.ops import dispatch

D = 524_288
CPU = torch.device("cpu")


def peak() -> int:
    """The process's peak resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measures and prints."""
    config = transformers.LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    before = peak()
    start = time.perf_counter()
    adapter = attach(
        model, GPartConfig(d=D, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]), indices="computed"
    )
    attached = time.perf_counter() - start
    after = peak()

    partition = Partition(adapter.size, D, 0)
    largest = 0
    start = time.perf_counter()
    for weight in adapter.plan.weights:
        ((_, _, offset),) = weight.blocks
        numbers = dispatch.group_indices(partition, offset, offset + weight.shape[0] * weight.shape[1], CPU)
        largest = max(largest, numbers.nbytes)
    computed = time.perf_counter() - start
    in_turn = peak()
    start = time.perf_counter()
    kept = dispatch.group_indices(partition, 0, adapter.size, CPU)
    print(
        json.dumps(
            {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
                "python": platform.python_version(),
                "threads": torch.get_num_threads(),
                "adapted_weights": adapter.size,
                "d": D,
                "attach_on_meta_seconds": round(attached, 3),
                "attach_on_meta_bytes": after - before,
                "group_numbers_in_turn_seconds": round(computed, 2),
                "group_numbers_in_turn_peak_bytes": in_turn - after,
                "largest_weights_group_numbers_bytes": largest,
                "group_numbers_kept_seconds": round(time.perf_counter() - start, 2),
                "group_numbers_kept_bytes": kept.nbytes,
                "group_numbers_kept_peak_bytes": peak() - in_turn,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
