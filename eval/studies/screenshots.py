"""Make the pictures of the documentation: terminals, the service's page and the report.

    python -m eval.studies.screenshots [--out docs/images] [--store FILE]
                                       [--only terminal|pages|inputs]

Needs Chromium with its driver, and the extras `local`, `serve`, `report`, `images`, `test` and
`eval`. The model is trained on forty of the bundled messages, with the embedded LM; that of the
pages with Arabic texts on twelve messages of this file; that of the pages with images on
scikit-learn's digits, with the backend `deterministic`, which sees the brightness of sixteen
fields. Lines of progress, and the
seconds that a run took, are left out of terminals: they are those of the machine at hand.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from blackbox import PromptBoostingClassifier

_TEXT = "Where on earth is my parcel? It should have been here on Monday."
_PER_CLASS = 10
_TERMINAL_WIDTH = 104
_PROGRESS = re.compile(r"[a-z ]+: [\d,]+ of [\d,]+ \(")  # in the place of a terminal's bar
_SECONDS = re.compile(r"^(time  |seconds a request ).*|, \d+ s$")
_COLOURS = 64  # of a screenshot, whose file is a third of that with all of them
_DIGITS = {0: "zero", 1: "one", 4: "four", 7: "seven"}
_SIDE = 96  # pixels of a digit's picture
_ARABIC = {
    "التوصيل": (
        "أين طردي؟ كان من المفترض أن يصل يوم الاثنين.",
        "لم تصل الشحنة حتى الآن.",
        "متى سيصل طلبي إلى المنزل؟",
        "السائق ترك الطرد عند الجيران.",
        "تتبع الشحنة لا يظهر أي شيء.",
        "أريد تغيير عنوان التسليم.",
    ),
    "الدفع": (
        "تم خصم المبلغ من بطاقتي مرتين.",
        "لماذا رُفضت بطاقتي عند الدفع؟",
        "أريد استرداد أموالي من فضلك.",
        "الفاتورة أعلى مما اتفقنا عليه.",
        "كيف أدفع عن طريق التحويل البنكي؟",
        "لم أستلم إيصال الدفع.",
    ),
}
_ARABIC_TEXT = "دفعت ثمن الطلب بالبطاقة ولم يصل الطرد بعد."


def read_sample(name: str) -> list[dict[str, str]]:
    """Read the rows of a bundled table."""
    text = (files("blackbox") / "samples" / name).read_text("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def few_messages() -> list[dict[str, str]]:
    """Return the first rows of each class of the bundled table."""
    few: dict[str, list[dict[str, str]]] = {}
    for row in read_sample("train.csv"):
        few.setdefault(row["label"], []).append(row)
    return [row for some in few.values() for row in some[:_PER_CLASS]]


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows with a text and a label as a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)


def train_model() -> PromptBoostingClassifier:
    """Train the model of the pages."""
    rows = few_messages()
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    classifier = PromptBoostingClassifier(n_prompts=4, n_screening_rows=16, random_state=0)
    return classifier.fit(texts, labels)


def start_browser(*, dark: bool) -> Any:
    """Start headless Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    arguments = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=900,1500"]
    if dark:
        arguments.append("--blink-settings=preferredColorScheme=0")
    for argument in arguments:
        options.add_argument(argument)
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def photograph_page(driver: Any, address: str, out: Path, given: str | Path = _TEXT) -> None:
    """Classify a text or an image on the page, and take a screenshot."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(address)
    wait = WebDriverWait(driver, 60)
    wait.until(lambda d: "prompts" in d.find_element(By.ID, "about").text)
    field = "image" if isinstance(given, Path) else "text"
    driver.find_element(By.ID, field).send_keys(str(given))
    driver.find_element(By.TAG_NAME, "button").click()
    wait.until(lambda d: d.find_element(By.ID, "label").text)
    driver.execute_script("window.scrollTo(0, 0)")
    driver.save_screenshot(str(out))


def draw_terminal(folder: Path, commands: list[list[str]], out: Path) -> None:
    """Run commands in a folder, and write what a terminal shows of them as an SVG picture.

    Parameters
    ----------
    folder : Path
        Where they run.
    commands : list of list of str
        The commands; those of `blackbox`, and programs such as ``head``.
    out : Path
        The picture.
    """
    from rich._export_format import CONSOLE_SVG_FORMAT
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    console = Console(record=True, width=_TERMINAL_WIDTH, file=io.StringIO())
    for command in commands:
        console.print(Text(f"$ {shlex.join(command)}", style="bold"))
        python = [sys.executable, "-m"] if command[0] == "blackbox" else []
        done = subprocess.run(
            [*python, *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        lines = [line for line in done.stdout.splitlines() if not _PROGRESS.match(line)]
        lines = [short for line in lines if (short := _SECONDS.sub("", line)) or not line]
        console.print(Text("\n".join([*lines, ""])))
    # the fonts of rich's own form would be fetched from another server
    form = re.sub(r"@font-face \{\{[^}]*\}\}", "", CONSOLE_SVG_FORMAT)
    picture = console.export_svg(title="blackbox", theme=MONOKAI, code_format=form)
    out.write_text(picture.replace("Fira Code", "Menlo, Consolas"), "utf-8")


@contextmanager
def run_service(command: list[str]) -> Iterator[str]:
    """Start the service; yield its address."""
    service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert service.stderr is not None
        found = re.search(r"http://[^,\s]+", service.stderr.readline())
        assert found is not None
        yield found[0]
    finally:
        service.terminate()
        service.wait(60)


def draw_terminals(folder: Path, out: Path) -> None:
    """Write the pictures of terminals."""
    model, card = "messages.blackbox", "card.md"
    new = [{"text": row["text"]} for row in read_sample("test.csv")[:3]]
    new.insert(1, {"text": ""})
    with (folder / "new.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text"])
        writer.writeheader()
        writer.writerows(new)
    pictures = {
        "terminal.svg": [
            f"blackbox train messages.csv --out {model}",
            f"blackbox evaluate {model} held-out.csv",
            f"blackbox inspect {model} --text 'where is my parcel?' --learners 0",
        ],
        "terminal-plan.svg": ["blackbox probe", "blackbox plan messages.csv --n-prompts 12"],
        "terminal-predict.svg": [f"blackbox predict {model} new.csv --out labelled.csv"],
        "terminal-library.svg": [
            f"blackbox library add {model} --library library --name messages",
            "blackbox library list --library library",
            f"blackbox report {model} held-out.csv --out {card}",
            f"head -n 32 {card}",
        ],
    }
    for name, commands in pictures.items():
        draw_terminal(folder, [shlex.split(one) for one in commands], out / name)


def take_screenshots(folder: Path, out: Path) -> None:
    """Write page and report, light and dark."""
    (folder / "pages").mkdir()
    model, page = folder / "pages" / "messages.blackbox", folder / "report.html"
    train_model().save(model)
    command = [sys.executable, "-m", "blackbox"]
    subprocess.run(
        [
            *command,
            "report",
            str(model),
            str(folder / "held-out.csv"),
            "--out",
            str(page),
            "--include-texts",
        ],
        check=True,
    )
    with run_service([*command, "serve", str(model), "--port", "0"]) as address:
        for dark in (False, True):
            name = "dark" if dark else "light"
            driver = start_browser(dark=dark)
            try:
                photograph_page(driver, address, out / f"page-{name}.png")
                driver.get(page.as_uri())
                driver.save_screenshot(str(out / f"report-{name}.png"))
            finally:
                driver.quit()
            for kind in ("page", "report"):
                reduce_colours(out / f"{kind}-{name}.png")


def write_digits(folder: Path) -> Path:
    """Write digits as pictures, with tables of those to train on and of others to test.

    Returns one that is in neither.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder.mkdir()
    rows = []
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        name = _DIGITS.get(int(digit))
        if name is not None:
            grey = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
            grey.resize((_SIDE, _SIDE), Image.Resampling.NEAREST).save(folder / f"{number}.png")
            rows.append({"file": f"{number}.png", "label": name})
    for table, some in (("train.csv", rows[:80]), ("test.csv", rows[80:240])):
        with (folder / table).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file", "label"])
            writer.writeheader()
            writer.writerows(some)
    return folder / rows[-1]["file"]


