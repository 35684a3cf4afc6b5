"""A stage runs in a process of its own: the parent's side, the child's side, the launcher, and the cores it runs on."""
