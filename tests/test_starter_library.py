"""Tests of the starter library: which data sets it takes, and what it holds."""

from click.testing import CliRunner

from blackbox.library.folder import Library
from eval.starter_library import main
from tests.test_experts import texts_of


def test_it_takes_what_a_licence_lets_be_passed_on(tmp_path):
    for name in ("sib200_eng", "tweet_irony"):
        (tmp_path / "data" / name).mkdir(parents=True)
        texts, labels = texts_of(30, 1)
        rows = "".join(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True))
        for split in ("train", "test"):
            (tmp_path / "data" / name / f"{split}.csv").write_text(f"text,label\n{rows}")
    places = ["--library", tmp_path / "starter", "--store", tmp_path / "store" / "passes.sqlite"]
    given = ["--data-dir", tmp_path / "data", "--backend", "deterministic", "--shots", 4, *places]
    found = CliRunner().invoke(main, [str(one) for one in given], catch_exceptions=False)
    assert "tweet_irony: left out, as its licence is 'research use" in found.output
    assert "banking77: left out: " in found.output  # it isn't there
    library = Library.read(tmp_path / "starter")
    assert list(library.entries) == ["sib200_eng"]
    entry = library.entry("sib200_eng")
    assert (entry.licence, entry.n_rows) == ("Apache-2.0", 12)
    assert "Adelani" in entry.note
