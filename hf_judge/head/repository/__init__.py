"""Publish a head: what its repository on the Hub holds, and the card that tells about it."""
