"""The parts that backends over Hugging Face models share: tokenizer and forward pass."""
