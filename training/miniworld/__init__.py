"""How the embedded models are trained. Not shipped."""
