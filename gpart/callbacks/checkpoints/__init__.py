"""What a checkpoint of a partly trained module holds, and how it is written and read."""
