"""Data for language understanding."""
