//! `favonius report`: pages of finished and unfinished runs, of Favonius and of TRL.

mod common;

use std::path::{Path, PathBuf};

use common::*;
use serde_json::{Value, json};

/// Writes a folder like that of a TRL run: the record of a golden file, and a card with versions.
fn trl_run(folder: &Path, golden: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(golden);
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut log = golden["log"].as_array().unwrap().clone();
    // Values that are not numbers, as callbacks of TRL users log them.
    log[0]["note"] = json!("warm-up");
    log[0]["own_metric"] = Value::Null;
    let state = json!({"global_step": log.last().unwrap()["step"], "max_steps": 30,
        "log_history": log});
    let run = folder.join("trl-dpo");
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join("trainer_state.json"), state.to_string()).unwrap();
    std::fs::write(run.join("README.md"), "### Framework versions\n\n- TRL: 1.16.0\n").unwrap();
    run
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn the_page_of_a_run_has_its_settings_answers_and_figures() {
    let world = world("report-ours");
    let recipe = world.join("dpo.yaml").display().to_string();
    let out = world.join("dpo");
    let base = format!("--model_name_or_path={}", world.join("base").display());
    let output_dir = format!("--output_dir={}", out.display());
    let short = ["--max_steps=4", "--logging_steps=1", "--eval_strategy=steps", "--eval_steps=2"];
    let few = ["--max_eval_samples=16", "--beta=0.37", "--quiet"];
    let arguments: Vec<&str> =
        ["dpo", &recipe, &base, &output_dir].into_iter().chain(short).chain(few).collect();
    let (code, shown, err) = run_program(&arguments);
    assert_eq!(code, Some(0), "{shown}{err}");

    let (page, figures) = (world.join("report.html"), world.join("figures"));
    let prompts = world.join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"What colour is the <sea>?\"}\n").unwrap();
    let arguments = [
        "report",
        text(&out),
        "--against=zephyr-7b-beta",
        "--out",
        text(&page),
        "--figures",
        text(&figures),
        "--prompts",
        text(&prompts),
        "--max-new-tokens=8",
    ];
    let (code, shown, err) = run_program(&arguments);
    assert_eq!(code, Some(0), "{shown}{err}");
    let html = std::fs::read_to_string(&page).unwrap();
    for part in [
        "Reward accuracy",
        "Zephyr-7B-β (published)",
        "What colour is the &lt;sea&gt;?",
        "written in the recipe",
        "0.37",
        "gradient_checkpointing",
        "processor",
        "tokens&#x2f;s",
        "eval_rewards&#x2f;margins",
    ] {
        assert!(html.contains(part), "`{part}` is not in the page");
    }
    assert!(!html.contains("http"), "the page refers to the network");
    for name in ["loss.svg", "loss.png", "rewards_margins.png", "learning_rate.svg"] {
        assert!(figures.join(name).is_file(), "{name} is missing");
    }
}

#[test]
fn runs_of_trl_and_runs_without_weights_get_a_page() {
    let folder = scratch("report-trl");
    let run = trl_run(&folder, "trl_dpo_stories.json");
    let page = folder.join("page.html");
    let again = format!("again={}", run.join("trainer_state.json").display());
    let (code, shown, err) =
        run_program(&["report", text(&run), &again, "--out", text(&page), "--title=Two of TRL"]);
    assert_eq!(code, Some(0), "{shown}{err}");
    let no_weights = "trl-dpo: no answers: neither its folder nor a checkpoint holds weights";
    assert!(shown.contains(no_weights), "{shown}");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("<h1>Two of TRL</h1>"));
    assert!(html.contains("steps in common") && html.contains("TRL"));
    assert!(!html.contains("<h2>Answers</h2>"));
}

#[test]
fn the_error_of_a_missing_run_or_a_bad_output_names_it() {
    let folder = scratch("report-nothing");
    let out = folder.join("page.html");
    let (code, _, err) = run_program(&["report", text(&folder), "--out", text(&out)]);
    assert_eq!(code, Some(1));
    assert!(err.contains("holds no run"), "{err}");
    let run = trl_run(&folder, "trl_dpo_stories.json");
    let (code, _, err) = run_program(&["report", text(&run), "--against=zephyr-8b"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("zephyr-7b-beta"), "{err}");
    assert!(!out.exists());
    let state = run.join("trainer_state.json");
    let before = std::fs::read(&state).unwrap();
    let (code, _, err) = run_program(&["report", text(&run), "--out", text(&state)]);
    assert_eq!(code, Some(2));
    assert!(err.contains("is not a page") && err.contains("help:"), "{err}");
    assert_eq!(std::fs::read(&state).unwrap(), before);
    let nowhere = folder.join("missing/page.html");
    let (code, shown, err) = run_program(&["report", text(&run), "--out", text(&nowhere)]);
    assert_eq!(code, Some(1));
    assert!(err.contains("missing does not exist"), "{err}");
    assert!(!shown.contains("no answers"), "a model was asked although the page cannot be written");
}

#[test]
fn a_run_with_huge_losses_gets_a_page() {
    let folder = scratch("report-huge");
    let row = |step: u64, loss: f64| json!({"step": step, "epoch": step as f64, "loss": loss});
    let state = json!({"global_step": 2, "max_steps": 2,
        "log_history": [row(1, 1e308), row(2, -1e308)]});
    std::fs::write(folder.join("trainer_state.json"), state.to_string()).unwrap();
    let (page, figures) = (folder.join("page.html"), folder.join("figures"));
    let out = ["--out", text(&page), "--figures", text(&figures)];
    let (code, shown, err) = run_program(&[&["report", text(&folder)], &out[..]].concat());
    assert_eq!(code, Some(0), "{shown}{err}");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("5e306") && !html.contains("NaN") && !html.contains("Infinity"));
}

