"""Settings, with their defaults, rules and files."""
