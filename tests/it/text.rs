//! The text room from outside: real prompts, template shapes, smuggled tokens, streams.

// Helpers outside `#[test]` functions are tests too.
#![allow(clippy::unwrap_used)]

mod hostile;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rand::prelude::*;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use sidereal::ids::TokenId;
use sidereal::text::{ChatMessage, Piece, Tokenizer, tiny};

const CHATML: &str = "{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}";

fn layout() -> Vec<String> {
    let code = |level, code| format!("<book_{level}_{code}>");
    (0..3).flat_map(|level| (0..8).map(move |c| code(level, c))).collect()
}

fn tokenizer(template: &str) -> Tokenizer {
    let json = tiny::tokenizer_json(&layout());
    let config = json!({"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}).to_string();
    let mut tokenizer =
        Tokenizer::from_json(json.as_bytes(), Some(config.as_bytes()), Some(template)).unwrap();
    protect(&mut tokenizer);
    tokenizer
}

fn protect(tokenizer: &mut Tokenizer) {
    let tokens = layout().into_iter().chain(tiny::CONTROLS.map(str::to_owned));
    let ids: Vec<TokenId> = tokens.map(|token| tokenizer.token_to_id(&token).unwrap()).collect();
    tokenizer.set_protected(ids);
}

fn say(role: &str, text: &str) -> ChatMessage {
    ChatMessage { role: role.into(), content: vec![Piece::Text(text.into())] }
}

/// The tokens' strings, with text between control tokens joined.
fn shape(tokenizer: &Tokenizer, tokens: &[TokenId]) -> String {
    let token = |id: &TokenId| tokenizer.id_to_token(*id).unwrap();
    let shown = |id: &TokenId| {
        if tokenizer.is_protected(*id) {
            format!("[{}]", token(id))
        } else {
            token(id).replace('Ġ', " ").replace('Ċ', "\n")
        }
    };
    tokens.iter().map(shown).collect()
}

fn count_protected(tokenizer: &Tokenizer, tokens: &[TokenId]) -> usize {
    tokens.iter().filter(|&&token| tokenizer.is_protected(token)).count()
}

fn shared() -> Option<PathBuf> {
    let named = std::env::var_os("SIDEREAL_SHARED").map(PathBuf::from);
    let dir = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let model = dir.join("models/grounded-small");
    if model.is_dir() { Some(model) } else { None }
}

fn read(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The spans of the catalog's items, made from the layout by hand.
fn spans(model: &Path, tokenizer: &Tokenizer) -> HashMap<String, Vec<TokenId>> {
    let layout = read(model.join("sid_layout.json"));
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    let patterns: HashMap<&str, &str> = layout["types"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["name"].as_str().unwrap(), t["token"].as_str().unwrap()))
        .collect();
    let catalog = std::fs::read_to_string(model.join("catalog.jsonl")).unwrap();
    let item = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let pattern = patterns[row["type"].as_str().unwrap()];
        let codes = row["sid"].as_array().unwrap().iter().enumerate();
        let codes = codes.map(|(level, code)| {
            id(&pattern.replace("{level}", &level.to_string()).replace("{code}", &code.to_string()))
        });
        let open = id(layout["open"].as_str().unwrap());
        let close = id(layout["close"].as_str().unwrap());
        let span = std::iter::once(open).chain(codes).chain([close]).collect();
        (row["id"].as_str().unwrap().to_owned(), span)
    };
    catalog.lines().map(item).collect()
}

fn resolve(messages: &Value, spans: &HashMap<String, Vec<TokenId>>) -> Vec<ChatMessage> {
    let piece = |part: &Value| match part["type"].as_str().unwrap() {
        "text" => Piece::Text(part["text"].as_str().unwrap().to_owned()),
        "item" => Piece::Tokens(spans[part["id"].as_str().unwrap()].clone()),
        "history" => {
            let items = part["items"].as_array().unwrap().iter();
            Piece::Tokens(items.flat_map(|id| spans[id.as_str().unwrap()].clone()).collect())
        }
        other => panic!("{other}"),
    };
    let message = |message: &Value| ChatMessage {
        role: message["role"].as_str().unwrap().to_owned(),
        content: message["content"].as_array().unwrap().iter().map(piece).collect(),
    };
    messages.as_array().unwrap().iter().map(message).collect()
}

#[test]
fn prompts_of_the_real_model_are_reproduced() {
    let Some(model) = shared() else {
        println!("skipped: no shared models");
        return;
    };
    let tokenizer = Tokenizer::open(&model).unwrap();
    let spans = spans(&model, &tokenizer);
    let mut prompts = 0;
    for file in ["expected/beams.json", "expected/greedy.json"] {
        for case in read(model.join(file)).as_array().unwrap() {
            let expected: Vec<TokenId> = serde_json::from_value(case["prompt_token_ids"].clone()).unwrap();
            let encoded = tokenizer.chat(&resolve(&case["messages"], &spans)).unwrap();
            assert_eq!(encoded.tokens, expected, "{}", case["messages"]);
            if let Some(text) = case["text"].as_str() {
                let answer: Vec<TokenId> = serde_json::from_value(case["tokens"].clone()).unwrap();
                // The file's text shows special tokens; ours does not.
                let mut plain = text.to_owned();
                while let Some((start, end)) =
                    plain.find('<').and_then(|s| Some((s, s + plain[s..].find('>')?)))
                {
                    plain.replace_range(start..=end, "");
                }
                assert_eq!(tokenizer.decode(&answer), plain);
            }
            prompts += 1;
        }
    }
    assert_eq!(prompts, 120);
}

#[test]
fn chatml_with_items_and_soft_tokens() {
    let tokenizer = tokenizer(CHATML);
    let span: Vec<TokenId> = ["<|sid_begin|>", "<book_0_1>", "<book_1_2>", "<|sid_end|>"]
        .map(|t| tokenizer.token_to_id(t).unwrap())
        .to_vec();
    let content = vec![
        Piece::Text("Likes ".into()),
        Piece::Text("these: ".into()),
        Piece::Tokens(span.clone()),
        Piece::Tokens(span),
        Piece::Soft,
        Piece::Text(" and".into()),
        Piece::Soft,
    ];
    let encoded = tokenizer.chat(&[ChatMessage { role: "user".into(), content: content.clone() }]).unwrap();
    assert_eq!(encoded.soft.len(), 2);
    assert!(encoded.soft.iter().all(|&place| encoded.tokens[place] == TokenId(0)));
    let span = "[<|sid_begin|>][<book_0_1>][<book_1_2>][<|sid_end|>]";
    assert_eq!(
        shape(&tokenizer, &encoded.tokens),
        format!(
            "[<|im_start|>]user\nLikes these: {span}{span}[<|endoftext|>] and[<|endoftext|>][<|im_end|>]\n\
             [<|im_start|>]assistant\n"
        )
    );
    let plain = tokenizer.plain(&content).unwrap();
    let expected = format!("Likes these: {span}{span}[<|endoftext|>] and[<|endoftext|>]");
    assert_eq!(shape(&tokenizer, &plain.tokens), expected);
    assert_eq!(plain.soft.len(), 2);
    // Joined before tokenizing: the same as the joined text.
    let joined = tokenizer.plain(&[Piece::Text("Rec".into()), Piece::Text("ommend".into())]).unwrap().tokens;
    assert_eq!(joined, tokenizer.encode("Recommend").unwrap());
    assert_eq!(joined.len(), 1);
}

#[test]
fn an_unknown_role_is_refused() {
    let tokenizer = tokenizer("{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}");
    let error = tokenizer.chat(&[say("user", "x"), say("im_start", "x")]).unwrap_err();
    assert!(error.to_string().starts_with("messages[1].role: \"im_start\""), "{error}");
}

/// Template shapes in the manner of the common model families, and what they make of a conversation.
#[test]
fn shapes_of_real_templates() {
    let llama3 = "{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}
    {%- else %}{%- set date_string = '?' %}{%- endif %}
{%- endif %}
{{- '<|im_start|>system\\n\\n' }}
{%- if tools is not none %}{{- 'Tools: ' + tools | tojson(indent=4) }}{%- endif %}
{{- 'Year: ' + date_string.split(' ')[-1][:2] + '\\n\\n' + system + '<|im_end|>' }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
    {{- '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n\\n' }}
{%- endif %}
";
    let tokenizer_llama = tokenizer(llama3);
    let encoded = tokenizer_llama.chat(&[say("system", " be brief \n"), say("user", "  hi\n ")]).unwrap();
    assert_eq!(
        shape(&tokenizer_llama, &encoded.tokens),
        "[<|endoftext|>][<|im_start|>]system\n\nYear: 20\n\nbe brief[<|im_end|>][<|im_start|>]user\n\nhi[<|im_end|>]\
         [<|im_start|>]assistant\n\n"
    );

    let mistral = "{%- if messages[0]['role'] == 'system' %}
    {%- set lead = messages[0]['content'] %}{%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate, starting with user') }}
    {%- endif %}
    {%- if turn['role'] == 'user' %}
        {%- if loop.last and lead is defined %}{{- '<|im_start|> ' + lead + '\\n\\n' + turn['content'] + '<|im_end|>' }}
        {%- else %}{{- '<|im_start|> ' + turn['content'] + '<|im_end|>' }}{%- endif %}
    {%- else %}
        {%- generation %}{{- ' ' + turn['content'] + eos_token }}{%- endgeneration %}
    {%- endif %}
{%- endfor %}";
    let tokenizer_mistral = tokenizer(mistral);
    let turns = [say("system", "S"), say("user", "a"), say("assistant", "b"), say("user", "c")];
    let encoded = tokenizer_mistral.chat(&turns).unwrap();
    assert_eq!(
        shape(&tokenizer_mistral, &encoded.tokens),
        "[<|endoftext|>][<|im_start|>] a[<|im_end|>] b[<|im_end|>][<|im_start|>] S\n\nc[<|im_end|>]"
    );
    let error = tokenizer_mistral.chat(&[say("user", "a"), say("user", "b")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "messages: the chat template says: roles must alternate, starting with user"
    );
    assert_eq!(error.kind(), "invalid_request");

    let qwen3 = "{%- set ns = namespace(multi=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi and message.role == 'user' and message.content is string
        and not (message.content.startswith('<answer>') and message.content.endswith('</answer>')) %}
        {%- set ns.multi = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and thought %}
            {{- '<|im_start|>assistant\\n(' + thought.strip('\\n') + ')' + content + '<|im_end|>\\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- 'no thoughts' }}{%- endif %}
{%- endif %}";
    let tokenizer_qwen = tokenizer(qwen3);
    let turns = [say("user", "a"), say("assistant", "<think>\nhm\n</think>\n\nb"), say("user", "c")];
    let encoded = tokenizer_qwen.chat(&turns).unwrap();
    // The template may look into plain text: `</think>` is no token of this tokenizer.
    assert_eq!(
        shape(&tokenizer_qwen, &encoded.tokens),
        "[<|im_start|>]user\na[<|im_end|>]\n[<|im_start|>]assistant\nb[<|im_end|>]\n[<|im_start|>]user\nc[<|im_end|>]\n\
         [<|im_start|>]assistant\n"
    );
}

#[test]
fn tojson_writes_as_python_does() {
    let tokenizer = tokenizer(
        "{{ messages | tojson }}|{{ messages[0].content | tojson(ensure_ascii=True) }}|\
         {{ {'b': [1, 2.5, true, none], 'a': {}} | tojson(indent=2, sort_keys=true) }}",
    );
    let encoded = tokenizer.chat(&[say("user", "<b>'é'\n\"&")]).unwrap();
    assert_eq!(
        tokenizer.decode(&encoded.tokens),
        "[{\"role\": \"user\", \"content\": \"<b>'é'\\n\\\"&\"}]|\"<b>'\\u00e9'\\n\\\"&\"|\
         {\n  \"a\": {},\n  \"b\": [\n    1,\n    2.5,\n    true,\n    null\n  ]\n}"
    );
}

#[test]
fn templates_in_the_configuration() {
    let json = tiny::tokenizer_json(&[]);
    let load = |template: Value| {
        let config = json!({"chat_template": template}).to_string();
        Tokenizer::from_json(json.as_bytes(), Some(config.as_bytes()), None)
    };
    let list = json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]);
    for template in [json!("yes"), list, json!({"default": "yes"})] {
        let tokenizer = load(template).unwrap();
        assert_eq!(tokenizer.decode(&tokenizer.chat(&[say("user", "x")]).unwrap().tokens), "yes");
    }
    let error = load(json!([{"name": "other", "template": "no"}])).unwrap_err();
    assert!(error.to_string().contains("chat_template"), "{error}");
    let none = Tokenizer::from_json(json.as_bytes(), None, None).unwrap();
    assert_eq!(none.chat(&[say("user", "x")]).unwrap_err().kind(), "unsupported");
}

#[test]
fn items_survive_what_templates_do_to_text() {
    let tokenizer = tokenizer("{{ messages[0].content | trim | upper }}");
    let token = tokenizer.token_to_id("<book_0_1>").unwrap();
    let content = vec![Piece::Tokens(vec![token]), Piece::Text(" a  ".into())];
    let encoded = tokenizer.chat(&[ChatMessage { role: "user".into(), content }]).unwrap();
    assert_eq!(shape(&tokenizer, &encoded.tokens), "[<book_0_1>] A");

    let cutting = self::tokenizer("{{ messages[0].content[:2] }}");
    let content = vec![Piece::Tokens(vec![token])];
    assert!(cutting.chat(&[ChatMessage { role: "user".into(), content }]).is_err());
    let dropping = self::tokenizer("x");
    assert!(dropping.chat(&[ChatMessage { role: "user".into(), content: vec![Piece::Soft] }]).is_err());
}

/// A sentencepiece-like tokenizer: normalizer, byte fallback, flags on added tokens, a post-processor with a BOS.
fn sentencepiece(changes: impl FnOnce(&mut Value)) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>"]
        .into_iter()
        .map(str::to_owned)
        .chain((0..256).map(|b| format!("<0x{b:02X}>")))
    {
        vocab.insert(token, vocab.len().into());
    }
    for c in "▁abcdefghijklmnopqrstuvwxyz<>/|".chars() {
        vocab.insert(c.to_string(), vocab.len().into());
    }
    vocab.insert("▁a".into(), vocab.len().into());
    let added = |id: usize, content: &str, normalized: bool, strip: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": strip, "rstrip": strip,
               "normalized": normalized, "special": !normalized})
    };
    let size = vocab.len();
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>", false, false), added(1, "<s>", false, false), added(2, "</s>", false, false),
                         added(size, "<mask>", false, true), added(size + 1, "<fold>", true, false)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                  "merges": [["▁", "a"]]},
    });
    changes(&mut json);
    let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>"}).to_string();
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    Tokenizer::from_json(json.to_string().as_bytes(), Some(config.as_bytes()), Some(template)).unwrap()
}

