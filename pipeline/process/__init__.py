"""A stage runs in a process of its own: the parent's side, the child's side, what is put in front, and on which cores."""
