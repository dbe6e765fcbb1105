"""Whether an answer is right: the answer of a response, the reference of a task, and their comparison."""
