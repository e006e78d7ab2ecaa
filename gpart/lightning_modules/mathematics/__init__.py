"""The LightningModule for mathematical reasoning, and its grading."""
