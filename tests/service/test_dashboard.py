"""The dashboard in a real browser, over a real service with real runs and jobs."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streamsparse.report.theme import DARK, LIGHT
from streamsparse.service import auth
from tests.service.browser import CHROMIUM, chromium, digits, visiting
from tests.service.live import Live, make_run, serving

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the path"),
    pytest.mark.xdist_group("browser"),
]
HOSTILE = "<img src=x onerror=alert(1)>"
PAGES = (
    "", "jobs", "runs/small", "runs/small/checkpoints", "runs/small/compare/pruned/pruned", "runs/small/jobs",
    "runs/small/report", "runs/small/about", "runs/captured",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory, solved_run: Path) -> Iterator[Live]:
    """A service over a solved run, a captured one, and one whose texts are markup."""
    root = tmp_path_factory.mktemp("dashboard")
    for name in ("small", "hostile", "gone"):
        shutil.copytree(solved_run, root / name)
    make_run(root / "captured", solved=False)
    manifest = root / "hostile" / "manifest.json"
    about = json.loads(manifest.read_text())
    about["model"]["class"] = about["data"]["spec"] = HOSTILE
    manifest.write_text(json.dumps(about))
    with serving(root, warm=True) as live:
        yield live


@pytest.fixture
def idle(solved_run: Path, tmp_path: Path) -> Iterator[Live]:
    """A service over a solved run that answers and does no job."""
    shutil.copytree(solved_run, tmp_path / "idle" / "small")
    with serving(tmp_path / "idle", jobs=0) as live:
        yield live


def wait_for_plan(page: Any, worth: str = "exact") -> None:
    page.wait_for_selector(f"[data-worth={worth}]")


@contextmanager
def replanning(page: Any) -> Iterator[None]:
    """What happens inside changes the plan; afterwards the new one is shown."""

    def is_full_plan(answer: Any) -> bool:
        return answer.url.endswith("/plan") and '"full":true' in (answer.request.post_data or "")

    with page.expect_response(is_full_plan):
        yield
    wait_for_plan(page)


def value_of(page: Any, label: str) -> str:
    return str(page.locator(".tile", has_text=label).locator(".value").inner_text())


@pytest.mark.parametrize(("scheme", "theme"), [("light", LIGHT), ("dark", DARK)])
def test_every_page_fits_a_small_screen_in_either_scheme(
    browser: Any, dashboard: Live, scheme: str, theme: Any
) -> None:
    with visiting(
        browser, dashboard.url, viewport={"width": 360, "height": 740}, color_scheme=scheme, refused=(409,)
    ) as page:
        for path in PAGES:
            page.evaluate(f"location.hash = '#/{path}'")
            page.wait_for_function(
                "(path) => document.querySelector('main').dataset.page === path", arg=path, polling=20
            )
            page.wait_for_timeout(150)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert colour == "rgb({}, {}, {})".format(*(int(theme.paper[at : at + 2], 16) for at in (1, 3, 5)))
        page.locator("#theme").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != colour
        page.reload()  # the choice stays, from before the first paint
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != colour


def test_the_slider_moves_by_keys_and_shows_what_a_plan_says(browser: Any, dashboard: Live) -> None:
    with visiting(browser, dashboard.url, "runs/small") as page:
        wait_for_plan(page)
        assert page.locator("input[type=number]").first.input_value() == "50"  # the run was solved for params=0.5
        page.locator("input[type=range]").focus()
        before = value_of(page, "Parameters")
        with replanning(page):
            for key in ("PageDown", "PageDown", "ArrowLeft", "ArrowLeft"):
                page.keyboard.press(key)
            assert value_of(page, "Parameters") != before  # at once, from the stored front
        budget = f"params={float(page.locator('input[type=number]').first.input_value()) / 100:.6g}"
        assert 0.1 < float(budget.split("=")[1]) < 0.45
        plan = dashboard.json("POST", "/api/v1/runs/small/plan", json={"budget": budget, "full": True})
        assert digits(value_of(page, "Parameters")) == plan["costs"]["parameters"]
        assert digits(value_of(page, "MACs")) == plan["costs"]["macs"]
        assert float(value_of(page, "Predicted loss")) == pytest.approx(plan["predicted_loss"], rel=0.01)
        labels = page.locator(".group-row").evaluate_all("(rows) => rows.map((row) => row.ariaLabel)")
        counts = [f"{one['name']}: {one['kept']} of {one['size']} channels kept" for one in plan["groups"]]
        assert [label.split(",")[0] for label in labels] == counts
        assert f"{plan['costs']['parameters']:,} parameters" in page.locator("#polite").inner_text()


def test_maximum_error_rounding_and_counts_by_hand(browser: Any, dashboard: Live) -> None:
    with visiting(browser, dashboard.url, "runs/small", refused=(409,)) as page:
        wait_for_plan(page)
        with replanning(page):
            page.locator(".switch label", has_text="Maximum error").click()
        error = float(page.locator("input[type=number]").first.input_value()) / 100
        plan = dashboard.json(
            "POST", "/api/v1/runs/small/plan", json={"budget": f"max-error={error}", "full": True}
        )
        assert digits(value_of(page, "Parameters")) == plan["costs"]["parameters"]
        with replanning(page):
            page.locator(".switch label", has_text="Parameters").click()
        page.get_by_text("Options for all groups").click()
        with replanning(page):
            page.get_by_label("Round counts to").select_option("4")
        kept = page.locator(".group-row").evaluate_all("(rows) => rows.map((row) => row.ariaLabel)")
        counts = [re.search(r": (\d+) of (\d+)", label) for label in kept]
        assert all(int(one[1]) % 4 == 0 or one[1] == one[2] for one in counts if one is not None)
        page.locator(".group-row").nth(1).click()
        panel = page.get_by_role("group", name="Group conv2")
        with replanning(page):
            panel.get_by_label("Channels").select_option("whole")
        assert "8 of 8" in page.locator(".group-row").nth(1).inner_text()
        assert page.locator(".positions svg").count() == 1
        panel.get_by_label("Always drop").fill("9")
        page.keyboard.press("Tab")
        assert "positions from 0 to 7" in panel.get_by_role("alert").inner_text()
        panel.get_by_label("Channels").select_option("budget")
        panel.get_by_label("Always drop").fill("0, 2-3")
        page.keyboard.press("Tab")
        problem = page.locator(".problem")
        problem.wait_for()
        assert "fronts" in problem.inner_text()
        assert page.get_by_text("Find these fronts").is_visible()
        assert page.get_by_role("button", name="Write checkpoint").is_disabled()


def test_a_checkpoint_is_written_downloaded_and_compared(browser: Any, dashboard: Live) -> None:
    with visiting(browser, dashboard.url, "runs/small") as page:
        wait_for_plan(page)
        with replanning(page):
            page.locator("input[type=number]").first.fill("25")
            page.keyboard.press("Enter")
        planned = digits(value_of(page, "Parameters"))
        page.get_by_role("button", name="Write checkpoint").click()
        dialog = page.get_by_role("dialog")
        assert f"{planned:,} parameters" in dialog.inner_text()
        dialog.get_by_label("Name").fill("third")
        dialog.get_by_role("button", name="Write it").click()
        page.locator(".job progress").first.wait_for()
        panel = page.get_by_role("region", name="Download third")
        panel.wait_for()
        assert f"{planned:,} parameters" in panel.inner_text()
        assert "can be downloaded" in page.locator("#polite").inner_text()
        for item in panel.locator("li").all():
            with page.expect_download() as download:
                item.locator("a").click()
            content = Path(download.value.path()).read_bytes()
            assert hashlib.sha256(content).hexdigest() == item.locator(".digest").inner_text()
            assert f"{len(content):,} bytes" in item.inner_text()
        assert panel.locator("li").count() == 3  # the archive, config.json, model.safetensors
        page.get_by_role("link", name="Checkpoints").click()
        for name in ("pruned", "third"):
            page.get_by_label(f"Compare {name}").check()
        page.get_by_role("button", name="Compare two").click()
        row = page.locator("table.compare tr", has_text="Parameters")
        row.wait_for()
        shown = [digits(text) for text in row.locator("td").all_inner_texts()[:2]]
        views = [dashboard.json("GET", f"/api/v1/runs/small/checkpoints/{name}") for name in ("pruned", "third")]
        assert shown == [view["costs"]["parameters"] for view in views]
        kept = page.locator(".network li", has_text="fc1").locator(".kept-count").all_inner_texts()
        assert kept == [f"{view['kept']['fc1']} of 12" for view in views]


@pytest.mark.slow
def test_from_a_capture_to_the_slider_by_jobs(browser: Any, dashboard: Live) -> None:
    with visiting(browser, dashboard.url, "runs/captured", refused=(409,)) as page:
        page.get_by_role("button", name="Accumulate statistics").click()
        page.get_by_role("button", name="Find fronts").click()
        wait_for_plan(page)
        assert page.locator(".group-row").count() == 3
        page.goto(f"{dashboard.url}/#/jobs")
        page.locator(".job-title", has_text="Find fronts").click()
        page.locator(".said li", has_text="solve").first.wait_for()
        assert page.locator(".state").inner_text().strip() == "✓ succeeded"
        assert page.locator("progress").first.evaluate("(bar) => bar.value === bar.max")


def test_queued_jobs_are_cancelled_and_tried_again(browser: Any, idle: Live) -> None:
    with visiting(browser, idle.url, "runs/small/jobs") as page:
        page.get_by_label("Kind").select_option("solve")
        page.get_by_label("Budget", exact=True).fill("params=0.3")
        page.get_by_role("button", name="Submit").click()
        card = page.locator(".job")
        card.get_by_role("button", name="Cancel").click()
        card.locator(".chip.cancelled").wait_for()
        job = idle.json("GET", "/api/v1/jobs")["jobs"][0]
        assert (job["state"], job["parameters"]["budget"]) == ("cancelled", "params=0.3")
        card.get_by_role("button", name="Try again").click()
        card.locator(".chip.queued").wait_for()
        page.get_by_label("Kind").select_option("verify")
        page.get_by_role("button", name="Submit").click()
        page.locator(".job").nth(1).wait_for()
        assert page.locator("#active-jobs").inner_text() == "2"


def test_a_token_is_asked_for_kept_in_the_tab_and_sent(browser: Any, solved_run: Path, tmp_path: Path) -> None:
    shutil.copytree(solved_run, tmp_path / "root" / "small")
    token = auth.new_token(tmp_path / "tokens", "reader", auth.parse_scopes("read"))
    with (
        serving(tmp_path / "root", jobs=0, tokens=tmp_path / "tokens") as live,
        visiting(browser, live.url, "runs/small/checkpoints", refused=(401,)) as page,
    ):
        for given in ("ssp_wrong", token):
            field = page.get_by_role("dialog").get_by_label("Token")
            field.fill(given)
            field.press("Enter")
            page.wait_for_timeout(300)
        panel = page.get_by_role("region", name="Download pruned")
        panel.wait_for()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
        item = panel.locator("li", has_text="model.safetensors")
        with page.expect_download() as download:
            item.locator("a").click()
        content = Path(download.value.path()).read_bytes()
        assert hashlib.sha256(content).hexdigest() == item.locator(".digest").inner_text()
        page.get_by_role("link", name="Budget").click()
        wait_for_plan(page)
        assert page.get_by_role("button", name="Write checkpoint").is_disabled()
        assert "scope" in page.locator(".writer").inner_text()
        page.get_by_role("button", name="Forget token").click()
        page.get_by_role("dialog").wait_for()
        assert page.evaluate("sessionStorage.length") == 0
        page.keyboard.press(
            "Escape"
        )  # whoever declines is told why there is nothing, and not asked again and again
        page.locator(".problem", has_text="token").wait_for()
        page.get_by_role("button", name="Give a token").wait_for()
        assert page.get_by_role("dialog").count() == 0


def test_everything_is_reached_without_a_pointer(browser: Any, dashboard: Live) -> None:
    with visiting(browser, dashboard.url) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        reach(page, "small")
        page.keyboard.press("Enter")
        wait_for_plan(page)
        reach(page, "Budget")  # the tab of the run, then its controls
        page.keyboard.press("Tab")
        reach(page, "", "input[type=radio]")
        reach(page, "", "input[type=range]")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        with replanning(page):
            page.keyboard.press("ArrowRight")
        reach(page, "Write checkpoint …")
        page.keyboard.press("Enter")
        assert page.evaluate("document.querySelector('dialog').contains(document.activeElement)")
        for _ in range(9):  # focus may leave for the browser's own bar, never for the page behind
            page.keyboard.press("Tab")
            assert page.evaluate(
                "document.activeElement === document.body"
                " || document.querySelector('dialog').contains(document.activeElement)"
            )
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.textContent") == "Write checkpoint …"
        wait_for_plan(page)
        reach(page, "conv1", ".group-row")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"


def reach(page: Any, text: str, selector: str = "*") -> None:
    """Press Tab until this has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(
            "([text, selector]) => document.activeElement.matches(selector)"
            " && document.activeElement.textContent.includes(text)",
            [text, selector],
        ):
            return
    raise AssertionError(f"{text} {selector} is not reached")


