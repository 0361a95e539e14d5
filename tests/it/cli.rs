//! The command line, as a program that others run: exit codes, what is on which stream, one line for each line.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};
use sidereal::catalog::synthetic;
use sidereal::ids::TokenId;
use sidereal::model::{DemoSpec, write_demo};
use sidereal::text::{Tokenizer, tiny};

mod demonstration;

/// How a run of the program ended.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    #[track_caller]
    fn done(self) -> Ran {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    /// A run that failed: nothing on standard output, the words on standard error.
    #[track_caller]
    fn failed(self, code: i32, words: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in: {}", self.stderr);
        }
    }

    fn lines(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
            .collect()
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidereal"));
    command.args(args).env_remove("SIDEREAL_LOG").env_remove("RUST_BACKTRACE");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Ran {
    run_with(args, "")
}

fn run_with(args: &[&str], stdin: &str) -> Ran {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    // The program may end before it has read everything; that is its own affair.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().expect("not ended by a signal"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A tiny model and its catalog as files.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        let files = Files { dir: tempfile::tempdir().unwrap() };
        let layout = synthetic::tiny_layout();
        let mut names = Vec::new();
        for kind in &layout.types {
            for (level, &codes) in kind.levels.iter().enumerate() {
                let of_level = kind.token.replace("{level}", &level.to_string());
                names.extend((0..codes).map(|code| of_level.replace("{code}", &code.to_string())));
            }
        }
        let tokenizer = tiny::tokenizer_json(&names);
        let vocab = Tokenizer::from_json(tokenizer.as_bytes(), None, None).unwrap().vocab_size();
        let texts = [
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", tiny::tokenizer_config_json()),
            ("sid_layout.json", serde_json::to_string_pretty(&layout).unwrap()),
        ];
        write_demo(&files.path("model"), &DemoSpec::new(vocab, TokenId(2)), &texts).unwrap();
        let line = |record: sidereal::catalog::ItemRecord| {
            let mut fields: Map<String, Value> = record.attributes;
            fields.insert("id".into(), json!(record.id));
            fields.insert("type".into(), json!(record.item_type));
            fields.insert("title".into(), json!(record.title));
            fields.insert("popularity".into(), json!(record.popularity));
            fields.insert("sid".into(), json!(record.sid));
            format!("{}\n", Value::Object(fields))
        };
        files.write("catalog.jsonl", &synthetic::tiny_records().into_iter().map(line).collect::<String>());
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.arg(name)
    }

    /// A second model folder: links to the first one's files, one of them replaced, or missing.
    fn model_with(&self, name: &str, file: &str, text: Option<&[u8]>) -> String {
        let dir = self.path(name);
        std::fs::create_dir(&dir).unwrap();
        for entry in std::fs::read_dir(self.path("model")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != file {
                std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
            }
        }
        if let Some(text) = text {
            std::fs::write(dir.join(file), text).unwrap();
        }
        self.arg(name)
    }

    fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path("model").join(file)).unwrap()
    }
}

