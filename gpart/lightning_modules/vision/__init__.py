"""The LightningModule for image classification."""
