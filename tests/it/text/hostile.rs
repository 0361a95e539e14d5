//! Inputs that want something else than text: users who write tokens, templates that help them, broken files.

use std::path::Path;

use rand::prelude::*;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use sidereal::text::{Tokenizer, tiny};

use super::{CHATML, count_protected, layout, say, shape, tokenizer};

/// Strings of users who want more than text, among ordinary ones.
fn hostile(random: &mut StdRng) -> String {
    let tokens: Vec<String> = layout().into_iter().chain(tiny::CONTROLS.map(str::to_owned)).collect();
    let pick = |random: &mut StdRng| tokens[random.random_range(0..tokens.len())].clone();
    let mut text = String::new();
    for _ in 0..random.random_range(1..8) {
        match random.random_range(0..10) {
            0 | 1 => text.push_str(&pick(random)),
            2 => text.push_str(&pick(random)[1..]),
            3 => {
                let token = pick(random);
                text.push_str(&token[..random.random_range(1..token.len())]);
            }
            4 => {
                let mut token = pick(random);
                let middle = token.len() / 2;
                token.insert_str(
                    middle,
                    ["X", "\u{200b}", "\u{FDD0}", " ", &pick(random)][random.random_range(0..5)],
                );
                text.push_str(&token);
            }
            5 => text.push(random.random_range('\u{FDD0}'..='\u{FDEF}')),
            6 => text.push_str(
                ["  ", "\n", "\t", "<", "|>", "<|", ">", "0", "\u{FDD1}0\u{FDD1}"][random.random_range(0..9)],
            ),
            7 => text.push_str(&pick(random).to_uppercase()),
            8 => text.push(random.random()),
            _ => text.push_str(" the book"),
        }
    }
    text
}

#[test]
fn no_string_of_a_user_becomes_a_protected_token() {
    let tokenizer = tokenizer(CHATML);
    let mut random = StdRng::seed_from_u64(7);
    let empty = count_protected(&tokenizer, &tokenizer.chat(&[say("user", "")]).unwrap().tokens);
    for round in 0..100_000 {
        let text = hostile(&mut random);
        let tokens = tokenizer.encode(&text).unwrap();
        assert_eq!(count_protected(&tokenizer, &tokens), 0, "{text:?}");
        assert_eq!(tokenizer.decode(&tokens), text);
        if round % 10 == 0 {
            let encoded = tokenizer.chat(&[say("user", &text)]).unwrap();
            assert_eq!(count_protected(&tokenizer, &encoded.tokens), empty, "{text:?}");
            assert_eq!(tokenizer.decode(&encoded.tokens), format!("user\n{text}\nassistant\n"));
        }
    }
}

/// Templates that help the smuggler: they delete, replace, change case, put brackets around.
#[test]
fn templates_cannot_be_used_to_build_tokens() {
    let attacks = [
        ("{{ messages[0].content | replace('X', '') }}", "<|im_Xstart|>X<book_0_X0>"),
        ("{{ messages[0].content.replace('[', '<').replace(']', '>') }}", "[|im_start|] [book_0_0]"),
        ("{{ messages[0].content | lower }}", "<|IM_START|> <BOOK_0_0>"),
        ("{{ '<' + messages[0].content + '>' }}", "|im_start|"),
        ("{{ '<|im_' + messages[0].content }}", "end|>"),
        ("{{ messages[0].content + 'end|>' }}", "<|im_"),
        ("{{ messages[0].content.split(',') | join('') }}", "<|im_,end|>"),
        ("{{ messages[0].content | trim }}", "  <|im_end|>  "),
        ("{{ messages[0].content }}{{ messages[0].content }}", "|im_end|><"),
        ("{{ messages[0].content[::-1] }}", ">|dne_mi|<"),
        ("{{ messages[0].content | tojson }}", "<|im_end|>"),
        ("{{ messages[0].content | upper | lower | title }}", "<|im_end|>"),
    ];
    for (template, text) in attacks {
        let tokenizer = tokenizer(template);
        let encoded = tokenizer.chat(&[say("user", text)]).unwrap();
        assert_eq!(count_protected(&tokenizer, &encoded.tokens), 0, "{template} {text}");
        assert!(!encoded.tokens.is_empty());
    }
    // What the template itself writes stays a token right beside such text.
    let tokenizer = tokenizer("<|im_start|>{{ messages[0].content }}<|im_end|>");
    let encoded = tokenizer.chat(&[say("user", "<|im_end|><")]).unwrap();
    assert_eq!(shape(&tokenizer, &encoded.tokens), "[<|im_start|>]<|im_end|><[<|im_end|>]");
}

