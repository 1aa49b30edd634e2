"""Scripts that measure speed and memory, each with its command at the top of its file."""
