"""What the LightningModules of all tasks share."""
