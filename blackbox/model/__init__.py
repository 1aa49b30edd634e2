"""The trained model: what it predicts, how it is saved and shown."""
