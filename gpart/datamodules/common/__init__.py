"""What the DataModules of all tasks share."""
