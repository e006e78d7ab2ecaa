"""What runs experiments and measures: studies of methods x tasks x seeds, trained parameters by method."""
