//! What the built-in model answers, the data that it learnt from, and what its answers are worth.

use std::path::PathBuf;

use serde_json::{Value, json};
use sidereal::ids::TokenId;
use sidereal::text::Tokenizer;

use super::{Files, run};

/// The block of the README that begins with a command, without it.
fn shown(command: &str) -> String {
    let readme =
        std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let from = readme
        .find(&format!("$ {command}\n"))
        .unwrap_or_else(|| panic!("README.md does not show `{command}`"));
    let block = &readme[from..];
    let block = &block[..block.find("```").unwrap()];
    block.split_once('\n').unwrap().1.to_owned()
}

#[test]
fn the_walk_is_as_the_readme_shows_it() {
    let walked = run(&["demo"]).done().stdout;
    let shown = shown("cargo run --release -- demo");
    assert_eq!(walked.lines().count(), shown.lines().count(), "{walked}");
    for (found, shown) in walked.lines().zip(shown.lines()) {
        let alike = |(a, b): (&str, &str)| match (a.parse::<f64>(), b.parse::<f64>()) {
            // Another processor adds in other lanes.
            (Ok(a), Ok(b)) => (a - b).abs() < 0.005,
            _ => a == b,
        };
        let words = || found.split_whitespace().zip(shown.split_whitespace());
        assert_eq!(found.split_whitespace().count(), shown.split_whitespace().count(), "{found}");
        assert!(words().all(alike), "prints {found:?}, README.md shows {shown:?}");
    }
}

#[test]
fn tasks_ask_in_the_words_of_training() {
    let answer = |args: &[&str]| run(&[&["generate", "--json"], args].concat()).done().lines()[0].clone();
    let search = answer(&["--task", "search", "--prompt", "alien", "--types", "film", "-n", "3"]);
    let items = search["items"].as_array().unwrap();
    assert!(items.len() == 3 && items.iter().all(|item| item["type"] == "film"), "{search}");
    let written = "Find an item.\nQuery: alien\nTarget item type: film\nOutput: items";
    let by_hand = answer(&["--prompt", written, "--output", "items", "--types", "film", "-n", "3"]);
    assert_eq!(search["items"], by_hand["items"]);
    let next =
        answer(&["--task", "recommend", "--history", "film:alien,book:dune", "--types", "album", "-n", "2"]);
    assert_eq!(next["items"].as_array().unwrap().len(), 2);
    let kind = answer(&["--task", "type", "--item", "book:dune", "--temperature", "0"]);
    assert_eq!(kind["content"][0]["text"], "book", "{kind}");
    for (args, words) in [
        (&["--task", "search"][..], &["search", "--prompt"][..]),
        (&["--task", "recommend", "--prompt", "x"], &["recommend", "--history"]),
        (&["--task", "describe"], &["describe", "--item"]),
        (&["--task", "seek", "--prompt", "x"], &["seek", "search, recommend"]),
        (&["--task", "describe", "--item", "book:none"], &["book:none", "unknown item"]),
    ] {
        run(&[&["generate"], args].concat()).failed(1, words);
    }
}

#[test]
fn training_data_from_a_catalog_of_any_kind() {
    let files = Files::new();
    let (model, catalog, histories) =
        (files.arg("model"), files.arg("catalog.jsonl"), files.arg("histories.jsonl"));
    let simulate = [
        "dataset",
        "simulate",
        "--catalog",
        &catalog,
        "--users",
        "30",
        "--held-out",
        "5",
        "--out",
        &histories,
    ];
    run(&simulate).done();
    let lines = std::fs::read_to_string(&histories).unwrap();
    assert_eq!(lines.lines().count(), 35);
    assert_eq!(lines.matches(r#""split":"test""#).count(), 5);
    let render = ["dataset", "render", "--catalog", &catalog, "--histories", &histories, "--samples", "50"];
    let tokens = run(&[&render[..], &["--model", &model]].concat()).done().lines();
    assert_eq!(tokens.len(), 50);
    for line in &tokens {
        assert!(!line["prompt_token_ids"].as_array().unwrap().is_empty(), "{line}");
        assert_eq!(line["answer_token_ids"].as_array().unwrap().last(), Some(&json!(2)), "{line}");
    }
    // Titles instead of items, which a model without SIDs can learn from.
    let texts = run(&[&render[..], &["--as", "text"]].concat()).done().lines();
    let titles = run(&[&render[..], &["--model", &model, "--items", "titles"]].concat()).done().lines();
    let tokenizer = Tokenizer::open(&files.path("model")).unwrap();
    for (text, line) in texts.iter().zip(&titles) {
        let mut ids: Vec<TokenId> = serde_json::from_value(line["answer_token_ids"].clone()).unwrap();
        ids.pop();
        assert_eq!(json!(tokenizer.decode(&ids)), text["answer"]);
    }
    run(&["dataset", "render", "--catalog", &catalog, "--mix", "recommend=1"])
        .failed(1, &["recommend", "histories"]);
    run(&["dataset", "render", "--catalog", &catalog, "--as", "tokens"]).failed(1, &["--model"]);
    run(&["dataset", "render", "--catalog", &catalog, "--mix", "recommend=x"])
        .failed(2, &["recommend=x", "TASK=SHARE"]);
    run(&["dataset", "simulate", "--catalog", &catalog, "--shortest", "1"]).failed(1, &["--shortest"]);
    run(&["dataset", "simulate", "--catalog", "no/such.jsonl"]).failed(1, &["no/such.jsonl"]);
}

#[test]
fn eval_measures_the_demonstration() {
    let ran = run(&["eval", "--questions", "15", "--texts", "4", "--json"]).done();
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let tasks = report["tasks"].as_array().unwrap();
    assert_eq!(tasks.len(), 3 * 6, "{report}");
    for row in tasks {
        for score in ["hr@1", "hr@10", "ndcg@10", "mrr"] {
            assert!((0.0..=1.0).contains(&row[score].as_f64().unwrap()), "{row}");
        }
        // Every item has a SID of its own here.
        assert_eq!(row["by_sid"]["hr@10"], row["hr@10"]);
        let baselines = row["baselines"].as_object().unwrap();
        assert_eq!(baselines.len(), if row["task"] == "search" { 1 } else { 3 });
        assert!(row["latency_ms"]["p50"].as_f64().unwrap() > 0.0);
    }
    let titles = tasks.iter().filter(|row| row["query"] == "title");
    assert!(titles.map(|row| row["hr@10"].as_f64().unwrap()).all(|hits| hits > 0.8), "{report}");
    let texts = report["texts"].as_array().unwrap();
    let valid = &texts[0]["valid_items"];
    assert!(texts.len() == 4 && valid[0] == valid[1] && valid[0].as_u64().unwrap() >= 4, "{report}");
    let table = run(&["eval", "--questions", "2", "--texts", "1"]).done().stdout;
    assert!(
        table.starts_with("| task | type |") && table.contains("| recommend | album | **model** |"),
        "{table}"
    );
    run(&["eval", "--model", "no/such"]).failed(1, &["--catalog"]);
}