fn strings(tokenizer: &Tokenizer, tokens: &[TokenId]) -> Vec<String> {
    tokens.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect()
}

#[test]
fn sentencepiece_prompts_and_streams() {
    let tokenizer = sentencepiece(|_| ());
    let plain = tokenizer.plain(&[Piece::Text("a b".into())]).unwrap().tokens;
    assert_eq!(strings(&tokenizer, &plain), ["<s>", "▁a", "▁", "b"]);
    let chat = tokenizer.chat(&[say("user", "a </s>")]).unwrap().tokens;
    assert_eq!(strings(&tokenizer, &chat), ["<s>", "▁a", "▁", "<", "/", "s", ">", "</s>"]);
    for text in ["a b", "é", "日本 語🎉", "  a ", ""] {
        let tokens = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&tokens), text);
    }
}

#[test]
fn only_what_cannot_be_expressed_is_unknown() {
    let tokenizer = sentencepiece(|json| json["model"]["byte_fallback"] = false.into());
    let tokens = tokenizer.encode("aé").unwrap();
    assert_eq!(strings(&tokenizer, &tokens), ["▁a", "<unk>"]);
    let tokens = tokenizer.encode("a<unk>").unwrap();
    assert_eq!(strings(&tokenizer, &tokens), ["▁a", "<", "u", "n", "k", ">"]);
}

