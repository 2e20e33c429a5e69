"""The command line: one file per verb, light to import, so that help answers at once."""
