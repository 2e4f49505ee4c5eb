"""One support agent, written with four frameworks, under the same messages and the same kills."""