/// The library's own `encode`, which finds added tokens everywhere, is the oracle for trusted text.
#[test]
fn trusted_text_is_split_as_the_library_splits_it() {
    let metaspace = |json: &mut Value| {
        json["normalizer"] = Value::Null;
        json["pre_tokenizer"] =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    };
    let mut random = StdRng::seed_from_u64(3);
    let parts = ["<s>", "</s>", "<mask>", "<fold>", " <fold>", " ", "  ", "a", "b", "é", "<", "\n", "<unk>"];
    for changed in [false, true] {
        let mut json = Value::Null;
        let tokenizer = sentencepiece(|value| {
            if changed {
                metaspace(value);
            }
            json = value.clone();
        });
        let library = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
        for _ in 0..5_000 {
            let count = random.random_range(0..8);
            let text: String = (0..count).map(|_| parts[random.random_range(0..parts.len())]).collect();
            let expected: Vec<TokenId> = library
                .encode(text.as_str(), false)
                .unwrap()
                .get_ids()
                .iter()
                .map(|&id| TokenId(id))
                .collect();
            assert_eq!(tokenizer.encode_trusted(&text).unwrap(), expected, "{text:?}");
            if !text.contains('<') {
                assert_eq!(tokenizer.encode(&text).unwrap(), expected, "{text:?}");
            }
            if !expected.is_empty() {
                let ids: Vec<u32> = expected.iter().map(|id| id.0).collect();
                assert_eq!(tokenizer.decode(&expected), library.decode(&ids, true).unwrap(), "{text:?}");
            }
        }
    }
}

