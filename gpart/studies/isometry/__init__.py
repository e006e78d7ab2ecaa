"""Isometry as a measurement: the singular values of the Jacobian from the trainable vector to the weights."""
