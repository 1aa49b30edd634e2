"""The trained model: prediction, saving and loading, display."""
