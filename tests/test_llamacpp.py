"""The embedded LM: real answers from the real engine, scheduled so that prefixes are shared."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
from sklearn.base import clone

import backends
from backends.llamacpp import LlamaCppBackend, _schedule
from backends.prefixes import common_prefix_length
from blackbox import PromptBoostingClassifier, load_model
from blackbox.errors import BackendError, ModelNotFoundError, UnservedPromptError
from blackbox.protocol import NO_TOKEN, Message, RenderedPrompt
from tests.sliding_window import write_gguf

TEXTS = ["Paris is the capital of", "I went to the", "Two plus two is", "The cat sat on the"]
TOLERANCE = 0.05  # the batch's shape changes the last bits of an activation


@pytest.fixture
def lm(llamacpp_lm):
    """The engine of this file."""
    return llamacpp_lm


def raw(*texts):
    return [RenderedPrompt(text=text) for text in texts]


def chat(user, answer=""):
    return RenderedPrompt(messages=(Message("user", user),), answer_prefix=answer)


@pytest.mark.slow
@pytest.mark.lm
def test_the_most_likely_token_makes_sense(lm):
    answer = lm.next_token(raw("The capital of France is the city of"), 5)
    words = [answer.token_bytes[token] for token in answer.token_ids[0].tolist()]
    assert b" Paris" in words


@pytest.mark.slow
@pytest.mark.lm
def test_answers_have_the_shape_order_and_names_that_were_asked_for(lm):
    answer = lm.next_token(raw(*TEXTS), 50)
    assert answer.token_ids.shape == answer.log_probs.shape == (4, 50)
    assert (np.diff(answer.log_probs, axis=1) <= 0).all()
    assert set(answer.token_ids.ravel().tolist()) <= set(answer.token_bytes)
    assert answer.usage.passes_made == 4
    # less than the least where the engine still holds what an earlier call began with
    assert 4 <= answer.usage.tokens_evaluated <= answer.usage.tokens
    assert 4 <= answer.usage.tokens_least <= answer.usage.tokens


@pytest.mark.slow
@pytest.mark.lm
@pytest.mark.posix
def test_a_process_that_is_forked_is_told_to_load_its_own(lm):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            lm.next_token(raw(TEXTS[0]), 5)
        except BackendError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        assert "loaded before this process was forked" in told.read()
    os.waitpid(child, 0)
    assert lm.next_token(raw(TEXTS[0]), 5).usage.passes_made == 1


@pytest.mark.slow
@pytest.mark.lm
def test_a_larger_top_k_begins_with_the_smaller(lm):
    few, many = lm.next_token(raw(TEXTS[0]), 20), lm.next_token(raw(TEXTS[0]), 200)
    assert np.abs(many.log_probs[0, :20] - few.log_probs[0]).max() < TOLERANCE


@pytest.mark.slow
@pytest.mark.lm
def test_a_prompt_gets_the_same_answer_alone_and_in_a_batch(lm):
    prompts = raw(*(f"{text} {cue}" for text in TEXTS for cue in ("It was", "\nTopic:", "so")))
    together = lm.next_token(prompts, 50)
    for row, prompt in enumerate(prompts):
        alone = lm.next_token([prompt], 50)
        known = dict(zip(alone.token_ids[0].tolist(), alone.log_probs[0].tolist(), strict=True))
        shared = [
            abs(known[token] - value)
            for token, value in zip(
                together.token_ids[row].tolist(), together.log_probs[row].tolist(), strict=True
            )
            if token in known
        ]
        assert len(shared) >= 45
        assert max(shared) < TOLERANCE


@pytest.mark.slow
@pytest.mark.lm
@pytest.mark.parametrize(
    "prompt",
    [
        RenderedPrompt(text=""),
        RenderedPrompt(text="I love it 😀"),
        RenderedPrompt(text="half a pair \ud83d, नमस्ते, \u200b, \x07"),
        RenderedPrompt(text='She said "goodbye" and left.\n\nThe end.\n\n\n'),
        chat("Say yes.", "Yes."),
        chat("", ""),
        chat("<|im_end|>{{ 7 * 7 }}", "ok"),
    ],
)
def test_odd_texts_get_a_whole_distribution(lm, prompt):
    """Also where the likeliest token is half a character, or would end the text."""
    answer = lm.next_token([prompt], 20)
    assert not answer.row_errors
    assert (answer.token_ids != NO_TOKEN).all()


@pytest.mark.slow
@pytest.mark.lm
def test_a_prompt_over_the_context_is_refused_with_its_length_and_others_are_answered(lm):
    answer = lm.next_token(raw("x " * 3000, TEXTS[0]), 5)
    assert list(answer.row_errors) == [0]
    assert "the context holds 2047" in answer.row_errors[0]
    assert (answer.token_ids[1] != NO_TOKEN).all()


@pytest.mark.slow
@pytest.mark.lm
def test_shown_text_and_ids_are_what_is_counted(lm):
    text, ids = lm.show(chat("What is it?", "It is a"))
    assert text.endswith("<|im_start|>assistant\nIt is a")
    assert "What is it?<|im_end|>" in text
    assert lm.count_tokens([chat("What is it?", "It is a")]) == [len(ids)]


@pytest.mark.slow
@pytest.mark.lm
def test_raw_text_begins_with_a_document_start_and_its_special_tokens_are_text(lm):
    text, ids = lm.show(RenderedPrompt(text="a <|im_end|> b"))
    assert text.startswith("<|endoftext|>")
    assert ids[0] == 0
    assert 2 not in ids  # the id of <|im_end|>
    assert lm.identity.extra["document_start"] == "<|endoftext|>"


CONTROL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<repo_name>"]
LAST_CONTROL = 16  # the ids of the embedded LM's control tokens are 0 to 16


def odd_texts(n, words, seed=0):
    """Texts put together out of words and odd pieces."""
    pieces = ["I love it", " ", "\n", "\n\n", "\t", "😀", "नमस्ते", "\u200b", "\x07", "\ue000", "5"]
    pieces += ["<", "|", "|>", "<|", "{{ 7 * 7 }}", "\ue0001\ue000", "It's", "\ud83d", *words]
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(pieces, rng.integers(0, 12))) for _ in range(n)]


@pytest.mark.slow
@pytest.mark.lm
def test_control_tokens_in_messages_are_text(lm):
    """Else a text could end its turn and write the rest of the conversation."""
    template = [1, 2, 1, 2, 1]  # of the turns: system, user, assistant
    for text in [*CONTROL, *odd_texts(60, CONTROL * 3)]:
        for prompt in (chat(text, "It is"), chat("A text.", f"It{text} is")):
            shown, ids = lm.show(prompt)
            assert [token for token in ids if token <= LAST_CONTROL] == template
            whole = lm._tokenizer._post("/detokenize", {"tokens": ids})["content"]
            assert whole == shown.encode("utf-8", "replace").decode()


@pytest.mark.slow
@pytest.mark.lm
def test_other_messages_keep_their_token_ids(lm):
    """Stores and saved models rest on them."""
    tokenizer = lm._tokenizer
    for text in odd_texts(150, ["end", "a film", "<div>", "<|im|>"], seed=1):
        prompt = chat(text, "It is")
        whole = tokenizer._tokenize(tokenizer.text_of(prompt), special=True, parse=True)
        assert tokenizer.encode(prompt) == whole


@pytest.mark.slow
@pytest.mark.lm
def test_masked_prompts_and_too_many_tokens_are_refused_before_anything_is_run(lm):
    with pytest.raises(UnservedPromptError):
        lm.next_token([RenderedPrompt(text="a", after_mask="b")], 5)
    with pytest.raises(UnservedPromptError, match="top_k"):
        lm.next_token(raw("a"), 5000)


@pytest.mark.slow
@pytest.mark.lm
def test_one_text_under_many_prompts_is_evaluated_about_once(lm):
    texts = [f"Number {i}: a rather long text that many prompts have in common." for i in range(24)]
    prompts = raw(*(f"{text} {cue}" for text in texts for cue in "abcdefghij"))
    usage = lm.next_token(prompts, 5).usage
    assert usage.tokens_evaluated <= 1.15 * usage.tokens_least
    assert usage.tokens > 4 * usage.tokens_evaluated


@pytest.mark.slow
@pytest.mark.lm
def test_a_single_text_under_many_prompts_is_evaluated_about_once(lm):
    text = "A text of its own, which no call before this one has shown to the engine: zebra."
    usage = lm.next_token(raw(*(f"{text} {cue}" for cue in "abcdefghij")), 5).usage
    assert usage.tokens_evaluated <= 1.15 * usage.tokens_least


def test_a_sliding_window_model_evaluates_a_text_about_once_for_all_prompts(tmp_path):
    pytest.importorskip("xllamacpp", reason="the embedded LM needs the `llamacpp` extra")
    pytest.importorskip("gguf", reason="the embedded LM needs the `llamacpp` extra")
    backend = LlamaCppBackend(write_gguf(tmp_path / "tiny.gguf"), context_length=256)
    texts = [f"Number {i}: a rather long text that many prompts have in common." for i in range(4)]
    prompts = raw(*(f"{text} {cue}" for text in texts for cue in "abcdefghij"))
    usage = backend.next_token(prompts, 5).usage
    assert usage.tokens_evaluated <= 1.4 * usage.tokens_least
    assert usage.tokens > 4 * usage.tokens_evaluated


@pytest.mark.slow
@pytest.mark.lm
def test_closing_the_stream_early_leaves_the_engine_usable(lm):
    stream = lm.iter_next_token(raw(*(f"text {i}" for i in range(200))), 5)
    next(stream)
    stream.close()
    assert len(lm.next_token(raw("again"), 5)) == 1


@pytest.mark.slow
@pytest.mark.lm
def test_copies_clones_and_pickles_share_the_engine(lm):
    assert copy.copy(lm) is copy.deepcopy(lm) is clone(lm) is lm
    assert pickle.loads(pickle.dumps(lm)).identity == lm.identity
    assert backends.load("llamacpp") is lm


@pytest.mark.slow
@pytest.mark.lm
def test_a_saved_model_finds_its_lm_by_itself_and_predicts_alike_row_by_row(lm, tmp_path):
    texts = ["a lovely film", "a dull film", "lovely, truly", "dull and long"] * 3
    labels = ["good", "bad", "good", "bad"] * 3
    prompts = ["{text} It was {mask}", "{text}\nSentiment: {mask}"]
    classifier = PromptBoostingClassifier("llamacpp", prompts=prompts, random_state=0)
    classifier.fit(texts, labels)
    classifier.save(tmp_path / "m.blackbox")
    loaded = load_model(tmp_path / "m.blackbox")
    new = ["what a lovely day", "how dull", "an awful, dull mess", "great and lovely"]
    together = loaded.predict_proba(new)
    alone = np.vstack([loaded.predict_proba([text]) for text in new])
    assert np.abs(together - alone).max() < TOLERANCE
    assert loaded.predict(new).tolist() == classifier.predict(new).tolist()


@pytest.mark.slow
@pytest.mark.lm
def test_the_same_seed_gives_the_same_model(lm):
    texts = ["a lovely film", "a dull film", "lovely, truly", "dull and long"] * 3
    labels = ["good", "bad", "good", "bad"] * 3

    prompts = ["{text} It was {mask}", "{text}\nSentiment: {mask}"]

    def trained():
        classifier = PromptBoostingClassifier("llamacpp", prompts=prompts, random_state=7)
        return classifier.fit(texts, labels)

    one, other = trained(), trained()
    assert np.abs(one.predict_proba(texts) - other.predict_proba(texts)).max() < TOLERANCE


def test_what_is_no_model_is_one_clear_error(tmp_path):
    pytest.importorskip("xllamacpp")
    (tmp_path / "junk.gguf").write_bytes(b"not a model")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    for model, said in [
        ("smollm3", "no model named"),
        (str(tmp_path / "none.gguf"), "no such file"),
        (str(tmp_path / "junk.gguf"), "is not a GGUF file"),
        (str(tmp_path / "broken.gguf"), "can't load broken.gguf"),
    ]:
        with pytest.raises(ModelNotFoundError, match=said):
            LlamaCppBackend(model)


def test_an_unknown_backend_name_suggests_the_nearest():
    with pytest.raises(BackendError, match="did you mean 'llamacpp'"):
        backends.load("llamacp")


def test_the_schedule_walks_the_prefix_tree_and_counts_its_nodes():
    sequences = [[1, 2, 9], [5, 6], [1, 2, 8], [1, 2, 8], [5, 6, 7]]
    stretches, least = _schedule(list(range(5)), sequences, 1)
    assert stretches == [[2, 3, 0, 1, 4]]
    # 1 2 8, then the last token of its double again, 9, 5 6, 7
    assert least == 3 + 1 + 1 + 2 + 1


def test_the_schedule_gives_every_slot_about_as_much_to_do():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 50, rng.integers(5, 30)).tolist() for _ in range(400)]
    stretches, _ = _schedule(list(range(400)), sequences, 8)
    assert sorted(row for stretch in stretches for row in stretch) == list(range(400))
    assert max(map(len, stretches)) < 2 * min(map(len, stretches))


@pytest.mark.parametrize("length", [8, 30, 200])
@pytest.mark.parametrize("n_texts", [1, 2, 3, 4, 9, 40])
def test_the_schedule_reads_little_twice_however_few_texts_there_are(n_texts, length):
    rng = np.random.default_rng(n_texts)

    def some(n):
        return rng.integers(0, 5000, n).tolist()

    texts = [some(rng.integers(length // 2, 2 * length)) for _ in range(n_texts)]
    before, cues = [some(5) for _ in range(3)], [some(rng.integers(1, 8)) for _ in range(7)]
    sequences = [[0, *text, *cue] for text in texts for cue in cues]
    sequences += [[0, *start, *text] for text in texts for start in before]
    stretches, least = _schedule(list(range(len(sequences))), sequences, 8)
    assert sorted(row for stretch in stretches for row in stretch) == list(range(len(sequences)))
    work = [evaluated([sequences[row] for row in stretch]) for stretch in stretches]
    assert sum(work) <= 1.1 * least
    if n_texts > 8:  # enough for all slots
        assert len(stretches) == 8
        assert max(work) < 1.5 * least / 8


def evaluated(sequences):
    """Tokens that a slot evaluates which keeps its last sequence."""
    pairs = zip([[], *sequences], sequences, strict=False)
    return sum(max(len(one) - common_prefix_length(held, one), 1) for held, one in pairs)


@pytest.mark.slow
@pytest.mark.lm
def test_texts_are_written_and_drawn_by_number(lm):
    prompts = raw("The capital of France is", "Once upon a time")
    likely = lm.generate(prompts, 1, max_tokens=6, temperature=0.0)
    assert "Paris" in likely.texts[0][0]
    assert likely.texts == lm.generate(prompts, 1, max_tokens=6, temperature=0.0, seed=3).texts
    drawn = lm.generate(prompts[1:], 4, max_tokens=8, temperature=1.0)
    assert len(set(drawn.texts[0])) > 1
    assert 4 <= drawn.usage.passes_made <= 4 * 8
    refused = lm.generate([*raw("word " * 3000), prompts[0]], 1, max_tokens=2)
    assert list(refused.row_errors) == [0]
    assert refused.texts[0] == []
