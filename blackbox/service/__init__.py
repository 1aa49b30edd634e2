"""Prediction over HTTP: `blackbox serve`. The extra `serve` installs what it needs."""
