"""What is said: prompts, decoding over a filled pot, answers and their citations."""
