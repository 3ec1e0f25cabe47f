"""A page to talk to a finished run, served on this machine (extra `chat`: gradio)."""
