"""What is refused, or watched while a method trains."""
