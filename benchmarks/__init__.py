"""The scripts that make every figure of this project, each one command: see README.md here."""
