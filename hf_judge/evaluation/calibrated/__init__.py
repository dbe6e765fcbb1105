"""Compare rules fairly: each at the value that calibration problems choose for it, measured on other problems."""
