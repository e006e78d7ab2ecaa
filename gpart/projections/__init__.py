"""Which map P from theta to the update is meant by a name: the partition, and others that it can be compared with."""
