"""The HTTP door: a small ASGI server that says 202 when an event is where nothing is lost."""
