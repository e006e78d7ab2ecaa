"""What an adapted layer reads as its weight, when that is computed, and how long it is kept; ``weights`` is the door."""
