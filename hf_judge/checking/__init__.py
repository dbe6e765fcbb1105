"""Decides whether an answer is right: reads the response and the reference of a task, and compares them."""