def photograph_inputs(folder: Path, out: Path) -> None:
    """Write the pages with an image and with an Arabic text, and the report with images."""
    digits = folder / "digits"
    unseen = write_digits(digits)
    images, arabic, page = (
        digits / "digits.blackbox",
        folder / "arabic.blackbox",
        digits / "report.html",
    )
    command, backend = [sys.executable, "-m", "blackbox"], ["--backend", "deterministic"]
    columns = ["--image-column", "file", "--label-column", "label"]
    train, test = str(digits / "train.csv"), str(digits / "test.csv")
    subprocess.run([*command, "train", train, *columns, "--out", str(images), *backend], check=True)
    subprocess.run(
        [
            *(*command, "report", str(images), test, *columns),
            *("--out", str(page), "--include-texts", *backend),
        ],
        check=True,
    )
    texts = [(text, label) for label, some in _ARABIC.items() for text in some]
    made = PromptBoostingClassifier(languages=["ar"], embeddings=None, random_state=0)
    made.fit([text for text, _ in texts], [label for _, label in texts]).save(arabic)
    asked: dict[str, tuple[Path, list[str], str | Path]] = {
        "page-image": (images, backend, unseen),
        "page-rtl": (arabic, [], _ARABIC_TEXT),
    }
    driver = start_browser(dark=False)
    try:
        for name, (model, options, given) in asked.items():
            with run_service([*command, "serve", str(model), "--port", "0", *options]) as address:
                photograph_page(driver, address, out / f"{name}.png", given)
        driver.get(page.as_uri())
        shown = "document.querySelector('img[src^=\"data:image/jpeg\"]')"
        driver.execute_script(f"{shown}.scrollIntoView({{block: 'center'}})")
        driver.save_screenshot(str(out / "report-image.png"))
    finally:
        driver.quit()
    for name in (*asked, "report-image"):
        reduce_colours(out / f"{name}.png")


def reduce_colours(path: Path) -> None:
    """Write a screenshot again with few colours, in a smaller file."""
    from PIL import Image

    with Image.open(path) as image:
        few = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


@click.command()
@click.option("--out", default=Path("docs/images"), type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--only", type=click.Choice(["terminal", "pages", "inputs"]))
def main(out: Path, store: Path | None, only: str | None) -> None:
    """Write the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp())
    write_table(folder / "messages.csv", few_messages())
    write_table(folder / "held-out.csv", read_sample("test.csv"))
    if store is not None:
        os.environ["PROMPTBOOSTING_STORE"] = str(store.resolve())
    if only in (None, "terminal"):
        draw_terminals(folder, out)
    if only in (None, "pages"):
        take_screenshots(folder, out)
    if only in (None, "inputs"):
        photograph_inputs(folder, out)
    click.echo(f"written to {out}")


if __name__ == "__main__":
    main()
