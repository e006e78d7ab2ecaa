"""The validation loss around a trained point, along random directions of the method's own trained vector."""
