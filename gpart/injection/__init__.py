"""What is done to a model: which weights are adapted, how a layer is made to read them, how all of it is undone."""
