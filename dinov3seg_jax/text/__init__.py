"""From class names to token ids: prompts, tokenizer, and the benchmarks' vocabularies. May import `errors`."""
