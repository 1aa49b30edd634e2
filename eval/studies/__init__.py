"""Studies of single questions, each with its command at the top of its file."""