def test_texts_of_runs_are_never_markup(browser: Any, dashboard: Live) -> None:
    with visiting(browser, dashboard.url, "runs/hostile/about") as page:
        assert HOSTILE in page.locator(".about-run").inner_text()
        assert HOSTILE in page.locator("main").inner_text()
        page.route("**/front?*", lambda route: rename(route, "conv2"))
        page.route("**/plan", lambda route: rename(route, "conv2"))
        page.get_by_role("link", name="Budget").click()
        wait_for_plan(page)
        assert page.locator(".group-name").nth(1).inner_text().endswith(HOSTILE)
        page.locator(".group-row").nth(1).click()
        page.locator("summary", has_text="Layer by layer").click()
        assert page.locator("main img").count() == 0
        page.goto(f"{dashboard.url}/#/")
        page.locator(".run", has_text=HOSTILE).wait_for()
        assert page.locator("main img").count() == 0


def rename(route: Any, group: str) -> None:
    """The service's own answer, with a group of a name that would be markup."""
    answer = route.fetch()
    route.fulfill(response=answer, body=answer.text().replace(f'"{group}"', json.dumps(HOSTILE)))


def test_a_stream_that_breaks_off_goes_on_where_it_was(browser: Any, idle: Live) -> None:
    job = idle.json("POST", "/api/v1/runs/small/jobs", 202, json={"kind": "verify"})["id"]
    for verb in ("cancel", "retry", "cancel"):
        idle.json("POST", f"/api/v1/jobs/{job}/{verb}")
    whole = idle.http.get(f"/api/v1/jobs/{job}/events").text
    frames = [frame for frame in whole.split("\n\n") if "id: " in frame]
    assert len(frames) == 4
    seen: list[str | None] = []

    def answer(route: Any) -> None:
        seen.append(route.request.headers.get("last-event-id"))
        if len(seen) == 1:  # the connection is lost in the middle of the third event
            body = "retry: 10\n\n" + "\n\n".join(frames[:2]) + "\n\n" + frames[2][:12]
            route.fulfill(status=200, headers={"Content-Type": "text/event-stream"}, body=body)
        elif len(seen) == 2:
            route.fulfill(status=503, headers={"Content-Type": "application/problem+json"}, body="{}")
        else:
            route.continue_()

    with visiting(browser, idle.url, refused=(503,)) as page:
        page.route("**/events", answer)
        numbers = page.evaluate(
            """async (job) => {
                const { followJob } = await import("./events.js");
                const numbers = [];
                await followJob(job, { onEvent: (event) => numbers.push(event.number) });
                return numbers;
            }""",
            job,
        )
    assert numbers == list(range(1, len(frames) + 1))
    assert seen == [None, "2", "2", "4"]  # the last one is answered 204: all is known


