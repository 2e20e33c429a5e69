"""Sequential freezing in other people's loops; one module per host, imported by whoever uses that host."""
