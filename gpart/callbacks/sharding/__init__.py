"""How a method trains under the strategies that shard the base: FSDP 1 and FSDP2."""
