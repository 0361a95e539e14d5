//! A small byte-level tokenizer made in code: for the generated demonstration model, for tests and benches.
//!
//! Ids: the five control tokens, 256 bytes, the merges of a short word list, then the caller's layout tokens.

use serde_json::{Map, Value, json};

use crate::text::decoding::byte_to_char;

/// Control tokens, ids 0 to 4: end of text, start and end of a message, opener and closer of a span.
pub const CONTROLS: [&str; 5] =
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|sid_begin|>", "<|sid_end|>"];

/// A chat template for the tiny tokenizer: each message between `<|im_start|>` and `<|im_end|>`.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' \
     + message.content + '<|im_end|>\\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Words that get a token of their own.
const WORDS: &str = " the| a| of| and| to| in| is| for| on| with| that| this| by| at| or| you| your| it| who| like|\
     user|assistant|system|Recommend| next| item| items|Find| an|History|Query|Target| type|Output| text| mixed|\
     Describe| book| books| film| films| podcast| show| story| about| person| interests| because| also| read| watch|\
     Try| then| from| world| love| life| new| good| best| time| man| woman| night| day| year|ing|er|ed|es|ion|ly|\
     ter|ent|al|re|st|an|in|on|or|ar|\n\n";

/// A `tokenizer.json` with `extra_tokens` appended as special added tokens; the same text for the same arguments.
///
/// The vocabulary is dense: the id of `extra_tokens[i]` is that of `extra_tokens[0]` plus `i`.
pub fn tokenizer_json(extra_tokens: &[String]) -> String {
    let mut vocab = Map::new();
    let add = |vocab: &mut Map<String, Value>, token: String| {
        let id = vocab.len();
        vocab.entry(token).or_insert(id.into());
    };
    CONTROLS.iter().for_each(|token| add(&mut vocab, (*token).to_owned()));
    (0..=255u8).for_each(|byte| add(&mut vocab, byte_to_char(byte).to_string()));
    let mut merges = Vec::new();
    for word in WORDS.split('|') {
        // A word is built from left to right: each of its beginnings is a token.
        let chars: Vec<char> = word.bytes().map(byte_to_char).collect();
        for length in 2..=chars.len() {
            let (left, last) =
                (chars[..length - 1].iter().collect::<String>(), chars[length - 1].to_string());
            let token = format!("{left}{last}");
            if !vocab.contains_key(&token) {
                add(&mut vocab, token);
                merges.push(json!([left, last]));
            }
        }
    }
    let first_extra = vocab.len();
    let extra = extra_tokens.iter().enumerate().map(|(place, token)| (first_extra + place, token.as_str()));
    let added: Vec<Value> =
        CONTROLS.iter().copied().enumerate().chain(extra).map(|(id, t)| added(id, t)).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": merges},
    })
    .to_string()
}

/// The `tokenizer_config.json` that goes with [`tokenizer_json`], chat template included.
pub fn tokenizer_config_json() -> String {
    json!({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHAT_TEMPLATE})
        .to_string()
}

fn added(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}