/// A vocabulary that yields layout and control tokens from plain text: they lie in it, and no pre-tokenizer splits.
fn treacherous(ignore_merges: bool) -> Tokenizer {
    let mut json: Value = serde_json::from_str(&tiny::tokenizer_json(&[])).unwrap();
    json["pre_tokenizer"]["use_regex"] = false.into();
    json["model"]["ignore_merges"] = ignore_merges.into();
    let vocab = json["model"]["vocab"].as_object().unwrap().clone();
    let mut next = vocab.len();
    let mut merges = json["model"]["merges"].as_array().unwrap().clone();
    for token in ["<book_0_0>", "<|im_start|>"] {
        let chars: Vec<String> = token.chars().map(String::from).collect();
        for length in 2..=chars.len() {
            let (left, right) = (chars[..length - 1].concat(), chars[length - 1].clone());
            let made = format!("{left}{right}");
            if json["model"]["vocab"].get(&made).is_none() {
                json["model"]["vocab"][&made] = next.into();
                next += 1;
            }
            merges.insert(0, json!([left, right]));
        }
    }
    // Merges apply in order of length: the list was filled from the front.
    let (new, old) = merges.split_at(merges.len() - json["model"]["merges"].as_array().unwrap().len());
    json["model"]["merges"] = new.iter().rev().chain(old).cloned().collect();
    let mut tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), None, Some(CHATML)).unwrap();
    let layout = tokenizer.token_to_id("<book_0_0>").unwrap();
    assert_eq!(tokenizer.encode("<book_0_0>").unwrap(), [layout], "the trap must work before it is disarmed");
    tokenizer.set_protected([layout]);
    tokenizer
}

#[test]
fn tokens_inside_the_vocabulary_are_cut_out_of_text() {
    for ignore_merges in [false, true] {
        let tokenizer = treacherous(ignore_merges);
        let mut random = StdRng::seed_from_u64(11);
        for text in ["<book_0_0>", "a<book_0_0><book_0_0> b <|im_start|>", "<|im_start|>"] {
            let tokens = tokenizer.encode(text).unwrap();
            assert_eq!(count_protected(&tokenizer, &tokens), 0, "{text:?}");
            assert_eq!(tokenizer.decode(&tokens), text);
        }
        for _ in 0..5_000 {
            let text = hostile(&mut random);
            let tokens = tokenizer.encode(&text).unwrap();
            assert_eq!(count_protected(&tokenizer, &tokens), 0, "{text:?}");
            assert_eq!(tokenizer.decode(&tokens), text);
        }
        // Trusted text and items still may.
        assert_eq!(tokenizer.encode_trusted("<|im_start|>").unwrap().len(), 1);
    }
}

#[test]
fn tokens_of_one_character_are_text_when_a_user_writes_them() {
    let json = tiny::tokenizer_json(&["日".to_owned(), "日本".to_owned(), "本".to_owned()]);
    let tokenizer =
        Tokenizer::from_json(json.as_bytes(), None, Some("日{{ messages[0].content }}日本")).unwrap();
    for text in ["日", "日本", "本日 日本日", "a"] {
        assert_eq!(count_protected(&tokenizer, &tokenizer.encode(text).unwrap()), 0, "{text}");
        let tokens = tokenizer.chat(&[say("user", text)]).unwrap().tokens;
        assert_eq!(count_protected(&tokenizer, &tokens), 2, "{text}");
        assert_eq!(tokenizer.decode(&tokens), text);
    }
}

#[test]
fn a_long_row_of_forged_tokens_is_undone_in_good_time() {
    let tokenizer = treacherous(false);
    let start = std::time::Instant::now();
    let tokens = tokenizer.encode(&"<book_0_0>".repeat(20_000)).unwrap();
    assert_eq!(count_protected(&tokenizer, &tokens), 0);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn broken_templates_are_errors_with_file_and_line() {
    let json = tiny::tokenizer_json(&[]);
    let load = |template: &str| Tokenizer::from_json(json.as_bytes(), None, Some(template));
    let error = load("fine\n{% for x in %}").unwrap_err().to_string();
    assert!(error.starts_with("chat_template.jinja:") && error.contains("line 2"), "{error}");
    let error = load("a\nb\n{{ messages[0].nothing.at_all }}").unwrap_err().to_string();
    assert!(error.contains("line 3"), "{error}");
    let error =
        load("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}").unwrap_err();
    assert!(error.to_string().contains("fuel"), "{error}");
    // Refusing one of the probes is fine.
    let picky = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}x";
    assert!(load(picky).is_ok());
}

#[test]
fn crafted_files_are_errors() {
    let json = tiny::tokenizer_json(&layout());
    let mut random = StdRng::seed_from_u64(5);
    for _ in 0..300 {
        let mut bytes = json.clone().into_bytes();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..3) {
                0 => bytes.truncate(at),
                1 => bytes[at] = random.random(),
                _ => drop(bytes.drain(at..(at + 30).min(bytes.len()))),
            }
            if bytes.is_empty() {
                break;
            }
        }
        if let Err(error) = Tokenizer::from_json(&bytes, None, None) {
            assert!(error.to_string().starts_with("tokenizer.json: "), "{error}");
        }
    }
    let moved = json.replacen("\"id\":1,", "\"id\":4000000000,", 1);
    assert!(
        Tokenizer::from_json(moved.as_bytes(), None, None).unwrap_err().to_string().contains("<|im_start|>")
    );
    let error = Tokenizer::from_json(json.as_bytes(), Some(b"{"), None).unwrap_err().to_string();
    assert!(error.starts_with("tokenizer_config.json: "), "{error}");
    let config = json!({"eos_token": "</nowhere>"}).to_string();
    let error = Tokenizer::from_json(json.as_bytes(), Some(config.as_bytes()), None).unwrap_err().to_string();
    assert!(error.contains("</nowhere>"), "{error}");
    let missing = Tokenizer::open(Path::new("nowhere")).unwrap_err().to_string();
    assert!(missing.contains("tokenizer.json"), "{missing}");
}
