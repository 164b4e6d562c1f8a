"""Running a model well: the native operators, sessions that use them, what is installed, and how long things take."""
