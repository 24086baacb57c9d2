"""What reads: names to weights, the one adapter to transformers, attention over slots, text to tokens."""
