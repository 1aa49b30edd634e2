"""Small masked LMs with random weights, and tokenizers trained on a few sentences."""

from __future__ import annotations

from typing import Any

__all__ = ["SENTENCES", "bert", "roberta"]

SENTENCES = [
    "The capital of France is Paris, and it rains.",
    "I love this film; it was great, truly great!",
    "Where is my parcel? It never arrived. 😀 naïve café",
]


def roberta() -> tuple[Any, Any]:
    """RoBERTa's architecture with a byte-level tokenizer of 400 tokens."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(SENTENCES * 20, vocab_size=400, special_tokens=special)
    trained.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
    )
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=130,
        initializer_range=0.4,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        architectures=["RobertaForMaskedLM"],
    )
    return RobertaForMaskedLM(config).eval(), tokenizer


def bert() -> tuple[Any, Any]:
    """BERT's architecture with word pieces."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(SENTENCES * 20, vocab_size=300, min_frequency=1)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    from tokenizers.processors import BertProcessing

    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    tokenizer.backend_tokenizer.post_processor = BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.4,
        architectures=["BertForMaskedLM"],
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForMaskedLM(config).eval(), tokenizer
