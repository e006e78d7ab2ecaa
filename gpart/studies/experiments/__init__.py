"""Studies, which compare methods on tasks with several seeds: the file of a study, its runs and its table."""
