"""The two operations, expand (W0 + P·theta) and reduce (Pᵀ·g), on one weight at a time; P is never built.

``reference`` defines the numbers. ``dispatch`` chooses what computes them. ``autograd`` is what a layer calls.
"""
