"""Studies of methods x tasks x seeds: their file, their runs, their table."""
