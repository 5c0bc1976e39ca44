//! The report of a run as a browser shows it, and of folders that hold no whole run.

#![allow(clippy::unwrap_used, missing_docs)]

mod workshop;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use workshop::{Workshop, files, text};

/// The records of a page, by run and iteration, as its script reads them.
fn records(page: &str, run: usize, iteration: usize) -> Vec<Value> {
    let begin = format!("class=\"records\" data-run=\"{run}\" data-iteration=\"{iteration}\">");
    let rest = page.split_once(&begin).unwrap_or_else(|| panic!("no records of run {run}, iteration {iteration}")).1;
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

fn browser() -> Option<&'static str> {
    let found = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()));
    if found.is_none() {
        eprintln!("chromium cannot be had here: the page is not opened in a browser");
    }
    found
}

/// The page as the browser has it after its script has run; it must not have complained.
fn opened(browser: &str, page: &Path, behind: &str) -> String {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=8000",
            "--enable-logging=stderr",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--dump-dom", &format!("file://{}{behind}", page.canonicalize().unwrap().display())])
        .output()
        .unwrap();
    let said = text(&output.stderr);
    let complaints: Vec<&str> = said.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    text(&output.stdout)
}

fn cards(shown: &str) -> usize {
    shown.matches("<article class=\"card\"").count()
}

#[test]
fn a_run_ends_with_a_page_of_itself_that_a_browser_opens_filters_and_searches() {
    let workshop = Workshop::new();
    let output = workshop.hermesflow(&["run", "run.yaml", "--watch"]);
    assert!(
        output.status.success() && text(&output.stderr).contains("report: http://127.0.0.1:"),
        "{}",
        text(&output.stderr)
    );
    assert!(text(&output.stderr).contains("look at: out/report.html"), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).trim(), "out/train_iter2/model", "what scripts take");
    let file = workshop.path("out/report.html");
    let page = fs::read_to_string(&file).unwrap();
    assert!(!page.contains("http://") || !page.contains("src=\"http"), "the page needs no network");
    let pairs: Vec<Value> =
        serde_json::from_slice(&fs::read(workshop.path("data/pair_dpo_data.json")).unwrap()).unwrap();
    let all = records(&page, 0, 1);
    assert_eq!(all.len(), 12);
    let taught: Vec<&Value> = all.iter().filter(|record| record["o"] == "pair").collect();
    assert_eq!(taught.len(), pairs.len());
    assert!(!taught.is_empty() && taught.len() < all.len(), "{} of {}", taught.len(), all.len());
    for (record, pair) in taught.iter().zip(&pairs) {
        assert_eq!((&record["id"], &record["c"]), (&pair["id"], &pair["caption"]));
        let image = |side: usize| record["w"]["i"][side].as_u64().unwrap() as usize;
        assert!(pair["image_win"].as_str().unwrap().ends_with(&format!("/{}.png", image(0))));
        assert!(record["g"][image(0)]["s"].as_str().unwrap().starts_with("data:image/"), "inside the page");
        // What the questions added is what the image's score is the mean of.
        let counts: Vec<f64> =
            record["g"][image(0)]["a"].as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
        let mean = counts.iter().sum::<f64>() / counts.len() as f64;
        assert!((mean - pair["vqa_score_win"].as_f64().unwrap()).abs() < 1e-3, "{record}");
        assert_eq!(record["g"][image(0)]["r"].as_array().unwrap().len(), counts.len(), "a reply to every question");
        assert!(
            record["k"].as_array().unwrap().iter().all(|caption| caption[1].is_f64()),
            "every caption has its score"
        );
    }
    assert!(page.contains("Margins") && page.contains("<polyline"), "curves of training");
    assert!(page.contains("colour entropy") && page.contains("train.schedule.steps"));

    let Some(browser) = browser() else { return };
    let shown = opened(browser, &file, "");
    assert_eq!(cards(&shown), 12);
    assert!(shown.contains("12 of 12 records") && shown.contains("Decided most by"), "{}", shown.len());
    let shown = opened(browser, &file, "#pairs?outcome=pair");
    assert_eq!(cards(&shown), taught.len());
    let id = taught[0]["id"].as_str().unwrap();
    let shown = opened(browser, &file, &format!("#pairs?text={id}&open=1"));
    assert_eq!(cards(&shown), 1);
    let question = taught[0]["q"][0][0].as_str().unwrap();
    assert!(shown.contains(&format!("data-id=\"{id}\"")) && shown.contains("<details class=\"questions\" open"));
    assert!(shown.contains(question), "{question}");
    let shown = opened(browser, &file, "#pairs?outcome=dropped&text=no%20such%20words");
    assert_eq!(cards(&shown), 0);
    assert!(shown.contains("0 of 12 records"));
}

