"""What a method trains and what it keeps in memory, counted without any weights."""
