"""What is shown: runs put into words, parts of documents, and the forms in which people read them."""
