"""Trains the embedded models from nothing: ``python -m training STAGE --out FOLDER``. See training/README.md."""
