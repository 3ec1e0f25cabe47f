"""A question to a finished run, from the terminal."""