#[test]
fn folded_names_are_found_in_the_template_only() {
    let lower = |json: &mut Value| {
        json["normalizer"] = json!({"type": "Lowercase"});
        let added = json["added_tokens"].as_array_mut().unwrap();
        added[4]["content"] = "<FOLD>".into();
    };
    let tokenizer = sentencepiece(lower);
    let fold = tokenizer.token_to_id("<FOLD>").unwrap();
    assert_eq!(tokenizer.encode_trusted("a<fold>").unwrap().last(), Some(&fold));
    for text in ["<fold>", "<FOLD>", "<Fold> <fold>"] {
        assert!(!tokenizer.encode(text).unwrap().contains(&fold));
        assert!(!tokenizer.chat(&[say("user", text)]).unwrap().tokens.contains(&fold), "{text}");
    }
}

#[test]
fn add_bos_token_overrules_the_post_processor() {
    let json = tiny::tokenizer_json(&[]);
    let first = |config: Value| {
        let config = config.to_string();
        let tokenizer = Tokenizer::from_json(json.as_bytes(), Some(config.as_bytes()), None).unwrap();
        tokenizer.plain(&[Piece::Text("a".into())]).unwrap().tokens[0] == TokenId(0)
    };
    assert!(first(json!({"bos_token": "<|endoftext|>", "add_bos_token": true})));
    assert!(!first(json!({"bos_token": "<|endoftext|>", "add_bos_token": false})));
    assert!(!first(json!({"bos_token": "<|endoftext|>"})));
}

