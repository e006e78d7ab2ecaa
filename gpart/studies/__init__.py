"""What runs experiments, counts and draws."""
