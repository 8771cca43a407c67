"""What the numbers of README and docs are measured with. Not shipped."""
