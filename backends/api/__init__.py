"""What backends over an HTTP API share: probe, request format, retries, responses."""
