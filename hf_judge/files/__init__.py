"""Files: the one reader of users' text files, and writers that leave a file whole whatever happens."""
