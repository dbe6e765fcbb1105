"""Read users' text files, and write files that stay whole whatever happens."""
