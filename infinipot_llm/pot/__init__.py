"""What is kept: the bounded KV cache, its scores, its distillation, and the reader that fills it."""
