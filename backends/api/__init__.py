"""The parts that backends over an HTTP API share: probe, request format, retries, responses."""
