"""What each method costs in time and memory, measured side by side: ``gpart bench``."""
