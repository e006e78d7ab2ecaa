"""The LightningModule for language understanding."""
