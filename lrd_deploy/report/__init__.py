"""Records made readable: for the terminal and as a page. Nothing here decides anything."""