#[test]
fn every_command_explains_itself() {
    let commands: [(&[&str], &[&str]); 10] = [
        (&[], &["generate", "catalog", "bench", "doctor"]),
        (&["catalog"], &["build", "inspect", "verify", "generate"]),
        (&["catalog", "build"], &["--layout", "--model", "--mapping", "--codes", "--on-error", "--out"]),
        (&["catalog", "inspect"], &["--json", "--mapping", "--codes"]),
        (&["catalog", "verify"], &[]),
        (&["catalog", "generate"], &["--items", "--levels", "--skew", "--seed", "--type", "--attributes"]),
        (
            &["generate"],
            &["--model", "--catalog", "--prompt", "--output", "--types", "-n", "--beam-width", "--requests"],
        ),
        (&["bench"], &["model"]),
        (&["bench", "model"], &["--random", "--decode", "--json"]),
        (&["doctor"], &["--json"]),
    ];
    for (command, options) in commands {
        let ran = run(&[command, &["--help"]].concat()).done();
        assert!(
            ran.stdout.contains("Usage: sidereal") && ran.stderr.is_empty(),
            "{command:?}: {}",
            ran.stdout
        );
        for option in options {
            assert!(ran.stdout.contains(option), "{command:?} does not explain {option}:\n{}", ran.stdout);
        }
        // What each option does, not its name alone.
        let lone = ran.stdout.lines().collect::<Vec<_>>();
        let bare = lone.windows(2).find(|pair| {
            // Not the values of an option, which begin with `- `.
            let option =
                |line: &str| line.trim_start().starts_with('-') && !line.trim_start().starts_with("- ");
            option(pair[0])
                && !pair[0].trim().contains("  ")
                && (pair[1].trim().is_empty() || option(pair[1]))
        });
        assert_eq!(bare, None, "{command:?}");
    }
    assert_eq!(run(&["--version"]).done().stdout, format!("sidereal {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_ends_with_2() {
    let table: [(&[&str], &str); 13] = [
        (&[], "Usage"),
        (&["recommend"], "recommend"),
        (&["generate", "--beams", "7"], "--beams"),
        (&["generate", "-n", "many"], "many"),
        (&["generate", "--dtype", "f64"], "f64"),
        (&["generate", "--temperature", "nan"], "not a finite number"),
        (&["generate", "--top-p", "inf"], "not a finite number"),
        (&["generate", "--threads", "0"], "--threads"),
        (&["generate", "--raw"], "--prompt"),
        (&["generate", "--catalog", "c.jsonl"], "--model"),
        (&["generate", "--prompt", "a", "--messages", "m.json"], "--messages"),
        (&["generate", "--requests", "r.jsonl", "--json"], "--json"),
        (&["generate", "--requests", "r.jsonl", "-n", "3"], "-n"),
    ];
    for (args, word) in table {
        run(args).failed(2, &[word]);
    }
}

#[test]
fn a_request_out_of_bounds_ends_with_1() {
    let table: [(&[&str], &[&str]); 9] = [
        (&["-n", "0"], &["error: n:", "0", "512"]),
        (&["-n", "-3"], &["error: n:", "-3", "512"]),
        (&["--beam-width", "513"], &["beam_width", "513", "512"]),
        (&["--beam-width", "8,8"], &["beam_width", "2 widths", "3"]),
        (&["--output", "list"], &["output", "list", "items"]),
        (&["--types", "book,podcast"], &["item_types[1]", "podcast", "album"]),
        (&["--quota", "book"], &["--quota book", "TYPE=N"]),
        (&["--quota", "book=x"], &["--quota book=x", "x"]),
        (&["--max-rows", "0"], &["--max-rows", "0", "65536"]),
    ];
    for (args, words) in table {
        run(&[&["generate"], args].concat()).failed(1, words);
    }
    run(&["generate", "--requests", "no/such/file.jsonl"]).failed(1, &["no/such/file.jsonl", "No such file"]);
    run(&["generate", "--messages", "no/such/file.json"]).failed(1, &["no/such/file.json", "No such file"]);
}

#[test]
fn without_arguments_it_demonstrates_and_does_so_twice() {
    let (first, second) = (run(&["generate"]).done(), run(&["generate"]).done());
    assert_eq!(first.stdout, second.stdout);
    // A line for each item and nothing else: its place, its score, its title, its id.
    assert_eq!(first.stdout.lines().count(), 10, "{}", first.stdout);

    let json = run(&["generate", "--json"]).done();
    assert_eq!((json.stdout.lines().count(), json.stdout.ends_with('\n')), (1, true), "{}", json.stdout);
    let answer = &json.lines()[0];
    assert_eq!((&answer["finish_reason"], &answer["score"]), (&json!("stop"), &json!("codebook")));
    let demonstration = sidereal::demo::builder().unwrap();
    let catalog = demonstration.catalog_ref().unwrap();
    let items = answer["items"].as_array().unwrap();
    assert_eq!(items.len(), 10);
    for (place, (item, line)) in items.iter().zip(first.stdout.lines()).enumerate() {
        let id = item["id"].as_str().unwrap();
        let (item_type, rank) = catalog.find(id).unwrap();
        let found = catalog.item(item_type, rank);
        assert_eq!((item["title"].as_str(), &item["sid"]), (found.title(), &json!(found.codes())), "{id}");
        let score = format!("{:.4}", item["score"].as_f64().unwrap());
        assert!(line.trim_start().starts_with(&(place + 1).to_string()), "{line}");
        assert!(
            line.contains(&score) && line.contains(found.title().unwrap()) && line.contains(id),
            "{line}"
        );
    }
}

#[test]
fn text_and_choices_are_printed_as_they_are() {
    let args = ["generate", "--prompt", "The", "--output", "text", "--max-tokens", "12", "--seed", "3"];
    let (first, second) = (run(&args).done(), run(&args).done());
    assert_eq!(first.stdout, second.stdout);
    let json = run(&[&args[..], &["--json"]].concat()).done();
    let content = json.lines()[0]["content"].clone();
    let text =
        content.as_array().unwrap().iter().map(|part| part["text"].as_str().unwrap()).collect::<String>();
    assert_eq!(first.stdout.trim_end_matches('\n'), text.trim_end_matches('\n'));
    let args =
        ["generate", "--prompt", "Is it?", "--output", "text", "--choice", "yes", "--choice", "no", "--json"];
    let choices = run(&args).done().lines()[0]["choices"].clone();
    let total: f64 =
        choices.as_array().unwrap().iter().map(|choice| choice["probability"].as_f64().unwrap()).sum();
    assert!((total - 1.0).abs() < 1e-5, "{choices}");
}

#[test]
fn a_line_of_requests_gives_a_line_of_answers() {
    let files = Files { dir: tempfile::tempdir().unwrap() };
    let lines = [
        r#"{"id":"good","prompt":"a","output":"items","n":2}"#,
        "",
        r#"{"id":"bound","prompt":"a","output":"items","n":0}"#,
        r#"{"id":"unknown","prompt":"a","beams":3}"#,
        "  \t\r",
        "not json",
        r#"{"id":"type","prompt":"a","n":"3"}"#,
        r#"{"id":7,"prompt":"a"}"#,
        r#"{"prompt":"a","max_tokens":2,"temperature":0}"#,
        r#"{"id":"item","messages":[{"role":"user","content":[{"type":"item","id":"book:0"}]}]}"#,
        "[1,2]",
        "{\"id\":\"last\",\"prompt\":\"a\",\"output\":\"items\",\"n\":1}\r",
    ];
    let text = lines.join("\n");
    let ran = run(&["generate", "--requests", &files.write("requests.jsonl", &text)]).done();
    let expected = [
        ("good", None),
        ("bound", Some(("n", "0 is outside"))),
        ("unknown", Some(("beams", "beams"))),
        ("", Some(("request", "expected"))),
        ("type", Some(("n", "i64"))),
        ("", Some(("id", "7"))),
        ("", None),
        ("item", Some(("messages[0].content[0].id", "book:0"))),
        ("", Some(("", ""))),
        ("last", None),
    ];
    let answers = ran.lines();
    assert_eq!(answers.len(), expected.len(), "{}", ran.stdout);
    for (answer, (id, error)) in answers.iter().zip(expected) {
        assert_eq!(answer["id"].as_str().unwrap_or_default(), id, "{answer}");
        let Some((field, word)) = error else {
            assert!(answer.get("error").is_none() && answer["usage"].is_object(), "{answer}");
            continue;
        };
        let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
        assert!(keys == ["id", "error"] || keys == ["error"], "{answer}");
        let keys: Vec<&String> = answer["error"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["type", "field", "message"], "{answer}");
        assert_eq!(answer["error"]["type"], "invalid_request");
        assert!(field.is_empty() || answer["error"]["field"] == field, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(word), "{answer}");
    }
    assert_eq!((answers[0]["items"].as_array().unwrap().len(), &answers[6]["output"]), (2, &Value::Null));
    assert!(ran.stderr.contains("7 of the requests"), "{}", ran.stderr);

    let piped = run_with(&["generate", "--requests", "-"], &text).done();
    assert_eq!(piped.stdout, ran.stdout);
    let nothing = run_with(&["generate", "--requests", "-"], "\n\n").done();
    assert_eq!(nothing.stdout, "");
}

#[test]
fn more_lines_than_run_together_stay_in_order() {
    let request = |i: usize| match i % 3 {
        0 => json!({"id": i.to_string(), "prompt": "a", "output": "items", "n": 10}),
        1 => json!({"id": i.to_string(), "prompt": "b", "max_tokens": 1 + i % 7, "seed": i}),
        _ => json!({"id": i.to_string(), "prompt": "c", "max_tokens": 0}),
    };
    let text: String = (0..600).map(|i| format!("{}\n", request(i))).collect();
    let ran = run_with(&["generate", "--requests", "-"], &text).done();
    let ids: Vec<String> = ran.lines().iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, (0..600).map(|i| i.to_string()).collect::<Vec<_>>());

    // Whoever closes the pipe early has seen enough, and no error is made of it.
    assert!(ran.stdout.len() > 2 << 16, "the answers fit into the pipe");
    let files = Files { dir: tempfile::tempdir().unwrap() };
    let mut child =
        command(&["generate", "--requests", &files.write("requests.jsonl", &text)]).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_folder_and_a_catalog_answer_like_the_demonstration() {
    let files = Files::new();
    let (model, catalog) = (files.arg("model"), files.arg("catalog.jsonl"));
    let ask = ["--prompt", "Find a film.", "--output", "items", "--types", "film,book", "-n", "7", "--json"];
    let built_in = run(&[&["generate"], &ask[..]].concat()).done().lines();
    assert_eq!(built_in[0]["items"].as_array().unwrap().len(), 7);
    let folder = format!("{}/src/demo/model", env!("CARGO_MANIFEST_DIR"));
    let items = format!("{folder}/catalog.jsonl");
    let same = run(&[&["generate", "--model", &folder, "--catalog", &items], &ask[..]].concat()).done();
    assert_eq!((same.lines(), same.stderr.as_str()), (built_in, ""));
    let opened =
        run(&[&["generate", "--model", &model, "--catalog", &catalog], &ask[..]].concat()).done().lines();
    assert_eq!(opened[0]["items"].as_array().unwrap().len(), 7);
    // A layout of one's own, here found by name in the vocabulary: delimiters, types and levels as before.
    let without = files.model_with("bare", "sid_layout.json", None);
    let detected =
        run(&[&["generate", "--model", &without, "--catalog", &catalog], &ask[..]].concat()).done();
    assert_eq!(detected.lines(), opened);
    let layout = files.path("model").join("sid_layout.json").display().to_string();
    let named = ["generate", "--model", &without, "--catalog", &catalog, "--layout", &layout];
    assert_eq!(run(&[&named, &ask[..]].concat()).done().lines(), opened);
    // Without a catalog there is text, and items are refused by name.
    run(&[&["generate", "--model", &model], &ask[..]].concat()).failed(1, &["output", "catalog"]);
    let text = ["generate", "--model", &model, "--prompt", "The", "--max-tokens", "3", "--json"];
    assert!(run(&text).done().lines()[0]["content"].is_array());
    run(&["generate", "--model", &model]).failed(1, &["--prompt"]);
    // Messages with typed parts come from a file.
    let messages = r#"[{"role": "user", "content": [{"type": "history", "items": ["book:dune"]}]}]"#;
    let messages = files.write("messages.json", messages);
    let typed = ["generate", "--messages", &messages, "--output", "items", "--json"];
    assert_eq!(run(&typed).done().lines()[0]["items"].as_array().unwrap().len(), 10);
}

#[test]
fn a_broken_model_folder_is_refused_with_file_and_place() {
    let files = Files::new();
    let weights = files.read("model.safetensors");
    let config: Value = serde_json::from_slice(&files.read("config.json")).unwrap();
    let with = |key: &str, value: Value| {
        let mut config = config.clone();
        config[key] = value;
        config.to_string().into_bytes()
    };
    let tokenizer = files.read("tokenizer.json");
    #[allow(clippy::type_complexity)] // name, file, contents, words of the message
    let table: Vec<(&str, &str, Option<Vec<u8>>, &[&str])> = vec![
        ("no_config", "config.json", None, &["there is no such file"]),
        ("half_config", "config.json", Some(b"{\"model_type\": ".to_vec()), &["line 1"]),
        (
            "foreign",
            "config.json",
            Some(with("architectures", json!(["MambaForCausalLM"]))),
            &["MambaForCausalLM"],
        ),
        ("wide", "config.json", Some(with("hidden_size", json!(96))), &["96"]),
        ("no_weights", "model.safetensors", None, &[]),
        ("empty_weights", "model.safetensors", Some(Vec::new()), &["0"]),
        (
            "half_weights",
            "model.safetensors",
            Some(weights[..weights.len() / 2].to_vec()),
            &["tensor", "data_offsets"],
        ),
        ("other_weights", "model.safetensors", Some(b"\x89PNG\r\n\x1a\n and so on, and so on".to_vec()), &[]),
        ("no_tokenizer", "tokenizer.json", None, &["No such file"]),
        ("half_tokenizer", "tokenizer.json", Some(tokenizer[..tokenizer.len() / 2].to_vec()), &["line 1"]),
        ("bad_layout", "sid_layout.json", Some(b"{\n \"types\": [{}]}".to_vec()), &["line 2"]),
        (
            "other_layout",
            "sid_layout.json",
            Some(
                json!({"types": [{"name": "book", "levels": [9, 9], "token": "<book_{level}_{code}>"}]})
                    .to_string()
                    .into(),
            ),
            &["<book_0_8>"],
        ),
    ];
    for (name, file, bytes, words) in table {
        let folder = files.model_with(name, file, bytes.as_deref());
        // A wrong width shows in the weights, what is missing or not served in the folder, everything else in the file itself.
        let at = match name {
            "wide" => "model.safetensors".to_owned(),
            "foreign" | "no_weights" => name.to_owned(),
            _ => Path::new(name).join(file).display().to_string(),
        };
        let ran = run(&["generate", "--model", &folder, "--prompt", "a"]);
        println!("{name}: {}", ran.stderr.trim_end());
        ran.failed(1, &[&["error: ", &at], words].concat());
    }
    run(&["generate", "--model", &files.arg("nowhere"), "--prompt", "a"])
        .failed(1, &["nowhere", "is not a folder"]);
}

#[test]
fn a_broken_catalog_or_layout_is_refused_with_file_and_line() {
    let files = Files::new();
    let model = files.arg("model");
    let good = r#"{"id":"a","type":"book","title":"A","popularity":1,"sid":[1,2,3]}"#;
    let table: [(&str, &[&str]); 8] = [
        (r#"{"id":"b","type":"book","sid":[1,2"#, &["line 3"]),
        (r#"{"id":"b","type":"album","sid":[1,2,3]}"#, &["line 3", "album"]),
        (r#"{"id":"b","type":"book","sid":[1,2]}"#, &["line 3", "2", "3"]),
        (r#"{"id":"b","type":"book","sid":[1,2,8]}"#, &["line 3", "8"]),
        (r#"{"id":"b","type":"book","sid":[1,2,-1]}"#, &["line 3"]),
        (r#"{"id":"a","type":"book","sid":[1,2,3]}"#, &["`a`"]),
        (r#"{"type":"book","sid":[1,2,3]}"#, &["line 3", "id"]),
        (r#"["b","book"]"#, &["line 3"]),
    ];
    for (i, (line, words)) in table.into_iter().enumerate() {
        let name = format!("catalog{i}.jsonl");
        let catalog = files.write(&name, &format!("{good}\n\n{line}\n"));
        let ran = run(&["generate", "--model", &model, "--catalog", &catalog, "--prompt", "a"]);
        println!("{}", ran.stderr.trim_end());
        ran.failed(1, &[&[name.as_str()], words].concat());
    }
    let missing = files.arg("no.jsonl");
    let args = ["generate", "--model", &model, "--catalog", &missing, "--prompt", "a"];
    run(&args).failed(1, &["no.jsonl", "No such file"]);
    let weights = files.path("model").join("model.safetensors").display().to_string();
    let args = ["generate", "--model", &model, "--catalog", &weights, "--prompt", "a"];
    run(&args).failed(1, &["model.safetensors", ".jsonl", ".parquet"]);
    let layout = files.write("layout.json", "{\"types\": [],\n \"opener\": 1}");
    let args = ["generate", "--model", &model, "--layout", &layout, "--prompt", "a"];
    run(&args).failed(1, &["layout.json", "line 2", "opener"]);
    // A model that spells no SIDs has no use for a catalog.
    let plain = files.model_with("plain", "sid_layout.json", None);
    std::fs::write(Path::new(&plain).join("tokenizer.json"), tiny::tokenizer_json(&[])).unwrap();
    let args = ["generate", "--model", &plain, "--catalog", &files.arg("catalog.jsonl"), "--prompt", "a"];
    run(&args).failed(1, &["layout", "--layout"]);
}

#[test]
fn the_doctor_reports_as_json_and_as_text() {
    let ran = run(&["doctor", "--json"]).done();
    assert_eq!((ran.stdout.lines().count(), ran.stderr.as_str()), (1, ""));
    let report = &ran.lines()[0];
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        report["cores"].as_u64().unwrap() >= 1 && report["read_gb_s"].as_f64().unwrap() > 0.0,
        "{report}"
    );
    let text = run(&["doctor"]).done().stdout;
    assert!(text.starts_with(&format!("sidereal {}\n", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(text.contains(report["kernels"].as_str().unwrap()), "{text}");
    // GPUs, or a sentence that says why there are none.
    let cuda = &report["cuda"];
    assert_eq!(cuda["built"], cfg!(feature = "cuda"), "{report}");
    match cuda["none"].as_str() {
        Some(why) => assert!(text.contains(&format!("cuda      {why}\n")), "{text}"),
        None => assert!(text.contains(cuda["gpus"][0]["name"].as_str().unwrap()), "{text}"),
    }
    assert_eq!(report["devices"][0], "cpu");
}

#[test]
fn a_small_bench_reports_as_json() {
    let args = "bench model --random tiny --prompt 8 --decode 2 --repeat 1 --beam-width 4 --items 50 --levels 8,8 --json";
    let ran = run(&args.split(' ').collect::<Vec<_>>()).done();
    let figures = &ran.lines()[0];
    assert_eq!(figures["beam"]["levels"], 2);
    assert!(figures["decode_ms"].as_f64().unwrap() > 0.0, "{figures}");
}
