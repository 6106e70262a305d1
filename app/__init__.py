"""Finthenticate: a login service that keeps the expensive part behind a queue."""
