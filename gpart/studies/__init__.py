"""What runs experiments and draws: studies of methods x tasks x seeds, measurements, figures."""
