"""Where the files of a workspace are: a folder here, or an object store with a copy here; and who works on them."""
