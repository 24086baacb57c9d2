"""What lasts: a document that was read, and can be asked any number of times."""
