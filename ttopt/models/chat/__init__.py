"""Vision-language models that answer in words."""
