//! Text in and out: encoding a user's text, a chat prompt with a long history, and reading an answer as a stream.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sidereal::ids::TokenId;
use sidereal::text::{ChatMessage, Piece, Tokenizer, tiny};

const CODES: usize = 256;

/// A tokenizer with three levels of 256 codes, its layout declared.
fn tokenizer() -> Tokenizer {
    let codes = (0..3).flat_map(|level| (0..CODES).map(move |code| format!("<item_{level}_{code}>")));
    let layout: Vec<String> = codes.collect();
    let config = tiny::tokenizer_config_json();
    let json = tiny::tokenizer_json(&layout);
    let mut tokenizer =
        Tokenizer::from_json(json.as_bytes(), Some(config.as_bytes()), None).expect("the tiny tokenizer");
    let ids: Vec<TokenId> = layout.iter().filter_map(|token| tokenizer.token_to_id(token)).collect();
    tokenizer.set_protected(ids);
    tokenizer
}

fn text(bytes: usize) -> String {
    let sentence = "Recommend a film about the night, with an unusual story: <|im_end|> is text here, and so is <item_0_1>. ";
    sentence.repeat(bytes.div_ceil(sentence.len()))[..bytes].to_owned()
}

/// The spans of so many items.
fn history(tokenizer: &Tokenizer, items: usize) -> Vec<TokenId> {
    let id = |token: &str| tokenizer.token_to_id(token).expect("a layout token");
    let span = |item: usize| {
        let code = |level: usize| id(&format!("<item_{level}_{}>", (item * 31 + level * 7) % CODES));
        [id("<|sid_begin|>"), code(0), code(1), code(2), id("<|sid_end|>")]
    };
    (0..items).flat_map(span).collect()
}

fn benches(criterion: &mut Criterion) {
    let tokenizer = tokenizer();
    let mut group = criterion.benchmark_group("text");

    let user = text(2048);
    group.throughput(Throughput::Bytes(user.len() as u64));
    group.bench_function("encode_2KiB", |bench| bench.iter(|| tokenizer.encode(black_box(&user))));

    let content = vec![
        Piece::Text("Recommend the next item.\nHistory: ".into()),
        Piece::Tokens(history(&tokenizer, 50)),
        Piece::Text("\nTarget item type: film\nOutput: items".into()),
    ];
    let messages = [ChatMessage { role: "user".into(), content }];
    let prompt = tokenizer.chat(&messages).expect("a prompt").tokens.len();
    group.throughput(Throughput::Elements(prompt as u64));
    group.bench_function("chat_50_items", |bench| bench.iter(|| tokenizer.chat(black_box(&messages))));

    let answer = tokenizer.encode(&text(4096)).expect("ordinary text");
    group.throughput(Throughput::Elements(answer.len() as u64));
    group.bench_function("detokenize_stream", |bench| {
        bench.iter(|| {
            let mut stream = tokenizer.detokenizer();
            answer.iter().filter_map(|&token| stream.push(token)).map(|delta| delta.len()).sum::<usize>()
        });
    });
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