/// The program must not panic if nobody reads its output.
#[test]
#[cfg(target_os = "linux")]
fn a_closed_stdout_is_an_error_without_a_panic() {
    let folder = scratch("report-full");
    let run = trl_run(&folder, "trl_dpo_stories.json");
    let page = folder.join("page.html");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = favonius()
        .args(["report", text(&run), "--no-answers", "--out", text(&page)])
        .stdout(full)
        .output()
        .expect("the program starts");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("error: ") && !err.contains("panicked"), "{err}");
    assert!(page.is_file(), "the page must be written before the line that names it");
}

/// The path of Chromium. If it is not installed, prints that the test is skipped and returns
/// `None`.
fn chromium() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let folders: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let found = names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: no Chromium on this machine");
    }
    found
}

/// A script that moves the pointer over a chart and collects what the page shows.
const LOOK: &str = r#"{
const plots = [...document.querySelectorAll("svg.plot")];
const shown = plots.filter((plot) => plot.getBoundingClientRect().height > 50);
const box = shown[0].getBoundingClientRect();
const at = { clientX: box.left + 0.9 * box.width, clientY: box.top + 40, bubbles: true };
shown[0].dispatchEvent(new PointerEvent("pointermove", at));
const readOut = document.getElementById("read-out").innerText;
document.getElementById("by-epoch").click();
const epochs = plots.filter((plot) => plot.getBoundingClientRect().height > 50);
const seen = {
  charts: shown.length, figures: document.querySelectorAll("figure").length, readOut,
  epochs: epochs.length && epochs.every((plot) => plot.classList.contains("by-epoch")),
  wide: document.documentElement.scrollWidth > innerWidth,
  background: getComputedStyle(document.body).backgroundColor,
  errors: window.errors,
};
document.body.innerHTML = "";
document.body.append("SEEN" + JSON.stringify(seen) + "SEEN");
}"#;

/// The result of [`LOOK`] on a page, in a browser with this color scheme and window width.
fn look(chromium: &Path, page: &Path, scheme: u8, width: u32) -> Value {
    let html = std::fs::read_to_string(page).unwrap();
    let catch = "<script>window.errors = []; addEventListener('error', (e) => errors.push(e.message));</script>";
    let html = html
        .replace("<title>", &format!("{catch}<title>"))
        .replace("</body>", &format!("<script>{LOOK}</script></body>"));
    let looked = page.with_extension("looked.html");
    std::fs::write(&looked, html).unwrap();
    let output = std::process::Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
        .arg(format!("--window-size={width},900"))
        .arg(format!("file://{}", looked.display()))
        .output()
        .expect("Chromium starts");
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let seen =
        dom.split("SEEN").nth(1).unwrap_or_else(|| panic!("the script wrote no result into {dom}"));
    serde_json::from_str(seen).unwrap()
}

#[test]
fn the_page_works_in_a_browser() {
    let Some(chromium) = chromium() else { return };
    let folder = scratch("report-browser");
    let run = trl_run(&folder, "trl_dpo_stories.json");
    let page = folder.join("page.html");
    let (code, shown, err) =
        run_program(&["report", text(&run), "--out", text(&page), "--no-answers"]);
    assert_eq!(code, Some(0), "{shown}{err}");
    for (scheme, background) in [(1, "rgb(246, 247, 249)"), (0, "rgb(16, 21, 27)")] {
        let seen = look(&chromium, &page, scheme, 1280);
        assert_eq!(seen["errors"], json!([]), "{seen}");
        assert_eq!(
            seen["charts"], seen["figures"],
            "exactly one plot of each chart must be visible"
        );
        assert!(seen["figures"].as_u64().unwrap() >= 12, "{seen}");
        assert_eq!(seen["epochs"], true, "the axis must change to epochs");
        assert_eq!(seen["wide"], false, "nothing may be wider than the window");
        assert_eq!(seen["background"], background);
        let read_out = seen["readOut"].as_str().unwrap();
        assert!(read_out.contains("step") && read_out.contains("trl-dpo, train"), "{read_out}");
    }
    assert_eq!(look(&chromium, &page, 1, 520)["wide"], false);
}
