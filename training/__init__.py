"""How the embedded models are made and measured again. Not shipped."""
