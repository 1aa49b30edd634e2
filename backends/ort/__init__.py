"""Models through ONNX Runtime: sessions, and the graph and tokenizer of a language model."""