#[test]
fn a_run_that_stopped_anywhere_has_a_page_and_two_runs_stand_side_by_side() {
    let workshop = Workshop::new();
    let report = |runs: &[&str], out: &str| {
        workshop.succeeds(&[&["report"], runs, &["--out", out]].concat());
        fs::read_to_string(workshop.path(out)).unwrap()
    };
    workshop.write("begun/config.yaml", &workshop::RUN.replace("data: { root: data,", "data: { root: none, "));
    let page = report(&["begun"], "pages/begun.html");
    assert!(page.contains("Nothing has been made yet") && page.contains("not begun"));
    if let Some(browser) = browser() {
        assert!(opened(browser, &workshop.path("pages/begun.html"), "").contains("There are no records yet."));
    }

    fs::create_dir(workshop.path("out")).unwrap();
    fs::copy(workshop.path("run.yaml"), workshop.path("out/config.yaml")).unwrap();
    for (stage, state) in [
        ("scenes", "not begun"),
        ("caption", "captions are written"),
        ("imagine", "captions are written"),
        ("ask", "not answered yet"),
        ("answer", "answering: 12 of 12"),
        ("pair", "not trained yet"),
        ("train", "finished"),
    ] {
        workshop.succeeds(&[stage, "run.yaml"]);
        let page = report(&["out"], "page.html");
        assert!(page.contains(state), "after {stage}");
        assert_eq!(records(&page, 0, 1).len(), 12);
    }
    // A stage at work: whole lines are read, the torn one is not.
    let answers = workshop.path("data/generation_vqa_results.json");
    let all: Vec<Value> = serde_json::from_slice(&fs::read(&answers).unwrap()).unwrap();
    fs::remove_file(&answers).unwrap();
    fs::remove_file(workshop.path("data/pair_dpo_data.json")).unwrap();
    fs::remove_file(workshop.path("data/pair_dpo_scores.json")).unwrap();
    fs::remove_dir_all(workshop.path("out/train")).unwrap();
    fs::write(answers.with_extension("jsonl"), format!("{}\n{}\n{{\"id\": \"train-0", all[0], all[1])).unwrap();
    let page = report(&["out"], "page.html");
    assert!(page.contains("answering: 2 of 12"));
    assert_eq!(records(&page, 0, 1)[0]["o"], "not chosen yet");

    let page = report(&["out", "begun"], "both.html");
    assert_eq!((records(&page, 0, 1).len(), records(&page, 1, 1).len()), (12, 0));
    assert!(page.contains("out and begun"));
}

#[test]
fn a_folder_that_is_no_run_ends_in_one_message_and_no_page() {
    let workshop = Workshop::new();
    fs::create_dir(workshop.path("empty")).unwrap();
    for (folder, part) in [
        ("empty", "is empty; give the `output` folder"),
        ("model", "holds no config.yaml"),
        ("none", "does not exist"),
        ("run.yaml", "is a file"),
        ("model/showo", "holds no config.yaml"),
    ] {
        let before = files(workshop.folder.path()).len();
        let message = workshop.fails(&["report", folder]);
        assert!(message.contains(part) && message.trim().lines().count() == 1, "{folder}: {message}");
        assert_eq!(files(workshop.folder.path()).len(), before, "{folder}: nothing is written");
    }
    workshop.write("begun/config.yaml", workshop::RUN);
    workshop.write("begun/report.html", "<p>mine</p>");
    let message = workshop.fails(&["report", "begun"]);
    assert!(message.contains("is not a report of this program") && message.contains("--out"), "{message}");
    workshop.succeeds(&["report", "begun", "--out", "other.html"]);
    let first = fs::read(workshop.path("other.html")).unwrap();
    workshop.succeeds(&["report", "begun", "--out", "other.html"]);
    assert_eq!(fs::read(workshop.path("other.html")).unwrap(), first, "the same bytes");
}

#[test]
fn a_served_page_follows_its_run_and_serves_nothing_else() {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;
    let workshop = Workshop::new();
    fs::create_dir(workshop.path("out")).unwrap();
    fs::copy(workshop.path("run.yaml"), workshop.path("out/config.yaml")).unwrap();
    workshop.succeeds(&["scenes", "run.yaml"]);
    let mut server =
        workshop.command(&["report", "out", "--serve"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut address = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let place = address.trim().trim_start_matches("http://").trim_end_matches('/').to_owned();
    let get = |path: &str, host: &str| -> String {
        let mut stream = TcpStream::connect(&place).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        text(&bytes)
    };
    let page = get("/", &place);
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("data-watched=\"yes\""), "{}", &page[..200]);
    assert!(get("/picture/0/images/train-000000.png", &place).contains("image/png"));
    for path in
        ["/picture/0/initial_data.json", "/picture/0/../out/config.yaml", "/picture/0/%2e%2e/run.yaml", "/config.yaml"]
    {
        assert!(get(path, &place).starts_with("HTTP/1.1 404"), "{path}");
    }
    assert!(get("/", "evil.example:80").starts_with("HTTP/1.1 403"));
    let version = get("/version", &place);
    workshop.succeeds(&["caption", "run.yaml"]);
    let began = std::time::Instant::now();
    while get("/version", &place).lines().last() == version.lines().last() {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "no newer page");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    server.kill().unwrap();
    server.wait().unwrap();
}
