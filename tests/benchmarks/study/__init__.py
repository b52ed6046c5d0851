"""What aligning by each of several ways does to a model, measured through the service: see README.md beside this."""
