"""The service's page in a real browser: by keyboard, with nothing from outside, and safe."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

pytest.importorskip("fastapi", reason="the service needs the `serve` extra")
pytest.importorskip("selenium", reason="a browser is driven by selenium")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from blackbox import load_model
from blackbox.service.settings import Tokens
from tests.serving import LABELS, TEXTS, running, served, train

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("a browser: install chromium and its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1000,1400",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    one = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield one
    one.quit()


def wait(browser, happens):
    return WebDriverWait(browser, 20).until(lambda _: happens())


def text_of(browser, name):
    return browser.find_element(By.ID, name).text


def complaints(browser):
    """Return what the browser says of scripts, policies and files that are missing."""
    return browser.get_log("browser")


def test_a_text_is_classified_by_keyboard_alone(browser, tmp_path):
    with running(served(train(tmp_path / "m"))) as client:
        browser.get(f"http://localhost:{client.port}/")
        wait(browser, lambda: "money, sport" in text_of(browser, "about"))
        keys = webdriver.ActionChains(browser)
        keys.send_keys(Keys.TAB).send_keys("match goal").send_keys(Keys.TAB)
        keys.send_keys(Keys.ENTER).perform()
        wait(browser, lambda: text_of(browser, "label") == "sport")
        assert browser.switch_to.active_element.get_attribute("id") == "result"
        assert "sport" in text_of(browser, "status")
        assert "%" in text_of(browser, "probabilities")
        assert len(browser.find_elements(By.CSS_SELECTOR, "#prompts tbody tr")) >= 1
        assert browser.find_elements(By.CSS_SELECTOR, "#tokens .for")
        assert complaints(browser) == []


def test_an_example_a_report_and_a_request_are_one_click_away(browser, tmp_path):
    path = train(tmp_path / "m", embeddings="deterministic", keep_examples=True, n_estimators=1)
    with running(served(path)) as client:
        browser.get(f"http://localhost:{client.port}/")
        wait(browser, lambda: "money, sport" in text_of(browser, "about"))
        for text, label in (("match goal", "sport"), ("bank loan", "money")):
            browser.find_element(By.ID, "example").click()
            wait(browser, lambda label=label: text_of(browser, "label") == label)
            assert browser.find_element(By.ID, "text").get_attribute("value") == text
        browser.find_element(By.TAG_NAME, "summary").click()
        wait(browser, lambda: '{"model":"m","text":"…"}' in text_of(browser, "curl"))
        assert f"http://localhost:{client.port}/v1/predict" in text_of(browser, "curl")
        link = browser.find_element(By.ID, "report").get_attribute("href")
        assert complaints(browser) == []
        browser.get(link)
        wait(
            browser, lambda: "1 weak learner over" in browser.find_element(By.TAG_NAME, "main").text
        )
        assert complaints(browser) == []


def ask(browser, text, label):
    """Classify a text on the page."""
    field = browser.find_element(By.ID, "text")
    field.clear()
    field.send_keys(text)
    browser.find_element(By.TAG_NAME, "button").click()
    wait(browser, lambda: text_of(browser, "label") == label)


def test_the_tokens_are_those_that_spoke_for_this_text(browser, tmp_path):
    path = train(tmp_path / "m")
    classifier = load_model(path, backend="deterministic").set_params(store=False)
    with running(served(path)) as client:
        browser.get(f"http://localhost:{client.port}/")
        wait(browser, lambda: "money" in text_of(browser, "about"))
        shown = []
        for text, label in (("match goal", "sport"), ("bank loan", "money")):
            ask(browser, text, label)
            table = {}
            for row in browser.find_elements(By.CSS_SELECTOR, "#tokens tbody tr"):
                name = row.find_element(By.TAG_NAME, "th").text
                words = row.find_elements(By.CSS_SELECTOR, ".token-word")
                table[name] = [word.text.rpartition(" ")[::2] for word in words]
            shown.append(table)
            added = {}
            for learner in classifier.explain(text)["learners"]:
                for token in learner["tokens"]:
                    sign = 1 if token["class"] == label else -1
                    word = token["token"]
                    added[word] = added.get(word, 0.0) + sign * token["adds"]
            best = max(added, key=added.get)
            assert table[label][0] == (best, f"+{added[best]:.2f}")
        assert shown[0] != shown[1]


def test_it_can_be_read_aloud(browser, tmp_path):
    with running(served(train(tmp_path / "m"))) as client:
        browser.get(f"http://localhost:{client.port}/")
        wait(browser, lambda: "money" in text_of(browser, "about"))
        assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
        for field in browser.find_elements(By.CSS_SELECTOR, "textarea, select, input"):
            name = field.get_attribute("id")
            assert browser.find_elements(By.CSS_SELECTOR, f"label[for={name}]"), name
        assert browser.find_element(By.ID, "status").get_attribute("aria-live") == "polite"
        for table in browser.find_elements(By.TAG_NAME, "table"):
            assert table.find_elements(By.TAG_NAME, "caption")
        for scrolls in browser.find_elements(By.CSS_SELECTOR, ".wide"):
            assert scrolls.get_attribute("tabindex") == "0"
            assert scrolls.get_attribute("aria-label")


def test_what_a_model_says_is_text_and_never_markup(browser, tmp_path):
    labels = [EVIL if label == "sport" else "<img src=x onerror=alert(2)>" for label in LABELS]
    prompts = [EVIL + " {text} {mask}", "{text} about {mask}"]
    path = train(tmp_path / "m", TEXTS, labels, prompts=prompts)
    model = served(path, name=EVIL)
    loaded = model.loaded
    evil = dict.fromkeys(loaded.model.token_bytes, EVIL.encode())
    model.loaded = replace(loaded, model=replace(loaded.model, token_bytes=evil))
    with running(model) as client:
        browser.get(f"http://localhost:{client.port}/")
        wait(browser, lambda: EVIL in text_of(browser, "about"))
        browser.find_element(By.ID, "text").send_keys("match " + EVIL)
        browser.find_element(By.TAG_NAME, "button").click()
        wait(browser, lambda: text_of(browser, "label") == EVIL)
        assert EVIL in text_of(browser, "prompts")
        assert EVIL in browser.find_element(By.CSS_SELECTOR, "#tokens .token-word").text
        assert browser.find_elements(By.CSS_SELECTOR, "main script, main img") == []
        assert complaints(browser) == []


def test_several_models_pairs_and_refusals(browser, tmp_path):
    pairs = [(a, b) for a in ("wet", "dry") for b in ("wet", "dry")] * 4
    second = train(
        tmp_path / "pairs",
        pairs,
        [str(a == b) for a, b in pairs],
        prompts=["{text} / {text_pair}: {mask}"],
    )
    with running(
        served(train(tmp_path / "m")), served(second, "pairs"), max_characters=10
    ) as client:
        browser.get(f"http://localhost:{client.port}/")
        wait(browser, lambda: browser.find_element(By.ID, "model").is_displayed())
        assert not browser.find_element(By.ID, "pair").is_displayed()
        browser.find_element(By.ID, "model").send_keys("pairs")
        wait(browser, lambda: browser.find_element(By.ID, "pair").is_displayed())
        browser.find_element(By.ID, "text").send_keys("wet")
        browser.find_element(By.ID, "pair").send_keys("wet")
        browser.find_element(By.TAG_NAME, "button").click()
        wait(browser, lambda: text_of(browser, "label") in ("True", "False"))
        browser.find_element(By.ID, "text").send_keys(" and much too long")
        browser.find_element(By.TAG_NAME, "button").click()
        wait(browser, lambda: "10 characters" in text_of(browser, "status"))
        assert not browser.find_element(By.ID, "result").is_displayed()


def test_it_asks_for_a_token_where_one_is_needed(browser, tmp_path):
    with running(served(train(tmp_path / "m")), tokens=Tokens(["one"])) as client:
        browser.get(f"http://localhost:{client.port}/")
        wait(browser, lambda: browser.find_element(By.ID, "token").is_displayed())
        assert "Enter the token" in text_of(browser, "status")  # it is read aloud
        assert browser.switch_to.active_element.get_attribute("id") == "token"
        browser.find_element(By.ID, "text").send_keys("match goal")
        token = browser.find_element(By.ID, "token")
        token.send_keys("two" + Keys.TAB)
        wait(browser, lambda: "isn't valid" in text_of(browser, "status"))
        token.clear()
        token.send_keys("one")
        # what loads now moves no button from under the pointer
        press = webdriver.ActionChains(browser).click_and_hold(
            browser.find_element(By.TAG_NAME, "button")
        )
        press.pause(0.2).release().perform()
        wait(browser, lambda: text_of(browser, "label") == "sport")
        wait(browser, lambda: "money" in text_of(browser, "about"))


def edges_of(browser, element):
    """Return where the first and the last character of an element are, in pixels from the left."""
    return browser.execute_script(
        """
        const text = document.createTreeWalker(arguments[0], NodeFilter.SHOW_TEXT).nextNode();
        return [0, text.length - 1].map(place => {
            const range = document.createRange();
            range.setStart(text, place);
            range.setEnd(text, place + 1);
            return range.getBoundingClientRect().left;
        });
        """,
        element,
    )


def test_texts_from_right_to_left_keep_their_order(browser, tmp_path):
    """A full stop at the end of an Arabic text stands at its left, and of an English one right."""
    labels = {"sport": "رياضة.", "money": "money."}
    path = tmp_path / "m"
    train(path, labels=[labels[label] for label in LABELS])
    with running(served(path)) as client:
        browser.get(f"http://localhost:{client.port}/")
        wait(browser, lambda: "money." in text_of(browser, "about"))
        ask(browser, "match goal", labels["sport"])
        first, last = edges_of(browser, browser.find_element(By.ID, "label"))
        assert last < first
        names = browser.find_elements(By.CSS_SELECTOR, "#probabilities tbody th")
        shown = {name.text: edges_of(browser, name) for name in names}
        assert shown[labels["sport"]][1] < shown[labels["sport"]][0]
        assert shown[labels["money"]][0] < shown[labels["money"]][1]
        browser.get(browser.find_element(By.ID, "report").get_attribute("href"))
        heads = browser.find_elements(By.CSS_SELECTOR, "th[scope=row]")
        shown = {head.text: edges_of(browser, head) for head in heads if head.text}
        assert shown[labels["sport"]][1] < shown[labels["sport"]][0]
        assert shown[labels["money"]][0] < shown[labels["money"]][1]


def test_an_image_is_chosen_shown_small_and_classified(browser, tmp_path):
    pytest.importorskip("PIL", reason="needs the `images` extra")
    from tests.images_asked import halves
    from tests.test_image_service import LABELS as SIDES
    from tests.test_image_service import PICTURES

    big = tmp_path / "<b>big.png"
    halves(30).resize((640, 320)).save(big)
    path = train(tmp_path / "m", texts=PICTURES, labels=SIDES, label_words=None)
    complaints(browser)  # of earlier tests
    with running(served(path)) as client:
        browser.get(f"http://localhost:{client.port}/")
        wait(browser, lambda: "above, below" in text_of(browser, "about"))
        assert browser.find_element(By.TAG_NAME, "h1").text == "Classify an image"
        assert not browser.find_element(By.ID, "example").is_displayed()
        submit = browser.find_element(By.CSS_SELECTOR, "#form button[type=submit]")
        submit.click()
        wait(browser, lambda: "Choose an image" in text_of(browser, "status"))
        browser.find_element(By.ID, "image").send_keys(str(big))
        shown = browser.find_element(By.ID, "shown")
        wait(browser, shown.is_displayed)
        assert (shown.size["width"], shown.size["height"]) == (160, 80)
        pixels = "return [...shown.getContext('2d').getImageData(80, 5, 1, 1).data]"
        assert min(browser.execute_script(pixels)) > 100  # bright above
        submit.click()
        wait(browser, lambda: text_of(browser, "label") == "above")
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"no image")
        browser.find_element(By.ID, "image").send_keys(str(bad))
        wait(browser, lambda: "no image" in text_of(browser, "status"))
        assert not shown.is_displayed()
        assert complaints(browser) == []


def probabilities(browser):
    """The rows of the table, and those of them that are the prediction."""
    rows = browser.find_elements(By.CSS_SELECTOR, "#probabilities tbody tr")
    names = [row.find_element(By.TAG_NAME, "th").text for row in rows]
    given = [
        name
        for name, row in zip(names, rows, strict=True)
        if "given" in (row.get_attribute("class") or "")
    ]
    return names, given


def test_several_labels_per_text_or_none_are_shown(browser, tmp_path):
    from tests.test_multilabel import LABELS, PROMPTS, SETS, TEXTS

    path = train(tmp_path / "m", TEXTS, SETS, prompts=PROMPTS, n_estimators=20)
    complaints(browser)  # of earlier tests
    with running(served(path)) as client:
        browser.get(f"http://localhost:{client.port}/")
        wait(browser, lambda: "several of them or none per text" in text_of(browser, "about"))
        ask(browser, "it came late, money back please", "delivery, refund")
        assert "Labels: delivery, refund" in text_of(browser, "status")
        assert text_of(browser, "kind") == "Label"
        names, given = probabilities(browser)
        assert sorted(names) == LABELS
        assert sorted(given) == ["delivery", "refund"]
        heads = browser.find_elements(By.CSS_SELECTOR, "#prompts thead th")
        assert sorted(head.text for head in heads[1:]) == LABELS
        assert len(browser.find_elements(By.CSS_SELECTOR, "#tokens tbody tr")) == len(LABELS)
        ask(browser, "hello there", "no label")
        assert "Labels: no label" in text_of(browser, "status")
        assert probabilities(browser)[1] == []
        assert complaints(browser) == []


@pytest.mark.filterwarnings("ignore:the training")
def test_classes_with_an_order_are_shown_in_it(browser, tmp_path):
    from tests.test_ordered import ORDER, PROMPTS, texts_of

    texts, labels = texts_of(60)
    path = train(tmp_path / "m", texts, labels, prompts=PROMPTS, ordered=True, classes=list(ORDER))
    with running(served(path)) as client:
        browser.get(f"http://localhost:{client.port}/")
        wait(browser, lambda: "poor < fair < good < superb" in text_of(browser, "about"))
        expected = client.predict({"text": "slow flat"})[2]["predictions"][0]["label"]
        ask(browser, "slow flat", expected)
        assert probabilities(browser) == (list(ORDER), [expected])
        assert complaints(browser) == []


def test_a_text_of_none_of_the_classes_says_so_and_why(browser, tmp_path):
    from tests.test_none_of_these import KNOWN, PROMPTS, texts_of

    texts, labels = texts_of(KNOWN, 90)
    more, none = texts_of(["other"], 8, seed=1)
    path = train(
        tmp_path / "m", [*texts, *more], [*labels, *none], prompts=PROMPTS, none_of_these="other"
    )
    with running(served(path)) as client:
        browser.get(f"http://localhost:{client.port}/")
        wait(browser, lambda: "sport, or none of these (other)" in text_of(browser, "about"))
        ask(browser, "planet star comet", "other")
        assert "Class: other (none of the classes: " in text_of(browser, "status")
        assert "as unusual, fewer than 5%" in text_of(browser, "status")
        assert probabilities(browser)[1] == []
        assert sorted(probabilities(browser)[0]) == list(KNOWN)
        ask(browser, texts[0], labels[0])
        assert "none of the classes" not in text_of(browser, "status")
        assert probabilities(browser)[1] == [labels[0]]
        assert complaints(browser) == []
