"""What CI systems read of a gate's result: one file per format, each a function from the record to text."""