def test_a_run_is_deleted_in_two_steps(browser: Any, dashboard: Live) -> None:
    with visiting(browser, dashboard.url, "runs/gone/about") as page:
        page.get_by_role("button", name="Delete this run").click()
        dialog = page.get_by_role("dialog")
        assert "deleted with all that it holds" in dialog.inner_text()
        dialog.get_by_label("Type gone to confirm").fill("gon")
        dialog.get_by_role("button", name="Delete").click()
        assert "does not match" in dialog.locator(".problem").inner_text()
        dialog.get_by_label("Type gone to confirm").fill("gone")
        dialog.get_by_role("button", name="Delete").click()
        page.locator("h1", has_text="Runs").wait_for()
        page.locator(".run", has_text="small").first.wait_for()
        assert page.get_by_role("link", name="gone", exact=True).count() == 0
        assert dashboard.http.get("/api/v1/runs/gone").status_code == 404


def test_no_runs_and_no_such_run_say_what_to_do(browser: Any, tmp_path: Path) -> None:
    with serving(tmp_path, jobs=0) as live, visiting(browser, live.url, refused=(404,)) as page:
        assert "streamsparse capture" in page.locator(".empty").inner_text()
        page.evaluate("location.hash = '#/runs/none'")
        page.locator(".problem").wait_for()
        assert "no run of this name" in page.locator(".problem").inner_text()
