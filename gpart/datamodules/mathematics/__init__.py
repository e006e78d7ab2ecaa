"""Data for mathematical reasoning."""
