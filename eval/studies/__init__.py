"""Single studies, each with its command at the top of its file."""
