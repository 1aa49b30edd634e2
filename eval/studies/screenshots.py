"""Make the screenshots of the documentation: the service's page and the report.

    python -m eval.studies.screenshots [--out docs/images] [--store FILE]

Needs Chromium with its driver, and the extras `local`, `serve`, `report` and `test`. The model is
that of the tutorial: forty of the bundled messages, the embedded LM.
"""

from __future__ import annotations

import csv
import io
import re
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


def read_sample(name: str) -> list[dict[str, str]]:
    """Read the rows of a bundled table."""
    text = (files("blackbox") / "samples" / name).read_text("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def train_model(store: Any) -> PromptBoostingClassifier:
    """Train the tutorial's model."""
    few: dict[str, list[str]] = {}
    for row in read_sample("train.csv"):
        few.setdefault(row["label"], []).append(row["text"])
    texts = [text for some in few.values() for text in some[:_PER_CLASS]]
    labels = [label for label, some in few.items() for _ in some[:_PER_CLASS]]
    classifier = PromptBoostingClassifier(
        n_prompts=4, n_screening_rows=16, random_state=0, store=store
    )
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


def photograph_page(driver: Any, address: str, out: Path) -> None:
    """Classify a text on the page, and take a screenshot."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(address)
    wait = WebDriverWait(driver, 60)
    wait.until(lambda d: "prompts" in d.find_element(By.ID, "about").text)
    driver.find_element(By.ID, "text").send_keys(_TEXT)
    driver.find_element(By.TAG_NAME, "button").click()
    wait.until(lambda d: d.find_element(By.ID, "label").text)
    driver.execute_script("window.scrollTo(0, 0)")
    driver.save_screenshot(str(out))


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


@click.command()
@click.option("--out", default=Path("docs/images"), type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(dir_okay=False, path_type=Path))
def main(out: Path, store: Path | None) -> None:
    """Write page and report, light and dark."""
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp())
    model, page = folder / "messages.blackbox", folder / "report.html"
    train_model(store).save(model)
    with (folder / "held-out.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(read_sample("test.csv")[:40])
    store_option = ["--store", str(store)] if store else []
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
            *store_option,
        ],
        check=True,
    )
    with run_service([*command, "serve", str(model), "--port", "0", *store_option]) as address:
        for dark in (False, True):
            name = "dark" if dark else "light"
            driver = start_browser(dark=dark)
            try:
                photograph_page(driver, address, out / f"page-{name}.png")
                driver.get(page.as_uri())
                driver.save_screenshot(str(out / f"report-{name}.png"))
            finally:
                driver.quit()
    click.echo(f"written to {out}")


if __name__ == "__main__":
    main()
