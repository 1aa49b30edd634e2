"""The transformers backend against direct calls of the models that it runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from masked_models import SENTENCES, bert, roberta

from blackbox import PromptBoostingClassifier, load_model
from blackbox.errors import BackendError, MissingDependencyError, ModelNotFoundError
from blackbox.protocol import Message, RenderedPrompt

pytestmark = pytest.mark.transformers

TEXTS = ["a lovely film", "a dull film", "lovely, truly", "dull and long"] * 3
LABELS = ["good", "bad", "good", "bad"] * 3


def directly(model, ids, place=-1):
    """Log-probabilities over the vocabulary from one plain call."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, place]
    return torch.log_softmax(logits.float(), -1).numpy()


@pytest.fixture(params=["gpt2", "llama", "gpt_neox", "mistral", "bloom"])
def causal(request):
    """Small causal LMs with random weights, of several kinds of attention and positions."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    }
    common = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    }
    if request.param in ("llama", "mistral"):
        common["num_key_value_heads"] = 2
    torch.manual_seed(0)
    _, tokenizer = roberta()
    options = sizes.get(request.param, common)
    config = AutoConfig.for_model(request.param, vocab_size=len(tokenizer), **options)
    config.initializer_range = 0.4
    return AutoModelForCausalLM.from_config(config).eval(), tokenizer


def test_prompts_that_share_prefixes_get_the_model_s_own_answers(causal):
    from backends.transformers import TransformersBackend

    model, tokenizer = causal
    backend = TransformersBackend(model, tokenizer=tokenizer, batch_tokens=40, context_length=100)
    texts = [
        f"{text} {cue}" for text in SENTENCES for cue in ("It was", "\nTopic:", "It", "", "so")
    ]
    prompts = [RenderedPrompt(text=text) for text in [*texts, texts[0]]]
    answer = backend.next_token(prompts, 50)
    for row, prompt in enumerate(prompts):
        exact = directly(model, backend.show(prompt)[1])
        assert np.abs(answer.log_probs[row] - np.sort(exact)[::-1][:50]).max() < 1e-3
        assert np.abs(exact[answer.token_ids[row]] - answer.log_probs[row]).max() < 1e-3


def test_a_model_whose_attention_takes_no_mask_shares_nothing_and_others_share_nearly_all(causal):
    from backends.transformers import TransformersBackend

    model, tokenizer = causal
    backend = TransformersBackend(model, tokenizer=tokenizer, batch_tokens=200, context_length=100)
    prompts = [RenderedPrompt(text=f"{text} {cue}") for text in SENTENCES for cue in "abcdefghij"]
    usage = backend.next_token(prompts, 5).usage
    if model.config.model_type == "bloom":  # its positions are no argument
        assert usage.tokens_evaluated == usage.tokens
    else:
        assert usage.tokens_evaluated <= 1.15 * usage.tokens_least
        assert usage.tokens > 2 * usage.tokens_evaluated


def test_a_long_preamble_is_evaluated_once_however_many_inputs_it_takes(causal):
    from backends.transformers import TransformersBackend

    model, tokenizer = causal
    backend = TransformersBackend(model, tokenizer=tokenizer, batch_tokens=24, context_length=100)
    preamble = " ".join(SENTENCES)
    prompts = [RenderedPrompt(text=f"{preamble} {text}{cue}") for text in SENTENCES for cue in "ab"]
    prompts.append(RenderedPrompt(text=preamble))
    answer = backend.next_token(prompts, 50)
    for row, prompt in enumerate(prompts):
        exact = directly(model, backend.show(prompt)[1])
        assert np.abs(exact[answer.token_ids[row]] - answer.log_probs[row]).max() < 1e-3
    if model.config.model_type != "bloom":
        assert answer.usage.tokens > 4 * answer.usage.tokens_least
        assert answer.usage.tokens_evaluated == answer.usage.tokens_least


def test_inputs_are_filled_up_to_their_tokens_and_not_to_64_answers(causal):
    from backends.transformers import TransformersBackend

    model, tokenizer = causal
    backend = TransformersBackend(model, tokenizer=tokenizer, batch_tokens=300)
    prompts = [RenderedPrompt(text=f"I love this film {number}") for number in range(150)]
    parts = [(len(rows), part.usage) for rows, part in backend.iter_next_token(prompts, 5)]
    if model.config.model_type != "bloom":  # its inputs hold sequences of one length
        assert max(n for n, _ in parts) > 64
        assert all(usage.tokens_evaluated > 250 for _, usage in parts[:-1])


def test_the_likeliest_tokens_by_hand():
    import torch

    from backends.hf.likeliest import likeliest

    logits = torch.log(torch.tensor([[0.1, 0.4, 0.1, 0.4], [0.7, 0.1, 0.1, 0.1]])) + 3
    ((rows, ids, values, evaluated),) = likeliest([([4, 2], logits, 9)], 2)
    assert (rows, evaluated) == ([4, 2], 9)
    assert ids[0].tolist() == [1, 3]  # a tie, by id
    assert ids[1, 0] == 0
    assert np.exp(values) == pytest.approx(np.array([[0.4, 0.4], [0.7, 0.1]]))


@pytest.mark.parametrize("batch_tokens", [24, 200])
@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "gpt_neo"])
def test_prompts_longer_than_a_sliding_window_get_the_model_s_own_answers(kind, batch_tokens):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from backends.transformers import TransformersBackend

    _, tokenizer = roberta()
    sizes = {
        "gpt_neo": {"window_size": 8, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    }
    layers = ["sliding_attention", "full_attention"]
    own = {"layer_types": layers, "head_dim": 8} if kind == "gemma3_text" else {}
    common = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "sliding_window": 8,
        "num_hidden_layers": 2,
        **own,
    }
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=32,
        max_position_embeddings=128,
        **sizes.get(kind, common),
        **({"num_layers": 2} if kind == "gpt_neo" else {}),
    )
    config.initializer_range = 0.4
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    backend = TransformersBackend(
        model, tokenizer=tokenizer, batch_tokens=batch_tokens, context_length=100
    )
    preamble = " ".join(SENTENCES)
    prompts = [RenderedPrompt(text=f"{preamble} {text}{cue}") for text in SENTENCES for cue in "ab"]
    answer = backend.next_token(prompts, 50)
    for row, prompt in enumerate(prompts):
        exact = directly(model, backend.show(prompt)[1])
        assert np.abs(exact[answer.token_ids[row]] - answer.log_probs[row]).max() < 1e-3
    if kind != "gpt_neo":
        assert answer.usage.tokens_evaluated == answer.usage.tokens_least


def test_writing_without_temperature_is_the_model_s_greedy_text(causal):
    import torch

    from backends.transformers import TransformersBackend

    model, tokenizer = causal
    backend = TransformersBackend(model, tokenizer=tokenizer, context_length=100)
    prompt = RenderedPrompt(text=SENTENCES[0])
    ids = backend.show(prompt)[1]
    for _ in range(5):
        ids = [*ids, int(np.argmax(directly(model, ids)))]
    with torch.no_grad():
        written = backend.generate([prompt], 2, max_tokens=5, temperature=0.0).texts[0]
    wanted = backend._tokenizer.decode(ids[-5:])
    assert written == [wanted, wanted] or tokenizer.eos_token_id in ids[-5:]


@pytest.mark.parametrize("make", [roberta, bert])
def test_masked_prompts_get_the_model_s_own_answers_at_the_mask(make):
    from backends.transformers import TransformersBackend

    model, tokenizer = make()
    backend = TransformersBackend(model, tokenizer=tokenizer, batch_tokens=64)
    prompts = [
        RenderedPrompt(text=f"{text}{cue}", after_mask=behind)
        for text in SENTENCES
        for cue, behind in ((" It was ", "."), ("\nTopic: ", ""), ("", " is what I feel."))
    ]
    answer = backend.next_token(prompts, 40)
    assert backend.limits.mask
    assert not backend.limits.raw_text
    for row, prompt in enumerate(prompts):
        ids = backend.show(prompt)[1]
        assert ids.count(tokenizer.mask_token_id) == 1
        assert ids[0] == tokenizer.cls_token_id
        assert ids[-1] == tokenizer.sep_token_id
        exact = directly(model, ids, ids.index(tokenizer.mask_token_id))
        assert np.abs(exact[answer.token_ids[row]] - answer.log_probs[row]).max() < 1e-3
        assert answer.log_probs[row, 0] == pytest.approx(exact.max(), abs=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in DeBERTa's code
@pytest.mark.parametrize("kind", ["deberta-v2", "modernbert", "distilbert", "electra"])
def test_every_kind_of_masked_lm_gives_its_own_answers(kind):
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    from backends.transformers import TransformersBackend

    _, tokenizer = roberta()
    sizes = {
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    }
    common = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    options = {**({} if kind == "distilbert" else common), **sizes.get(kind, {})}
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    config.initializer_range = 0.4
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config).eval()
    backend = TransformersBackend(model, tokenizer=tokenizer, masked=True, batch_tokens=64)
    prompts = [
        RenderedPrompt(text=f"{text} It was", after_mask=behind)
        for text in SENTENCES
        for behind in (".", " indeed, they said.")
    ]
    answer = backend.next_token(prompts, 40)
    for row, prompt in enumerate(prompts):
        ids = backend.show(prompt)[1]
        exact = directly(model, ids, ids.index(tokenizer.mask_token_id))
        assert np.abs(exact[answer.token_ids[row]] - answer.log_probs[row]).max() < 1e-3
        assert answer.log_probs[row, 0] == pytest.approx(exact.max(), abs=1e-3)


def test_a_masked_prompt_is_what_the_tokenizer_makes_of_the_whole_text():
    from backends.transformers import TransformersBackend

    model, tokenizer = roberta()
    backend = TransformersBackend(model, tokenizer=tokenizer)
    prompt = RenderedPrompt(text="I love this film. It was ", after_mask=".")
    text, ids = backend.show(prompt)
    assert text == "I love this film. It was <mask>."
    tokenizer.add_special_tokens({"mask_token": tokenizer.mask_token})
    own = tokenizer.encode("I love this film. It was<mask>.")
    assert ids == own


@pytest.mark.parametrize("make", [roberta, bert])
def test_masked_lms_train_save_and_load(make, tmp_path):
    from backends.transformers import TransformersBackend

    model, tokenizer = make()
    backend = TransformersBackend(model, tokenizer=tokenizer)
    classifier = PromptBoostingClassifier(backend, n_prompts=3, random_state=0, top_k=50)
    classifier.fit(TEXTS, LABELS).save(tmp_path / "m.blackbox")
    loaded = load_model(tmp_path / "m.blackbox", backend=backend)
    new = ["a lovely day", "dull"]
    assert np.abs(loaded.predict_proba(new) - classifier.predict_proba(new)).max() < 1e-4
    assert loaded.predict(TEXTS).tolist() == classifier.predict(TEXTS).tolist()


def test_pairs_are_served_by_masked_lms():
    from backends.transformers import TransformersBackend

    model, tokenizer = roberta()
    backend = TransformersBackend(model, tokenizer=tokenizer)
    pairs = [(text, "it is good") for text in TEXTS]
    prompts = ["{text}? {mask}, {text_pair}"]
    classifier = PromptBoostingClassifier(backend, prompts=prompts, random_state=0, top_k=50)
    assert classifier.fit(pairs, LABELS).predict(pairs).shape == (12,)


def test_a_folder_is_found_again_by_its_weights(tmp_path):
    import torch

    from backends.transformers import TransformersBackend

    model, tokenizer = roberta()
    model.save_pretrained(tmp_path / "one")
    tokenizer.save_pretrained(tmp_path / "one")
    one = TransformersBackend(tmp_path / "one")
    assert one.limits.mask
    assert one.identity.model == "one"
    assert one.identity.weights_digest
    assert one.limits.context_length == 128
    with torch.no_grad():
        model.lm_head.bias += 1
    model.save_pretrained(tmp_path / "one")
    assert TransformersBackend(tmp_path / "one").identity != one.identity


@pytest.mark.parametrize(
    ("changed", "is_other"),
    [
        ({"rope_theta": 1e6}, True),
        ({"sliding_window": 8}, True),
        ({"transformers_version": "9.9", "_name_or_path": "/elsewhere", "dtype": "float16"}, False),
    ],
)
def test_a_folder_with_another_configuration_is_another_lm(tmp_path, changed, is_other):
    from backends.catalogue import sha256_of_folder

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "llama", "rope_theta": 1e4}))
    before = sha256_of_folder(tmp_path, ["*.safetensors"])
    file.write_text(json.dumps({"rope_theta": 1e4} | changed | {"model_type": "llama"}))
    assert (sha256_of_folder(tmp_path, ["*.safetensors"]) != before) == is_other
    assert sha256_of_folder(tmp_path, ["*.gguf"]) == ""


def test_tokens_have_their_exact_bytes():
    from backends.hf.tokenizer import PromptTokenizer

    _, byte_level = roberta()
    tokens = PromptTokenizer(byte_level, masked=True)
    ids = byte_level.encode("naïve 😀 café", add_special_tokens=False)
    assert b"".join(map(tokens.bytes_of, ids)) == "naïve 😀 café".encode()
    assert b" film" in {tokens.bytes_of(token) for token in range(len(byte_level))}
    _, pieces = bert()
    names = {PromptTokenizer(pieces, masked=True).bytes_of(token) for token in range(len(pieces))}
    assert b" film" in names
    assert any(name.isalpha() and not name.startswith(b" ") for name in names)


def test_pieces_of_sentencepiece_have_their_exact_bytes():
    from tokenizers import SentencePieceBPETokenizer
    from transformers import PreTrainedTokenizerFast

    from backends.hf.tokenizer import PromptTokenizer

    trained = SentencePieceBPETokenizer()
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    trained.train_from_iterator(SENTENCES * 20, vocab_size=600, special_tokens=["<unk>", "<s>"])
    trained.add_tokens(bytes_)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="<s>"
    )
    tokens = PromptTokenizer(tokenizer, masked=False)
    names = {tokens.bytes_of(token) for token in range(len(tokenizer))}
    assert b" this" in names
    assert b"\xe2" in names
    assert tokens.start_piece == "<s>"  # this tokenizer adds none by itself
    assert tokens.encode(RenderedPrompt(text="I love"))[0] == tokenizer.bos_token_id


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n</think>"
)


def chat_tokenizer(kind):
    """A small tokenizer with a chat template; `</think>` isn't special, though the template has it.

    ``byte-level`` as GPT-2's, ``sentencepiece`` with a space before the first word of all.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    spaces = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = bytes_ if kind == "byte-level" else spaces
    trained.decoder = decoders.ByteLevel() if kind == "byte-level" else decoders.Metaspace()
    special = ["<unk>", "<s>", "<|im_start|>", "<|im_end|>"]
    alphabet = (
        pre_tokenizers.ByteLevel.alphabet() if kind == "byte-level" else list("\n<|>/_k015\ue000")
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator([*SENTENCES * 20, "system user assistant\n"], trainer)
    trained.add_tokens([AddedToken("</think>", special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(params=["byte-level", "sentencepiece"])
def chat_tokens(request):
    from backends.hf.tokenizer import PromptTokenizer

    return PromptTokenizer(chat_tokenizer(request.param), masked=False)


WORDS = [
    "I love",
    " ",
    "\n",
    "  ",
    "this film",
    "<",
    "|",
    "5",
    "\ue000",
    "\ue0001\ue000",
    "it rains",
]
CONTROL = ["<|im_end|>", "<|im_start|>", "<s>", "</think>"]


def some_texts(n, words, seed=0):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(words, rng.integers(0, 10))) for _ in range(n)]


def test_control_tokens_in_texts_and_messages_are_text(chat_tokens):
    """Also those that the tokenizer doesn't mark as special and the chat template names."""
    inner = chat_tokens._tokenizer
    control = set(inner.convert_tokens_to_ids(CONTROL))

    def controls(prompt):
        return [token for token in chat_tokens.encode(prompt) if token in control]

    template = controls(RenderedPrompt(messages=(Message("user", "I love"),)))
    start = controls(RenderedPrompt(text="I love"))
    for text in [*CONTROL, *some_texts(100, WORDS + 2 * CONTROL)]:
        prompt = RenderedPrompt(messages=(Message("user", text),), answer_prefix=f"it{text}")
        assert controls(prompt) == template
        ids = chat_tokens.encode(prompt)
        assert inner.decode(ids).replace(" ", "") == chat_tokens.text_of(prompt).replace(" ", "")
        assert controls(RenderedPrompt(text=text)) == start


def test_prompts_that_are_tokenised_together_get_the_ids_of_each_alone(chat_tokens):
    texts = ["", *some_texts(100, WORDS + CONTROL, seed=2)]
    prompts = [RenderedPrompt(text=text) for text in texts]
    prompts += [RenderedPrompt(messages=(Message("user", text),)) for text in texts[:20]]
    assert chat_tokens.encode_all(prompts) == [chat_tokens.encode(prompt) for prompt in prompts]


def test_texts_without_control_tokens_keep_their_token_ids(chat_tokens):
    """Encoded apart as much as in one."""
    from backends.control_tokens import ControlTokens

    texts = some_texts(150, WORDS, seed=1)
    prompts = [RenderedPrompt(messages=(Message("user", text),)) for text in texts]
    whole = [chat_tokens.encode(prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, whole, strict=True):
        assert ids == chat_tokens._encode(chat_tokens.text_of(prompt), parse=True)

    class Apart(ControlTokens):
        def hide(self, prompt):
            return RenderedPrompt(messages=prompt.messages), str

    chat_tokens._controls.__class__ = Apart
    assert [chat_tokens.encode(prompt) for prompt in prompts] == whole


def test_a_mask_in_a_text_is_text():
    from backends.hf.tokenizer import PromptTokenizer

    for make in (roberta, bert):
        _, tokenizer = make()
        tokens = PromptTokenizer(tokenizer, masked=True)
        special = " ".join(tokenizer.all_special_tokens)
        ids = tokens.encode(RenderedPrompt(text=f"I {special} love", after_mask=f" {special}."))
        found = [token for token in ids if token in tokenizer.all_special_ids]
        assert found.count(tokenizer.mask_token_id) == 1
        plain = tokens.encode(RenderedPrompt(text="I love", after_mask="."))
        unknown = tokenizer.unk_token_id  # of characters that the vocabulary lacks
        assert [token for token in found if token != unknown] == [
            token for token in plain if token in tokenizer.all_special_ids and token != unknown
        ]


def test_the_embedded_lm_has_the_ids_and_answers_of_llamacpp(transformers_lm, lm_float32):
    prompts = [
        RenderedPrompt(text="The capital of France is"),
        RenderedPrompt(text="I love it 😀"),
        RenderedPrompt(text=""),
        RenderedPrompt(text="half \ud83d, <|im_end|> नमस्ते, \u200b, \x07"),
        RenderedPrompt(messages=(Message("user", "What is it?"),), answer_prefix="It is a"),
        RenderedPrompt(messages=(Message("system", "Be brief."), Message("user", "Hello"))),
        RenderedPrompt(messages=(Message("user", "a<|im_end|>\n<|endoftext|> b"),)),
    ]
    here, there = (backend.next_token(prompts, 200) for backend in (transformers_lm, lm_float32))
    for row, prompt in enumerate(prompts):
        assert transformers_lm.show(prompt) == lm_float32.show(prompt)
        known = dict(zip(there.token_ids[row].tolist(), there.log_probs[row], strict=True))
        for token, value in zip(
            here.token_ids[row, :50].tolist(), here.log_probs[row], strict=False
        ):
            assert abs(known[token] - value) < 0.05
    for token in here.token_bytes.keys() & there.token_bytes.keys():
        if token > 16:  # llama.cpp gives its special tokens no bytes
            assert here.token_bytes[token] == there.token_bytes[token]


def test_a_gguf_file_is_read_too(transformers_lm):
    import backends

    backend = backends.load("transformers", model="smollm2-135m")
    assert backend.identity.model == "smollm2-135m"
    prompt = [RenderedPrompt(text="The capital of France is")]
    one, other = backend.next_token(prompt, 20), transformers_lm.next_token(prompt, 20)
    assert (one.token_ids == other.token_ids).all()
    assert np.abs(one.log_probs - other.log_probs).max() < 1e-3


def test_a_model_trained_with_the_catalogue_s_lm_loads_it_by_itself(tmp_path):
    texts = [f"{n} {word}" for n in range(4) for word in ("lovely", "dull")]
    trained = PromptBoostingClassifier(
        "transformers", model="smollm2-135m", prompts=["{text} It was {mask}"], n_estimators=4
    ).fit(texts, ["good", "bad"] * 4)
    trained.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert (loaded.predict_proba(texts) == trained.predict_proba(texts)).all()
    assert loaded.connect().identity.engine.startswith("transformers ")


def test_auto_computes_in_bfloat16_only_where_the_processor_does(tmp_path, monkeypatch):
    import torch

    from backends.transformers import TransformersBackend

    model, tokenizer = roberta()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for computes, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda found=computes: found)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        for wanted, meant in (("auto", expected), (None, "float32"), ("bfloat16", "bfloat16")):
            backend = TransformersBackend(str(tmp_path), dtype=wanted, device="cpu")
            assert backend.identity.extra["dtype"] == meant
    with pytest.raises(ValueError, match="dtype must be auto, float32, bfloat16 or float16, got"):
        TransformersBackend(str(tmp_path), dtype="int3")


def test_what_is_no_model_is_one_clear_error(tmp_path, monkeypatch):
    from backends.transformers import TransformersBackend

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"model_type": "none"}))
    for name, said in [
        (str(tmp_path / "none"), "no such folder"),
        (str(tmp_path / "none.gguf"), "no such file"),
        (str(tmp_path / "empty"), "empty can't be loaded"),
        (str(tmp_path / "odd"), "odd can't be loaded"),
        ("nobody/no-such-model", "nobody/no-such-model can't be loaded"),
    ]:
        with pytest.raises(ModelNotFoundError, match=said) as caught:
            TransformersBackend(name)
        assert "\n" not in str(caught.value)
    model, tokenizer = roberta()
    with pytest.raises(TypeError, match="needs its tokenizer"):
        TransformersBackend(model)
    with pytest.raises(BackendError, match="writes no texts"):
        TransformersBackend(model, tokenizer=tokenizer).generate(
            [RenderedPrompt(text="a", after_mask="")], 1
        )


def test_the_library_prints_nothing_while_prompts_are_answered(causal):
    """Neither that a name is deprecated, nor that a text is long."""
    import logging

    from transformers.utils import logging as chatter

    from backends.transformers import TransformersBackend

    records = []
    handler = logging.Handler()
    handler.emit = records.append
    chatter.warning_once.cache_clear()
    chatter.add_handler(handler)
    try:
        model, tokenizer = causal
        tokenizer.model_max_length = 30
        backend = TransformersBackend(model, tokenizer=tokenizer, batch_tokens=24)
        preamble = SENTENCES[0]
        prompts = [RenderedPrompt(text=f"{preamble} {text}") for text in SENTENCES]
        answer = backend.next_token([*prompts, RenderedPrompt(text="I love it. " * 20)], 5)
        assert 3 in answer.row_errors
        backend.generate([RenderedPrompt(text="I love")], 2, max_tokens=4)
    finally:
        chatter.remove_handler(handler)
    assert [record.getMessage() for record in records] == []


def test_a_missing_sdk_is_one_line_that_says_how_to_get_it(monkeypatch):
    import sys

    from backends.transformers import TransformersBackend

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install 'promptboosting\[transformers\]'"
    ):
        TransformersBackend("anything")
