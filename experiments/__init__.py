"""The commands: each parses its flags and launches one job."""
