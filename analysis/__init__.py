"""KVCache in, tidy tables out: pure, no printing, no files, no pictures."""
