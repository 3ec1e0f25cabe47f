"""Training of the small base model that the package ships: not needed to use it, so it is not in the wheel."""