#[test]
fn lookups() {
    let tokenizer = tokenizer(CHATML);
    let last = tokenizer.token_to_id("<book_2_7>").unwrap();
    assert_eq!(tokenizer.vocab_size(), last.index() + 1);
    assert!(tokenizer.has(last) && !tokenizer.has(TokenId(last.0 + 1)));
    assert!(tokenizer.is_special(last) && !tokenizer.is_special(TokenId(5)));
    assert_eq!(tokenizer.id_to_token(last).as_deref(), Some("<book_2_7>"));
    assert_eq!(tokenizer.vocab().count(), tokenizer.vocab_size());
    assert_eq!(tokenizer.bos(), Some(TokenId(0)));
    assert_eq!(tokenizer.eos(), Some(TokenId(2)));
    fn shared_by_threads<T: Send + Sync>(_: &T) {}
    shared_by_threads(&tokenizer);
}

proptest! {
    #[test]
    fn a_stream_reads_as_the_whole(text in "\\PC{0,40}", spans in prop::collection::vec(0usize..60, 0..4)) {
        let tokenizer = tokenizer(CHATML);
        let mut tokens = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokens), text.clone());
        // Spans at any place, between the bytes of a character too, are skipped.
        for place in spans {
            tokens.insert(place.min(tokens.len()), tokenizer.token_to_id("<book_0_1>").unwrap());
        }
        let mut stream = tokenizer.detokenizer();
        let mut shown = String::new();
        for token in tokens {
            if let Some(delta) = stream.push(token) {
                prop_assert!(!delta.is_empty());
                shown.push_str(&delta);
                prop_assert!(text.starts_with(&shown));
            }
        }
        prop_assert_eq!(stream.finish(), None);
        prop_assert_eq!(shown, text);
    }
}
