"""Run each stage in its own process: the parent's side, the child's side, the launcher and CPU core limits."""
