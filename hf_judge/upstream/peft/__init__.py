"""Touch what PEFT does not promise to keep."""
