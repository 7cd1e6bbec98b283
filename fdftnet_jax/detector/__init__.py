"""A trained detector as one portable file: written by export, read anywhere."""
