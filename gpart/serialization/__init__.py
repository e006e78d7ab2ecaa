"""What is on disk: files, manifests and checksums. Nothing here knows an adapter or a model."""
